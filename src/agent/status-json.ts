import { formatLsn, type Lsn } from '../core/lsn.ts'
import type { Alarm, NodeReport, ReportedError, SubscriptionReport } from '../mesh/report.ts'
import { notReadyReasons } from './readiness.ts'

/** The answer of `GET /status`, documented in docs/http.md. LSNs are text, times ISO 8601 in UTC. Stable: fields are only added. */
export interface StatusJson {
  readonly node_id: number | null
  readonly node_name: string
  readonly region: string | null
  readonly sterna_version: string
  readonly server_version: string | null
  readonly connected: boolean
  readonly ready: boolean
  readonly started_at: string
  readonly clock_offset_ms: number | null
  readonly last_error: ErrorJson | null
  readonly subscriptions: readonly SubscriptionJson[]
  readonly open_reviews: number | null
  readonly rows_aside: number | null
  readonly alarms: readonly Alarm[]
}

/** What was last failed with. */
export interface ErrorJson {
  readonly code: string
  readonly message: string
  readonly hint: string
  readonly at: string
}

/** One subscription in StatusJson. */
export interface SubscriptionJson {
  readonly name: string
  readonly status: string
  readonly provider_name: string | null
  readonly slot_name: string | null
  readonly replication_sets: readonly string[]
  readonly received_lsn: string | null
  readonly applied_lsn: string | null
  readonly confirmed_lsn: string | null
  readonly provider_lsn: string | null
  readonly lag_bytes: number | null
  readonly lag_seconds: number | null
  readonly retained_wal_bytes: number | null
  readonly transactions: number
  readonly changes: number
  readonly conflicts: Readonly<Record<string, number>>
  readonly exceptions: number
  readonly last_error: ErrorJson | null
  readonly retry_at: string | null
}

/** Turns a report into what HTTP clients get. */
export function statusJson(report: NodeReport): StatusJson {
  return {
    node_id: report.nodeId,
    node_name: report.nodeName,
    region: report.region,
    sterna_version: report.sternaVersion,
    server_version: report.serverVersion,
    connected: report.connected,
    ready: notReadyReasons(report).length === 0,
    started_at: isoTime(report.startedAtMs),
    clock_offset_ms: report.clockOffsetMs,
    last_error: errorJson(report.lastError),
    subscriptions: report.subscriptions.map(subscriptionJson),
    open_reviews: report.openReviews,
    rows_aside: report.rowsAside,
    alarms: report.alarms.map(({ name, subject, message, action, severity }) => ({
      name,
      subject,
      message,
      action,
      severity,
    })),
  }
}

function subscriptionJson(report: SubscriptionReport): SubscriptionJson {
  return {
    name: report.name,
    status: report.status,
    provider_name: report.providerName,
    slot_name: report.slotName,
    replication_sets: report.replicationSets,
    received_lsn: lsnText(report.receivedLsn),
    applied_lsn: lsnText(report.appliedLsn),
    confirmed_lsn: lsnText(report.confirmedLsn),
    provider_lsn: lsnText(report.providerLsn),
    lag_bytes: report.lagBytes,
    lag_seconds: report.lagSeconds,
    retained_wal_bytes: report.retainedWalBytes,
    transactions: report.transactions,
    changes: report.changes,
    conflicts: report.conflicts,
    exceptions: report.exceptions,
    last_error: errorJson(report.lastError),
    retry_at: report.retryAtMs === null ? null : isoTime(report.retryAtMs),
  }
}

function errorJson(error: ReportedError | null): ErrorJson | null {
  return error && { code: error.code, message: error.message, hint: error.hint, at: isoTime(error.atMs) }
}

function lsnText(lsn: Lsn | null): string | null {
  return lsn === null ? null : formatLsn(lsn)
}

function isoTime(unixMs: number): string {
  return new Date(unixMs).toISOString()
}

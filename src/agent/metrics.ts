import { collectDefaultMetrics, Counter, Gauge, Registry } from 'prom-client'

import type { ConflictType } from '../mesh/conflict/rules.ts'
import type { NodeReport, SubscriptionReport } from '../mesh/report.ts'
import { notReadyReasons } from './readiness.ts'

/** All types of conflicts there are. Others count as `other`, so that the label stays bounded. */
const CONFLICT_TYPES: ReadonlySet<string> = new Set<ConflictType>([
  'insert_exists',
  'insert_deleted',
  'update_origin_differs',
  'update_exists',
  'update_missing',
  'update_deleted',
  'delete_origin_differs',
  'delete_missing',
  'multiple_unique_conflicts',
])

/** The metrics of an agent in Prometheus' text form. */
export interface Metrics {
  readonly contentType: string
  /** Renders the metrics as the report has them now. */
  render(report: NodeReport): Promise<string>
}

/**
 * Every metric of the agent, in a registry of its own. Values come from the report at each scrape, so that a dropped
 * subscription leaves no stale series. Labels: subscription (as many as the node has) and conflict type.
 */
export function createMetrics(node: string): Metrics {
  const registry = new Registry()
  registry.setDefaultLabels({ node })
  collectDefaultMetrics({ register: registry })
  const gauge = <L extends string>(name: string, help: string, labelNames: L[] = []): Gauge<L> =>
    new Gauge({ name, help, labelNames, registers: [registry] })
  const counter = <L extends string>(name: string, help: string, labelNames: L[]): Counter<L> =>
    new Counter({ name, help, labelNames, registers: [registry] })

  const info = gauge('sterna_agent_info', 'Always 1; the versions are in the labels.', [
    'version',
    'server_version',
  ])
  const serverUp = gauge('sterna_agent_server_up', '1 while the agent is connected to its own server.')
  const ready = gauge('sterna_agent_ready', '1 while /ready answers 200.')
  const clockOffset = gauge('sterna_agent_clock_offset_seconds', "Server clock minus the agent's clock.")
  const alarms = gauge('sterna_mesh_alarms', 'Alarms that are raised now.', ['severity'])
  const up = gauge('sterna_mesh_subscription_up', '1 while it is replicating or catching up.', [
    'subscription',
  ])
  const lagBytes = gauge(
    'sterna_mesh_subscription_lag_bytes',
    "WAL between the provider's position and ours.",
    ['subscription'],
  )
  const lagSeconds = gauge('sterna_mesh_subscription_lag_seconds', 'Age of what was last applied.', [
    'subscription',
  ])
  const retained = gauge('sterna_mesh_slot_retained_bytes', 'WAL that the slot holds at the provider.', [
    'subscription',
  ])
  const exceptions = gauge('sterna_mesh_exceptions', 'Changes that could not be applied and wait.', [
    'subscription',
  ])
  const openReviews = gauge('sterna_mesh_open_reviews', 'Conflicts that wait for a person to look at them.')
  const rowsAside = gauge(
    'sterna_mesh_rows_aside',
    'Rows that stand back for a newer one with a unique value of theirs.',
  )
  const transactions = counter('sterna_mesh_transactions_total', 'Remote transactions applied.', [
    'subscription',
  ])
  const changes = counter('sterna_mesh_changes_total', 'Remote row changes applied.', ['subscription'])
  const conflicts = counter('sterna_mesh_conflicts_total', 'Conflicts, resolved.', ['subscription', 'type'])

  const setSubscription = (report: SubscriptionReport): void => {
    const labels = { subscription: report.name }
    const isUp = report.status === 'replicating' || report.status === 'catching_up'
    if (report.status !== 'disabled') up.set(labels, isUp ? 1 : 0)
    if (report.lagBytes !== null) lagBytes.set(labels, report.lagBytes)
    if (report.lagSeconds !== null) lagSeconds.set(labels, report.lagSeconds)
    if (report.retainedWalBytes !== null) retained.set(labels, report.retainedWalBytes)
    exceptions.set(labels, report.exceptions)
    transactions.inc(labels, report.transactions)
    changes.inc(labels, report.changes)
    for (const [type, count] of Object.entries(report.conflicts)) {
      conflicts.inc({ ...labels, type: CONFLICT_TYPES.has(type) ? type : 'other' }, count)
    }
  }

  return {
    contentType: registry.contentType,
    render: (report) => {
      const ours = [
        info,
        serverUp,
        ready,
        clockOffset,
        alarms,
        up,
        lagBytes,
        lagSeconds,
        retained,
        exceptions,
        openReviews,
        rowsAside,
      ]
      for (const metric of [...ours, transactions, changes, conflicts]) metric.reset()
      info.set({ version: report.sternaVersion, server_version: report.serverVersion ?? '' }, 1)
      serverUp.set(report.connected ? 1 : 0)
      ready.set(notReadyReasons(report).length === 0 ? 1 : 0)
      if (report.clockOffsetMs === null) clockOffset.remove()
      else clockOffset.set(report.clockOffsetMs / 1000)
      for (const severity of ['warning', 'critical'] as const) {
        alarms.set({ severity }, report.alarms.filter((it) => it.severity === severity).length)
      }
      if (report.openReviews === null) openReviews.remove()
      else openReviews.set(report.openReviews)
      if (report.rowsAside === null) rowsAside.remove()
      else rowsAside.set(report.rowsAside)
      for (const subscription of report.subscriptions) setSubscription(subscription)
      return registry.metrics()
    },
  }
}

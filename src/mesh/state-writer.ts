import { formatLsn, type Lsn } from '../core/lsn.ts'
import type { PgConnection } from '../postgres/connection.ts'
import type { NodeReport, SubscriptionReport } from './report.ts'

/** Writes what the agent knows into the unlogged state tables, from which status is read by SQL. */
export async function writeState(
  control: PgConnection,
  report: NodeReport,
  httpAddress: string | null,
): Promise<void> {
  await control.query(
    `insert into sterna.agent_state as s (singleton, pid, sterna_version, host, http_address, clock_offset_ms, started_at, updated_at)
     values (true, $1, $2, $3, $4, $5, to_timestamp($6::float8 / 1000), clock_timestamp())
     on conflict (singleton) do update set pid = excluded.pid, sterna_version = excluded.sterna_version, host = excluded.host,
       http_address = excluded.http_address, clock_offset_ms = excluded.clock_offset_ms, started_at = excluded.started_at,
       updated_at = excluded.updated_at`,
    [
      process.pid,
      report.sternaVersion,
      process.env['HOSTNAME'] ?? null,
      httpAddress,
      report.clockOffsetMs,
      report.startedAtMs,
    ],
  )
  const rows = report.subscriptions.map(stateRow)
  await control.query(
    `with given as (
       select g.sub_name, g.status, g.received_lsn, g.applied_lsn, g.confirmed_lsn, g.provider_lsn, g.lag_bytes, g.lag_seconds,
              g.retained_wal_bytes, g.transactions, g.changes, g.conflicts, g.exceptions, g.last_error_code, g.last_error,
              g.last_error_hint, g.last_error_at, g.retry_at, clock_timestamp() as updated_at
         from jsonb_populate_recordset(null::sterna.subscription_state, $1::jsonb) g
        where exists (select from sterna.subscription s where s.sub_name = g.sub_name)
     ), gone as (
       delete from sterna.subscription_state s where not exists (select from given g where g.sub_name = s.sub_name)
     )
     insert into sterna.subscription_state as s (sub_name, status, received_lsn, applied_lsn, confirmed_lsn, provider_lsn, lag_bytes,
            lag_seconds, retained_wal_bytes, transactions, changes, conflicts, exceptions, last_error_code, last_error, last_error_hint,
            last_error_at, retry_at, updated_at)
     select sub_name, status, received_lsn, applied_lsn, confirmed_lsn, provider_lsn, lag_bytes, lag_seconds, retained_wal_bytes,
            transactions, changes, conflicts, exceptions, last_error_code, last_error, last_error_hint, last_error_at, retry_at, updated_at
       from given
     on conflict (sub_name) do update set status = excluded.status, received_lsn = excluded.received_lsn, applied_lsn = excluded.applied_lsn,
       confirmed_lsn = excluded.confirmed_lsn, provider_lsn = excluded.provider_lsn, lag_bytes = excluded.lag_bytes,
       lag_seconds = excluded.lag_seconds, retained_wal_bytes = excluded.retained_wal_bytes, transactions = excluded.transactions,
       changes = excluded.changes, conflicts = excluded.conflicts, exceptions = excluded.exceptions,
       last_error_code = excluded.last_error_code, last_error = excluded.last_error, last_error_hint = excluded.last_error_hint,
       last_error_at = excluded.last_error_at, retry_at = excluded.retry_at, updated_at = excluded.updated_at`,
    [JSON.stringify(rows)],
  )
}

function stateRow(report: SubscriptionReport): Record<string, unknown> {
  const lsn = (value: Lsn | null): string | null => (value === null ? null : formatLsn(value))
  const time = (ms: number | null | undefined): string | null =>
    ms == null ? null : new Date(ms).toISOString()
  return {
    sub_name: report.name,
    status: report.status,
    received_lsn: lsn(report.receivedLsn),
    applied_lsn: lsn(report.appliedLsn),
    confirmed_lsn: lsn(report.confirmedLsn),
    provider_lsn: lsn(report.providerLsn),
    lag_bytes: report.lagBytes,
    lag_seconds: report.lagSeconds,
    retained_wal_bytes: report.retainedWalBytes,
    transactions: report.transactions,
    changes: report.changes,
    conflicts: report.conflicts,
    exceptions: report.exceptions,
    last_error_code: report.lastError?.code ?? null,
    last_error: report.lastError?.message ?? null,
    last_error_hint: report.lastError?.hint ?? null,
    last_error_at: time(report.lastError?.atMs),
    retry_at: time(report.retryAtMs),
  }
}

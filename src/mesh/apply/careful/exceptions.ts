import { formatLsn, type Lsn } from '../../../core/lsn.ts'
import { pgTimeOf } from '../../../core/pg-time.ts'
import type { Amounts, Change, Key, SentValues, Values } from '../../conflict/change.ts'
import type { Ask } from './ask.ts'
import type { CarefulTable } from './careful-table.ts'
import type { Refusal } from './row-store.ts'
import { versionParams, versionSql } from './version-text.ts'

/** Why a change is parked. */
export type ParkReason =
  | { readonly tag: 'failed'; readonly refusal: Refusal }
  | { readonly tag: 'behind' }
  | { readonly tag: 'transaction'; readonly refusal: Refusal }

/** A change that is parked, with where it stood in its origin's stream. */
export interface ParkedEntry {
  readonly id: string
  readonly schema: string
  readonly table: string
  readonly change: Change
  /** The key that it removes or touches; for an update of the key, the old one. */
  readonly key: Values
}

const FIRST_RETRY = "interval '30 seconds'"

/** Puts a change into sterna.exception. `key`: as in ParkedEntry. */
export function park(
  ask: Ask,
  table: CarefulTable,
  change: Change,
  key: Values,
  place: { readonly lsn: Lsn; readonly changeNumber: number },
  reason: ParkReason,
): void {
  const refusal = reason.tag === 'behind' ? null : reason.refusal
  const keys = change.tag === 'truncate' ? null : keyHashesOf(change)
  const newRow = change.tag === 'insert' || change.tag === 'update' ? (change.values as Values) : null
  const amounts: Amounts | null = change.tag === 'cancel' ? change.amounts : null
  const oldRow = 'old' in change ? change.old : amounts
  ask.send(
    `insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_oid, table_name, operation, key_hashes, key,
                                   old_row, new_row, version, sqlstate, message, detail, next_retry_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, ${versionSql(12)}, $14, $15, $16,
             case when $1 = 'transaction' then null else clock_timestamp() + ${FIRST_RETRY} end)`,
    [
      reason.tag,
      String(change.version.nodeId),
      formatLsn(place.lsn),
      String(place.changeNumber),
      String(table.guardOid),
      table.name,
      change.tag,
      keys && `{${keys.join(',')}}`,
      JSON.stringify(key),
      oldRow && JSON.stringify(oldRow),
      newRow && JSON.stringify(newRow),
      ...versionParams(change.version),
      refusal?.sqlstate ?? null,
      refusal?.message ?? null,
      refusal?.detail ?? null,
    ],
  )
}

/** The earliest change of an origin that is parked, may be retried now and stands behind no other. */
export async function nextRetriable(ask: Ask, nodeId: number): Promise<ParkedEntry | null> {
  const rows = await ask.lookup(
    `select e.id::text, n.nspname::text, c.relname::text, e.operation, e.key_hashes::text[]::text, e.old_row::text, e.new_row::text,
            sterna.pg_time((e.version).at)::text, (e.version).node_id::text, e.key::text
       from sterna.exception e join pg_class c on c.oid = to_regclass(e.table_name) join pg_namespace n on n.oid = c.relnamespace
      where e.origin_node_id = $1 and e.next_retry_at <= clock_timestamp()
        and not exists (select from sterna.exception b where b.origin_node_id = e.origin_node_id and b.table_oid = e.table_oid and b.id < e.id
                           and (b.key_hashes is null or e.key_hashes is null or b.key_hashes && e.key_hashes))
      order by e.id limit 1`,
    [String(nodeId)],
  )
  const [row] = rows
  if (!row) return null
  const [id, schema, table, operation, hashes, oldRow, newRow, time, node, key] = row
  const version = { time: pgTimeOf(BigInt(time!)), nodeId: Number(node!) }
  const keys = hashes === null ? [] : hashes!.slice(1, -1).split(',')
  return {
    id: id!,
    schema: schema!,
    table: table!,
    key: parse(key!) ?? {},
    change: changeOf(operation as Change['tag'], version, keys, parse(oldRow!), parse(newRow!)),
  }
}

/** An entry has been applied: it goes, and what was parked behind it is due. */
export function settleRetried(ask: Ask, id: string): void {
  ask.send(
    `with gone as (delete from sterna.exception where id = $1 returning table_oid, origin_node_id)
     update sterna.exception e set next_retry_at = clock_timestamp() from gone g
      where e.table_oid = g.table_oid and e.origin_node_id = g.origin_node_id and e.reason = 'behind'`,
    [id],
  )
}

/** Puts the next retry of an entry off: twice as long each time, up to ten minutes. */
export function postpone(ask: Pick<Ask, 'send'>, id: string, refusal: Refusal): void {
  ask.send(POSTPONE_SQL, postponeParams(id, refusal))
}

export const POSTPONE_SQL = `
  update sterna.exception set retries = retries + 1, last_retry_at = clock_timestamp(), sqlstate = $2, message = $3, detail = $4, reason = 'failed',
         next_retry_at = clock_timestamp() + least(${FIRST_RETRY} * 2 ^ least(retries, 10), interval '10 minutes')
   where id = $1`

export function postponeParams(id: string, { sqlstate, message, detail }: Refusal): (string | null)[] {
  return [id, sqlstate, message, detail]
}

function changeOf(
  tag: Change['tag'],
  version: Change['version'],
  hashes: readonly Key[],
  old: Values | null,
  values: Values | null,
): Change {
  const key = hashes.at(-1) ?? ''
  switch (tag) {
    case 'insert':
      return { tag, version, key, values: values ?? {} }
    case 'update':
      return { tag, version, oldKey: hashes[0] ?? key, key, values: (values ?? {}) as SentValues, old }
    case 'delete':
      return { tag, version, key, old }
    case 'cancel':
      return { tag, version, key, amounts: (old ?? {}) as Amounts }
    case 'truncate':
      return { tag, version }
  }
}

function keyHashesOf(change: Exclude<Change, { tag: 'truncate' }>): Key[] {
  return change.tag === 'update' && change.oldKey !== change.key ? [change.oldKey, change.key] : [change.key]
}

function parse(text: string | null): Values | null {
  return text === null ? null : (JSON.parse(text) as Values)
}

import { lsnOf } from '../../../core/lsn.ts'
import { pgTimeOf } from '../../../core/pg-time.ts'
import type { PgConnection } from '../../../postgres/connection.ts'
import type { ConnectTarget } from '../../../postgres/dsn.ts'
import type { KeyedRow } from '../../conflict/key-state.ts'
import { repairVisibility } from '../../conflict/resolve.ts'
import type { RowVersion } from '../../conflict/version.ts'
import { ApplySession } from '../apply-session.ts'
import { TableCatalog } from '../table-catalog.ts'
import type { CarefulTable } from './careful-table.ts'
import { Driver } from './driver.ts'
import { RowStore } from './row-store.ts'

/** Nobody follows what is written under it: each node repairs for itself, to the same end. Origins are of the whole server. */
const ORIGIN_SQL = `select format('sterna_%s_visibility', d.oid) as name from pg_database d where d.datname = current_database()`
const ORIGIN_NODE_ID = 0

/**
 * Rows that stand back return when a local write has freed their unique values: one pass over the tables that have rows
 * aside, each in a transaction of its own. Also forgets rows aside whose key a local insert has used again.
 */
export async function repairTables(
  control: PgConnection,
  target: ConnectTarget,
  node: string,
): Promise<void> {
  const { rows: tables } = await control.query<{ schema: string; name: string }>(
    `select distinct n.nspname::text as schema, c.relname::text as name
       from sterna.aside a join pg_class c on c.oid = to_regclass(a.table_name) join pg_namespace n on n.oid = c.relnamespace`,
  )
  if (tables.length === 0) return
  const named = await control.row<{ name: string }>(ORIGIN_SQL)
  const origin = { name: named!.name, nodeId: ORIGIN_NODE_ID }
  await control.query(
    'select pg_replication_origin_create($1) where not exists (select from pg_replication_origin where roname = $1)',
    [origin.name],
  )
  let failed: Error | undefined
  const handler = {
    onCommitted: () => {},
    onConflict: () => {},
    onEnd: (error: Error) => {
      failed ??= error
    },
  }
  const session = await ApplySession.open(target, `sterna ${node} repair`, origin, handler, async () => {})
  try {
    const catalog = new TableCatalog(session, { local: node, provider: node }, false)
    const store = new RowStore(session, session.care, ORIGIN_NODE_ID, false)
    let progress = session.startProgress
    for (const { schema, name } of tables) {
      const version = await clockOf(session)
      const table = await catalog.carefulByName(schema, name)
      await repairTable(session, store, table, version)
      const lsn = lsnOf((progress ?? 0n) + 1n)
      await session.commitAndWait(
        { finalLsn: lsn, endLsn: lsn, commitTime: version.time, changes: 0 },
        progress,
      )
      progress = lsn
    }
  } catch (error) {
    throw failed ?? error
  } finally {
    await session.close()
  }
}

async function clockOf(session: ApplySession): Promise<RowVersion> {
  const [row] = await session.lookup('select sterna.pg_time(clock_timestamp())::text', [])
  return { time: pgTimeOf(BigInt(row![0]!)), nodeId: ORIGIN_NODE_ID }
}

async function repairTable(
  session: ApplySession,
  store: RowStore,
  table: CarefulTable,
  version: RowVersion,
): Promise<void> {
  session.send('select pg_advisory_xact_lock(sterna.tombstone_lock($1::oid))', [String(table.guardOid)])
  const driver = new Driver(
    { ask: session, originNodeId: ORIGIN_NODE_ID, fetch: () => Promise.resolve(null) },
    table,
    version,
    new Map(),
    () => false,
  )
  const candidates: KeyedRow[] = []
  for (const { key, values } of await table.aside(session)) {
    // Read again under the lock: a local truncate that was waited for has taken it away.
    const { state, staleAside } = await table.hold(session, table.keyValues(values), version)
    if (staleAside) store.dropStale(table, key)
    else if (state.row && !state.row.visible) {
      const row = { ...state.row, key }
      driver.know(row)
      candidates.push(row)
    }
  }
  if (candidates.length === 0) return
  const { writes, collisions } = await driver.drive(repairVisibility(candidates, table.rules))
  // Rows that go on standing back are no news.
  const moved = writes.filter(({ before, after }) => before.row?.visible !== after.row?.visible)
  await store.write(moved, {
    table,
    stamp: null,
    keyValues: (key) => driver.keyValues(key),
    collisions,
    valuesOf: (key) => driver.valuesOf(key),
  })
}

import { SternaError } from '../../core/errors.ts'
import type { PgConnection } from '../../postgres/connection.ts'
import { addressOf, parseDsn } from '../../postgres/dsn.ts'
import { measureClock } from '../doctor/clock.ts'
import { connectNode, type MeshNode } from '../mesh-node.ts'
import type { SubscriptionStatus } from '../report.ts'
import type {
  AgentStatus,
  CleanupStatus,
  NodeStatus,
  QueueStatus,
  SequenceStatus,
  SlotStatus,
  SubscriptionRow,
  TableStatus,
} from './node-status.ts'

/** An agent that has not written for so long does not run. */
const AGENT_SILENT_SECONDS = 15
const CONNECT_TIMEOUT_MS = 4_000
const READ_TIMEOUT_MS = 5_000

/** Reads the status of one node; never takes longer than a few seconds, and a node that is away is a value. */
export async function readNodeStatus(node: MeshNode): Promise<NodeStatus> {
  const address = addressOf(parseDsn(node.dsn))
  let timedOut = false
  try {
    const { conn } = await connectNode(node, 'status', CONNECT_TIMEOUT_MS)
    const deadline = setTimeout(() => {
      timedOut = true
      conn.destroy()
    }, READ_TIMEOUT_MS)
    try {
      return await readConnected(node, address, conn)
    } finally {
      clearTimeout(deadline)
      await conn.close()
    }
  } catch (error) {
    if (!(error instanceof SternaError)) throw error
    const reason = `no answer within ${READ_TIMEOUT_MS / 1000} s`
    const shown = timedOut ? new SternaError('SERVER_UNREACHABLE', { address, reason }, error) : error
    return { ...UNKNOWN, name: node.name, address, region: node.region ?? null, error: shown }
  }
}

const UNKNOWN = {
  nodeId: null,
  serverVersion: null,
  clock: null,
  agent: null,
  subscriptions: [],
  slots: [],
  sequences: [],
  tables: [],
  cleanups: [],
  queues: null,
} as const

async function readConnected(node: MeshNode, address: string, conn: PgConnection): Promise<NodeStatus> {
  const serverVersion = conn.parameter('server_version') ?? null
  const local = await readLocal(conn)
  const clock = await measureClock(conn, node.name)
  const agent = await readAgent(conn, local)
  const [subscriptions, slots, sequences, tables, cleanups, queues] = await Promise.all([
    readSubscriptions(conn),
    readSlots(conn),
    readSequences(conn),
    readTables(conn),
    local.sees_all ? readCleanups(conn) : [],
    local.sees_queues ? readQueues(conn) : null,
  ])
  return {
    name: node.name,
    address,
    error: null,
    nodeId: local.node_id,
    region: local.location ?? node.region ?? null,
    serverVersion,
    clock,
    agent,
    subscriptions,
    slots,
    sequences,
    tables,
    cleanups,
    queues,
  }
}

interface LocalRow {
  readonly node_id: number
  readonly location: string | null
  readonly sterna_version: string | null
  readonly heartbeat_age_seconds: number | null
  readonly sees_all: boolean
  readonly sees_queues: boolean
}

async function readLocal(conn: PgConnection): Promise<LocalRow> {
  const found = await conn.row<{ present: boolean }>(
    `select pg_catalog.to_regclass('sterna.nodes') is not null as present`,
  )
  const row = found?.present
    ? await conn.row<LocalRow>(
        `select node_id, location, sterna_version,
           extract(epoch from pg_catalog.clock_timestamp() - heartbeat_at)::float8 as heartbeat_age_seconds,
           pg_catalog.has_table_privilege('sterna.agent_state', 'SELECT')
             and pg_catalog.has_table_privilege('sterna.slot_cleanup', 'SELECT') as sees_all,
           pg_catalog.to_regclass('sterna.review') is not null
             and coalesce(pg_catalog.has_table_privilege(pg_catalog.to_regclass('sterna.review'), 'SELECT')
                          and pg_catalog.has_table_privilege(pg_catalog.to_regclass('sterna.aside'), 'SELECT'), false) as sees_queues
         from sterna.nodes where is_local`,
      )
    : undefined
  if (!row) throw new SternaError('NOT_A_NODE', { address: conn.address })
  return row
}

/** What the agent wrote about itself; a role that may not read that sees the age of its heartbeat. */
async function readAgent(conn: PgConnection, local: LocalRow): Promise<AgentStatus> {
  const row = local.sees_all
    ? await conn.row<{
        pid: number | null
        sterna_version: string | null
        host: string | null
        http_address: string | null
        silent_seconds: number | null
      }>(
        `select pid, sterna_version, host, http_address,
           extract(epoch from pg_catalog.clock_timestamp() - updated_at)::float8 as silent_seconds
         from sterna.agent_state`,
      )
    : undefined
  const silentSeconds = row?.silent_seconds ?? local.heartbeat_age_seconds
  return {
    alive: silentSeconds !== null && silentSeconds < AGENT_SILENT_SECONDS,
    version: row?.sterna_version ?? local.sterna_version,
    pid: row?.pid ?? null,
    host: row?.host ?? null,
    httpAddress: row?.http_address ?? null,
    silentSeconds,
  }
}

async function readSubscriptions(conn: PgConnection): Promise<SubscriptionRow[]> {
  const { rows } = await conn.query<{
    name: string
    status: SubscriptionStatus
    provider: string | null
    slot_name: string | null
    replication_sets: string[]
    lag_bytes: bigint | null
    lag_seconds: number | null
    received_lsn: string | null
    applied_lsn: string | null
    transactions: bigint
    changes: bigint
    conflicts: Record<string, number>
    exceptions: bigint
    last_error_code: string | null
    last_error: string | null
    hint: string | null
  }>(
    `select subscription_name as name, status, provider_node as provider, slot_name, replication_sets, lag_bytes,
       lag_seconds, received_lsn::text, applied_lsn::text, transactions, changes, conflicts, exceptions,
       last_error_code, last_error, hint
     from sterna.sub_show_status() order by subscription_name`,
  )
  return rows.map((row) => ({
    name: row.name,
    status: row.status,
    provider: row.provider,
    slotName: row.slot_name,
    replicationSets: row.replication_sets,
    lagBytes: row.lag_bytes === null ? null : Number(row.lag_bytes),
    lagSeconds: row.lag_seconds,
    receivedLsn: row.received_lsn,
    appliedLsn: row.applied_lsn,
    transactions: Number(row.transactions),
    changes: Number(row.changes),
    conflicts: row.conflicts,
    exceptions: Number(row.exceptions),
    lastError:
      row.last_error === null ? null : { code: row.last_error_code, message: row.last_error, hint: row.hint },
  }))
}

async function readSequences(conn: PgConnection): Promise<SequenceStatus[]> {
  const { rows } = await conn.query<{
    name: string
    owned_by: string | null
    used_percent: number | null
    warning: string
  }>(
    `select quote_ident(schema_name) || '.' || quote_ident(sequence_name) as name, owned_by,
       used_percent::float8, warning
     from sterna.sequences where warning is not null order by 1`,
  )
  return rows.map((row) => ({
    name: row.name,
    ownedBy: row.owned_by,
    usedPercent: row.used_percent,
    warning: row.warning,
  }))
}

async function readSlots(conn: PgConnection): Promise<SlotStatus[]> {
  const { rows } = await conn.query<{
    name: string
    active: boolean
    wal_status: string | null
    retained_bytes: bigint | null
  }>(
    `select slot_name::text as name, active, wal_status,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::bigint as retained_bytes
     from pg_catalog.pg_replication_slots where database = pg_catalog.current_database() order by slot_name`,
  )
  return rows.map((row) => ({
    name: row.name,
    active: row.active,
    walStatus: row.wal_status,
    retainedBytes: row.retained_bytes === null ? null : Number(row.retained_bytes),
    ours: row.name.startsWith('sterna_'),
  }))
}

async function readTables(conn: PgConnection): Promise<TableStatus[]> {
  const { rows } = await conn.query<TableStatus>(
    `select quote_ident(t.schema_name) || '.' || quote_ident(t.table_name) as name, t.replicates, t.reason,
       c.relpersistence = 'u' or coalesce(t.reason like 'it was taken out%', false) as deliberate
     from sterna.tables t
     join pg_catalog.pg_namespace n on n.nspname = t.schema_name
     join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.table_name
     where t.replicates <> 'all' order by 1`,
  )
  return rows
}

async function readCleanups(conn: PgConnection): Promise<CleanupStatus[]> {
  const { rows } = await conn.query<{
    slot_name: string | null
    provider: string | null
    waiting_seconds: number
    last_error: string | null
  }>(
    `select slot_name::text, provider_node_name::text as provider, last_error,
       extract(epoch from pg_catalog.clock_timestamp() - requested_at)::float8 as waiting_seconds
     from sterna.slot_cleanup order by id`,
  )
  return rows.map((row) => ({
    slotName: row.slot_name,
    provider: row.provider,
    waitingSeconds: row.waiting_seconds,
    lastError: row.last_error,
  }))
}

async function readQueues(conn: PgConnection): Promise<QueueStatus> {
  const row = await conn.row<QueueStatus>(
    `select (select count(*)::float8 from sterna.review where closed_at is null) as "openReviews",
            (select count(*)::float8 from sterna.aside) as "rowsAside"`,
  )
  return row!
}

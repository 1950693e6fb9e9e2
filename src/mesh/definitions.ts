import type { OnException } from './apply/careful/careful-lane.ts'
import type { Lsn } from '../core/lsn.ts'
import type { PgConnection } from '../postgres/connection.ts'

/** The node that this database is. */
export interface LocalNode {
  readonly nodeId: number
  readonly nodeName: string
  readonly location: string | null
  readonly databaseOid: number
  readonly systemId: string
}

/** A subscription as defined in `sterna.subscription`. Null fields are not known before the first contact. */
export interface SubscriptionDefinition {
  readonly name: string
  readonly providerDsn: string
  readonly providerNodeId: number | null
  readonly providerName: string | null
  readonly providerSystemId: string | null
  readonly providerDatabaseOid: number | null
  readonly slotName: string | null
  readonly originName: string | null
  readonly replicationSets: readonly string[]
  readonly applyDelayMs: number
  readonly forceText: boolean
  readonly enabled: boolean
  /** What is done with a change that the server refuses. */
  readonly onException: OnException
  /** The slot exists, and the origin's progress is set to where it begins. */
  readonly initialized: boolean
  /** Tells it from one that had its name before. */
  readonly createdAt: string
}

/** Reads which node this database is; null when node_create has not been called. */
export async function readLocalNode(connection: PgConnection): Promise<LocalNode | null> {
  const row = await connection.row<{
    id: number
    name: string
    location: string | null
    db: number
    system_id: string
  }>(
    `select n.node_id as id, n.node_name::text as name, n.location, d.oid as db, s.system_identifier::text as system_id
       from sterna.local_node l join sterna.node n using (node_id), pg_database d, pg_control_system() s
      where d.datname = current_database()`,
  )
  if (!row) return null
  return {
    nodeId: row.id,
    nodeName: row.name,
    location: row.location,
    databaseOid: row.db,
    systemId: row.system_id,
  }
}

interface SubscriptionRow {
  name: string
  provider_dsn: string
  provider_node_id: number | null
  provider_node_name: string | null
  provider_system_id: string | null
  provider_database_oid: bigint | null
  slot_name: string | null
  origin_name: string | null
  replication_sets: string[]
  apply_delay_ms: number
  force_text: boolean
  enabled: boolean
  on_exception: OnException
  initialized: boolean
  created_at: string
}

/** Reads all subscriptions of this node, by name. */
export async function readSubscriptions(connection: PgConnection): Promise<SubscriptionDefinition[]> {
  const { rows } = await connection.query<SubscriptionRow>(
    `select sub_name::text as name, provider_dsn, provider_node_id, provider_node_name::text, provider_system_id,
            provider_database_oid::bigint, slot_name::text, origin_name, replication_sets::text[],
            (extract(epoch from apply_delay) * 1000)::float8 as apply_delay_ms, force_text_transfer as force_text, enabled, on_exception,
            initialized_at is not null as initialized, created_at::text
       from sterna.subscription order by sub_name`,
  )
  return rows.map((row) => ({
    name: row.name,
    providerDsn: row.provider_dsn,
    providerNodeId: row.provider_node_id,
    providerName: row.provider_node_name,
    providerSystemId: row.provider_system_id,
    providerDatabaseOid: row.provider_database_oid === null ? null : Number(row.provider_database_oid),
    slotName: row.slot_name,
    originName: row.origin_name,
    replicationSets: row.replication_sets,
    applyDelayMs: row.apply_delay_ms,
    forceText: row.force_text,
    enabled: row.enabled,
    onException: row.on_exception,
    initialized: row.initialized,
    createdAt: row.created_at,
  }))
}

/** The parts of a definition that, when changed, make a running subscription start again. */
export function runtimeKey(definition: SubscriptionDefinition): string {
  const { createdAt, providerDsn, replicationSets, applyDelayMs, forceText, enabled, onException } =
    definition
  return JSON.stringify([
    createdAt,
    providerDsn,
    replicationSets,
    applyDelayMs,
    forceText,
    enabled,
    onException,
  ])
}

/** SQL for a pg_lsn as a bigint-friendly numeric; parse with `lsnFromNumeric`. */
export function lsnAsNumber(expression: string): string {
  return `((${expression}) - '0/0'::pg_lsn)::text`
}

/** Reads what `lsnAsNumber` selected. */
export function lsnFromNumeric(text: string): Lsn {
  return BigInt(text) as Lsn
}

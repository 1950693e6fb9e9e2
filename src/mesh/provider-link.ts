import { SternaError } from '../core/errors.ts'
import { LSN_ZERO, type Lsn } from '../core/lsn.ts'
import { PgConnection } from '../postgres/connection.ts'
import { addressOf, type ConnectTarget } from '../postgres/dsn.ts'
import { ServerError, sqlstateOf } from '../postgres/server-error.ts'
import {
  lsnAsNumber,
  lsnFromNumeric,
  readLocalNode,
  type LocalNode,
  type SubscriptionDefinition,
} from './definitions.ts'

const QUERY_TIMEOUT_MS = 20_000

/** What one look at the provider shows. */
export interface ProviderSample {
  readonly currentLsn: Lsn
  /** WAL kept for our slot; null when the slot is not there. */
  readonly retainedWalBytes: number | null
  /** `reserved`, `extended`, `unreserved`, `lost`; null when the slot is not there. */
  readonly walStatus: string | null
}

/** An ordinary connection to a subscription's provider, for everything but the stream itself. */
export class ProviderLink {
  readonly connection: PgConnection
  readonly node: LocalNode
  readonly dsn: string

  private constructor(connection: PgConnection, node: LocalNode, dsn: string) {
    this.connection = connection
    this.node = node
    this.dsn = dsn
  }

  /**
   * Connects and makes sure that the provider is the node it should be.
   * @throws PROVIDER_NOT_A_NODE, WAL_LEVEL_TOO_LOW, SUBSCRIPTION_TO_SELF, NODE_IDENTITY_CLASH, PROVIDER_REPLACED, or
   *   what connecting throws
   */
  static async open(
    target: ConnectTarget,
    definition: SubscriptionDefinition,
    local: LocalNode,
    signal: AbortSignal,
  ): Promise<ProviderLink> {
    const address = addressOf(target)
    const connection = await PgConnection.connect(target, {
      applicationName: `sterna ${local.nodeName} monitor`,
      signal,
    })
    try {
      const settings = await connection.row<{ wal_level: string; is_node: boolean }>(
        `select current_setting('wal_level') as wal_level, to_regclass('sterna.local_node') is not null as is_node`,
      )
      if (settings?.wal_level !== 'logical')
        throw new SternaError('WAL_LEVEL_TOO_LOW', { address, walLevel: settings?.wal_level })
      const node = settings.is_node ? await readLocalNode(connection) : null
      if (!node) throw new SternaError('PROVIDER_NOT_A_NODE', { address })
      checkIdentity(definition, local, node)
      return new ProviderLink(connection, node, definition.providerDsn)
    } catch (error) {
      connection.destroy()
      throw privilegeError(error, address, target.user)
    }
  }

  /**
   * Checks that the provider has these publications.
   * @throws REPLICATION_SET_MISSING
   */
  async requirePublications(definition: SubscriptionDefinition, names: readonly string[]): Promise<void> {
    const { rows } = await this.connection.query<{ name: string }>(
      'select want.name from unnest($1::text[]) as want(name) where not exists (select from pg_publication p where p.pubname = want.name)',
      [names],
    )
    if (rows.length > 0) {
      const sets = rows.map((row) => row.name.replace(/^sterna_/, ''))
      throw new SternaError('REPLICATION_SET_MISSING', { subscription: definition.name, sets })
    }
  }

  /**
   * Creates the subscription's slot, after removing one that a broken earlier attempt left (nothing was applied from it).
   * @returns where the slot's changes begin
   * @throws SLOTS_EXHAUSTED, PRIVILEGE_MISSING; ServerError 55006 while the left-over slot is in use
   */
  async createSlot(slotName: string): Promise<Lsn> {
    try {
      await this.dropSlot(slotName)
      const row = await this.connection.row<{ lsn: string }>(
        `select ${lsnAsNumber('lsn')} as lsn from pg_create_logical_replication_slot($1, 'pgoutput')`,
        [slotName],
      )
      return lsnFromNumeric(row!.lsn)
    } catch (error) {
      throw slotError(error, this.connection.address)
    }
  }

  /** Drops a slot if it is there. */
  async dropSlot(slotName: string): Promise<void> {
    await this.connection.query(
      'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1',
      [slotName],
    )
  }

  /** Where in the provider's WAL the newest of these sets was made. */
  async setsMadeAt(sets: readonly string[]): Promise<Lsn> {
    const row = await this.connection.row<{ lsn: string | null }>(
      `select ${lsnAsNumber('max(created_lsn)')} as lsn from sterna.replication_set where set_name = any($1)`,
      [sets],
    )
    return row?.lsn == null ? LSN_ZERO : lsnFromNumeric(row.lsn)
  }

  /** Looks at the provider's WAL position and at what our slot holds. */
  async sample(slotName: string): Promise<ProviderSample> {
    const row = await this.connection.row<{
      now: string
      retained: number | null
      wal_status: string | null
    }>(
      `select ${lsnAsNumber('pg_current_wal_lsn()')} as now, (pg_current_wal_lsn() - s.restart_lsn)::float8 as retained, s.wal_status
         from (select) one left join pg_replication_slots s on s.slot_name = $1`,
      [slotName],
      { timeoutMs: QUERY_TIMEOUT_MS },
    )
    return {
      currentLsn: lsnFromNumeric(row!.now),
      retainedWalBytes: row!.retained,
      walStatus: row!.wal_status,
    }
  }

  async close(): Promise<void> {
    await this.connection.close()
  }
}

function checkIdentity(definition: SubscriptionDefinition, local: LocalNode, node: LocalNode): void {
  const subscription = definition.name
  if (node.systemId === local.systemId && node.databaseOid === local.databaseOid) {
    throw new SternaError('SUBSCRIPTION_TO_SELF', { subscription, node: local.nodeName })
  }
  if (node.nodeId === local.nodeId || node.nodeName === local.nodeName) {
    throw new SternaError('NODE_IDENTITY_CLASH', {
      subscription,
      provider: node.nodeName,
      id: node.nodeId,
      known: local.nodeName,
    })
  }
  const replaced =
    definition.initialized &&
    (node.systemId !== definition.providerSystemId ||
      node.databaseOid !== definition.providerDatabaseOid ||
      node.nodeId !== definition.providerNodeId)
  if (replaced) throw new SternaError('PROVIDER_REPLACED', { subscription })
}

function privilegeError(error: unknown, address: string, user: string): unknown {
  if (sqlstateOf(error) !== '42501') return error
  return new SternaError(
    'PRIVILEGE_MISSING',
    { address, user, reason: (error as ServerError).fields.message },
    error,
  )
}

/** What a failure around a slot means to the operator. */
export function slotError(error: unknown, address: string): unknown {
  if (!(error instanceof ServerError)) return error
  if (error.sqlstate === '53400' || error.sqlstate === '53300') {
    return new SternaError('SLOTS_EXHAUSTED', { address, reason: error.fields.message }, error)
  }
  return privilegeError(error, address, 'of the connection string')
}

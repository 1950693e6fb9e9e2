import { assert } from '../core/assert.ts'
import { SternaError } from '../core/errors.ts'
import { LSN_ZERO, type Lsn } from '../core/lsn.ts'
import { pgTimeOf, type PgTime } from '../core/pg-time.ts'
import { PgConnection } from '../postgres/connection.ts'
import { addressOf, type ConnectTarget } from '../postgres/dsn.ts'
import { ServerError } from '../postgres/server-error.ts'
import {
  lsnAsNumber,
  lsnFromNumeric,
  readLocalNode,
  type LocalNode,
  type SubscriptionDefinition,
} from './definitions.ts'
import { explainRefusal } from './privileges.ts'
import { requireVersion } from './server-version.ts'

const QUERY_TIMEOUT_MS = 10_000
/** A new slot waits until every transaction that runs at the provider has ended. */
const CREATE_SLOT_TIMEOUT_MS = 300_000

/** What one look at the provider shows. */
export interface ProviderSample {
  readonly currentLsn: Lsn
  /** The provider's clock. */
  readonly clock: PgTime
  /** WAL kept for our slot; null when the slot is not there. */
  readonly retainedWalBytes: number | null
  /** `reserved`, `extended`, `unreserved`, `lost`; null when the slot is not there. */
  readonly walStatus: string | null
}

/** An ordinary connection to a subscription's provider, for everything but the stream itself. */
export class ProviderLink {
  readonly connection: PgConnection
  readonly dsn: string
  readonly #user: string
  readonly #signal: AbortSignal
  readonly #onAbort = (): void => this.connection.destroy()
  #node: LocalNode | undefined

  private constructor(connection: PgConnection, dsn: string, user: string, signal: AbortSignal) {
    this.connection = connection
    this.dsn = dsn
    this.#user = user
    this.#signal = signal
    signal.addEventListener('abort', this.#onAbort)
  }

  /**
   * Connects and makes sure that the provider is the node it should be.
   * @throws SERVER_TOO_OLD, PROVIDER_NOT_A_NODE, WAL_LEVEL_TOO_LOW, SUBSCRIPTION_TO_SELF, NODE_IDENTITY_CLASH, PROVIDER_REPLACED, or
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
    connection.defaultTimeoutMs = QUERY_TIMEOUT_MS
    const link = new ProviderLink(connection, definition.providerDsn, target.user, signal)
    try {
      requireVersion(connection)
      const settings = await connection.row<{ wal_level: string; is_node: boolean }>(
        `select current_setting('wal_level') as wal_level, to_regclass('sterna.local_node') is not null as is_node`,
      )
      if (settings?.wal_level !== 'logical')
        throw new SternaError('WAL_LEVEL_TOO_LOW', { address, walLevel: settings?.wal_level })
      const node = settings.is_node ? await readLocalNode(connection) : null
      if (!node) throw new SternaError('PROVIDER_NOT_A_NODE', { address })
      checkIdentity(definition, local, node)
      link.#node = node
      return link
    } catch (error) {
      const reason = await explainRefusal(error, connection, 'provider', target.user)
      await link.close()
      throw reason
    }
  }

  get node(): LocalNode {
    assert(this.#node, 'the link is open')
    return this.#node
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
        { timeoutMs: CREATE_SLOT_TIMEOUT_MS },
      )
      return lsnFromNumeric(row!.lsn)
    } catch (error) {
      throw await this.explain(error)
    }
  }

  /** What a failure around the slot or the stream means to the operator. */
  async explain(error: unknown): Promise<unknown> {
    if (error instanceof ServerError && error.sqlstate === '53400') {
      const facts = { address: this.connection.address, reason: error.fields.message }
      return new SternaError('SLOTS_EXHAUSTED', facts, error)
    }
    return explainRefusal(error, this.connection, 'provider', this.#user)
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
      clock: bigint
      retained: number | null
      wal_status: string | null
    }>(
      `select ${lsnAsNumber('pg_current_wal_lsn()')} as now,
              (extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000 as clock, (pg_current_wal_lsn() - s.restart_lsn)::float8 as retained, s.wal_status
         from (select) one left join pg_replication_slots s on s.slot_name = $1`,
      [slotName],
    )
    return {
      currentLsn: lsnFromNumeric(row!.now),
      clock: pgTimeOf(row!.clock),
      retainedWalBytes: row!.retained,
      walStatus: row!.wal_status,
    }
  }

  async close(): Promise<void> {
    this.#signal.removeEventListener('abort', this.#onAbort)
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
      known: `${local.nodeName} with id ${local.nodeId}, this one`,
    })
  }
  const replaced =
    definition.initialized &&
    (node.systemId !== definition.providerSystemId ||
      node.databaseOid !== definition.providerDatabaseOid ||
      node.nodeId !== definition.providerNodeId)
  if (replaced) throw new SternaError('PROVIDER_REPLACED', { subscription })
}

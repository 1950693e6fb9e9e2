import { SternaError, messageOf } from '../core/errors.ts'
import { formatLsn, LSN_ZERO, lsnOf, maxLsn, type Lsn } from '../core/lsn.ts'
import type { PgTime } from '../core/pg-time.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { parseDsn, type ConnectTarget } from '../postgres/dsn.ts'
import { ServerError, sqlstateOf } from '../postgres/server-error.ts'
import type { LocalWal } from './apply/confirmed-position.ts'
import type { LocalClock } from './apply/local-clock.ts'
import { CareChanged } from './apply/careful/care.ts'
import { AttemptFailed, RulesPending, type Attempt } from './apply/careful/careful-lane.ts'
import { POSTPONE_SQL, postponeParams } from './apply/careful/exceptions.ts'
import { TextTransferNeeded } from './apply/table-catalog.ts'
import { Backoff, pause } from './backoff.ts'
import { AnnouncingNeeded, ChangeFlow, UpToReached, type FlowCounters } from './change-flow.ts'
import { lsnAsNumber, lsnFromNumeric, type LocalNode, type SubscriptionDefinition } from './definitions.ts'
import type { KeyedLock } from './keyed-lock.ts'
import { lagBytes, lagSeconds, type LagFacts } from './lag.ts'
import type { Log } from './log.ts'
import { explainRefusal } from './privileges.ts'
import { ProviderLink, type ProviderSample } from './provider-link.ts'
import type { ReportedError, SubscriptionReport, SubscriptionStatus } from './report.ts'

const MONITOR_INTERVAL_MS = 1000
/** A flow that has lasted so long without failing is healthy, even if there was nothing to apply. */
const HEALTHY_AFTER_MS = 5000
const CATCHING_UP_SECONDS = 10
/** What sterna.peer_upsert raises. */
const IDENTITY_CLASH = 'ST111'
const DEFINITION_CHANGED_PAUSE_MS = 100
const INTERNAL_PUBLICATION = 'sterna_internal'

/** What subscriptions share: the node's own server, seen by one connection. */
export interface SubscriptionSurroundings {
  readonly local: LocalNode
  readonly localTarget: ConnectTarget
  readonly control: PgConnection
  readonly clock: LocalClock
  readonly localWal: () => Promise<LocalWal>
  /** Held, by name of the origin, while that and its slot are made or dropped. */
  readonly origins: KeyedLock
  readonly heartbeatIntervalMs: number
  readonly log: Log
}

/**
 * Keeps one subscription going: connects, makes the slot on first contact, lets changes flow, and starts again after any
 * failure, which it shows meanwhile. Never gives up by itself and never disturbs other subscriptions.
 */
export class Subscription {
  readonly #definition: SubscriptionDefinition
  readonly #around: SubscriptionSurroundings
  readonly #counters: FlowCounters = {
    transactions: 0,
    changes: 0,
    conflicts: {},
    lastCommitMs: null,
    lastDelayMs: null,
    seenUpTo: null,
  }
  readonly #backoff = new Backoff()
  readonly #log: Log
  #initialized: boolean
  #slotName: string | null
  #originName: string
  #providerName: string | null
  #providerNodeId: number | null
  #binary: boolean
  /** How to apply the transaction that was refused last. */
  #repeated: Attempt | null = null
  /** Tombstones have been met: each transaction tells its timestamp at its head, at the cost of one more statement. */
  #announce = false
  #flow: ChangeFlow | undefined
  #lastPosition: ChangeFlow['position'] | undefined
  #sample: ProviderSample | undefined
  #lastError: ReportedError | null = null
  #retryAtMs: number | null = null
  /** What a waiting change was ahead. Under load each one waits for a moment only, whatever the clocks differ by. */
  #changeAhead: { readonly ms: number; readonly atMs: number } | undefined
  /** What the provider's clock is ahead. */
  #providerAheadMs = 0
  /**
   * Sets that were made after our position in the WAL cannot be decoded yet: stream without them up to `at`, exactly, so
   * that nothing of them is passed over.
   */
  #laterSets: { readonly publications: readonly string[]; readonly at: Lsn } | undefined
  #startLsn: Lsn = LSN_ZERO
  /** What came next when a stream without later sets had come to its end. */
  #stoppedAt: Lsn = LSN_ZERO

  constructor(definition: SubscriptionDefinition, around: SubscriptionSurroundings) {
    this.#definition = definition
    this.#around = around
    this.#initialized = definition.initialized
    this.#slotName = definition.slotName
    this.#originName = definition.originName ?? ''
    this.#providerName = definition.providerName
    this.#providerNodeId = definition.providerNodeId
    this.#binary = !definition.forceText
    this.#log = around.log.child({ subscription: definition.name })
  }

  /** Runs until `signal` aborts. Never rejects. */
  async run(signal: AbortSignal): Promise<void> {
    if (!this.#definition.enabled) return
    while (!signal.aborted) {
      this.#backoff.attemptStarts()
      try {
        await this.#attempt(signal)
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof TextTransferNeeded) {
          this.#binary = false
          this.#log.info({}, 'a table needs values as text: streaming again in text')
          continue
        }
        if (error instanceof AnnouncingNeeded) {
          this.#announce = true
          continue
        }
        if (error instanceof AttemptFailed) {
          this.#repeated = error.attempt
          this.#log.info(
            { lsn: formatLsn(error.attempt.lsn), reason: error.message },
            'a change was refused: its transaction is applied again, one by one',
          )
          continue
        }
        if (error instanceof SetsChange || error instanceof CareChanged) continue
        if (error instanceof SternaError && error.code === 'EXCEPTION_STOPPED') await this.#stop(error)
        if (error instanceof DefinitionChanged || error instanceof RulesPending) {
          await pause(DEFINITION_CHANGED_PAUSE_MS, signal)
          continue
        }
        if (error instanceof UpToReached) {
          this.#laterSets = undefined
          this.#startLsn = error.upTo
          this.#stoppedAt = error.next
          continue
        }
        const delayMs = this.#backoff.next()
        this.#failed(error, delayMs)
        await pause(delayMs, signal)
      }
    }
  }

  /** By how much changes of this provider are ahead of the local clock; 0 when they are not. */
  get clockAheadMs(): number {
    const change = this.#changeAhead && Date.now() - this.#changeAhead.atMs < 5000 ? this.#changeAhead.ms : 0
    return Math.max(change, this.#flow ? this.#providerAheadMs : 0)
  }

  /** Nothing of the provider that is newer has been applied here; null: that is not known. Undefined: of which node is not. */
  get seen(): { readonly nodeId: number; readonly upTo: PgTime | null } | undefined {
    if (this.#providerNodeId === null) return undefined
    return { nodeId: this.#providerNodeId, upTo: this.#counters.seenUpTo }
  }

  get walStatus(): string | null {
    return this.#sample?.walStatus ?? null
  }

  report(): SubscriptionReport {
    const position = this.#flow?.position ?? this.#lastPosition
    const facts = this.#lagFacts()
    return {
      name: this.#definition.name,
      status: this.#status(facts),
      providerName: this.#providerName,
      slotName: this.#slotName,
      replicationSets: this.#definition.replicationSets,
      receivedLsn: this.#flow?.receivedLsn || null,
      appliedLsn: position?.applied || null,
      confirmedLsn: position?.confirmed || null,
      providerLsn: facts.providerLsn,
      lagBytes: lagBytes(facts),
      lagSeconds: lagSeconds(facts),
      retainedWalBytes: this.#sample?.retainedWalBytes ?? null,
      transactions: this.#counters.transactions,
      changes: this.#counters.changes,
      conflicts: this.#counters.conflicts,
      exceptions: 0,
      lastError: this.#lastError,
      retryAtMs: this.#retryAtMs,
    }
  }

  #lagFacts(): LagFacts {
    return {
      nowMs: Date.now(),
      lastCommitMs: this.#counters.lastCommitMs,
      lastDelayMs: this.#counters.lastDelayMs,
      providerLsn: this.#sample?.currentLsn ?? null,
      appliedLsn: (this.#flow?.position ?? this.#lastPosition)?.applied ?? null,
      heartbeatIntervalMs: this.#around.heartbeatIntervalMs,
    }
  }

  #status(facts: LagFacts): SubscriptionStatus {
    if (!this.#definition.enabled) return 'disabled'
    if (this.#lastError) return 'down'
    if (!this.#flow) return 'initializing'
    const seconds = lagSeconds(facts)
    return seconds === null || seconds > CATCHING_UP_SECONDS ? 'catching_up' : 'replicating'
  }

  /** Only what follows a success tells that the last error is over: an error at one change comes back after each start. */
  #healthy(): void {
    this.#lastError = null
    this.#retryAtMs = null
  }

  #failed(error: unknown, delayMs: number): void {
    const known = error instanceof SternaError
    const code = known ? error.code : 'UNEXPECTED'
    const hint = known ? error.hint : 'This is a bug in Sterna: please report it with the log of the agent.'
    const previous = this.#lastError
    this.#lastError = { code, message: messageOf(error), hint, atMs: Date.now() }
    this.#retryAtMs = Date.now() + delayMs
    const facts = {
      code,
      reason: messageOf(error),
      sqlstate: sqlstateOf(error),
      retryInMs: Math.round(delayMs),
    }
    if (previous?.message === this.#lastError.message) this.#log.debug(facts, 'subscription failed again')
    else this.#log.warn(known ? facts : { ...facts, stack: (error as Error).stack }, 'subscription failed')
  }

  /** `on_exception` is stop: the subscription disables itself, and keeps its place. */
  async #stop(error: SternaError): Promise<void> {
    this.#failed(error, 0)
    const { code, message, hint } = this.#lastError!
    await this.#around.control.query(
      'update sterna.subscription set enabled = false, stopped = $2 where sub_name = $1',
      [this.#definition.name, JSON.stringify({ code, message, hint })],
    )
  }

  async #attempt(signal: AbortSignal): Promise<void> {
    const definition = this.#definition
    const target = parseDsn(definition.providerDsn)
    const link = await ProviderLink.open(target, definition, this.#around.local, signal)
    try {
      this.#providerName = link.node.nodeName
      this.#providerNodeId = link.node.nodeId
      const publications = await this.#prepare(link)
      await this.#flowChanges(link, target, publications, signal)
    } finally {
      await link.close()
    }
  }

  async #prepare(link: ProviderLink): Promise<string[]> {
    try {
      const publications = await this.#publications(link)
      if (!this.#initialized) await this.#initialize(link)
      await this.#refuseRewound(link)
      return publications
    } catch (error) {
      throw await this.#explain(error, link)
    }
  }

  async #publications(link: ProviderLink): Promise<string[]> {
    const all = [INTERNAL_PUBLICATION, ...this.#definition.replicationSets.map((set) => `sterna_${set}`)]
    await link.requirePublications(this.#definition, all)
    return all.filter((name) => !this.#laterSets?.publications.includes(name))
  }

  /** First contact: makes the provider known here, the origin and the slot, and remembers them. */
  async #initialize(link: ProviderLink): Promise<void> {
    const { control, local, origins } = this.#around
    const { node } = link
    await this.#makeKnown(link)
    const names = await control.row<{ origin: string; slot: string }>(
      'select sterna.origin_name($1) as origin, sterna.slot_name_for($2, $3)::text as slot',
      [node.nodeId, parseDsn(link.dsn).database, this.#definition.name],
    )
    const { origin, slot } = names!
    await origins.hold(origin, () => this.#createOriginAndSlot(link, origin, slot))
    this.#slotName = slot
    this.#originName = origin
    this.#initialized = true
    this.#log.info({ provider: node.nodeName, slot, node: local.nodeName }, 'subscription initialized')
  }

  async #createOriginAndSlot(link: ProviderLink, origin: string, slot: string): Promise<void> {
    const { control } = this.#around
    const { node } = link
    // What an earlier subscription of that name left for cleaning is ours from here on.
    await control.query('delete from sterna.slot_cleanup where slot_name = $1 and origin_name = $2', [
      slot,
      origin,
    ])
    await control.query(
      'select pg_replication_origin_create($1) where not exists (select from pg_replication_origin where roname = $1)',
      [origin],
    )
    const start = await link.createSlot(slot)
    await control.query("select pg_replication_origin_advance($1, '0/0'::pg_lsn + $2::numeric)", [
      origin,
      start,
    ])
    await control.query(
      `update sterna.subscription set provider_node_id = $2, provider_node_name = $3, provider_system_id = $4, provider_database_oid = $5,
              slot_name = $6, origin_name = $7, initialized_at = clock_timestamp() where sub_name = $1`,
      [this.#definition.name, node.nodeId, node.nodeName, node.systemId, node.databaseOid, slot, origin],
    )
  }

  /** @throws NODE_IDENTITY_CLASH */
  async #makeKnown({ node, dsn }: ProviderLink): Promise<void> {
    const { control } = this.#around
    try {
      await control.query('select sterna.peer_upsert($1, $2, $3, $4, null, null)', [
        node.nodeId,
        node.nodeName,
        dsn,
        node.location,
      ])
    } catch (error) {
      if (sqlstateOf(error) !== IDENTITY_CLASH) throw error
      const known = await control.row<{ name: string; id: number }>(
        'select node_name::text as name, node_id as id from sterna.node where (node_id = $1) <> (node_name = $2) limit 1',
        [node.nodeId, node.nodeName],
      )
      const facts = {
        subscription: this.#definition.name,
        provider: node.nodeName,
        id: node.nodeId,
        known: known ? `${known.name} with id ${known.id}` : 'another one',
      }
      throw new SternaError('NODE_IDENTITY_CLASH', facts, error)
    }
  }

  async #refuseRewound(link: ProviderLink): Promise<void> {
    const subscription = this.#definition.name
    this.#sample = await link.sample(this.#slotName!)
    if (this.#sample.walStatus === null || this.#sample.walStatus === 'lost') {
      throw new SternaError('SLOT_LOST', { slot: this.#slotName!, subscription })
    }
    const { control } = this.#around
    const row = await control.row<{ applied: string | null; rewound: string | null }>(
      `select ${lsnAsNumber('pg_replication_origin_progress($1, false)')} as applied, ${lsnAsNumber('s.rewound_lsn')} as rewound
         from sterna.subscription s where s.sub_name = $2`,
      [this.#originName, subscription],
    )
    const applied = row?.applied == null ? LSN_ZERO : lsnFromNumeric(row.applied)
    const rewound = row?.rewound == null ? null : lsnFromNumeric(row.rewound)
    const { currentLsn } = this.#sample
    if (rewound === null && currentLsn >= applied) return
    if (rewound === null)
      await control.query(
        "update sterna.subscription set rewound_lsn = '0/0'::pg_lsn + $2::numeric where sub_name = $1",
        [subscription, currentLsn],
      )
    throw new SternaError('PROVIDER_REWOUND', {
      current: formatLsn(rewound ?? currentLsn),
      applied: formatLsn(applied),
      subscription,
    })
  }

  async #flowChanges(
    link: ProviderLink,
    target: ConnectTarget,
    publications: string[],
    signal: AbortSignal,
  ): Promise<void> {
    const { local, localTarget, clock, localWal } = this.#around
    const flow = new ChangeFlow(
      {
        providerTarget: target,
        localTarget,
        applicationName: `sterna ${local.nodeName} ${this.#definition.name}`,
        slotName: this.#slotName!,
        originName: this.#originName,
        originNodeId: link.node.nodeId,
        nodes: { local: local.nodeName, provider: link.node.nodeName },
        publications,
        binary: this.#binary,
        announce: this.#announce,
        filterOrigins: link.connection.majorVersion >= 16,
        applyDelayMs: this.#definition.applyDelayMs,
        onException: this.#definition.onException,
        postpone: async (id, refusal) => {
          await this.#around.control.query(POSTPONE_SQL, postponeParams(id, refusal))
        },
        attempt: this.#repeated,
        clock,
        localWal,
        onClockAhead: (ms) => {
          this.#changeAhead = { ms, atMs: Date.now() }
        },
        beforeApply: (session) => this.#requireUnchanged(session),
        startLsn: this.#startLsn,
        upTo: this.#laterSets?.at,
        onApplied: () => {
          this.#backoff.reset()
          this.#healthy()
        },
      },
      this.#counters,
    )
    const attempt = new AbortController()
    const both = AbortSignal.any([signal, attempt.signal])
    let monitored: Promise<void> = Promise.resolve()
    try {
      await flow.run(both, () => {
        this.#flow = flow
        this.#log.info({ provider: link.node.nodeName, binary: this.#binary }, 'replicating')
        monitored = this.#monitor(link, flow, both).catch((error: unknown) =>
          flow.onEnd(error as SternaError),
        )
      })
    } catch (error) {
      throw await this.#explain(error, link)
    } finally {
      attempt.abort()
      this.#lastPosition = flow.position
      this.#flow = undefined
      // The monitor may wait for an answer that never comes.
      await Promise.all([link.close(), monitored])
    }
  }

  /**
   * Who changes the sets of a subscription ends its apply session and holds the row until that is committed: what comes
   * after must not be taken with the old sets, which would pass over changes of the new one.
   */
  async #requireUnchanged(session: PgConnection): Promise<void> {
    const row = await session.row<{ sets: string[] }>(
      'select replication_sets::text[] as sets from sterna.subscription where sub_name = $1 for share',
      [this.#definition.name],
    )
    if (JSON.stringify(row?.sets) !== JSON.stringify(this.#definition.replicationSets))
      throw new DefinitionChanged()
  }

  /** Looks at the provider once a second, for lag and for what the slot holds. */
  async #monitor(link: ProviderLink, flow: ChangeFlow, signal: AbortSignal): Promise<void> {
    const startedAtMs = Date.now()
    while (!signal.aborted) {
      this.#sample = await link.sample(this.#slotName!)
      this.#providerAheadMs = Math.max(0, this.#around.clock.aheadMs(this.#sample.clock))
      if (Date.now() - startedAtMs > HEALTHY_AFTER_MS) this.#healthy()
      await pause(MONITOR_INTERVAL_MS, signal)
    }
  }

  /** What a failure of the flow means in the operator's terms. */
  async #explain(error: unknown, link: ProviderLink): Promise<unknown> {
    if (!(error instanceof ServerError)) return error
    const { sqlstate } = error
    const fromProvider = error.facts['address'] === link.connection.address
    if (sqlstate === '55006') return this.#stillInUse(error)
    if (!fromProvider) return this.#explainLocal(error)
    const missing = this.#definition.replicationSets
      .map((set) => `sterna_${set}`)
      .filter((name) => error.fields.message.includes(`"${name}"`))
    if (sqlstate === '42704' && missing.length > 0) {
      // A set that was made later than the WAL that we are reading does not exist for the decoder there. Where that is
      // so even for what the last stream without it stopped at (it began before the set was made), that one goes without.
      const at = maxLsn(
        lsnOf(this.#stoppedAt + 1n),
        await link.setsMadeAt(missing.map((name) => name.slice('sterna_'.length))),
      )
      this.#laterSets = { publications: [...missing, ...(this.#laterSets?.publications ?? [])], at }
      return new SetsChange()
    }
    if (sqlstate === '42704' || sqlstate === '55000') {
      return new SternaError(
        'SLOT_LOST',
        { slot: this.#slotName!, subscription: this.#definition.name },
        error,
      )
    }
    return link.explain(error)
  }

  async #explainLocal(error: ServerError): Promise<unknown> {
    const { control, localTarget } = this.#around
    if (error.sqlstate === '53400') {
      const facts = { address: control.address, reason: error.fields.message }
      return new SternaError('ORIGINS_EXHAUSTED', facts, error)
    }
    return explainRefusal(error, control, 'agent', localTarget.user)
  }

  #stillInUse(error: ServerError): SternaError {
    const subscription = this.#definition.name
    const facts = { subscription, address: error.facts['address'], reason: error.fields.message }
    return new SternaError('STILL_IN_USE', facts, error)
  }
}

/** The subscription is defined otherwise by now: another object takes over in a moment. */
class DefinitionChanged extends Error {}

/** Stream again, without the sets that were made later than what comes next. */
class SetsChange extends Error {}

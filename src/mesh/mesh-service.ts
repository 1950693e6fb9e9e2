import { messageOf, SternaError } from '../core/errors.ts'
import { formatPgTime, pgTimeOf, unixMsOf, type PgTime } from '../core/pg-time.ts'
import { PgConnection } from '../postgres/connection.ts'
import { addressOf, type ConnectTarget } from '../postgres/dsn.ts'
import { sqlstateOf } from '../postgres/server-error.ts'
import { alarmsOf } from './alarms.ts'
import { LocalClock } from './apply/local-clock.ts'
import type { LocalWal } from './apply/confirmed-position.ts'
import { repairTables } from './apply/careful/visibility-repair.ts'
import { Backoff, pause } from './backoff.ts'
import { Beside } from './beside.ts'
import { ClockWatch } from './clock-watch.ts'
import { ConflictHousekeeping, readConflictQueues, type ConflictQueues } from './conflict-housekeeping.ts'
import {
  lsnAsNumber,
  lsnFromNumeric,
  readLocalNode,
  readSubscriptions,
  runtimeKey,
  type LocalNode,
} from './definitions.ts'
import { DefinitionsFence } from './fence/definitions-fence.ts'
import { ForeignKeyWatch } from './foreign-keys.ts'
import { KeyedLock } from './keyed-lock.ts'
import type { Log } from './log.ts'
import { requirePrivileges } from './privileges.ts'
import type { Alarm, NodeReport, ReportedError, SubscriptionReport } from './report.ts'
import { requireVersion } from './server-version.ts'
import { installSchema } from './schema.ts'
import { cleanSlots } from './slot-cleanup.ts'
import { writeState } from './state-writer.ts'
import { Subscription, type SubscriptionSurroundings } from './subscription.ts'

const CHANNEL = 'sterna'
/** Definitions are read again at least this often, should a notification be lost. */
const RECONCILE_INTERVAL_MS = 10_000
const CLEANUP_INTERVAL_MS = 5000
const CONTROL_QUERY_TIMEOUT_MS = 30_000
/** `pg_try_advisory_lock` key in the node's database: one agent per node. */
const AGENT_LOCK = "hashtextextended('sterna agent', 0)"

export interface MeshServiceOptions {
  /** The node that the database must be. */
  readonly node: string
  readonly target: ConnectTarget
  readonly sternaVersion: string
  readonly httpAddress: string | null
  readonly heartbeatIntervalMs: number
  readonly maxClockSkewMs: number
  readonly slotWalWarningBytes: number
  readonly log: Log
}

interface Running {
  readonly key: string
  readonly subscription: Subscription
  readonly stop: AbortController
  readonly done: Promise<void>
}

/** Everything that the mesh does on one node: keeps its subscriptions as they are defined, beats, and reports. */
export class MeshService {
  readonly #options: MeshServiceOptions
  readonly #running = new Map<string, Running>()
  readonly #startedAtMs = Date.now()
  #local: LocalNode | undefined
  #serverVersion: string | null = null
  #clockOffsetMs: number | null = null
  #connected = false
  #lastError: ReportedError | null = null
  #lastKnown: readonly SubscriptionReport[] = []
  readonly #cleaning: Beside
  readonly #repairing: Beside
  readonly #clockWatch: ClockWatch
  readonly #foreignKeys: ForeignKeyWatch
  readonly #origins = new KeyedLock()
  readonly #housekeeping: ConflictHousekeeping
  #queues: ConflictQueues | null = null
  /** Whether a heartbeat has said that we do not know what an agent before us had applied. */
  #beaten = false

  constructor(options: MeshServiceOptions) {
    this.#options = options
    this.#cleaning = new Beside((error) =>
      options.log.debug({ reason: messageOf(error) }, 'slots cannot be cleaned up'),
    )
    this.#repairing = new Beside((error) =>
      options.log.debug({ reason: messageOf(error) }, 'rows aside cannot be repaired yet'),
    )
    this.#clockWatch = new ClockWatch(options)
    this.#foreignKeys = new ForeignKeyWatch(options)
    this.#housekeeping = new ConflictHousekeeping(options.log)
  }

  /**
   * Works until `signal` aborts; survives everything that may pass.
   * @throws NODE_NAME_MISMATCH
   */
  async run(signal: AbortSignal): Promise<void> {
    const backoff = new Backoff()
    while (!signal.aborted) {
      backoff.attemptStarts()
      try {
        await this.#serve(signal)
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof SternaError && error.code === 'NODE_NAME_MISMATCH') throw error
        if (!(error instanceof SternaError)) throw error
        const repeated = this.#lastError?.message === error.message
        this.#lastError = { code: error.code, message: messageOf(error), hint: error.hint, atMs: Date.now() }
        const facts = { code: error.code, reason: messageOf(error), sqlstate: sqlstateOf(error) }
        if (repeated) this.#options.log.debug(facts, 'own server still not usable')
        else this.#options.log.warn(facts, 'own server not usable')
        await pause(backoff.next(), signal)
      }
    }
  }

  report(): NodeReport {
    return {
      nodeId: this.#local?.nodeId ?? null,
      nodeName: this.#options.node,
      region: this.#local?.location ?? null,
      sternaVersion: this.#options.sternaVersion,
      serverVersion: this.#serverVersion,
      clockOffsetMs: this.#clockOffsetMs,
      connected: this.#connected,
      startedAtMs: this.#startedAtMs,
      subscriptions: this.#subscriptions(),
      openReviews: this.#queues?.openReviews ?? null,
      rowsAside: this.#queues?.rowsAside ?? null,
      alarms: [...this.#alarms(), ...this.#clockWatch.alarms()],
      lastError: this.#lastError,
    }
  }

  /** While the own server is away nothing is applied: the last that was known, as down. */
  #subscriptions(): SubscriptionReport[] {
    if (this.#lastKnown.length === 0) return [...this.#running.values()].map((it) => this.#reportOf(it))
    return this.#lastKnown.map((report) =>
      report.status === 'disabled'
        ? report
        : { ...report, status: 'down', lastError: this.#lastError ?? report.lastError },
    )
  }

  #reportOf({ subscription }: Running): SubscriptionReport {
    const report = subscription.report()
    return { ...report, exceptions: this.#queues?.exceptions.get(report.name) ?? 0 }
  }

  #alarms(): Alarm[] {
    const facts = [...this.#running.values()].map((running) => ({
      report: this.#reportOf(running),
      clockAheadMs: running.subscription.clockAheadMs,
      walStatus: running.subscription.walStatus,
    }))
    return alarmsOf({
      node: this.#options.node,
      connected: this.#connected,
      lastError: this.#lastError,
      maxClockSkewMs: this.#options.maxClockSkewMs,
      slotWalWarningBytes: this.#options.slotWalWarningBytes,
      subscriptions: facts,
      openReviews: this.#queues?.openReviews ?? 0,
    })
  }

  /** One connection to the own server, for as long as it lasts. */
  async #serve(signal: AbortSignal): Promise<void> {
    const { target, node, log } = this.#options
    const control = await PgConnection.connect(target, {
      applicationName: `sterna ${node} agent`,
      parameters: { 'sterna.ddl_replication': 'off' },
      signal,
    })
    control.defaultTimeoutMs = CONTROL_QUERY_TIMEOUT_MS
    const lost = new AbortController()
    control.onLost = (error) => lost.abort(error)
    const both = AbortSignal.any([signal, lost.signal])
    const fence = new DefinitionsFence({ target, node, control, log })
    try {
      const local = await this.#identify(control)
      this.#local = local
      this.#serverVersion = control.parameter('server_version') ?? null
      const around = this.#surroundings(control, local)
      await this.#measureClock(around.clock)
      let changed = true
      let wake = (): void => {}
      control.onNotification = (_channel, table) => {
        if (table.startsWith('definition')) return fence.wake()
        changed = true
        wake()
      }
      await control.exec(`listen ${CHANNEL}`)
      this.#connected = true
      this.#lastError = null
      fence.start()
      log.info({ server: this.#serverVersion, nodeId: local.nodeId }, 'serving node')
      let reconciledAtMs = 0
      let cleanedAtMs = 0
      while (!both.aborted) {
        if (changed || Date.now() - reconciledAtMs > RECONCILE_INTERVAL_MS) {
          changed = false
          reconciledAtMs = Date.now()
          cleanedAtMs = 0
          await this.#reconcile(around, both)
          this.#lastKnown = []
        }
        await this.#clockWatch.check(control, both)
        await this.#beat(control, around.clock)
        await this.#foreignKeys.work(control, both)
        await this.#housekeeping.work(control)
        this.#repairing.run(() => repairTables(control, this.#options.target, local.nodeName))
        if (Date.now() - cleanedAtMs > CLEANUP_INTERVAL_MS) {
          cleanedAtMs = Date.now()
          this.#cleaning.run(() => cleanSlots(control, local, this.#origins, log, both))
          await control.query('select sterna.sequences_realign()')
        }
        const woken = new Promise<void>((resolve) => {
          wake = resolve
        })
        await Promise.race([pause(this.#options.heartbeatIntervalMs, both), woken])
      }
      lost.signal.throwIfAborted()
    } catch (error) {
      throw lost.signal.aborted ? lost.signal.reason : error
    } finally {
      if (this.#running.size > 0) this.#lastKnown = this.#subscriptions()
      this.#connected = false
      this.#clockWatch.pause()
      await Promise.all([this.#stopAll(), fence.stop()])
      await control.close()
    }
  }

  /**
   * @throws SERVER_TOO_OLD, WAL_LEVEL_TOO_LOW, COMMIT_TIMESTAMPS_OFF, PROVIDER_NOT_A_NODE, NODE_NAME_MISMATCH,
   *   PRIVILEGE_MISSING, AGENT_ALREADY_RUNNING
   */
  async #identify(control: PgConnection): Promise<LocalNode> {
    const { node, target } = this.#options
    const address = addressOf(target)
    requireVersion(control)
    const server = await control.row<{ wal_level: string; timestamps: string; installed: boolean }>(
      `select current_setting('wal_level') as wal_level, current_setting('track_commit_timestamp') as timestamps,
              exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                       where n.nspname = 'sterna' and c.relname = 'local_node') as installed`,
    )
    const { wal_level: walLevel, timestamps, installed } = server!
    if (walLevel !== 'logical') throw new SternaError('WAL_LEVEL_TOO_LOW', { address, walLevel })
    if (timestamps !== 'on') throw new SternaError('COMMIT_TIMESTAMPS_OFF', { address })
    if (installed) {
      await requirePrivileges(control, 'agent', target.user)
      // A newer release of Sterna brings its migrations along.
      await installSchema(control)
    }
    const local = installed ? await readLocalNode(control) : null
    if (!local) throw new SternaError('PROVIDER_NOT_A_NODE', { address })
    if (local.nodeName !== node)
      throw new SternaError('NODE_NAME_MISMATCH', { expected: node, actual: local.nodeName, address })
    const lock = await control.row<{ got: boolean }>(`select pg_try_advisory_lock(${AGENT_LOCK}) as got`)
    if (!lock?.got) throw new SternaError('AGENT_ALREADY_RUNNING', { node, address })
    return local
  }

  #surroundings(control: PgConnection, local: LocalNode): SubscriptionSurroundings {
    const micros = '(extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000'
    const clock = new LocalClock(async () => {
      const row = await control.row<{ now: bigint }>(`select ${micros} as now`)
      return pgTimeOf(row!.now)
    })
    return {
      local,
      localTarget: this.#options.target,
      control,
      clock,
      localWal: () => readLocalWal(control),
      origins: this.#origins,
      heartbeatIntervalMs: this.#options.heartbeatIntervalMs,
      log: this.#options.log,
    }
  }

  async #measureClock(clock: LocalClock): Promise<PgTime> {
    const beforeMs = Date.now()
    const time = await clock.refresh()
    this.#clockOffsetMs = unixMsOf(time) - (beforeMs + Date.now()) / 2
    return time
  }

  /** The heartbeat, and the state for status, in the node's own database. */
  async #beat(control: PgConnection, clock: LocalClock): Promise<void> {
    // In this order: what was applied by that time has been given to the server before.
    const seenAt = formatPgTime(await this.#measureClock(clock))
    const seen = this.#beaten ? this.#seen() : null
    await control.query('select sterna.heartbeat_write($1, $2, $3)', [
      this.#options.sternaVersion,
      seen,
      seenAt,
    ])
    this.#beaten = true
    this.#queues = await readConflictQueues(control)
    await writeState(control, this.report(), this.#options.httpAddress)
  }

  /** Of each provider, up to where changes may have been applied, as JSON. */
  #seen(): string {
    const entries = [...this.#running.values()].flatMap(({ subscription: { seen } }) =>
      seen ? [[String(seen.nodeId), seen.upTo === null ? null : String(seen.upTo)] as const] : [],
    )
    return JSON.stringify(Object.fromEntries(entries))
  }

  /** Makes what runs equal to what is defined. */
  async #reconcile(around: SubscriptionSurroundings, signal: AbortSignal): Promise<void> {
    const definitions = await readSubscriptions(around.control)
    const wanted = new Map(definitions.map((definition) => [definition.name, definition]))
    const obsolete = [...this.#running].filter(([name, running]) => {
      const definition = wanted.get(name)
      return !definition || runtimeKey(definition) !== running.key
    })
    await Promise.all(obsolete.map(([name]) => this.#stop(name)))
    for (const [name, definition] of wanted) {
      if (this.#running.has(name)) continue
      const stop = new AbortController()
      const subscription = new Subscription(definition, around)
      const done = subscription.run(AbortSignal.any([signal, stop.signal]))
      this.#running.set(name, { key: runtimeKey(definition), subscription, stop, done })
    }
  }

  async #stop(name: string): Promise<void> {
    const running = this.#running.get(name)
    if (!running) return
    running.stop.abort()
    await running.done
    this.#running.delete(name)
  }

  async #stopAll(): Promise<void> {
    await Promise.all([...this.#running.keys()].map((name) => this.#stop(name)))
  }
}

async function readLocalWal(control: PgConnection): Promise<LocalWal> {
  const row = await control.row<{ insert: string; flush: string }>(
    `select ${lsnAsNumber('pg_current_wal_insert_lsn()')} as insert, ${lsnAsNumber('pg_current_wal_flush_lsn()')} as flush`,
  )
  return { insertLsn: lsnFromNumeric(row!.insert), flushLsn: lsnFromNumeric(row!.flush) }
}

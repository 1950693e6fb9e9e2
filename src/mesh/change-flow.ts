import { SternaError } from '../core/errors.ts'
import { LSN_ZERO, type Lsn } from '../core/lsn.ts'
import { unixMsOf, type PgTime } from '../core/pg-time.ts'
import { parseBegin, parseCommit, PGOUTPUT } from '../pgwire/pgoutput.ts'
import type { PgConnection } from '../postgres/connection.ts'
import type { ConnectTarget } from '../postgres/dsn.ts'
import { ReplicationStream, type StreamHandler } from '../postgres/replication-stream.ts'
import { ServerError } from '../postgres/server-error.ts'
import { Applier, type ApplierOptions } from './apply/applier.ts'
import {
  ApplySession,
  type ApplyHandler,
  type AppliedTransaction,
  type Purpose,
} from './apply/apply-session.ts'
import { AttemptFailed, type Attempt, type OnException } from './apply/careful/careful-lane.ts'
import { CareChanged } from './apply/careful/care.ts'
import { OriginRows } from './apply/careful/origin-rows.ts'
import { ConfirmedPosition, type LocalWal } from './apply/confirmed-position.ts'
import type { LocalClock } from './apply/local-clock.ts'
import type { FlowNodes } from './apply/table-plan.ts'

const CONFIRM_INTERVAL_MS = 250
const PING_INTERVAL_MS = 10_000
const RETRY_INTERVAL_MS = 1000
const SILENCE_LIMIT_MS = 45_000

export interface FlowOptions {
  readonly providerTarget: ConnectTarget
  readonly localTarget: ConnectTarget
  readonly applicationName: string
  readonly slotName: string
  readonly originName: string
  readonly originNodeId: number
  readonly nodes: FlowNodes
  readonly publications: readonly string[]
  readonly binary: boolean
  /** See ApplierOptions. */
  readonly announce: boolean
  /** The provider can leave out what it applied from elsewhere (PostgreSQL 16 and later). */
  readonly filterOrigins: boolean
  readonly applyDelayMs: number
  readonly onException: OnException
  /** See ApplierOptions. */
  readonly postpone: ApplierOptions['postpone']
  /** How to apply the transaction that failed before; null: none did. */
  readonly attempt: Attempt | null
  readonly clock: LocalClock
  readonly localWal: () => Promise<LocalWal>
  /** Runs in the session that will apply, before it does. Rejects to end the flow. */
  readonly beforeApply: (session: PgConnection) => Promise<void>
  readonly onClockAhead: (aheadMs: number) => void
  /** Everything that was committed before it is applied and durable here, or does not concern us. */
  readonly startLsn: Lsn
  /** Nothing that was committed from here on is taken: the flow ends with UpToReached instead. */
  readonly upTo: Lsn | undefined
  /** A transaction has been applied. */
  readonly onApplied: () => void
}

/** Raised by a table's guard for a key that has a tombstone, when the change's timestamp was not announced. */
const TOMBSTONE_MET = 'ST004'

/** A table has code of an ordinary role now, and was written as one that has none: describe it again. */
const CODE_APPEARED = 'ST005'
/** Code of an ordinary role left something for the end of the transaction, or for the statements after it. */
const CODE_LEFT_SOMETHING = 'ST006'

const PERMISSION_DENIED = '42501'
/** Other tables need care than the session knew. */
const CARE_CHANGED = 'ST007'

/** A change met a tombstone: stream again with timestamps announced. */
export class AnnouncingNeeded extends Error {
  override name = 'AnnouncingNeeded'
}

/** Everything before `upTo` is applied and durable; `next` is the position of what came after it. */
export class UpToReached extends Error {
  override name = 'UpToReached'
  readonly upTo: Lsn
  readonly next: Lsn
  constructor(upTo: Lsn, next: Lsn) {
    super('the flow has come to its end')
    this.upTo = upTo
    this.next = next
  }
}

/** What has happened in a subscription since its agent started; survives reconnects. */
export interface FlowCounters {
  transactions: number
  changes: number
  readonly conflicts: Record<string, number>
  lastCommitMs: number | null
  lastDelayMs: number | null
  /** No transaction of the provider that is newer has been given to the server. Null: an earlier agent may have given some. */
  seenUpTo: PgTime | null
}

/**
 * The way of changes from one provider's slot into the local database, while it lasts: stream, decode, apply,
 * acknowledge. Ends with an error, or when aborted.
 */
export class ChangeFlow implements StreamHandler, ApplyHandler {
  readonly position: ConfirmedPosition
  readonly #options: FlowOptions
  readonly #counters: FlowCounters
  #applier!: Applier
  #session!: ApplySession
  #stream: ReplicationStream | undefined
  #blocked = false
  #endingAt: Lsn | undefined
  readonly #rows: OriginRows
  /** Types of the conflicts that were recorded in the transaction that commits next. */
  #recorded: string[] = []
  /** Transactions that were applied since the session began. */
  #committed = 0
  readonly #backlog: Buffer[] = []
  #fail!: (error: unknown) => void
  #lastPingMs = Date.now()
  #lastRetryMs = 0

  constructor(options: FlowOptions, counters: FlowCounters) {
    this.#options = options
    this.#counters = counters
    this.position = new ConfirmedPosition()
    this.#rows = new OriginRows(options.providerTarget, options.applicationName)
  }

  get receivedLsn(): Lsn {
    return this.#stream?.receivedLsn ?? LSN_ZERO
  }

  /**
   * Runs until `signal` aborts (resolves) or something fails (rejects with the cause).
   * `onStarted` is called when changes begin to flow.
   */
  async run(signal: AbortSignal, onStarted: () => void): Promise<void> {
    const options = this.#options
    const failed = new Promise<never>((_, reject) => {
      this.#fail = reject
    })
    failed.catch(() => {})
    const stop = new Promise<void>((resolve) => {
      if (signal.aborted) resolve()
      else signal.addEventListener('abort', () => resolve(), { once: true })
    })
    let timer: NodeJS.Timeout | undefined
    try {
      this.#session = await ApplySession.open(
        options.localTarget,
        `${options.applicationName} apply`,
        { name: options.originName, nodeId: options.originNodeId },
        this,
        options.beforeApply,
      )
      // Nobody else applies for this origin any more, and nothing is applied before the clock here is past it.
      this.#counters.seenUpTo ??= await options.clock.refresh()
      this.#applier = new Applier({
        session: this.#session,
        clock: options.clock,
        originNodeId: options.originNodeId,
        originName: options.originName,
        nodes: options.nodes,
        binary: options.binary,
        announce: options.announce,
        applyDelayMs: options.applyDelayMs,
        onException: options.onException,
        fetch: (table, key) => this.#rows.fetch(table, key, signal),
        postpone: options.postpone,
        attempt: options.attempt,
        signal,
        onClockAhead: options.onClockAhead,
        onNothingToApply: (endLsn) => {
          if (this.#session.idle) this.position.onApplied(endLsn)
        },
      })
      this.#stream = await ReplicationStream.start(
        options.providerTarget,
        {
          slotName: options.slotName,
          applicationName: options.applicationName,
          startLsn: options.startLsn,
          pluginOptions: {
            proto_version: '1',
            publication_names: options.publications.map((name) => `"${name}"`).join(','),
            binary: String(options.binary),
            ...(options.filterOrigins ? { origin: 'none' } : {}),
          },
          signal,
        },
        this,
      )
      if (this.#blocked) this.#stream.pause()
      onStarted()
      timer = setInterval(() => void this.#tick().catch(this.#fail), CONFIRM_INTERVAL_MS)
      await Promise.race([failed, stop])
    } finally {
      clearInterval(timer)
      await Promise.all([this.#stream?.close(), this.#session?.close(), this.#rows.close()])
    }
  }

  onData(buffer: Buffer, start: number, end: number): void {
    if (this.#blocked) this.#backlog.push(Buffer.from(buffer.subarray(start, end)))
    else this.#take(buffer, start, end)
  }

  onBatchEnd(): void {
    if (!this.#blocked) this.#session.flush()
  }

  onKeepalive(walEnd: Lsn, replyRequested: boolean): void {
    if (this.#session.idle && !this.#applier.inTransaction && !this.#blocked) {
      const { upTo } = this.#options
      if (upTo !== undefined && walEnd >= upTo) return this.#endAt(walEnd)
      this.position.onApplied(walEnd)
    }
    if (replyRequested) this.#confirm()
  }

  onCommitted(transaction: AppliedTransaction): void {
    const counters = this.#counters
    for (const type of this.#recorded) counters.conflicts[type] = (counters.conflicts[type] ?? 0) + 1
    this.#recorded = []
    this.#committed++
    counters.transactions++
    counters.changes += transaction.changes
    counters.lastCommitMs = unixMsOf(transaction.commitTime)
    counters.lastDelayMs = Date.now() - counters.lastCommitMs
    this.position.onApplied(transaction.endLsn)
    this.#options.onApplied()
  }

  onConflict(type: string): void {
    this.#recorded.push(type)
  }

  /** The stream or the session is over. */
  onEnd(error: SternaError, purpose?: Purpose, lsn?: Lsn): void {
    const { attempt, nodes } = this.#options
    if (error instanceof ServerError && error.sqlstate === CARE_CHANGED) return this.#fail(new CareChanged())
    if (!purpose) return this.#fail(error)
    const refused = applyError(error, purpose, nodes.local)
    // Plans of this session may be of a schema that was changed by hand meanwhile.
    if (error instanceof ServerError && /^42(?!501)/.test(error.sqlstate) && this.#committed > 0)
      return this.#fail(new CareChanged())
    const failed = lsn ?? this.#applier.currentLsn
    // The fast lane cannot tell one change of a transaction from another: it is applied again, one by one.
    const isNew = failed !== undefined && attempt?.lsn !== failed
    // A missing grant is missing for all changes: that is said, and waits.
    const isDenied = error instanceof ServerError && error.sqlstate === PERMISSION_DENIED
    if (isNew && !isDenied && refused instanceof SternaError && refused.code === 'APPLY_FAILED')
      this.#fail(
        new AttemptFailed({ lsn: failed, park: new Map(), discard: null, again: new Set() }, refused.message),
      )
    else this.#fail(refused)
  }

  #take(buffer: Buffer, start: number, end: number): void {
    try {
      const { upTo } = this.#options
      if (upTo !== undefined && buffer[start] === PGOUTPUT.begin) {
        const { finalLsn } = parseBegin(buffer, start + 1)
        if (finalLsn >= upTo) return this.#endAt(finalLsn)
      }
      if (buffer[start] === PGOUTPUT.commit) this.#see(parseCommit(buffer, start + 1).commitTime)
      const wait = this.#applier.handle(buffer, start, end)
      if (wait) this.#block(wait)
      else if (this.#session.congested)
        this.#block(new Promise((resolve) => this.#session.onceReady(resolve)))
    } catch (error) {
      this.#blocked = true
      this.#fail(streamError(error))
    }
  }

  /** Before the commit is sent: what the server has must never be more than what we say that it may have. */
  #see(commitTime: PgTime): void {
    const { seenUpTo } = this.#counters
    if (seenUpTo !== null && commitTime > seenUpTo) this.#counters.seenUpTo = commitTime
  }

  /** Takes no more; the flow ends when what was taken is durable. */
  #endAt(next: Lsn): void {
    this.#endingAt = next
    this.#blocked = true
    this.#stream?.pause()
    this.#session.flush()
  }

  /** Takes nothing more until `wait` resolves; the provider is slowed down through its connection. */
  #block(wait: Promise<void>): void {
    this.#blocked = true
    this.#stream?.pause()
    this.#session.flush()
    wait.then(
      () => this.#unblock(),
      (error: unknown) => this.#fail(streamError(error)),
    )
  }

  #unblock(): void {
    this.#blocked = false
    while (this.#backlog.length > 0 && !this.#blocked) {
      const message = this.#backlog.shift()!
      this.#take(message, 0, message.length)
    }
    this.#session.flush()
    if (!this.#blocked) this.#stream?.resume()
  }

  async #tick(): Promise<void> {
    const { upTo } = this.#options
    if (this.#endingAt !== undefined && upTo !== undefined && this.#session.idle) {
      this.position.onApplied(upTo)
      if (this.position.confirmed >= upTo) throw new UpToReached(upTo, this.#endingAt)
    }
    const { applied, confirmed } = this.position
    if (applied > confirmed && this.position.onLocalWal(applied, await this.#options.localWal()))
      this.#confirm()
    const nowMs = Date.now()
    if (nowMs - this.#lastRetryMs > RETRY_INTERVAL_MS) this.#retryParked(nowMs)
    if (nowMs - this.#lastPingMs > PING_INTERVAL_MS) {
      this.#lastPingMs = nowMs
      this.#confirm(true)
    }
    const stream = this.#stream!
    if (!this.#blocked && nowMs - stream.lastReceivedAtMs > SILENCE_LIMIT_MS) {
      throw new SternaError('CONNECTION_LOST', {
        address: 'the provider',
        reason: `nothing received for ${SILENCE_LIMIT_MS / 1000} s`,
      })
    }
  }

  /** Between two transactions; the stream waits meanwhile. */
  #retryParked(nowMs: number): void {
    if (this.#blocked || this.#applier.inTransaction || this.#session.care.isEmpty) return
    this.#lastRetryMs = nowMs
    this.#block(this.#applier.retryParked())
  }

  #confirm(requestReply = false): void {
    const { applied, confirmed } = this.position
    this.#stream?.confirm(
      this.receivedLsn > applied ? this.receivedLsn : applied,
      confirmed,
      applied,
      requestReply,
    )
  }
}

/** A message whose fields reach beyond its end was damaged on its way. */
function streamError(error: unknown): unknown {
  if (!(error instanceof RangeError)) return error
  const reason = 'a change is shorter than its fields'
  return new SternaError('PROTOCOL_VIOLATION', { address: 'the provider', reason }, error)
}

/** Puts a server's refusal of a change into the terms of that change. */
function applyError(error: SternaError, purpose: Purpose, node: string): Error {
  const { operation, table, typeDifferences = [] } = purpose
  if (!(error instanceof ServerError) || operation === 'finish') return error
  const { sqlstate } = error
  if (sqlstate === TOMBSTONE_MET) return new AnnouncingNeeded()
  const facts = { node, operation, table, reason: error.fields.message, sqlstate }
  if (sqlstate.startsWith('53') || sqlstate.startsWith('58'))
    return new SternaError('SERVER_OUT_OF_RESOURCES', facts, error)
  if (sqlstate === CODE_LEFT_SOMETHING) return new SternaError('CODE_REFUSED', facts, error)
  if (sqlstate === CODE_APPEARED || error.retry) return new SternaError('APPLY_INTERRUPTED', facts, error)
  if (operation === 'ddl') return new SternaError('DDL_FAILED', facts, error)
  if (/^(22|42)/.test(sqlstate) && typeDifferences.length > 0)
    return new SternaError('TYPE_DIFFERS', { ...facts, columns: typeDifferences.join('; ') }, error)
  return new SternaError('APPLY_FAILED', facts, error)
}

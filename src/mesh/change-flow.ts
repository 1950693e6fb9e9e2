import { SternaError } from '../core/errors.ts'
import { LSN_ZERO, type Lsn } from '../core/lsn.ts'
import { unixMsOf } from '../core/pg-time.ts'
import type { ConnectTarget } from '../postgres/dsn.ts'
import { ReplicationStream, type StreamHandler } from '../postgres/replication-stream.ts'
import { ServerError } from '../postgres/server-error.ts'
import { Applier } from './apply/applier.ts'
import {
  ApplySession,
  type ApplyHandler,
  type AppliedTransaction,
  type Purpose,
} from './apply/apply-session.ts'
import { ConfirmedPosition, type LocalWal } from './apply/confirmed-position.ts'
import type { LocalClock } from './apply/local-clock.ts'

const CONFIRM_INTERVAL_MS = 250
const PING_INTERVAL_MS = 10_000
const SILENCE_LIMIT_MS = 45_000

export interface FlowOptions {
  readonly providerTarget: ConnectTarget
  readonly localTarget: ConnectTarget
  readonly applicationName: string
  readonly slotName: string
  readonly originName: string
  readonly originNodeId: number
  readonly publications: readonly string[]
  readonly binary: boolean
  /** The provider can leave out what it applied from elsewhere (PostgreSQL 16 and later). */
  readonly filterOrigins: boolean
  readonly applyDelayMs: number
  readonly clock: LocalClock
  readonly localWal: () => Promise<LocalWal>
  readonly onClockAhead: (aheadMs: number) => void
  /** A transaction has been applied. */
  readonly onApplied: () => void
}

/** What has happened in a subscription since its agent started; survives reconnects. */
export interface FlowCounters {
  transactions: number
  changes: number
  readonly conflicts: Record<string, number>
  lastCommitMs: number | null
  lastDelayMs: number | null
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
  readonly #backlog: Buffer[] = []
  #fail!: (error: unknown) => void
  #lastPingMs = Date.now()

  constructor(options: FlowOptions, counters: FlowCounters) {
    this.#options = options
    this.#counters = counters
    this.position = new ConfirmedPosition()
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
        options.originName,
        this,
      )
      this.#applier = new Applier({
        session: this.#session,
        clock: options.clock,
        originNodeId: options.originNodeId,
        binary: options.binary,
        applyDelayMs: options.applyDelayMs,
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
          startLsn: LSN_ZERO,
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
      await Promise.all([this.#stream?.close(), this.#session?.close()])
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
    if (this.#session.idle && !this.#applier.inTransaction && !this.#blocked) this.position.onApplied(walEnd)
    if (replyRequested) this.#confirm()
  }

  onCommitted(transaction: AppliedTransaction): void {
    const counters = this.#counters
    counters.transactions++
    counters.changes += transaction.changes
    counters.lastCommitMs = unixMsOf(transaction.commitTime)
    counters.lastDelayMs = Date.now() - counters.lastCommitMs
    this.position.onApplied(transaction.endLsn)
    this.#options.onApplied()
  }

  onNothingChanged({ operation }: Purpose): void {
    const type =
      operation === 'insert'
        ? 'insert_exists'
        : operation === 'delete'
          ? 'delete_missing'
          : 'update_origin_differs'
    if (operation === 'truncate' || operation === 'ddl' || operation === 'begin') return
    this.#counters.conflicts[type] = (this.#counters.conflicts[type] ?? 0) + 1
  }

  /** The stream or the session is over. */
  onEnd(error: SternaError, purpose?: Purpose): void {
    this.#fail(purpose ? applyError(error, purpose) : error)
  }

  #take(buffer: Buffer, start: number, end: number): void {
    try {
      const wait = this.#applier.handle(buffer, start, end)
      if (wait) this.#block(wait)
      else if (this.#session.congested)
        this.#block(new Promise((resolve) => this.#session.onceReady(resolve)))
    } catch (error) {
      this.#blocked = true
      this.#fail(error)
    }
  }

  /** Takes nothing more until `wait` resolves; the provider is slowed down through its connection. */
  #block(wait: Promise<void>): void {
    this.#blocked = true
    this.#stream?.pause()
    this.#session.flush()
    wait.then(
      () => this.#unblock(),
      (error: unknown) => this.#fail(error),
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
    const { applied, confirmed } = this.position
    if (applied > confirmed && this.position.onLocalWal(applied, await this.#options.localWal()))
      this.#confirm()
    const nowMs = Date.now()
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

/** Puts a server's refusal of a change into the terms of that change. Transient failures stay as they are. */
function applyError(error: SternaError, { operation, table }: Purpose): SternaError {
  if (!(error instanceof ServerError) || error.retry || operation === 'begin') return error
  const facts = { reason: error.fields.message, sqlstate: error.sqlstate }
  return operation === 'ddl'
    ? new SternaError('DDL_FAILED', facts, error)
    : new SternaError('APPLY_FAILED', { operation, table, ...facts }, error)
}

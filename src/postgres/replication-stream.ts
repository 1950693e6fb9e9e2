import { SternaError } from '../core/errors.ts'
import { formatLsn, lsnOf, maxLsn, LSN_ZERO, type Lsn } from '../core/lsn.ts'
import { pgTimeFromUnixMs } from '../core/pg-time.ts'
import { quoteIdent } from '../core/quote.ts'
import { BACKEND, parseServerMessage } from '../pgwire/backend.ts'
import { FRONTEND, writeQuery, writeTerminate } from '../pgwire/frontend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import type { ConnectTarget } from './dsn.ts'
import { ServerError } from './server-error.ts'
import { WireSocket } from './wire-socket.ts'

/** Values as text: names of objects with their schema, money as every server reads it. */
const STREAM_SETTINGS = { search_path: 'pg_catalog', lc_monetary: 'C', xmloption: 'content' } as const

/** The provider answers START_REPLICATION at once, or its host is gone. */
const START_TIMEOUT_MS = 30_000
const XLOG_DATA = 0x77
const KEEPALIVE = 0x6b
const STATUS_UPDATE = 0x72
/** Of a message of many megabytes each such part is a sign of life; bytes alone are not: a damaged length swallows them. */
const SIGN_OF_LIFE_BYTES = 1024 * 1024
/** The year 2100, in microseconds since 2000. */
const LATEST_TIME = 3_155_760_000_000_000n
const XLOG_HEADER_BYTES = 25

export interface StreamOptions {
  readonly slotName: string
  readonly applicationName: string
  readonly startLsn: Lsn
  /** Options of the output plugin, such as `proto_version`. */
  readonly pluginOptions: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
}

/** What the owner of a stream gets. All calls are synchronous and in order; the first may come before start() returns. */
export interface StreamHandler {
  /** One message of the output plugin: `buffer[start, end)`, valid during the call only. */
  onData(buffer: Buffer, start: number, end: number): void
  /** Every byte received so far has been handed out: a good moment to flush. */
  onBatchEnd(): void
  /** The provider has sent everything up to this position. */
  onKeepalive(walEnd: Lsn, replyRequested: boolean): void
  onEnd(error: SternaError): void
}

/** A walsender's stream of logical changes. Source: PostgreSQL docs, "Streaming Replication Protocol". */
export class ReplicationStream {
  readonly #wire: WireSocket
  readonly #writer = new MessageWriter(256)
  #receivedLsn: Lsn = LSN_ZERO
  #lastReceivedAtMs = Date.now()
  #bytesAtSign = 0

  private constructor(wire: WireSocket) {
    this.#wire = wire
  }

  /**
   * Connects and starts streaming from the slot.
   * @throws what WireSocket.open throws; ServerError (55006: the slot is in use; 42704: there is no such slot)
   */
  static async start(
    target: ConnectTarget,
    options: StreamOptions,
    handler: StreamHandler,
  ): Promise<ReplicationStream> {
    const wire = await WireSocket.open(target, {
      applicationName: options.applicationName,
      replication: true,
      parameters: STREAM_SETTINGS,
      ...(options.signal ? { signal: options.signal } : {}),
    })
    const stream = new ReplicationStream(wire)
    const plugin = Object.entries(options.pluginOptions)
      .map(([name, value]) => `${quoteIdent(name)} ${quotePluginValue(value)}`)
      .join(', ')
    const command = `START_REPLICATION SLOT ${quoteIdent(options.slotName)} LOGICAL ${formatLsn(options.startLsn)}${plugin && ` (${plugin})`}`
    await stream.#begin(command, handler, options.signal)
    return stream
  }

  /** End of the last message received, in the provider's WAL. */
  get receivedLsn(): Lsn {
    return this.#receivedLsn
  }

  /** Milliseconds since the Unix epoch of the last message, or of the last part of a long one. */
  get lastReceivedAtMs(): number {
    return this.#lastReceivedAtMs
  }

  pause(): void {
    this.#wire.pause()
  }

  resume(): void {
    this.#wire.resume()
  }

  /** Tells the provider how far we are. `flushed` lets it recycle WAL: only what is durable here may be named. */
  confirm(received: Lsn, flushed: Lsn, applied: Lsn, requestReply = false): void {
    this.#writer
      .begin(FRONTEND.copyData)
      .byte(STATUS_UPDATE)
      .int64(received)
      .int64(flushed)
      .int64(applied)
      .int64(pgTimeFromUnixMs(Date.now()))
      .byte(requestReply ? 1 : 0)
      .end()
    this.#wire.write(this.#writer.take())
  }

  async close(): Promise<void> {
    this.#wire.onFrame = () => {}
    this.#writer.begin(FRONTEND.copyDone).end()
    writeTerminate(this.#writer)
    await this.#wire.end(this.#writer.take())
  }

  #begin(command: string, handler: StreamHandler, signal: AbortSignal | undefined): Promise<void> {
    const wire = this.#wire
    const giveUp = (reason: string): void =>
      wire.fail(new SternaError('CONNECTION_LOST', { address: wire.address, reason }))
    const onAbort = (): void => giveUp('given up')
    const timer = setTimeout(
      giveUp,
      START_TIMEOUT_MS,
      `streaming did not start within ${START_TIMEOUT_MS / 1000} s`,
    )
    const started = new Promise<void>((resolve, reject) => {
      let error: ServerError | undefined
      wire.onClose = (reason) => reject(error ?? reason)
      signal?.addEventListener('abort', onAbort)
      if (signal?.aborted) onAbort()
      wire.onFrame = (type, buffer, start, end) => {
        if (type === BACKEND.error)
          error = new ServerError(wire.address, parseServerMessage(buffer, start, end))
        else if (type === BACKEND.copyBothResponse) {
          // At once, not after the await: the first data may be in the same chunk.
          this.#deliverTo(handler)
          resolve()
        } else if (type === BACKEND.readyForQuery) {
          const reason = new SternaError('PROTOCOL_VIOLATION', {
            address: wire.address,
            reason: 'streaming did not start',
          })
          wire.fail(error ?? reason)
        }
      }
      writeQuery(this.#writer, command)
      wire.write(this.#writer.take())
    })
    return started.finally(() => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
    })
  }

  #signOfLife(): void {
    this.#lastReceivedAtMs = Date.now()
    this.#bytesAtSign = this.#wire.bytesRead
  }

  #deliverTo(handler: StreamHandler): void {
    const wire = this.#wire
    let failure: ServerError | undefined
    wire.onClose = (reason) => handler.onEnd(failure ?? reason)
    wire.onChunkEnd = () => {
      if (wire.bytesRead - this.#bytesAtSign > SIGN_OF_LIFE_BYTES) this.#signOfLife()
      handler.onBatchEnd()
    }
    wire.checkLong = (type, head) => {
      if (type === BACKEND.copyData && isXlogData(head)) return
      const reason = 'a long message does not begin as it should'
      throw new SternaError('PROTOCOL_VIOLATION', { address: wire.address, reason })
    }
    wire.onFrame = (type, buffer, start, end) => {
      this.#signOfLife()
      if (type === BACKEND.copyData) {
        const kind = buffer[start]
        if (kind === XLOG_DATA) {
          const at = lsnOf(buffer.readBigUInt64BE(start + 1))
          if (at > this.#receivedLsn) this.#receivedLsn = at
          handler.onData(buffer, start + XLOG_HEADER_BYTES, end)
        } else if (kind === KEEPALIVE) {
          const walEnd = lsnOf(buffer.readBigUInt64BE(start + 1))
          this.#receivedLsn = maxLsn(this.#receivedLsn, walEnd)
          handler.onKeepalive(walEnd, buffer[start + 17] === 1)
        } else {
          const reason = `unknown stream message 0x${(kind ?? 0).toString(16)}`
          wire.fail(new SternaError('PROTOCOL_VIOLATION', { address: wire.address, reason }))
        }
      } else if (type === BACKEND.error) {
        failure = new ServerError(wire.address, parseServerMessage(buffer, start, end))
        wire.fail(failure)
      } else if (type === BACKEND.copyDone || type === BACKEND.commandComplete) {
        wire.fail(
          new SternaError('CONNECTION_LOST', {
            address: wire.address,
            reason: 'the provider ended the stream',
          }),
        )
      } else if (type !== BACKEND.notice && type !== BACKEND.parameterStatus) {
        const reason = `message type 0x${type.toString(16)} in the stream`
        wire.fail(new SternaError('PROTOCOL_VIOLATION', { address: wire.address, reason }))
      }
    }
  }
}

/** A string in a replication command, whose grammar knows no escapes but the doubled quote. */
function quotePluginValue(value: string): string {
  return `'${value.replaceAll("'", "''")}'`
}

/** Whether a message begins as one with data does: its kind, two positions, and a time of this century. */
function isXlogData(head: Buffer): boolean {
  const sentAt = head.readBigInt64BE(17)
  return head[0] === XLOG_DATA && sentAt > 0n && sentAt < LATEST_TIME
}

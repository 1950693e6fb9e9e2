import { SternaError } from '../core/errors.ts'
import {
  BACKEND,
  cstringEnd,
  parseDataRow,
  parseRowDescription,
  parseServerMessage,
  rowCountOfTag,
  type Field,
  type ServerMessage,
} from '../pgwire/backend.ts'
import {
  writeBindText,
  writeCancelRequest,
  writeDescribePortal,
  writeExecute,
  writeParse,
  writeQuery,
  writeSync,
  writeTerminate,
} from '../pgwire/frontend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import { parseDsn, type ConnectTarget } from './dsn.ts'
import { ServerError } from './server-error.ts'
import { formatParam, parseTextValue, type SqlParam, type SqlValue } from './text-values.ts'
import { WireSocket, type WireOptions } from './wire-socket.ts'

/** A cancelled statement that has not ended after so long: the connection is dead. */
const CANCEL_GRACE_MS = 3000

export type Row = Record<string, SqlValue>

/** The result of one statement. */
export interface QueryResult<R = Row> {
  readonly rows: R[]
  readonly fields: readonly Field[]
  /** The command tag, such as `INSERT 0 1`. */
  readonly command: string
  readonly rowCount: number
}

export interface QueryOptions {
  /** Cancels the statement at the server after so long; when even that brings no answer, the connection is lost. */
  readonly timeoutMs?: number
}

interface Pending {
  readonly results: QueryResult[]
  rows: Row[]
  fields: readonly Field[]
  /** Rows as raw text instead of parsed values. */
  readonly raw: boolean
  readonly bytes: Buffer
  readonly timeoutMs: number | undefined
  timer: NodeJS.Timeout | undefined
  sent: boolean
  error: ServerError | undefined
  readonly resolve: (results: QueryResult[]) => void
  readonly reject: (error: SternaError) => void
}

/**
 * One session for ordinary SQL. Statements given without awaiting are queued and run in order, each sent when the one
 * before it is answered: so a time limit counts from the start of its own statement, and a cancel hits no other one. After
 * the connection is lost every waiting and later statement rejects with the reason.
 */
export class PgConnection {
  onNotice: (message: ServerMessage) => void = () => {}
  onNotification: (channel: string, payload: string) => void = () => {}
  /** Called once when the connection ends other than by close(). */
  onLost: (error: SternaError) => void = () => {}
  /** For statements that give no `timeoutMs` of their own; undefined: they may take for ever. */
  defaultTimeoutMs: number | undefined
  readonly #wire: WireSocket
  readonly #queue: Pending[] = []
  readonly #writer = new MessageWriter(4096)
  #lost: SternaError | undefined
  /** A cancel request is under way: what is sent before it has arrived would be cancelled too. */
  #cancelling = false

  private constructor(wire: WireSocket) {
    this.#wire = wire
    wire.onFrame = (type, buffer, start, end) => this.#onFrame(type, buffer, start, end)
    wire.onClose = (error) => this.#onClose(error)
  }

  /** Connects; takes a DSN or a parsed target. Throws what WireSocket.open throws. */
  static async connect(
    target: ConnectTarget | string,
    options: Partial<WireOptions> = {},
  ): Promise<PgConnection> {
    const parsed = typeof target === 'string' ? parseDsn(target) : target
    return new PgConnection(await WireSocket.open(parsed, { applicationName: 'sterna', ...options }))
  }

  /** Takes over a wire that is logged in and idle. */
  static over(wire: WireSocket): PgConnection {
    return new PgConnection(wire)
  }

  get address(): string {
    return this.#wire.address
  }

  get backendPid(): number {
    return this.#wire.backendPid
  }

  /** A start-up or reported parameter, such as `server_version`. */
  parameter(name: string): string | undefined {
    return this.#wire.parameters.get(name)
  }

  /** Major version of the server: 15, 16, ... */
  get majorVersion(): number {
    return Number.parseInt(this.parameter('server_version') ?? '0', 10)
  }

  /**
   * Runs one statement with text parameters; rows are objects by column name.
   * @throws ServerError; CONNECTION_LOST
   */
  async query<R = Row>(
    sql: string,
    params: readonly SqlParam[] = [],
    options: QueryOptions = {},
  ): Promise<QueryResult<R>> {
    const [result] = await this.#run(
      (w) => {
        writeParse(w, '', sql)
        writeBindText(w, '', params.map(formatParam))
        writeDescribePortal(w)
        writeExecute(w)
        writeSync(w)
      },
      options,
      false,
    )
    return (result ?? { rows: [], fields: [], command: '', rowCount: 0 }) as QueryResult<R>
  }

  /** The first row, or undefined. */
  async row<R = Row>(
    sql: string,
    params: readonly SqlParam[] = [],
    options: QueryOptions = {},
  ): Promise<R | undefined> {
    return (await this.query<R>(sql, params, options)).rows[0]
  }

  /** Runs a string of one or more statements by the simple protocol; a result for each. Also for replication commands. */
  exec(sql: string, options: QueryOptions & { readonly raw?: boolean } = {}): Promise<QueryResult[]> {
    return this.#run((w) => writeQuery(w, sql), options, options.raw ?? false)
  }

  /**
   * Runs `work` in a transaction; rolls back when it throws.
   * @throws what `work` throws; ServerError 25P02 when a statement in it failed and `work` did not say so
   */
  async transaction<T>(work: () => Promise<T>): Promise<T> {
    await this.exec('begin')
    try {
      const result = await work()
      const [done] = await this.exec('commit')
      // The server answers COMMIT of a failed transaction with success, and rolls back.
      if (done?.command === 'ROLLBACK') throw rolledBack(this.address)
      return result
    } catch (error) {
      if (!this.#lost) await this.exec('rollback').catch(() => {})
      throw error
    }
  }

  /** Ends the session in order. Never rejects. */
  async close(): Promise<void> {
    this.#lost ??= new SternaError('CONNECTION_LOST', { address: this.address, reason: 'closed by us' })
    for (const pending of this.#queue) {
      if (!pending.sent) this.#writer.bytes(pending.bytes)
      pending.sent = true
    }
    writeTerminate(this.#writer)
    await this.#wire.end(this.#writer.take())
    this.#rejectAll(this.#lost)
  }

  /** Cuts the session off at once, without a goodbye. */
  destroy(): void {
    this.#wire.fail(new SternaError('CONNECTION_LOST', { address: this.address, reason: 'closed by us' }))
  }

  /** Asks the server to cancel the running statement. Never rejects. */
  async cancel(): Promise<void> {
    this.#cancelling = true
    await cancelBackend(this.#wire)
    this.#cancelling = false
    this.#sendHead()
  }

  #run(write: (w: MessageWriter) => void, options: QueryOptions, raw: boolean): Promise<QueryResult[]> {
    if (this.#lost) return Promise.reject(this.#lost)
    write(this.#writer)
    const bytes = this.#writer.take()
    const timeoutMs = options.timeoutMs ?? this.defaultTimeoutMs
    return new Promise<QueryResult[]>((resolve, reject) => {
      const state = { results: [], rows: [], fields: [], error: undefined, timer: undefined, sent: false }
      this.#queue.push({ ...state, raw, bytes, timeoutMs, resolve, reject })
      this.#sendHead()
    })
  }

  #sendHead(): void {
    const head = this.#queue[0]
    if (!head || head.sent || this.#cancelling) return
    head.sent = true
    this.#wire.write(head.bytes)
    const { timeoutMs } = head
    if (timeoutMs === undefined) return
    head.timer = setTimeout(() => {
      void this.cancel()
      const reason = `no answer within ${timeoutMs / 1000} s`
      head.timer = setTimeout(
        () => this.#wire.fail(new SternaError('CONNECTION_LOST', { address: this.address, reason })),
        CANCEL_GRACE_MS,
      )
    }, timeoutMs)
  }

  #onFrame(type: number, buffer: Buffer, start: number, end: number): void {
    const pending = this.#queue[0]
    switch (type) {
      case BACKEND.dataRow:
        if (pending) pending.rows.push(rowOf(parseDataRow(buffer, start, end), pending))
        return
      case BACKEND.rowDescription:
        if (pending) pending.fields = parseRowDescription(buffer, start, end)
        return
      case BACKEND.commandComplete: {
        if (!pending) return
        const command = buffer.toString('utf8', start, cstringEnd(buffer, start))
        pending.results.push({
          rows: pending.rows,
          fields: pending.fields,
          command,
          rowCount: rowCountOfTag(command),
        })
        pending.rows = []
        pending.fields = []
        return
      }
      case BACKEND.emptyQueryResponse:
        pending?.results.push({ rows: [], fields: [], command: '', rowCount: 0 })
        return
      case BACKEND.error: {
        const error = new ServerError(this.address, parseServerMessage(buffer, start, end))
        if (pending) pending.error ??= error
        else
          this.#wire.fail(
            new SternaError(
              'CONNECTION_LOST',
              { address: this.address, reason: error.fields.message },
              error,
            ),
          )
        return
      }
      case BACKEND.notice:
        return this.onNotice(parseServerMessage(buffer, start, end))
      case BACKEND.notification: {
        const channelEnd = cstringEnd(buffer, start + 4)
        const payloadEnd = cstringEnd(buffer, channelEnd + 1)
        return this.onNotification(
          buffer.toString('utf8', start + 4, channelEnd),
          buffer.toString('utf8', channelEnd + 1, payloadEnd),
        )
      }
      case BACKEND.parameterStatus: {
        const nameEnd = cstringEnd(buffer, start)
        this.#wire.parameters.set(
          buffer.toString('utf8', start, nameEnd),
          buffer.toString('utf8', nameEnd + 1, end - 1),
        )
        return
      }
      case BACKEND.readyForQuery: {
        const done = this.#queue.shift()
        if (!done) return
        clearTimeout(done.timer)
        this.#sendHead()
        if (done.error) done.reject(done.error)
        else done.resolve(done.results)
        return
      }
      case BACKEND.copyInResponse:
      case BACKEND.copyOutResponse:
      case BACKEND.copyBothResponse:
        this.#wire.fail(
          new SternaError('CONNECTION_LOST', { address: this.address, reason: 'COPY is not possible here' }),
        )
        return
      case BACKEND.parseComplete:
      case BACKEND.bindComplete:
      case BACKEND.closeComplete:
      case BACKEND.noData:
      case BACKEND.portalSuspended:
      case BACKEND.parameterDescription:
        return
      default:
        this.#wire.fail(
          new SternaError('PROTOCOL_VIOLATION', {
            address: this.address,
            reason: `unknown message type 0x${type.toString(16)}`,
          }),
        )
    }
  }

  #onClose(error: SternaError): void {
    const reported = this.#queue[0]?.error
    const expected = this.#lost !== undefined
    this.#lost ??= reported
      ? new SternaError(
          'CONNECTION_LOST',
          { address: this.address, reason: reported.fields.message },
          reported,
        )
      : error
    this.#rejectAll(this.#lost)
    if (!expected) this.onLost(this.#lost)
  }

  #rejectAll(error: SternaError): void {
    for (const pending of this.#queue.splice(0)) {
      clearTimeout(pending.timer)
      pending.reject(pending.error ?? error)
    }
  }
}

/** @throws RangeError when it is not a row of the columns described before */
function rowOf(values: (string | null)[], pending: Pending): Row {
  if (values.length !== pending.fields.length) throw new RangeError('a row has other columns than described')
  const row: Row = {}
  for (const [i, field] of pending.fields.entries()) {
    const text = values[i]!
    row[field.name] = text === null || pending.raw ? text : valueOf(text, field.typeOid)
  }
  return row
}

function valueOf(text: string, typeOid: number): SqlValue {
  try {
    return parseTextValue(text, typeOid)
  } catch (error) {
    if (error instanceof SyntaxError) throw new RangeError('a value is not of its type', { cause: error })
    throw error
  }
}

function rolledBack(address: string): ServerError {
  const message = 'the transaction was rolled back, because a statement in it had failed'
  return new ServerError(address, { severity: 'ERROR', sqlstate: '25P02', message })
}

/** Sends a cancel request for a session over a connection of its own. Never rejects. */
export async function cancelBackend(wire: WireSocket): Promise<void> {
  const { connect } = await import('node:net')
  const target = wire.target
  const writer = new MessageWriter(64)
  writeCancelRequest(writer, wire.backendPid, wire.cancelKey)
  await new Promise<void>((resolve) => {
    const socket = target.host.startsWith('/')
      ? connect({ path: `${target.host}/.s.PGSQL.${target.port}` })
      : connect({ host: target.hostAddr ?? target.host, port: target.port })
    socket.once('connect', () => socket.end(writer.take()))
    socket.once('error', () => resolve())
    socket.once('close', () => resolve())
    socket.setTimeout(2000, () => socket.destroy())
  })
}

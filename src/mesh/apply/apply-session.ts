import { SternaError } from '../../core/errors.ts'
import type { Lsn } from '../../core/lsn.ts'
import type { PgTime } from '../../core/pg-time.ts'
import { BACKEND, parseDataRow, parseServerMessage } from '../../pgwire/backend.ts'
import {
  FRONTEND,
  writeBindText,
  writeExecute,
  writeFlush,
  writeParse,
  writeSync,
  writeTerminate,
} from '../../pgwire/frontend.ts'
import { MessageWriter } from '../../pgwire/message-writer.ts'
import { PgConnection } from '../../postgres/connection.ts'
import type { ConnectTarget } from '../../postgres/dsn.ts'
import { ServerError } from '../../postgres/server-error.ts'
import { WireSocket } from '../../postgres/wire-socket.ts'
import type { Ask, Param } from './careful/ask.ts'
import { Care } from './careful/care.ts'

/** Above this many bytes waiting for the server, the applier stops taking changes. */
const MAX_UNSENT_BYTES = 1024 * 1024
const OPEN_TIMEOUT_MS = 30_000
const FLUSH_BYTES = 48 * 1024

/** Whatever the role's or the database's own settings are: each of these changes what a value means or whether it goes in. */
const APPLY_SETTINGS = {
  session_replication_role: 'replica',
  synchronous_commit: 'off',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: '0',
  idle_session_timeout: '0',
  search_path: 'pg_catalog, pg_temp',
  client_min_messages: 'notice',
  // As values read as text, and their hashes, do not depend on who reads them.
  DateStyle: 'ISO, YMD',
  TimeZone: 'UTC',
  IntervalStyle: 'postgres',
  bytea_output: 'hex',
  extra_float_digits: '1',
  row_security: 'off',
  // Statements have no constants that a plan could be made for; and what is checked when planning is checked once.
  plan_cache_mode: 'force_generic_plan',
  xmloption: 'content',
  array_nulls: 'on',
  lc_monetary: 'C',
} as const

/** Tells the triggers what is being applied, until the transaction ends. */
const ANNOUNCE_SQL = `select pg_catalog.set_config('sterna.change_time', $1::text, true)`
/** Raised as a notice with the type of a conflict that was recorded. */
const CONFLICT_NOTICE = 'ST011'

const INT8_OID = 20
const PG_LSN_OID = 3220
const TIMESTAMPTZ_OID = 1184

/**
 * The last statement of each remote transaction: refuses unless the server's clock is past the change's timestamp and
 * unless exactly the transaction before it was the last applied (one that failed in the middle of the pipeline must not
 * be skipped by those behind it), and unless no other table needs care than the session knows; takes a transaction id, so that progress moves even if every change loses; gives the
 * commit the remote's origin, LSN and timestamp. Last, because from PostgreSQL 16 on a transaction that aborts after
 * `xact_setup` moves the origin's progress all the same.
 */
const FINISH_SQL = `select pg_catalog.pg_current_xact_id(), pg_catalog.pg_replication_origin_xact_setup(
  case when pg_catalog.clock_timestamp() > $2
        and pg_catalog.pg_replication_origin_session_progress(false) is not distinct from $3
        and (select c.epoch from sterna.careful_state c) = $4
       then $1 else sterna.apply_refused($1, $2, $3, $4) end, $2)`

/** What a statement in flight was for; one object per prepared statement, shared by its executions. */
export interface Purpose {
  /** `table`, qualified, for messages. */
  readonly table: string
  readonly operation: 'insert' | 'update' | 'delete' | 'truncate' | 'ddl' | 'guard' | 'finish'
  /** Columns whose type is another one at the provider, in words. */
  readonly typeDifferences?: readonly string[]
}

/** A remote transaction under way or done. */
export interface AppliedTransaction {
  readonly finalLsn: Lsn
  readonly endLsn: Lsn
  readonly commitTime: PgTime
  readonly changes: number
}

interface Lookup {
  readonly rows: (string | null)[][]
  readonly resolve: (rows: (string | null)[][]) => void
  readonly reject: (error: SternaError) => void
}

type Expected =
  | { readonly tag: 'statement'; readonly purpose: Purpose }
  | { readonly tag: 'lookup'; readonly lookup: Lookup }
  | { readonly tag: 'commit'; readonly transaction: AppliedTransaction }
  | { readonly tag: 'end' }

interface SessionStart {
  lsn: string | null
  origin_oid: bigint
  equal_until: string | null
  epoch: bigint
  tables: string[]
}

export interface ApplyHandler {
  onCommitted(transaction: AppliedTransaction): void
  /** A conflict of this type was recorded in the transaction that is committed next. */
  onConflict(type: string): void
  /** The session is over. `purpose`: what failed, where a statement did; `lsn`: of its transaction, unless that has not ended. */
  onEnd(error: SternaError, purpose: Purpose | undefined, lsn: Lsn | undefined): void
}

/** A statement prepared in the session. `purpose.expected` objects are made once, here. */
export interface PreparedStatement {
  readonly name: string
  /** Head of a Bind message to the unnamed portal: both names. */
  readonly bindPrefix: Buffer
  readonly expected: Expected
}

/**
 * A session in which remote transactions are applied: pipelined, each as one implicit transaction between two Syncs,
 * without a round trip. After any error the whole session is discarded, because the origin, LSN and timestamp given for
 * a transaction outlive its rollback and would be inherited by the next commit.
 */
export class ApplySession implements Ask {
  readonly #wire: WireSocket
  readonly #handler: ApplyHandler
  readonly #queue: Expected[] = []
  #queueHead = 0
  #statements = 0
  #ended = false
  #finish!: PreparedStatement
  #announce!: PreparedStatement
  readonly #once = new Map<string, PreparedStatement>()
  readonly #lookups = new Map<string, string>()
  readonly writer = new MessageWriter()
  /** What lookups are for at present. */
  about: Purpose | undefined
  /** The LSN that the origin's progress had when the session began; null: nothing applied yet. */
  readonly startProgress: Lsn | null
  /** Number of the replication origin. */
  readonly originOid: number
  /** What stands here since before this moment is no conflict: the subscription began with equal data. Null: there is none. */
  readonly equalUntil: string | null
  readonly care: Care

  private constructor(wire: WireSocket, handler: ApplyHandler, start: SessionStart) {
    this.#wire = wire
    this.#handler = handler
    this.startProgress = start.lsn === null ? null : (BigInt(start.lsn) as Lsn)
    this.originOid = Number(start.origin_oid)
    this.equalUntil = start.equal_until
    this.care = new Care(this, start.epoch, start.tables.map(Number))
  }

  /**
   * Opens a session that applies for `origin`.
   * @throws ServerError 55006 while another session still applies for this origin (retry)
   */
  static async open(
    target: ConnectTarget,
    applicationName: string,
    origin: { readonly name: string; readonly nodeId: number },
    handler: ApplyHandler,
    check: (connection: PgConnection) => Promise<void>,
  ): Promise<ApplySession> {
    const wire = await WireSocket.open(target, {
      applicationName,
      parameters: { ...APPLY_SETTINGS, 'sterna.change_node': String(origin.nodeId) },
    })
    const connection = PgConnection.over(wire)
    connection.defaultTimeoutMs = OPEN_TIMEOUT_MS
    try {
      await check(connection)
      await connection.query('select pg_replication_origin_session_setup($1)', [origin.name])
      const row = await connection.row<SessionStart>(
        `select (pg_replication_origin_session_progress(false) - '0/0'::pg_lsn)::text as lsn, pg_replication_origin_oid($1)::bigint as origin_oid,
                (select min(s.initialized_at)::text from sterna.subscription s where s.origin_name = $1) as equal_until,
                c.epoch, array(select t.table_oid::bigint from sterna.careful_table t)::text[] as tables from sterna.careful_state c`,
        [origin.name],
      )
      const session = new ApplySession(wire, handler, row!)
      session.#takeOver()
      return session
    } catch (error) {
      connection.destroy()
      throw error
    }
  }

  #takeOver(): void {
    this.#wire.onFrame = (type, buffer, start, end) => this.#onFrame(type, buffer, start, end)
    this.#wire.onClose = (error) => this.#end(error, undefined)
    this.#announce = this.prepare(ANNOUNCE_SQL, [TIMESTAMPTZ_OID], { table: '', operation: 'finish' })
    this.#finish = this.prepare(FINISH_SQL, [PG_LSN_OID, TIMESTAMPTZ_OID, PG_LSN_OID, INT8_OID], {
      table: '',
      operation: 'finish',
    })
  }

  /** True while the server does not keep up: stop giving it changes until `onceReady`. */
  get congested(): boolean {
    return this.#wire.unsentBytes > MAX_UNSENT_BYTES
  }

  /** Calls once when the server has taken what was sent. */
  onceReady(call: () => void): void {
    this.#wire.onceDrained(call)
  }

  /** Nothing sent is unanswered. */
  get idle(): boolean {
    return this.#queueHead === this.#queue.length
  }

  /** Prepares a statement; it may be executed at once, the server answers in order. */
  prepare(sql: string, paramTypes: readonly number[], purpose: Purpose): PreparedStatement {
    const name = `s${++this.#statements}`
    writeParse(this.writer, name, sql, paramTypes)
    return { name, bindPrefix: Buffer.from(`\0${name}\0`), expected: { tag: 'statement', purpose } }
  }

  /** The same, but the second time what was prepared the first time. */
  prepareOnce(sql: string, paramTypes: readonly number[], purpose: Purpose): PreparedStatement {
    let statement = this.#once.get(sql)
    if (!statement) this.#once.set(sql, (statement = this.prepare(sql, paramTypes, purpose)))
    return statement
  }

  /** Executes a statement once, in its turn, without waiting for it. */
  run(sql: string, params: readonly (string | null)[], purpose: Purpose): void {
    writeParse(this.writer, '', sql)
    writeBindText(this.writer, '', params)
    writeExecute(this.writer)
    this.#queue.push({ tag: 'statement', purpose })
  }

  /** Head of a remote transaction where tombstones may have to be compared with it. */
  announce(commitTime: PgTime): void {
    this.writer.begin(FRONTEND.bind).bytes(this.#announce.bindPrefix).int16(1).int16(1).int16(1)
    this.writer.int32(8).int64(commitTime).int16(0).end()
    this.execute(this.#announce)
  }

  /** Executes what was just bound to the unnamed portal with a Bind for `statement`. */
  execute(statement: PreparedStatement): void {
    writeExecute(this.writer)
    this.#queue.push(statement.expected)
    if (this.writer.at > FLUSH_BYTES) this.flush()
  }

  /** Ends the implicit transaction: the server commits. `previousLsn`: of the transaction applied before it. */
  commit(transaction: AppliedTransaction, previousLsn: Lsn | null): void {
    const w = this.writer
    w.begin(FRONTEND.bind).bytes(this.#finish.bindPrefix).int16(1).int16(1).int16(4)
    w.int32(8).int64(transaction.finalLsn).int32(8).int64(transaction.commitTime)
    if (previousLsn === null) w.int32(-1)
    else w.int32(8).int64(previousLsn)
    w.int32(8).int64(this.care.epoch).int16(0).end()
    writeExecute(w)
    writeSync(w)
    this.#queue.push(this.#finish.expected, { tag: 'commit', transaction })
    if (w.at > FLUSH_BYTES) this.flush()
  }

  /** The same, and waits until it is committed. */
  async commitAndWait(transaction: AppliedTransaction, previousLsn: Lsn | null): Promise<void> {
    this.commit(transaction, previousLsn)
    await this.endLookups()
  }

  /** Sends what has been written so far. */
  flush(): void {
    if (this.writer.at > 0) this.#wire.write(this.writer.take())
  }

  /** Runs a query inside the open transaction and waits for its rows, as text. For the rare cases: it costs a round trip. */
  lookup(sql: string, params: readonly Param[], types: readonly number[] = []): Promise<(string | null)[][]> {
    return new Promise((resolve, reject) => {
      if (this.#ended)
        return reject(
          new SternaError('CONNECTION_LOST', {
            address: this.#wire.address,
            reason: 'the session has ended',
          }),
        )
      writeBindParams(this.writer, this.#lookupName(sql, types), params)
      writeExecute(this.writer)
      writeFlush(this.writer)
      this.#queue.push({ tag: 'lookup', lookup: { rows: [], resolve, reject } })
      this.flush()
    })
  }

  send(sql: string, params: readonly Param[], types: readonly number[] = []): void {
    this.lookup(sql, params, types).catch(() => {})
  }

  /** Lookups come in few forms: each is parsed once. */
  #lookupName(sql: string, types: readonly number[]): string {
    const form = `${types.join(',')} ${sql}`
    const known = this.#lookups.get(form)
    if (known !== undefined) return known
    const name = `q${this.#lookups.size + 1}`
    writeParse(this.writer, name, sql, types)
    this.#lookups.set(form, name)
    return name
  }

  /** Ends the implicit transaction of lookups. */
  async endLookups(): Promise<void> {
    const done = this.lookup('select 1', [])
    writeSync(this.writer)
    this.#queue.push({ tag: 'end' })
    this.flush()
    await done
  }

  /** Ends the session; an open transaction is rolled back by the server. Never rejects. */
  async close(): Promise<void> {
    this.#ended = true
    const writer = new MessageWriter(16)
    writeTerminate(writer)
    await this.#wire.end(writer.take())
    this.#rejectLookups(
      new SternaError('CONNECTION_LOST', { address: this.#wire.address, reason: 'closed by us' }),
    )
  }

  #onFrame(type: number, buffer: Buffer, start: number, end: number): void {
    switch (type) {
      case BACKEND.bindComplete:
      case BACKEND.parseComplete:
      case BACKEND.closeComplete:
      case BACKEND.parameterStatus:
      case BACKEND.notification:
      case BACKEND.noData:
      case BACKEND.rowDescription:
        return
      case BACKEND.notice: {
        const { sqlstate, message } = parseServerMessage(buffer, start, end)
        if (sqlstate === CONFLICT_NOTICE) this.#handler.onConflict(message)
        return
      }
      case BACKEND.dataRow: {
        const expected = this.#queue[this.#queueHead]
        if (expected?.tag === 'lookup') expected.lookup.rows.push(parseDataRow(buffer, start, end))
        return
      }
      case BACKEND.emptyQueryResponse:
      case BACKEND.commandComplete: {
        const expected = this.#next()
        if (expected?.tag === 'lookup') expected.lookup.resolve(expected.lookup.rows)
        return
      }
      case BACKEND.readyForQuery: {
        const expected = this.#next()
        if (expected?.tag === 'commit') this.#handler.onCommitted(expected.transaction)
        return
      }
      case BACKEND.error: {
        const error = new ServerError(this.#wire.address, parseServerMessage(buffer, start, end))
        const head = this.#queue[this.#queueHead]
        this.#end(
          error,
          head?.tag === 'statement' ? head.purpose : head?.tag === 'lookup' ? this.about : undefined,
        )
        return
      }
      default: {
        const reason = `message type 0x${type.toString(16)} while applying`
        this.#end(new SternaError('PROTOCOL_VIOLATION', { address: this.#wire.address, reason }), undefined)
      }
    }
  }

  #next(): Expected | undefined {
    const expected = this.#queue[this.#queueHead++]
    if (this.#queueHead === this.#queue.length) {
      this.#queue.length = 0
      this.#queueHead = 0
    } else if (this.#queueHead > 8192) {
      this.#queue.splice(0, this.#queueHead)
      this.#queueHead = 0
    }
    return expected
  }

  #end(error: SternaError, purpose: Purpose | undefined): void {
    if (this.#ended) return
    this.#ended = true
    const commit = this.#queue.slice(this.#queueHead).find((expected) => expected.tag === 'commit')
    this.#rejectLookups(error)
    this.#wire.fail(error)
    this.#handler.onEnd(error, purpose, commit?.transaction.finalLsn)
  }

  #rejectLookups(error: SternaError): void {
    for (const expected of this.#queue.slice(this.#queueHead)) {
      if (expected.tag === 'lookup') expected.lookup.reject(error)
    }
  }
}

function writeBindParams(w: MessageWriter, statement: string, params: readonly Param[]): void {
  w.begin(FRONTEND.bind).cstring('').cstring(statement).int16(params.length)
  for (const value of params) w.int16(Buffer.isBuffer(value) ? 1 : 0)
  w.int16(params.length)
  for (const value of params) {
    if (Buffer.isBuffer(value)) w.int32(value.length).bytes(value)
    else w.textValue(value)
  }
  w.int16(0).end()
}

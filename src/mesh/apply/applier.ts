import { assert } from '../../core/assert.ts'
import { SternaError } from '../../core/errors.ts'
import type { Lsn } from '../../core/lsn.ts'
import { formatPgTime, pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import { FRONTEND } from '../../pgwire/frontend.ts'
import {
  COLUMN_KIND,
  parseBegin,
  parseCommit,
  parseRelation,
  parseTruncate,
  PGOUTPUT,
  TUPLE,
  TupleLayout,
  type BeginMessage,
  type RemoteRelation,
} from '../../pgwire/pgoutput.ts'
import type { ApplySession, PreparedStatement, Purpose } from './apply-session.ts'
import type { LocalClock } from './local-clock.ts'
import { ownerFunctionBody, ownerFunctionCall, type Write } from './owner-function.ts'
import {
  deleteSql,
  patchSql,
  planTable,
  putSql,
  truncateSql,
  type FlowNodes,
  type LocalTable,
  type TablePlan,
  type TypeDifference,
} from './table-plan.ts'

const DDL_QUEUE = 'sterna.ddl_queue'
const TIMESTAMPTZ_OID = 1184
const TEXT_OID = 25

/** Thrown when the stream is binary and a table needs text: start the stream again in text. */
export class TextTransferNeeded extends Error {
  override name = 'TextTransferNeeded'
}

export interface ApplierOptions {
  readonly session: ApplySession
  readonly clock: LocalClock
  /** Node whose transactions these are; its id breaks ties between equal timestamps. */
  readonly originNodeId: number
  readonly originName: string
  readonly nodes: FlowNodes
  /** Whether the stream carries binary values. */
  readonly binary: boolean
  /** Whether each transaction tells its timestamp at its head, so that tombstones can be compared with it. */
  readonly announce: boolean
  readonly signal: AbortSignal
  /** Applies each transaction so long after its commit; 0: at once. */
  readonly applyDelayMs: number
  /** A change is ahead of the local clock by so many milliseconds, and waits. */
  readonly onClockAhead: (aheadMs: number) => void
  /** The stream has passed a position without anything to apply. */
  readonly onNothingToApply: (endLsn: Lsn) => void
}

/** A remote table with its plan and the statements prepared for it in this session. */
interface Table {
  readonly remote: RemoteRelation
  plan: TablePlan | undefined
  /** Columns whose types differ, in words. */
  typeDifferences: readonly string[]
  insert: PreparedStatement | undefined
  update: PreparedStatement | undefined
  remove: PreparedStatement | undefined
  truncate: PreparedStatement | undefined
  readonly patches: Map<string, PreparedStatement>
}

/**
 * Turns pgoutput messages of one provider into executions in an ApplySession. Values pass from the message into the
 * Bind byte for byte. `handle` is synchronous in the usual case; where it must wait (an unknown table, a clock that is
 * behind) it returns a promise, and no further message may be given before that resolves.
 */
export class Applier {
  readonly #options: ApplierOptions
  readonly #session: ApplySession
  readonly #tables = new Map<number, Table>()
  readonly #new = new TupleLayout()
  readonly #old = new TupleLayout()
  #transaction: BeginMessage | undefined
  #changes = 0
  #skip = false
  #started = false
  #previousLsn: Lsn | null
  /**
   * The transaction at which the origin's progress stood when the session began: it counts as applied only if its commit
   * is found, since a transaction that aborted at its very end moves progress too.
   */
  #doubtful = false
  /** Until the local clock is past this the transaction waits. */
  #notBefore: PgTime
  /** The transaction called code of ordinary roles: what that left for the commit is looked at before. */
  #guarded = false
  #guard: PreparedStatement | undefined
  #ownerFunctions = 0
  /** No owner function that was made before is in use. */
  #ownerFunctionsFresh = true

  constructor(options: ApplierOptions) {
    this.#options = options
    this.#session = options.session
    this.#previousLsn = options.session.startProgress
    this.#notBefore = pgTimeOf(0n)
  }

  /**
   * Takes one message, `buffer[start, end)`.
   * @throws TABLE_MISSING, COLUMN_MISSING, KEY_DIFFERS, CODE_REFUSED; TextTransferNeeded
   */
  handle(buffer: Buffer, start: number, end: number): Promise<void> | undefined {
    switch (buffer[start]) {
      case PGOUTPUT.begin:
        this.#onBegin(parseBegin(buffer, start + 1))
        return undefined
      case PGOUTPUT.origin:
        // Applied at the provider from elsewhere: it reaches us from there. Providers from 16 on do not even send it.
        this.#skip = true
        return undefined
      case PGOUTPUT.relation: {
        const remote = parseRelation(buffer, start + 1)
        this.#tables.set(remote.id, newTable(remote))
        return undefined
      }
      case PGOUTPUT.insert:
      case PGOUTPUT.update:
      case PGOUTPUT.delete:
        return this.#skip ? undefined : this.#onChange(buffer, start, end)
      case PGOUTPUT.truncate:
        return this.#skip ? undefined : this.#onTruncate(Buffer.from(buffer.subarray(start + 1, end)))
      case PGOUTPUT.commit:
        this.#onCommit(parseCommit(buffer, start + 1).endLsn)
        return undefined
      case PGOUTPUT.type:
      case PGOUTPUT.message:
        return undefined
      default:
        throw new SternaError('PROTOCOL_VIOLATION', {
          address: 'the provider',
          reason: `unknown change message 0x${buffer[start]?.toString(16)}`,
        })
    }
  }

  /** A transaction has begun in the stream and not ended. */
  get inTransaction(): boolean {
    return this.#transaction !== undefined
  }

  #onBegin(begin: BeginMessage): void {
    this.#transaction = begin
    this.#notBefore = pgTimeOf(begin.commitTime + BigInt(Math.round(this.#options.applyDelayMs * 1000)))
    this.#changes = 0
    this.#guarded = false
    this.#started = false
    // The slot may repeat what is applied already: after a crash it starts at the last confirmed position.
    this.#skip = this.#previousLsn !== null && begin.finalLsn <= this.#previousLsn
    this.#doubtful = begin.finalLsn === this.#session.startProgress
    if (this.#doubtful) this.#skip = false
  }

  #onCommit(endLsn: Lsn): void {
    const { finalLsn, commitTime } = this.#current()
    if (this.#started) {
      if (this.#guarded) this.#guardCommit()
      this.#session.commit({ finalLsn, endLsn, commitTime, changes: this.#changes }, this.#previousLsn)
      this.#previousLsn = finalLsn
    } else this.#options.onNothingToApply(endLsn)
    this.#transaction = undefined
  }

  #onChange(buffer: Buffer, start: number, end: number): Promise<void> | undefined {
    const table = this.#table(buffer.readUInt32BE(start + 1))
    if (table.plan && !this.#doubtful && (this.#started || this.#options.clock.isPast(this.#notBefore))) {
      this.#start()
      this.#write(table, table.plan, buffer, start)
      return undefined
    }
    return this.#onChangeSlowly(table, Buffer.from(buffer.subarray(start, end)))
  }

  async #onChangeSlowly(table: Table, message: Buffer): Promise<void> {
    if (!(await this.#startWhenPast())) return
    this.#write(table, table.plan ?? (await this.#loadPlan(table)), message, 0)
  }

  /** Waits until the transaction may be applied; false when it turns out to be applied already. */
  async #startWhenPast(): Promise<boolean> {
    if (this.#doubtful) {
      this.#doubtful = false
      const { commitTime } = this.#current()
      const [row] = await this.#session.lookup('select sterna.was_applied($1, $2)', [
        this.#options.originName,
        formatPgTime(commitTime),
      ])
      if (row?.[0] === 't') this.#skip = true
    }
    if (this.#skip) return false
    const { clock, signal, onClockAhead } = this.#options
    if (!this.#started && !clock.isPast(this.#notBefore)) {
      await clock.waitUntilPast(this.#notBefore, signal, onClockAhead)
    }
    this.#start()
    return true
  }

  #start(): void {
    if (this.#started) return
    this.#started = true
    if (this.#options.announce) this.#session.announce(this.#current().commitTime)
  }

  /** Reads the local table's description inside the open transaction, which may have created the table just now. */
  async #loadPlan(table: Table): Promise<TablePlan> {
    const { schema, name, columns } = table.remote
    const written = `{${columns.map((column) => `"${column.name.replaceAll(/["\\]/g, '\\$&')}"`).join(',')}}`
    const [row] = await this.#session.lookup('select sterna.describe_table($1, $2, $3)', [
      schema,
      name,
      written,
    ])
    const text = row?.[0]
    const local = text == null ? null : (JSON.parse(text) as LocalTable)
    const plan = planTable(table.remote, local, this.#options.nodes)
    if (plan.needsText && this.#options.binary) throw new TextTransferNeeded()
    table.typeDifferences = await this.#describe(plan.typeDifferences)
    table.plan = plan
    return plan
  }

  async #describe(differences: readonly TypeDifference[]): Promise<string[]> {
    const { local, provider } = this.#options.nodes
    const out: string[] = []
    for (const { column, localOid, remoteOid } of differences) {
      const [row] = await this.#session.lookup(
        'select pg_catalog.format_type($1::oid, null), pg_catalog.format_type($2::oid, null)',
        [String(localOid), String(remoteOid)],
      )
      out.push(`${column} is ${row?.[0]} on ${local} and ${row?.[1]} on ${provider}`)
    }
    return out
  }

  #write(table: Table, plan: TablePlan, buffer: Buffer, start: number): void {
    this.#changes++
    if (plan.runAs !== null) this.#guarded = true
    const type = buffer[start]
    if (type === PGOUTPUT.insert) {
      this.#new.read(buffer, start + 6)
      this.#put(table, plan, 'insert', buffer)
      if (plan.label === DDL_QUEUE) this.#applyDdl(plan, buffer)
    } else if (type === PGOUTPUT.update) this.#update(table, plan, buffer, start)
    else {
      this.#old.read(buffer, start + 6)
      this.#remove(table, plan, buffer)
    }
  }

  #update(table: Table, plan: TablePlan, buffer: Buffer, start: number): void {
    const hasOld = buffer[start + 5] !== TUPLE.new
    const newAt = hasOld ? this.#old.read(buffer, start + 6) : start + 5
    this.#new.read(buffer, newAt + 1)
    this.#requireKey(plan)
    const oldIsWhole = buffer[start + 5] === TUPLE.old
    if (this.#new.hasUnchanged && oldIsWhole) this.#fillUnchangedFromOld()
    const keyChanged =
      hasOld && plan.keyPositions.some((position) => !this.#new.sameValue(position, this.#old, buffer))
    if (this.#new.hasUnchanged) return this.#patch(table, plan, buffer, keyChanged ? this.#old : this.#new)
    if (keyChanged) this.#remove(table, plan, buffer)
    this.#put(table, plan, 'update', buffer)
  }

  /** With REPLICA IDENTITY FULL the old tuple has the values that the new one leaves out. */
  #fillUnchangedFromOld(): void {
    const { kinds, starts, lengths, count } = this.#new
    for (let i = 0; i < count; i++) {
      if (kinds[i] !== COLUMN_KIND.unchanged) continue
      kinds[i] = this.#old.kinds[i]!
      starts[i] = this.#old.starts[i]!
      lengths[i] = this.#old.lengths[i]!
    }
    this.#new.hasUnchanged = kinds.subarray(0, count).includes(COLUMN_KIND.unchanged)
  }

  #put(table: Table, plan: TablePlan, operation: 'insert' | 'update', buffer: Buffer): void {
    const timeless = plan.keyPositions.length === 0 && plan.runAs === null
    table[operation] ??= this.#prepare(
      plan,
      { tag: 'put' },
      timeless ? plan.typeOids : [...plan.typeOids, TIMESTAMPTZ_OID],
      { table: plan.label, operation, typeDifferences: table.typeDifferences },
    )
    const statement = table[operation]
    const { count } = this.#new
    this.#openBind(statement, timeless ? count : count + 1)
    for (let i = 0; i < count; i++) this.#format(this.#new, i)
    this.#openValues(timeless ? count : count + 1, !timeless)
    for (let i = 0; i < count; i++) this.#value(this.#new, i, buffer)
    this.#closeBind(statement, !timeless)
  }

  /** The statement for a write; for tables that are written with their owner's rights, with the function behind it. */
  #prepare(plan: TablePlan, write: Write, types: readonly number[], purpose: Purpose): PreparedStatement {
    const { originNodeId, announce } = this.#options
    if (plan.runAs === null)
      return this.#session.prepare(statementOf(plan, write, originNodeId), types, purpose)
    const name = `n${originNodeId}_${++this.#ownerFunctions}`
    this.#session.run(
      'select sterna.apply_function($1, $2, $3, $4, $5, $6)',
      [
        String(originNodeId),
        name,
        String(this.#ownerFunctionsFresh),
        String(plan.runAs),
        plan.recordParameters ? null : `{${types.join(',')}}`,
        ownerFunctionBody(plan, write, originNodeId),
      ],
      purpose,
    )
    this.#ownerFunctionsFresh = false
    return this.#session.prepare(ownerFunctionCall(plan, write, name, originNodeId, announce), types, purpose)
  }

  #guardCommit(): void {
    this.#guard ??= this.#session.prepare('select sterna.apply_guard_commit()', [], {
      table: '',
      operation: 'guard',
    })
    this.#openBind(this.#guard, 0)
    this.#openValues(0, false)
    this.#closeBind(this.#guard, false)
  }

  #patch(table: Table, plan: TablePlan, buffer: Buffer, keys: TupleLayout): void {
    const sent: number[] = []
    for (let i = 0; i < this.#new.count; i++) if (this.#new.kinds[i] !== COLUMN_KIND.unchanged) sent.push(i)
    const mask = sent.join(',')
    let statement = table.patches.get(mask)
    if (!statement) {
      const types = [...sent, ...plan.keyPositions].map((position) => plan.typeOids[position]!)
      const { typeDifferences } = table
      const purpose = { table: plan.label, operation: 'update', typeDifferences } as const
      statement = this.#prepare(plan, { tag: 'patch', sent }, [...types, TIMESTAMPTZ_OID], purpose)
      table.patches.set(mask, statement)
    }
    const count = sent.length + plan.keyPositions.length + 1
    this.#openBind(statement, count)
    for (const position of sent) this.#format(this.#new, position)
    for (const position of plan.keyPositions) this.#format(keys, position)
    this.#openValues(count, true)
    for (const position of sent) this.#value(this.#new, position, buffer)
    for (const position of plan.keyPositions) this.#value(keys, position, buffer)
    this.#closeBind(statement, true)
  }

  /** A provider with REPLICA IDENTITY FULL sends updates and deletes of a table that has no key here. */
  #requireKey(plan: TablePlan): void {
    if (plan.keyPositions.length > 0) return
    const { local: node, provider } = this.#options.nodes
    const facts = { table: plan.label, node, provider, local: ['none'], remote: ['the whole row'] }
    throw new SternaError('KEY_DIFFERS', facts)
  }

  #remove(table: Table, plan: TablePlan, buffer: Buffer): void {
    this.#requireKey(plan)
    table.remove ??= this.#prepare(
      plan,
      { tag: 'delete' },
      [...plan.keyPositions.map((position) => plan.typeOids[position]!), TIMESTAMPTZ_OID],
      { table: plan.label, operation: 'delete', typeDifferences: table.typeDifferences },
    )
    const count = plan.keyPositions.length + 1
    this.#openBind(table.remove, count)
    for (const position of plan.keyPositions) this.#format(this.#old, position)
    this.#openValues(count, true)
    for (const position of plan.keyPositions) this.#value(this.#old, position, buffer)
    this.#closeBind(table.remove, true)
  }

  async #onTruncate(message: Buffer): Promise<void> {
    const { relationIds, restartIdentity } = parseTruncate(message, 0)
    if (!(await this.#startWhenPast())) return
    for (const id of relationIds) {
      const table = this.#table(id)
      const plan = table.plan ?? (await this.#loadPlan(table))
      if (plan.guardOid !== null) {
        // Sessions that create rows with older changes must not slip past.
        await this.#session.lookup('select pg_advisory_xact_lock(sterna.tombstone_lock($1))', [
          String(plan.guardOid),
        ])
      }
      const purpose = { table: plan.label, operation: 'truncate' } as const
      if (plan.runAs !== null) this.#guarded = true
      table.truncate ??= this.#prepare(plan, { tag: 'truncate' }, [TIMESTAMPTZ_OID], purpose)
      this.#openBind(table.truncate, 1)
      this.#openValues(1, true)
      this.#closeBind(table.truncate, true)
      this.#changes++
      if (restartIdentity) {
        await this.#session.lookup('select sterna.apply_restart_identity($1, $2)', [
          table.remote.schema,
          table.remote.name,
        ])
      }
    }
  }

  /** Runs a captured statement where it stands in the stream; what is known of local tables may be wrong afterwards. */
  #applyDdl(plan: TablePlan, buffer: Buffer): void {
    const statement = this.#session.prepare('select sterna.ddl_apply($1, $2, $3)', [0, TEXT_OID, TEXT_OID], {
      table: DDL_QUEUE,
      operation: 'ddl',
    })
    const positions = ['role_name', 'search_path', 'command'].map((name) =>
      plan.remote.columns.findIndex((column) => column.name === name),
    )
    assert(
      positions.every((position) => position >= 0),
      'ddl_queue has role_name, search_path and command',
    )
    this.#openBind(statement, 3)
    for (const position of positions) this.#format(this.#new, position)
    this.#openValues(3, false)
    for (const position of positions) this.#value(this.#new, position, buffer)
    this.#closeBind(statement, false)
    this.#guarded = true
    this.#ownerFunctionsFresh = true
    for (const [id, table] of this.#tables) this.#tables.set(id, newTable(table.remote))
  }

  #openBind(statement: PreparedStatement, count: number): void {
    const w = this.#session.writer
    w.begin(FRONTEND.bind).bytes(statement.bindPrefix).int16(count)
  }

  #format(layout: TupleLayout, position: number): void {
    this.#session.writer.int16(layout.kinds[position] === COLUMN_KIND.binary ? 1 : 0)
  }

  #openValues(count: number, withTime: boolean): void {
    if (withTime) this.#session.writer.int16(1)
    this.#session.writer.int16(count)
  }

  #value(layout: TupleLayout, position: number, buffer: Buffer): void {
    const w = this.#session.writer
    const length = layout.lengths[position]!
    w.int32(length)
    if (length > 0) w.bytes(buffer, layout.starts[position]!, layout.starts[position]! + length)
  }

  #closeBind(statement: PreparedStatement, withTime: boolean): void {
    const w = this.#session.writer
    if (withTime) this.#time(this.#current().commitTime)
    w.int16(0).end()
    this.#session.execute(statement)
  }

  #time(time: PgTime): void {
    this.#session.writer.int32(8).int64(time)
  }

  #table(id: number): Table {
    const table = this.#tables.get(id)
    if (!table)
      throw new SternaError('PROTOCOL_VIOLATION', {
        address: 'the provider',
        reason: `a change of a table it did not describe (${id})`,
      })
    return table
  }

  #current(): BeginMessage {
    if (!this.#transaction)
      throw new SternaError('PROTOCOL_VIOLATION', {
        address: 'the provider',
        reason: 'a change outside a transaction',
      })
    return this.#transaction
  }
}

function statementOf(plan: TablePlan, write: Write, originNodeId: number): string {
  switch (write.tag) {
    case 'put':
      return putSql(plan, originNodeId)
    case 'patch':
      return patchSql(plan, write.sent, originNodeId)
    case 'delete':
      return deleteSql(plan, originNodeId)
    case 'truncate':
      return truncateSql(plan, originNodeId)
  }
}

function newTable(remote: RemoteRelation): Table {
  return {
    remote,
    plan: undefined,
    typeDifferences: [],
    insert: undefined,
    update: undefined,
    remove: undefined,
    truncate: undefined,
    patches: new Map(),
  }
}

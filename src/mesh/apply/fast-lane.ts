import { FRONTEND } from '../../pgwire/frontend.ts'
import { COLUMN_KIND, type RemoteRelation, type TupleLayout } from '../../pgwire/pgoutput.ts'
import type { PgTime } from '../../core/pg-time.ts'
import type { ApplySession, PreparedStatement, Purpose } from './apply-session.ts'
import { ownerFunctionBody, ownerFunctionCall, type Write } from './owner-function.ts'
import { deleteSql, putSql, tellsCreation, truncateSql, type Origin, type TablePlan } from './table-plan.ts'

const TIMESTAMPTZ_OID = 1184
const OID_OID = 26

/** A remote table with its plan and the statements prepared for it in this session. */
export interface Table {
  readonly remote: RemoteRelation
  plan: TablePlan | undefined
  /** Columns whose types differ, in words. */
  typeDifferences: readonly string[]
  insert: PreparedStatement | undefined
  update: PreparedStatement | undefined
  remove: PreparedStatement | undefined
  truncate: PreparedStatement | undefined
}

export function newTable(remote: RemoteRelation): Table {
  return {
    remote,
    plan: undefined,
    typeDifferences: [],
    insert: undefined,
    update: undefined,
    remove: undefined,
    truncate: undefined,
  }
}

/**
 * Writes changes by one prepared statement each, pipelined: values pass from the message into the Bind byte for byte, and the
 * statement itself compares versions.
 */
export class FastLane {
  readonly #session: ApplySession
  readonly #origin: Origin
  readonly #announce: boolean
  /** Tables in which the transaction may have created rows, by what their tombstones are known by. */
  readonly #created = new Set<number>()
  #commitTime!: PgTime
  #ownerFunctions = 0
  /** No owner function that was made before is in use. */
  #ownerFunctionsFresh = true
  /** The transaction called code of ordinary roles: what that left for the commit is looked at before. */
  guarded = false

  constructor(session: ApplySession, origin: Origin, announce: boolean) {
    this.#session = session
    this.#origin = origin
    this.#announce = announce
  }

  begin(commitTime: PgTime): void {
    this.#commitTime = commitTime
    this.#created.clear()
    this.guarded = false
  }

  /** After DDL. */
  forget(): void {
    this.guarded = true
    this.#ownerFunctionsFresh = true
  }

  put(table: Table, plan: TablePlan, operation: 'insert' | 'update', row: TupleLayout, buffer: Buffer): void {
    if (plan.runAs !== null) this.guarded = true
    if (plan.guardOid !== null && !tellsCreation(plan, operation)) this.#created.add(plan.guardOid)
    const timeless = plan.keyPositions.length === 0 && plan.runAs === null
    table[operation] ??= this.#prepare(
      plan,
      { tag: 'put', operation },
      timeless ? plan.typeOids : [...plan.typeOids, TIMESTAMPTZ_OID],
      { table: plan.label, operation, typeDifferences: table.typeDifferences },
    )
    const statement = table[operation]
    const { count } = row
    this.#openBind(statement, timeless ? count : count + 1)
    for (let i = 0; i < count; i++) this.#format(row, i)
    this.#openValues(timeless ? count : count + 1, !timeless)
    for (let i = 0; i < count; i++) this.#value(row, i, buffer)
    this.#closeBind(statement, !timeless)
  }

  remove(table: Table, plan: TablePlan, old: TupleLayout, buffer: Buffer): void {
    if (plan.runAs !== null) this.guarded = true
    table.remove ??= this.#prepare(
      plan,
      { tag: 'delete' },
      [...plan.keyPositions.map((position) => plan.typeOids[position]!), TIMESTAMPTZ_OID],
      { table: plan.label, operation: 'delete', typeDifferences: table.typeDifferences },
    )
    const count = plan.keyPositions.length + 1
    this.#openBind(table.remove, count)
    for (const position of plan.keyPositions) this.#format(old, position)
    this.#openValues(count, true)
    for (const position of plan.keyPositions) this.#value(old, position, buffer)
    this.#closeBind(table.remove, true)
  }

  truncate(table: Table, plan: TablePlan): void {
    if (plan.runAs !== null) this.guarded = true
    table.truncate ??= this.#prepare(plan, { tag: 'truncate' }, [TIMESTAMPTZ_OID], {
      table: plan.label,
      operation: 'truncate',
    })
    this.#openBind(table.truncate, 1)
    this.#openValues(1, true)
    this.#closeBind(table.truncate, true)
  }

  /** Before the commit: what only a later statement can see, once for each table. */
  finish(): void {
    for (const guardOid of this.#created) {
      const statement = this.#session.prepareOnce(
        `select sterna.second_look($1, $2, ${this.#origin.nodeId})`,
        [OID_OID, TIMESTAMPTZ_OID],
        { table: '', operation: 'guard' },
      )
      this.#session.writer.begin(FRONTEND.bind).bytes(statement.bindPrefix).int16(1).int16(1)
      this.#session.writer.int16(2).int32(4).int32(guardOid)
      this.#closeBind(statement, true)
    }
    if (!this.guarded) return
    const guard = this.#session.prepareOnce('select sterna.apply_guard_commit()', [], {
      table: '',
      operation: 'guard',
    })
    this.#openBind(guard, 0)
    this.#openValues(0, false)
    this.#closeBind(guard, false)
  }

  /** Executes a statement with some values of a row. */
  execute(
    statement: PreparedStatement,
    row: TupleLayout,
    positions: readonly number[],
    buffer: Buffer,
  ): void {
    this.#openBind(statement, positions.length)
    for (const position of positions) this.#format(row, position)
    this.#openValues(positions.length, false)
    for (const position of positions) this.#value(row, position, buffer)
    this.#closeBind(statement, false)
  }

  #openBind(statement: PreparedStatement, count: number): void {
    this.#session.writer.begin(FRONTEND.bind).bytes(statement.bindPrefix).int16(count)
  }

  #format(layout: TupleLayout, position: number): void {
    this.#session.writer.int16(layout.kinds[position] === COLUMN_KIND.binary ? 1 : 0)
  }

  #value(layout: TupleLayout, position: number, buffer: Buffer): void {
    const w = this.#session.writer
    const length = layout.lengths[position]!
    w.int32(length)
    if (length > 0) w.bytes(buffer, layout.starts[position]!, layout.starts[position]! + length)
  }

  #openValues(count: number, withTime: boolean): void {
    if (withTime) this.#session.writer.int16(1)
    this.#session.writer.int16(count)
  }

  #closeBind(statement: PreparedStatement, withTime: boolean): void {
    const w = this.#session.writer
    if (withTime) w.int32(8).int64(this.#commitTime)
    w.int16(0).end()
    this.#session.execute(statement)
  }

  /** The statement for a write; for tables that are written with their owner's rights, with the function behind it. */
  #prepare(plan: TablePlan, write: Write, types: readonly number[], purpose: Purpose): PreparedStatement {
    const origin = this.#origin
    if (plan.runAs === null) return this.#session.prepare(statementOf(plan, write, origin), types, purpose)
    const name = `n${origin.nodeId}_${++this.#ownerFunctions}`
    this.#session.run(
      'select sterna.apply_function($1, $2, $3, $4, $5, $6)',
      [
        String(origin.nodeId),
        name,
        String(this.#ownerFunctionsFresh),
        String(plan.runAs),
        plan.recordParameters ? null : `{${types.join(',')}}`,
        ownerFunctionBody(plan, write, origin),
      ],
      purpose,
    )
    this.#ownerFunctionsFresh = false
    return this.#session.prepare(ownerFunctionCall(plan, write, name, origin, this.#announce), types, purpose)
  }
}

function statementOf(plan: TablePlan, write: Write, origin: Origin): string {
  switch (write.tag) {
    case 'put':
      return putSql(plan, write.operation, origin)
    case 'delete':
      return deleteSql(plan, origin)
    case 'truncate':
      return truncateSql(plan, origin)
  }
}

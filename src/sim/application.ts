import type { PgTime } from '../core/pg-time.ts'
import type { Change, Key, Value, Values } from '../mesh/conflict/change.ts'
import { isBackdated } from '../mesh/conflict/clock.ts'
import type { KeyState } from '../mesh/conflict/key-state.ts'
import { captureTruncate, captureWrite, type Capture, type LocalWrite } from '../mesh/conflict/local-write.ts'
import type { SimNode } from './node.ts'
import type { PlannedStatement, TableShape } from './plan.ts'
import { centsToText, textToCents, withoutSum } from './shape.ts'
import type { Stamp } from './stored-table.ts'
import { describeChange } from './story.ts'
import type { LoggedWrite } from './write-log.ts'

/** A local transaction that has its commit timestamp and holds its locks. */
export interface Transaction {
  readonly time: PgTime
  readonly statements: readonly PlannedStatement[]
  readonly isSync: boolean
  readonly isBackdated: boolean
}

/** Begins to commit: the timestamp is taken now, other transactions of the node can still commit before. */
export function beginCommit(
  node: SimNode,
  statements: readonly PlannedStatement[],
  isSync: boolean,
): Transaction {
  const time = node.clock()
  return { time, statements, isSync, isBackdated: isBackdated(node.state.commits, time) }
}

/** Does the statements of a transaction as SQL would, skipping those that would fail, and commits. */
export function commit(node: SimNode, shapes: readonly TableShape[], transaction: Transaction): void {
  const { time, statements, isSync } = transaction
  const run = new Running(node, transaction)
  for (const statement of statements) run.execute(statement, shapes[statement.table]!)
  if (run.changes.length === 0) return
  node.around.log.add(run.logged)
  node.publish(time, run.changes)
  if (isSync) node.flush()
  node.around.say(() => `${node.name} commits #${node.published.length - 1}${isSync ? '' : ' (not flushed)'}`)
}

class Running {
  readonly changes: { table: string; change: Change }[] = []
  readonly logged: LoggedWrite[] = []
  readonly #node: SimNode
  readonly #transaction: Transaction
  readonly #stamp: Stamp

  constructor(node: SimNode, transaction: Transaction) {
    this.#node = node
    this.#transaction = transaction
    this.#stamp = node.stamp(node.version(transaction.time))
  }

  execute(statement: PlannedStatement, shape: TableShape): void {
    const { kind, key, newKey } = statement
    const table = this.#node.table(shape.name)
    const old = this.#visible(shape, key)
    if (kind === 'truncate') {
      this.#truncate(shape)
      return
    }
    if (kind === 'insert') {
      const values = newRow(statement, shape)
      if (old || this.#isTaken(shape, key, values)) return
      if (!this.#write(shape, { tag: 'insert', key, values })) return
      this.#log(shape, key, withoutSum(values), textToCents(values['d']))
      return
    }
    if (!old || (shape.merge && kind !== 'update')) return
    const oldCents = textToCents(old['d'])
    if (kind === 'delete') {
      this.#write(shape, { tag: 'delete', key })
      this.#log(shape, key, null, -oldCents)
      return
    }
    const { values, unchanged } = updatedRow(statement, shape, old)
    const target = kind === 'move' ? newKey : key
    if (this.#isTaken(shape, key, values)) return
    if (target !== key && this.#visible(shape, target)) return
    if (!this.#write(shape, { tag: 'update', oldKey: key, key: target, values, unchanged })) return
    const cents = textToCents(values['d'])
    if (target !== key) this.#log(shape, key, null, -oldCents)
    this.#log(shape, target, withoutSum(values), target === key ? cents - oldCents : cents)
    const seen = table.held(target).row
    if (seen?.values['d'] !== values['d']) throw new Error(`${key} does not show what was written`)
  }

  #truncate(shape: TableShape): void {
    // A TRUNCATE under a clock that stepped back is for an alarm and for verification, not for these rules.
    if (shape.merge || this.#transaction.isBackdated) return
    const table = this.#node.table(shape.name)
    const entries = table.entries()
    const capture = captureTruncate(entries, this.#stamp.version, table.rules)
    this.#carryOut(shape, capture)
    if (!shape.delta) {
      table.truncated = this.#stamp.version
      this.#log(shape, null, null, 0)
      return
    }
    for (const { key, state } of entries) {
      if (state.row) this.#log(shape, key, null, -textToCents(state.row.values['d']))
    }
  }

  /** False: the row that the merge function makes of it collides, and the statement fails. */
  #write(shape: TableShape, write: LocalWrite): boolean {
    const table = this.#node.table(shape.name)
    const sendsOld = shape.full || shape.delta || shape.merge
    const held = (key: Key): KeyState => table.held(key)
    const capture = captureWrite(write, held, this.#stamp.version, table.rules, sendsOld)
    const fails = capture.writes.some(({ key, after }) => {
      return shape.merge && after.row !== null && this.#isTaken(shape, key, after.row.values)
    })
    if (!fails) this.#carryOut(shape, capture)
    return !fails
  }

  #carryOut(shape: TableShape, { writes, changes }: Capture<Change>): void {
    this.#node.table(shape.name).write(writes, this.#stamp)
    if (this.#transaction.isBackdated) {
      this.#node.mustRewrite(
        shape.name,
        writes.map(({ key }) => key),
      )
    }
    for (const change of changes) {
      if (change.tag === 'cancel' && this.#node.around.off === 'delta-cancel') continue
      this.changes.push({ table: shape.name, change })
      this.#node.around.say(() => `${this.#node.name} ${describeChange(shape.name, change)}`)
      if (change.tag === 'cancel') this.#log(shape, change.key, undefined, -textToCents(change.amounts['d']))
    }
  }

  #log(shape: TableShape, key: Key | null, values: Values | null | undefined, cents: number): void {
    const { id, published } = this.#node
    const time = Number(this.#transaction.time)
    const text = `${shape.name} ${key ?? 'all'}`
    this.logged.push({ node: id, place: published.length, time, table: shape.name, key, values, cents, text })
  }

  #visible(shape: TableShape, key: Key): Values | null {
    const { row } = this.#node.table(shape.name).held(key)
    return row?.visible ? row.values : null
  }

  /** Whether the statement would fail with a unique violation on another key. */
  #isTaken(shape: TableShape, key: Key, values: Values): boolean {
    return this.#node
      .table(shape.name)
      .colliding(key, values)
      .some(({ visible }) => visible)
  }
}

function newRow({ mark, u, w, cents }: PlannedStatement, { toast, uniques, delta }: TableShape): Values {
  const values: Record<string, Value> = { v: String(mark) }
  if (toast) values['t'] = `long ${mark}`
  if (uniques > 0) values['u'] = u
  if (uniques > 1) values['w'] = w
  if (delta) values['d'] = centsToText(cents)
  return values
}

function updatedRow(
  statement: PlannedStatement,
  shape: TableShape,
  old: Values,
): { readonly values: Values; readonly unchanged: readonly string[] } {
  const given = newRow(statement, shape)
  const values: Record<string, Value> = { ...old, v: given['v']! }
  for (const column of statement.sets) {
    if (column in given && column !== 'd') values[column] = given[column]!
  }
  if (shape.delta && statement.sets.includes('d')) {
    values['d'] = centsToText(textToCents(old['d']) + statement.cents)
  }
  const unchanged = shape.toast && !statement.sets.includes('t') ? ['t'] : []
  return { values, unchanged }
}

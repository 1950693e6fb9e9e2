import type { Key, Values } from '../mesh/conflict/change.ts'
import type { Published } from './node-state.ts'
import type { TableShape } from './plan.ts'
import { mergeRows, textToCents, withoutSum } from './shape.ts'
import type { StoredTable } from './stored-table.ts'
import type { LoggedWrite, WriteLog } from './write-log.ts'

interface ExpectedRow {
  readonly key: Key
  readonly values: Values
  readonly write: LoggedWrite
}

/** What became of the writes of a run. */
export interface Tally {
  visible: number
  aside: number
  superseded: number
}

/**
 * What the table must hold in the end, worked out from the log of writes alone, by other means than the code under test: all
 * writes of a key sorted, sums in whole hundredths, visibility by going through all rows. Returns the differences.
 */
export function judgeTable(
  node: string,
  shape: TableShape,
  table: StoredTable,
  log: WriteLog,
  tally: Tally | null,
): string[] {
  const writes = log.writes.filter((write) => write.table === shape.name)
  const keys = [...new Set(writes.flatMap(({ key }) => (key === null ? [] : [key])))].toSorted()
  const cents = new Map<Key, number>()
  for (const { key, cents: added } of writes) if (key) cents.set(key, (cents.get(key) ?? 0) + added)
  const rows = keys.flatMap((key): ExpectedRow[] => {
    const row = lastOf(writes, key, shape.merge)
    return row ? [{ key, ...row }] : []
  })
  const visible = visibleOf(rows, shape)
  const wrong: string[] = []
  const say = (key: Key, what: string): void => {
    wrong.push(`${node} ${shape.name} ${key}: ${what}`)
  }
  for (const key of new Set([...keys, ...table.entries().map((it) => it.key)])) {
    const { row, tombstone } = table.held(key)
    const expected = rows.find((it) => it.key === key)
    const sum = cents.get(key) ?? 0
    if (!expected && row) say(key, `has ${show(row.values)}, should have no row`)
    else if (expected && !row) say(key, `has no row, should have ${show(expected.values)}`)
    else if (expected && row) {
      if (show(expected.values) !== show(withoutSum(row.values))) {
        say(key, `has ${show(row.values)}, should have ${show(expected.values)}`)
      }
      if (row.visible !== visible.has(key)) {
        say(key, row.visible ? 'is visible, should be aside' : 'is aside, should be visible')
      }
    }
    if (shape.delta) {
      const held = textToCents(row ? row.values['d'] : tombstone?.remainder['d'])
      if (held !== sum) say(key, `holds d=${held / 100}, should hold ${sum / 100}`)
    }
  }
  if (tally) count(tally, writes, rows, visible)
  return wrong
}

/** Checks verdicts on concurrency against what had really arrived at the writer. */
export function judgeVerdicts(log: WriteLog, published: ReadonlyMap<number, readonly Published[]>): string[] {
  return log.verdicts.flatMap(({ newer, older, isConcurrent }) => {
    const a = placesAt(published.get(newer.node) ?? [], newer.time)
    const b = placesAt(published.get(older.node) ?? [], older.time)
    // Several transactions with one timestamp, or one lost in a crash: there is no telling.
    if (a.length !== 1 || b.length !== 1) return []
    const hadArrived = (a[0]!.entry.progress.get(older.node) ?? 0) > b[0]!.place
    if (hadArrived !== isConcurrent) return []
    const pair = `n${newer.node}@${newer.time} and n${older.node}@${older.time}`
    return [`${pair} were called ${isConcurrent ? 'concurrent' : 'ordered'}, and are not`]
  })
}

function placesAt(
  entries: readonly Published[],
  time: number,
): { readonly entry: Published; readonly place: number }[] {
  return entries
    .map((entry, place) => ({ entry, place }))
    .filter(({ entry }) => Number(entry.time) === time && entry.heartbeat === null)
}

/** The newest write of a key: by timestamp, then node, then the order of the stream, which is that of the log. */
function lastOf(
  writes: readonly LoggedWrite[],
  key: Key,
  merges: boolean,
): { readonly values: Values; readonly write: LoggedWrite } | null {
  const own = writes.filter(
    (write) => write.values !== undefined && (write.key === key || write.key === null),
  )
  const last = own.toSorted((a, b) => a.time - b.time || a.node - b.node).at(-1)
  if (!last?.values) return null
  if (!merges) return { values: last.values, write: last }
  const values = own.map((write) => write.values!).reduce((a, b) => mergeRows(a, b))
  return { values, write: last }
}

function visibleOf(rows: readonly ExpectedRow[], { uniques }: TableShape): Set<Key> {
  const columns = ['u', 'w'].slice(0, uniques)
  const taken = new Set<string>()
  const visible = new Set<Key>()
  const inOrder = rows.toSorted(
    (a, b) => b.write.time - a.write.time || b.write.node - a.write.node || (a.key < b.key ? 1 : -1),
  )
  for (const { key, values } of inOrder) {
    const wanted = columns.filter((column) => values[column] !== null).map((it) => `${it}=${values[it]}`)
    if (wanted.some((it) => taken.has(it))) continue
    visible.add(key)
    for (const it of wanted) taken.add(it)
  }
  return visible
}

function count(
  tally: Tally,
  writes: readonly LoggedWrite[],
  rows: readonly ExpectedRow[],
  visible: ReadonlySet<Key>,
): void {
  for (const write of writes) {
    if (write.values === undefined) continue
    const row = rows.find((it) => it.write === write)
    if (!row) tally.superseded += 1
    else if (visible.has(row.key)) tally.visible += 1
    else tally.aside += 1
  }
}

/** A row as text, its columns in order. */
export function show(values: Values): string {
  const columns = Object.keys(values).toSorted()
  return columns.map((column) => `${column}=${values[column] ?? 'null'}`).join(' ')
}

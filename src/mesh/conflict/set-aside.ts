import { assert } from '../../core/assert.ts'
import type { Key, Values } from './change.ts'
import { compareRows, type KeyedRow, type Row } from './key-state.ts'
import type { Decision } from './question.ts'
import type { TableRules, UniqueConstraint } from './rules.ts'

/** A key whose row is another one now; `after.visible` says nothing yet. */
export interface ChangedKey {
  readonly key: Key
  readonly before: Row | null
  readonly after: Row | null
}

/** A row that yields to a newer one. */
export interface Collision {
  readonly key: Key
  readonly inFavourOf: Key
  readonly constraints: readonly string[]
}

/** Which rows stand in the table and which are set aside. */
export interface Settled {
  /** The changed keys that have a row, and every other row that is shown or hidden by that. */
  readonly rows: ReadonlyMap<Key, KeyedRow>
  readonly collisions: readonly Collision[]
}

/** The constraints by which two rows cannot both stand in the table. */
export function collidingConstraints(a: Values, b: Values, uniques: readonly UniqueConstraint[]): string[] {
  return uniques
    .filter(({ columns, nullsCollide }) =>
      columns.every((column) => a[column] === b[column] && (nullsCollide || a[column] !== null)),
    )
    .map(({ name }) => name)
}

/**
 * Decides visibility after some keys changed: a row is visible unless a visible row that is newer (same version: greater
 * key) shares a unique value with it. Newest first, each candidate yields to a newer visible row, or displaces older
 * ones; the rows that stood back for those are candidates in turn. All of them are older, so each is looked at once.
 * `candidates`: rows set aside that something may have freed; a repair passes all of them.
 */
export function* settle(
  changed: readonly ChangedKey[],
  candidates: readonly KeyedRow[],
  { uniques }: TableRules,
): Decision<Settled> {
  const known = new Map<Key, KeyedRow | null>()
  const collisions: Collision[] = []
  for (const { key, after } of changed) known.set(key, after && { ...after, key, visible: false })
  const open = new Map<Key, KeyedRow>()

  function* othersOf(row: KeyedRow): Decision<KeyedRow[]> {
    if (uniques.length === 0) return []
    const answer = yield { ask: 'colliding', key: row.key, values: row.values }
    assert(answer.is === 'rows', 'rows are the answer to "colliding"')
    const asked = answer.rows.filter(({ key }) => !known.has(key))
    const overlaid = [...known.values()].filter(
      (it): it is KeyedRow =>
        it !== null && it.key !== row.key && collidingConstraints(it.values, row.values, uniques).length > 0,
    )
    return [...asked, ...overlaid]
  }

  function* free(row: KeyedRow): Decision<void> {
    for (const other of yield* othersOf(row)) {
      if (!other.visible && compareRows(other, row) < 0) open.set(other.key, other)
    }
  }

  for (const row of candidates) if (!known.has(row.key)) open.set(row.key, row)
  for (const { key, before } of changed) if (before?.visible) yield* free({ ...before, key })
  for (const row of known.values()) if (row) open.set(row.key, row)

  for (let row = takeNewest(open); row !== undefined; row = takeNewest(open)) {
    const others = (yield* othersOf(row)).filter(({ visible }) => visible)
    const newer = others.find((other) => compareRows(other, row) > 0)
    if (newer) collisions.push(collision(row, newer, uniques))
    known.set(row.key, { ...row, visible: newer === undefined })
    if (newer) continue
    for (const victim of others) {
      known.set(victim.key, { ...victim, visible: false })
      collisions.push(collision(victim, row, uniques))
    }
    for (const victim of others) yield* free(victim)
  }
  return { rows: new Map([...known].filter((it): it is [Key, KeyedRow] => it[1] !== null)), collisions }
}

function collision(row: KeyedRow, winner: KeyedRow, uniques: readonly UniqueConstraint[]): Collision {
  const constraints = collidingConstraints(row.values, winner.values, uniques)
  return { key: row.key, inFavourOf: winner.key, constraints }
}

function takeNewest(open: Map<Key, KeyedRow>): KeyedRow | undefined {
  let newest: KeyedRow | undefined
  for (const row of open.values()) if (!newest || compareRows(row, newest) > 0) newest = row
  if (newest) open.delete(newest.key)
  return newest
}

import { assert } from '../../core/assert.ts'
import { UNCHANGED, type Change, type Key, type RowChange, type SentValues, type Values } from './change.ts'
import { addAmounts, amountsIn, areZero, negateAmounts, sumsOf } from './deltas.ts'
import { ABSENT, type KeyState } from './key-state.ts'
import type { Write } from './resolve.ts'
import type { LocalRules } from './rules.ts'
import type { RowVersion } from './version.ts'

/** A statement of an application on one row. It sees, and may touch, visible rows only. */
export type LocalWrite =
  | { readonly tag: 'insert'; readonly key: Key; readonly values: Values }
  | {
      readonly tag: 'update'
      readonly oldKey: Key
      readonly key: Key
      readonly values: Values
      /** TOAST columns that the statement did not touch: they are not sent, unless the table sends whole old rows. */
      readonly unchanged: readonly string[]
    }
  | { readonly tag: 'delete'; readonly key: Key }

/** What a local write leaves behind here, and what peers receive of it, in order. */
export interface Capture<C extends Change = RowChange> {
  readonly writes: readonly Write[]
  readonly changes: readonly C[]
}

/**
 * What the triggers of a replicated table see to: tombstones of deletes and of key updates, the cancelling of sums that an
 * insert would bring back unseen, and merge(old, new) on updates. A local write is not compared: it replaces what it
 * finds. `held` describes keys before the write. `sendsOld`: REPLICA IDENTITY FULL.
 */
export function captureWrite(
  write: LocalWrite,
  held: (key: Key) => KeyState,
  version: RowVersion,
  rules: LocalRules,
  sendsOld: boolean,
): Capture {
  switch (write.tag) {
    case 'insert': {
      const { key } = write
      const { written, values, cancel } = place(key, write.values, held(key), version, rules)
      return { writes: [written], changes: [{ tag: 'insert', version, key, values }, ...cancel] }
    }
    case 'delete': {
      const { key } = write
      const before = held(key)
      const old = sendsOld ? visibleValues(before) : null
      return {
        writes: [removal(key, before, version, rules)],
        changes: [{ tag: 'delete', version, key, old }],
      }
    }
    case 'update': {
      const { oldKey, key, unchanged } = write
      const before = held(oldKey)
      const oldValues = visibleValues(before)
      const old = sendsOld ? oldValues : null
      const sent = (values: Values): SentValues => (sendsOld ? values : leaveOut(values, unchanged))
      if (oldKey === key) {
        const values = merged(oldValues, write.values, rules)
        const after: KeyState = { row: { values, version, visible: true }, tombstone: null }
        const change = { tag: 'update', version, oldKey, key, values: sent(values), old } as const
        return { writes: [{ key, before, after }], changes: [change] }
      }
      const { written, values, cancel } = place(key, write.values, held(key), version, rules)
      const change = { tag: 'update', version, oldKey, key, values: sent(values), old } as const
      return {
        writes: [removal(oldKey, before, version, rules), written],
        changes: [change, ...cancel],
      }
    }
  }
}

/**
 * A local TRUNCATE. Of a table with delta columns peers receive deletes, because contributions that this node has not seen
 * must stay; rows set aside go with it. `keys`: all that the table holds.
 */
export function captureTruncate(
  keys: readonly { readonly key: Key; readonly state: KeyState }[],
  version: RowVersion,
  rules: LocalRules,
): Capture<Change> {
  if (rules.deltas.length === 0) {
    const writes = keys.map(({ key, state }) => ({ key, before: state, after: ABSENT }))
    return { writes, changes: [{ tag: 'truncate', version }] }
  }
  const rows = keys.filter(({ state }) => state.row !== null)
  return {
    writes: rows.map(({ key, state }) => removal(key, state, version, rules)),
    changes: rows.map(({ key, state }) => ({ tag: 'delete', version, key, old: state.row?.values ?? null })),
  }
}

/**
 * Writes a key again as it stands, with a new version: after a clock that stepped back gave it one that is older than what it
 * replaced. Every value is sent, TOAST too, and no amount. A key of which nothing is known is written as a delete: a truncate
 * that was newer than the row here, and older than what peers still hold, took it away.
 */
export function rewriteOf(key: Key, { row }: KeyState, version: RowVersion): RowChange {
  if (!row) return { tag: 'delete', version, key, old: {} }
  return { tag: 'update', version, oldKey: key, key, values: row.values, old: row.values }
}

/** A new row at a key that shows none. Sums that wait there unseen are cancelled: the application gets what it wrote. */
function place(
  key: Key,
  given: Values,
  before: KeyState,
  version: RowVersion,
  rules: LocalRules,
): { readonly written: Write; readonly values: Values; readonly cancel: readonly RowChange[] } {
  assert(!before.row?.visible, 'an insert over a visible row fails with unique_violation')
  const unseen = sumsOf(before, rules.deltas)
  const values = before.row ? merged(before.row.values, given, rules) : given
  const after: KeyState = { row: { values, version, visible: true }, tombstone: null }
  const cancel = areZero(unseen) ? [] : [{ tag: 'cancel', version, key, amounts: unseen } as const]
  return { written: { key, before, after }, values, cancel }
}

function removal(key: Key, before: KeyState, version: RowVersion, { deltas }: LocalRules): Write {
  assert(before.row, 'only a row can be deleted')
  const taken = negateAmounts(amountsIn(before.row.values, deltas))
  const remainder = addAmounts(sumsOf(before, deltas), taken)
  return { key, before, after: { row: null, tombstone: { version, remainder } } }
}

/** merge(old, new), except for delta columns: there the application's value stands. */
function merged(old: Values, given: Values, { merge, deltas }: LocalRules): Values {
  return merge ? { ...merge(old, given), ...amountsIn(given, deltas) } : given
}

function visibleValues({ row }: KeyState): Values {
  assert(row?.visible, 'an application touches visible rows only')
  return row.values
}

function leaveOut(values: Values, columns: readonly string[]): SentValues {
  return { ...values, ...Object.fromEntries(columns.map((column) => [column, UNCHANGED])) }
}

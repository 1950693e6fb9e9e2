import { assert } from '../../core/assert.ts'
import type { Amounts, Key, RowChange, SentValues, Values } from './change.ts'
import { addAmounts, amountsIn, areZero, negateAmounts, sumsOf } from './deltas.ts'
import { heldVersion, type KeyState } from './key-state.ts'
import type { ConflictType, LocalRules, TableRules } from './rules.ts'
import { compareVersions, mayReplace, type RowVersion } from './version.ts'

/**
 * What a change does to one key. A key update does two things: it removes the old key and puts the new one.
 * `put` and `remove` contend for the key by version; `amounts` are added whoever wins.
 */
export interface KeyChange<V extends SentValues = Values> {
  readonly key: Key
  readonly version: RowVersion
  readonly effect:
    { readonly tag: 'put'; readonly values: V } | { readonly tag: 'remove' } | { readonly tag: 'add' }
  readonly amounts: Amounts
  /** What the origin did, for the name of a conflict. */
  readonly operation: 'insert' | 'update' | 'delete' | 'move' | 'cancel'
}

/**
 * `applied`: the key is now as the change has it. `merged`: row and change became one row. `superseded`: something newer is
 * here, and only amounts were added.
 */
export type Result = 'applied' | 'merged' | 'superseded'

/** How one key took a change. What of it is recorded is another decision (`recordOf`). */
export interface Outcome {
  readonly key: Key
  readonly result: Result
  /** What the change met; null: nothing worth a name. */
  readonly conflict: ConflictType | null
  /** The version of the row, tombstone or truncate that it met; null: none, or unknown. */
  readonly met: RowVersion | null
}

/** Takes a change apart into what it does to each key, in order. */
export function keyChangesOf(change: RowChange, { deltas }: TableRules): KeyChange<SentValues>[] {
  const { version, key } = change
  const brought = (values: SentValues): Amounts => amountsIn(values as Values, deltas)
  const taken = (old: Values | null): Amounts => {
    if (deltas.length === 0) return {}
    assert(old !== null, 'a table with delta columns has REPLICA IDENTITY FULL')
    return negateAmounts(amountsIn(old, deltas))
  }
  switch (change.tag) {
    case 'insert': {
      const { values } = change
      return [{ key, version, effect: { tag: 'put', values }, amounts: brought(values), operation: 'insert' }]
    }
    case 'update': {
      const { oldKey, values, old } = change
      const effect = { tag: 'put', values } as const
      if (oldKey === key) {
        const amounts = addAmounts(brought(values), taken(old))
        return [{ key, version, effect, amounts, operation: 'update' }]
      }
      return [
        { key: oldKey, version, effect: { tag: 'remove' }, amounts: taken(old), operation: 'delete' },
        { key, version, effect, amounts: brought(values), operation: 'move' },
      ]
    }
    case 'delete':
      return [{ key, version, effect: { tag: 'remove' }, amounts: taken(change.old), operation: 'delete' }]
    case 'cancel':
      return [
        {
          key,
          version,
          effect: { tag: 'add' },
          amounts: negateAmounts(amountsIn(change.amounts, deltas)),
          operation: 'cancel',
        },
      ]
  }
}

/** Whether a change of this version decides the key: what is held, and the table's last truncate, are not newer. */
export function decidesKey(version: RowVersion, state: KeyState, truncated: RowVersion | null): boolean {
  return (
    mayReplace(version, heldVersion(state)) &&
    (truncated === null || compareVersions(truncated, version) <= 0)
  )
}

/**
 * One cell of the matrix: what becomes of a key when a change arrives. Ignores other unique keys: `settle` decides
 * afterwards which rows are visible, so `visible` of a row that was not there is false. Commutes with changes of other
 * origins: in any order that keeps each origin's own, the same state results.
 * @throws INVALID_VALUE when an amount is not a finite number
 */
export function applyChange(
  state: KeyState,
  change: KeyChange,
  rules: LocalRules,
  truncated: RowVersion | null,
): { readonly state: KeyState; readonly outcome: Outcome } {
  const sums = addAmounts(sumsOf(state, rules.deltas), change.amounts)
  const decides = decidesKey(change.version, state, truncated)
  const met = newerOf(heldVersion(state), state.row || decides ? null : truncated)
  const conflict = conflictOf(state, change, decides)
  const outcome = (result: Result): Outcome => ({ key: change.key, result, conflict, met })
  const { effect, version } = change
  const isSame = areZero(change.amounts)
  if (effect.tag === 'add') {
    return { state: isSame ? state : holding(state, sums, version), outcome: outcome('applied') }
  }
  if (effect.tag === 'put' && rules.merge && state.row) {
    const { row } = state
    const values = { ...rules.merge(row.values, effect.values), ...sums }
    const merged = { values, version: newerOf(row.version, version), visible: row.visible }
    const isOld = merged.version === row.version && areEqual(values, row.values)
    return {
      state: isOld ? state : { row: merged, tombstone: null },
      outcome: outcome(isOld ? 'superseded' : 'merged'),
    }
  }
  if (!decides) {
    const kept = isSame ? state : holding(state, sums, truncated ?? version)
    return { state: kept, outcome: outcome('superseded') }
  }
  if (effect.tag === 'remove') {
    return { state: { row: null, tombstone: { version, remainder: sums } }, outcome: outcome('applied') }
  }
  const row = { values: { ...effect.values, ...sums }, version, visible: state.row?.visible ?? false }
  return { state: { row, tombstone: null }, outcome: outcome('applied') }
}

/** The same row or tombstone with other sums. Where there is neither, a tombstone keeps them. */
function holding(state: KeyState, sums: Amounts, otherwise: RowVersion): KeyState {
  if (state.row) return { row: { ...state.row, values: { ...state.row.values, ...sums } }, tombstone: null }
  return { row: null, tombstone: { version: state.tombstone?.version ?? otherwise, remainder: sums } }
}

function conflictOf(state: KeyState, change: KeyChange, decides: boolean): ConflictType | null {
  const { operation } = change
  if (operation === 'cancel') return null
  if (state.row) {
    if (operation === 'insert') return 'insert_exists'
    if (operation === 'move') return 'update_exists'
    if (state.row.version?.nodeId === change.version.nodeId) return null
    return operation === 'update' ? 'update_origin_differs' : 'delete_origin_differs'
  }
  if (operation === 'delete') return 'delete_missing'
  if (!decides) return operation === 'insert' ? 'insert_deleted' : 'update_deleted'
  return operation === 'update' ? 'update_missing' : null
}

function areEqual(a: Values, b: Values): boolean {
  return Object.keys(a).every((column) => a[column] === b[column])
}

function newerOf(a: RowVersion | null, b: RowVersion | null): RowVersion | null {
  if (a === null || b === null) return a ?? b
  return compareVersions(a, b) < 0 ? b : a
}

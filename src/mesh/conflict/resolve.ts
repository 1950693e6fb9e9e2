import { assert } from '../../core/assert.ts'
import { applyChange, decidesKey, keyChangesOf, type KeyChange, type Outcome } from './apply-change.ts'
import type { Change, Key, RowChange, SentValues, TruncateChange, UpdateChange, Values } from './change.ts'
import { areZero } from './deltas.ts'
import { ABSENT, heldVersion, type KeyedRow, type KeyState } from './key-state.ts'
import type { Decision, KeyAnswer } from './question.ts'
import type { LocalRules, TableRules, UniqueConstraint } from './rules.ts'
import { settle, type ChangedKey, type Collision } from './set-aside.ts'
import { fillFrom, fillFromOrigin, isComplete, isProvenBase } from './toast.ts'
import { compareVersions, type RowVersion } from './version.ts'

/** One key that is stored otherwise from now on. */
export interface Write {
  readonly key: Key
  readonly before: KeyState
  readonly after: KeyState
}

/** What a change makes of a table. */
export interface Resolution {
  /** In an order in which no unique constraint is violated on the way: what leaves the table comes first. */
  readonly writes: readonly Write[]
  readonly outcomes: readonly Outcome[]
  readonly collisions: readonly Collision[]
  /** The table's truncate version from now on, if that changes. */
  readonly truncated: RowVersion | null
  /** The key whose row has values that were asked of the origin. */
  readonly fetched: Key | null
  /**
   * The key at which the change was given up, because its origin has something newer. Until that has arrived, the row here is
   * no base for values that are not sent: the driver remembers key and version, durably.
   */
  readonly givenUp: Key | null
}

const NOTHING: Resolution = {
  writes: [],
  outcomes: [],
  collisions: [],
  truncated: null,
  fetched: null,
  givenUp: null,
}

/**
 * Decides a change that may be applied now: the whole matrix, with deltas, TOAST and rows set aside. The caller has seen to
 * the clock (`mayApply`) and to the queue behind parked changes (`mustQueue`), and carries out the writes in the
 * transaction of the change.
 * @throws INVALID_VALUE when an amount is not a finite number: the change is to be parked
 */
export function* resolveChange(change: Change, rules: TableRules): Decision<Resolution> {
  if (change.tag === 'truncate') return yield* truncate(change)
  const states = new Map<Key, KeyAnswer>()
  const changed = new Map<Key, { before: KeyState; after: KeyState }>()
  const outcomes: Outcome[] = []
  let fetched: Key | null = null
  let givenUp: Key | null = null
  for (const part of keyChangesOf(fromOld(change), rules)) {
    const held = states.get(part.key) ?? (yield* askKey(part.key))
    states.set(part.key, held)
    const completion = yield* completePart(part, change, rules, held)
    if (completion.tag === 'superseded') {
      givenUp = part.key
      outcomes.push({ key: part.key, result: 'superseded', conflict: null, met: null })
      continue
    }
    if (completion.tag === 'fetched') fetched = part.key
    const merged = yield* withMerge(rules, held.state, completion.part)
    const { state, outcome } = applyChange(held.state, completion.part, merged, held.truncated)
    outcomes.push(outcome)
    changed.set(part.key, { before: held.state, after: state })
  }
  return { ...(yield* placeRows(changed, [], rules)), outcomes, fetched, givenUp }
}

/**
 * Returns to their table the rows set aside that nothing newer stands in the way of: after a local write gave up a unique
 * value. Runs under the repair origin, which no node receives.
 */
export function* repairVisibility(aside: readonly KeyedRow[], rules: TableRules): Decision<Resolution> {
  return yield* placeRows(new Map(), aside, rules)
}

/**
 * The change with all its values, for parking it: a retry may come when the origin no longer has them. `change` is null if
 * it is superseded at its origin and there is nothing to park; `givenUp` as in Resolution.
 */
export function* completeChange(
  change: Change,
): Decision<{ readonly change: Change | null; readonly givenUp: Key | null }> {
  if (change.tag !== 'update') return { change, givenUp: null }
  const filled = fromOld(change) as UpdateChange
  if (isComplete(filled.values)) return { change: filled, givenUp: null }
  const values = yield* fetchValues(filled.values, change)
  if (values) return { change: { ...filled, values }, givenUp: null }
  const { version, oldKey, key, old } = change
  return { change: oldKey === key ? null : { tag: 'delete', version, key: oldKey, old }, givenUp: key }
}

/** The rules with the result of the merge function, where that has to be asked for. */
function* withMerge(rules: TableRules, { row }: KeyState, { effect }: KeyChange): Decision<LocalRules> {
  const { merge } = rules
  if (merge !== 'ask') return { ...rules, merge }
  if (!row || effect.tag !== 'put') return { ...rules, merge: null }
  const answer = yield { ask: 'merge', local: row.values, arriving: effect.values }
  assert(answer.is === 'merge', 'a row is the answer to "merge"')
  return { ...rules, merge: () => answer.values }
}

type Completion =
  { readonly tag: 'here' | 'fetched'; readonly part: KeyChange } | { readonly tag: 'superseded' }

/** Finds the values that a key change needs but did not bring. */
function* completePart(
  part: KeyChange<SentValues>,
  change: RowChange,
  rules: TableRules,
  { state, truncated }: KeyAnswer,
): Decision<Completion> {
  const { effect } = part
  if (effect.tag !== 'put' || isComplete(effect.values)) return { tag: 'here', part: part as KeyChange }
  const put = (values: Values): KeyChange => ({ ...part, effect: { tag: 'put', values } })
  // A row that loses whole needs no values.
  if (!rules.merge && !decidesKey(part.version, state, truncated))
    return { tag: 'here', part: part as KeyChange }
  assert(change.tag === 'update', 'only updates leave values out')
  const base = part.key === change.oldKey ? state : (yield* askKey(change.oldKey)).state
  if (base.row?.version != null) {
    const { version, values } = base.row
    const facts = yield { ask: 'base', key: change.oldKey, version: change.version, local: version }
    assert(facts.is === 'base', 'facts are the answer to "base"')
    const isOlder = compareVersions(version, change.version) <= 0
    if (isOlder && isProvenBase(change.version, version, facts)) {
      return { tag: 'here', part: put(fillFrom(effect.values, values) as Values) }
    }
  }
  const values = yield* fetchValues(effect.values, change)
  return values ? { tag: 'fetched', part: put(values) } : { tag: 'superseded' }
}

function* fetchValues(values: SentValues, { key, version }: RowChange): Decision<Values | null> {
  const answer = yield { ask: 'fetch', key, nodeId: version.nodeId }
  assert(answer.is === 'fetch', 'a row is the answer to "fetch"')
  return fillFromOrigin(values, version, answer)
}

function* askKey(key: Key): Decision<KeyAnswer> {
  const answer = yield { ask: 'key', key }
  assert(answer.is === 'key', 'a state is the answer to "key"')
  return answer
}

/** REPLICA IDENTITY FULL: the old row has what was not sent. */
function fromOld(change: RowChange): RowChange {
  if (change.tag !== 'update' || change.old === null) return change
  return { ...change, values: fillFrom(change.values, change.old) }
}

function* placeRows(
  changed: ReadonlyMap<Key, { readonly before: KeyState; readonly after: KeyState }>,
  candidates: readonly KeyedRow[],
  rules: TableRules,
): Decision<Resolution> {
  const moved: ChangedKey[] = []
  for (const [key, { before, after }] of changed) {
    if (isMoved(before, after, rules.uniques)) moved.push({ key, before: before.row, after: after.row })
  }
  if (moved.length === 0 && candidates.length === 0) return { ...NOTHING, writes: writesOf(changed) }
  const { rows, collisions } = yield* settle(moved, candidates, rules)
  const all = new Map(changed)
  for (const [key, row] of rows) {
    const visibleRow = { values: row.values, version: row.version, visible: row.visible }
    const before = changed.get(key)?.before ?? (yield* askKey(key)).state
    all.set(key, { before, after: { row: visibleRow, tombstone: null } })
  }
  return { ...NOTHING, writes: writesOf(all), collisions }
}

/** Whether a row came, went, or is another one to the unique constraints; not so when only its sums changed. */
function isMoved(before: KeyState, after: KeyState, uniques: readonly UniqueConstraint[]): boolean {
  if (!before.row || !after.row) return before.row !== after.row
  const a = before.row
  const b = after.row
  return (
    a.version !== b.version ||
    uniques.some(({ columns }) => columns.some((column) => a.values[column] !== b.values[column]))
  )
}

function writesOf(
  changed: ReadonlyMap<Key, { readonly before: KeyState; readonly after: KeyState }>,
): Write[] {
  const writes: Write[] = []
  for (const [key, { before, after }] of changed) {
    const isSame =
      before === after ||
      (before.row !== null &&
        before.row.values === after.row?.values &&
        before.row.version === after.row.version &&
        before.row.visible === after.row.visible)
    if (!isSame) writes.push({ key, before, after })
  }
  return writes.toSorted((a, b) => turn(a) - turn(b))
}

/** What leaves the table goes first, what returns to it last: in between, rows change their values in place. */
function turn({ before, after }: Write): number {
  if (!after.row?.visible) return 0
  return before.row?.visible ? 1 : 2
}

/** Whatever is not newer goes. Nothing that stays can have stood back for it: what it stood back for is newer still. */
function* truncate({ version }: TruncateChange): Decision<Resolution> {
  const answer = yield { ask: 'not newer', version }
  assert(answer.is === 'keys', 'keys are the answer to "not newer"')
  const writes: Write[] = []
  const outcomes: Outcome[] = []
  for (const { key, state } of answer.keys) {
    if (state.tombstone && !areZero(state.tombstone.remainder)) continue
    writes.push({ key, before: state, after: ABSENT })
    outcomes.push({ key, result: 'applied', conflict: null, met: heldVersion(state) })
  }
  const isNewest = answer.truncated === null || compareVersions(answer.truncated, version) <= 0
  return { ...NOTHING, writes, outcomes, truncated: isNewest ? version : null }
}

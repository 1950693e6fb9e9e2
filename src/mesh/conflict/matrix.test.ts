import { expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import { applyChange, keyChangesOf, type KeyChange } from './apply-change.ts'
import type { RowChange } from './change.ts'
import { ABSENT, type KeyState } from './key-state.ts'
import { DEFAULT_RULES } from './rules.ts'
import type { RowVersion } from './version.ts'

const version = (time: number, nodeId: number): RowVersion => ({ time: pgTimeOf(BigInt(time)), nodeId })
const row = (time: number, nodeId: number): KeyState => ({
  row: { values: { v: 'here' }, version: version(time, nodeId), visible: true },
  tombstone: null,
})
const grave = (time: number): KeyState => ({
  row: null,
  tombstone: { version: version(time, 2), remainder: {} },
})
const ofUnknownAge: KeyState = {
  row: { values: { v: 'here' }, version: null, visible: true },
  tombstone: null,
}

const insert: RowChange = { tag: 'insert', version: version(20, 1), key: 'k', values: { v: 'new' } }
const update: RowChange = { ...insert, tag: 'update', oldKey: 'k', old: null }
const remove: RowChange = { tag: 'delete', version: version(20, 1), key: 'k', old: null }

test.each<[string, RowChange, KeyState, string | null, string, 'new' | 'here' | 'none']>([
  ['insert, nothing here', insert, ABSENT, null, 'applied', 'new'],
  ['insert, older row', insert, row(10, 2), 'insert_exists', 'applied', 'new'],
  ['insert, newer row', insert, row(30, 2), 'insert_exists', 'superseded', 'here'],
  ['insert, older tombstone', insert, grave(10), null, 'applied', 'new'],
  ['insert, newer tombstone', insert, grave(30), 'insert_deleted', 'superseded', 'none'],
  ['update, older row of its origin', update, row(10, 1), null, 'applied', 'new'],
  ['update, older row of another origin', update, row(10, 2), 'update_origin_differs', 'applied', 'new'],
  ['update, newer row of another origin', update, row(30, 2), 'update_origin_differs', 'superseded', 'here'],
  ['update, equal timestamp, smaller node', update, row(20, 0), 'update_origin_differs', 'applied', 'new'],
  [
    'update, equal timestamp, greater node',
    update,
    row(20, 2),
    'update_origin_differs',
    'superseded',
    'here',
  ],
  ['update, equal version', update, row(20, 1), null, 'applied', 'new'],
  ['update, row of unknown age', update, ofUnknownAge, 'update_origin_differs', 'applied', 'new'],
  ['update, nothing here', update, ABSENT, 'update_missing', 'applied', 'new'],
  ['update, older tombstone', update, grave(10), 'update_missing', 'applied', 'new'],
  ['update, newer tombstone', update, grave(30), 'update_deleted', 'superseded', 'none'],
  ['delete, older row of its origin', remove, row(10, 1), null, 'applied', 'none'],
  ['delete, older row of another origin', remove, row(10, 2), 'delete_origin_differs', 'applied', 'none'],
  ['delete, newer row of another origin', remove, row(30, 2), 'delete_origin_differs', 'superseded', 'here'],
  ['delete, nothing here', remove, ABSENT, 'delete_missing', 'applied', 'none'],
])('%s', (_, change, state, conflict, result, left) => {
  const [part] = keyChangesOf(change, DEFAULT_RULES) as [KeyChange]
  const applied = applyChange(state, part, DEFAULT_RULES, null)
  expect([applied.outcome.conflict, applied.outcome.result]).toEqual([conflict, result])
  expect(applied.state.row?.values['v'] ?? 'none').toBe(left)
  if (left === 'none') expect(applied.state.tombstone).not.toBeNull()
})

test('a truncate counts for every key: strictly older changes lose, those of its transaction do not', () => {
  const [part] = keyChangesOf(insert, DEFAULT_RULES) as [KeyChange]
  expect(applyChange(ABSENT, part, DEFAULT_RULES, version(30, 2)).outcome).toMatchObject({
    conflict: 'insert_deleted',
    result: 'superseded',
    met: version(30, 2),
  })
  expect(applyChange(ABSENT, part, DEFAULT_RULES, version(20, 1)).outcome.result).toBe('applied')
})

test('a key update removes the old key and puts the new one, both with its version', () => {
  const parts = keyChangesOf({ ...update, key: 'k2' } as RowChange, DEFAULT_RULES) as KeyChange[]
  const [left, put] = parts.map((part) => applyChange(row(10, 2), part, DEFAULT_RULES, null))
  expect(left!.state).toEqual({ row: null, tombstone: { version: version(20, 1), remainder: {} } })
  expect(put!.state.row).toMatchObject({ values: { v: 'new' }, version: version(20, 1) })
  expect([left!.outcome.conflict, put!.outcome.conflict]).toEqual(['delete_origin_differs', 'update_exists'])
})

import { expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import { UNCHANGED, type Change } from './change.ts'
import { MemoryTable } from './memory-table.ts'
import type { BaseAnswer, FetchAnswer } from './question.ts'
import { resolveChange, type Resolution } from './resolve.ts'
import { DEFAULT_RULES } from './rules.ts'
import { isProvenBase } from './toast.ts'
import type { RowVersion } from './version.ts'

const version = (time: number, nodeId: number): RowVersion => ({ time: pgTimeOf(BigInt(time)), nodeId })

const ALL_KNOWN: BaseAnswer = {
  is: 'base',
  hadLocal: true,
  receivedUpTo: null,
  isIncomplete: false,
  isOfThisTransaction: false,
}

test('a local row is a proven base only if the origin had it, and this node all that the origin had', () => {
  const change = version(30, 1)
  const proven = (local: RowVersion, facts: Partial<BaseAnswer>): boolean =>
    isProvenBase(change, local, { ...ALL_KNOWN, ...facts })
  expect(proven(version(10, 2), {})).toBe(true)
  expect(proven(version(10, 2), { hadLocal: false })).toBe(false)
  expect(proven(version(10, 1), { hadLocal: false })).toBe(true)
  // A third node's change at 29 may have been there, and not here yet.
  expect(proven(version(10, 1), { receivedUpTo: pgTimeOf(29n) })).toBe(false)
  expect(proven(version(10, 1), { receivedUpTo: pgTimeOf(30n) })).toBe(true)
  // Parked here, or given up here: the row is older than what the origin updated.
  expect(proven(version(10, 1), { isIncomplete: true })).toBe(false)
})

test('a row of the same transaction is a base, but not if it was fetched', () => {
  const isBase = (isOfThisTransaction: boolean): boolean =>
    isProvenBase(version(30, 1), version(30, 1), { ...ALL_KNOWN, isOfThisTransaction })
  expect([isBase(true), isBase(false)]).toEqual([true, false])
})

const update: Change = {
  tag: 'update',
  version: version(20, 1),
  oldKey: 'k1',
  key: 'k1',
  values: { v: '2', t: UNCHANGED },
  old: null,
}

function receive(row: FetchAnswer['row']): { readonly resolution: Resolution; readonly table: MemoryTable } {
  const table = new MemoryTable(DEFAULT_RULES)
  const resolution = table.carryOut(resolveChange(update, DEFAULT_RULES), {
    base: () => ALL_KNOWN,
    fetch: () => ({ is: 'fetch', row }),
  })
  return { resolution, table }
}

test('a fetched row of that version gives its values, and is marked as fetched', () => {
  const { resolution, table } = receive({ values: { v: '2', t: '7' }, version: version(20, 1) })
  expect(resolution).toMatchObject({ fetched: 'k1', givenUp: null })
  expect(table.held('k1').row?.values).toEqual({ v: '2', t: '7' })
})

test.each<[string, FetchAnswer['row']]>([
  ['gone', null],
  ['newer', { values: { v: '3', t: '8' }, version: version(25, 2) }],
  ['of unknown age', { values: { v: '3', t: '8' }, version: null }],
])('a change whose row at the origin is %s is given up, and that is to be remembered', (_, row) => {
  const { resolution, table } = receive(row)
  expect(resolution).toMatchObject({ fetched: null, givenUp: 'k1', writes: [] })
  expect(table.entries()).toEqual([])
})

test('a row that loses anyway is not asked for', () => {
  const table = new MemoryTable(DEFAULT_RULES)
  const here = { values: { v: '9', t: '9' }, version: version(21, 2), visible: true }
  table.write([{ key: 'k1', before: table.held('k1'), after: { row: here, tombstone: null } }])
  table.carryOut(resolveChange(update, DEFAULT_RULES), {
    base: () => expect.fail('no base is needed'),
    fetch: () => expect.fail('nothing is fetched'),
  })
  expect(table.held('k1').row).toEqual(here)
})

import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import type { Change, Key, Values } from './change.ts'
import { MemoryTable, type Elsewhere } from './memory-table.ts'
import { resolveChange } from './resolve.ts'
import { DEFAULT_RULES, type LocalRules } from './rules.ts'
import { collidingConstraints } from './set-aside.ts'
import { compareVersions, type RowVersion } from './version.ts'

const NOWHERE: Elsewhere = {
  base: () => expect.fail('every change brings all its values'),
  fetch: () => expect.fail('every change brings all its values'),
}

interface Kinds {
  readonly truncate: boolean
  readonly remove: boolean
}

/** The stream of one origin: versions never step back, and are equal within a transaction. */
function stream(nodeId: number, { truncate, remove }: Kinds): fc.Arbitrary<Change[]> {
  const anyKey = fc.constantFrom('k1', 'k2', 'k3')
  const unique = fc.constantFrom('A', 'B', null)
  const amount = fc.constantFrom('1.00', '-2.50', '0.01', '7.00')
  const v = fc.constantFrom('1', '2', '3')
  const row = fc.record({ v, u: unique, w: unique, d: amount }, { noNullPrototype: true })
  const kinds = ['insert', 'update', ...(remove ? ['move', 'delete', 'delete', 'cancel'] : [])] as const
  const change = fc.record({
    kind: fc.constantFrom<string>(...kinds, ...kinds, ...(truncate ? ['truncate'] : [])),
    key: anyKey,
    other: anyKey,
    values: row,
    old: row,
    step: fc.nat(3),
  })
  return fc.array(change, { maxLength: 7 }).map((drawn) => {
    let time = 10n
    return drawn.flatMap(({ kind, key, other, values, old, step }): Change[] => {
      time += BigInt(step)
      const version: RowVersion = { time: pgTimeOf(time), nodeId }
      if (kind === 'truncate') return [{ tag: 'truncate', version }]
      const insert = { tag: 'insert', version, key, values } as const
      if (kind === 'insert') return [insert]
      if (kind === 'delete') return [{ tag: 'delete', version, key, old }]
      if (kind === 'cancel') return [insert, { tag: 'cancel', version, key, amounts: { d: old.d } }]
      return [{ tag: 'update', version, oldKey: kind === 'move' ? other : key, key, values, old }]
    })
  })
}

const streams = (kinds: Kinds): fc.Arbitrary<Change[][]> =>
  fc.tuple(stream(1, kinds), stream(2, kinds), stream(3, kinds))

/** One order of arrival that keeps each origin's own. */
function interleave(all: readonly Change[][], choices: Iterator<number>): Change[] {
  const rest = all.map((changes) => [...changes])
  const arrived: Change[] = []
  for (;;) {
    const open = rest.filter((changes) => changes.length > 0)
    if (open.length === 0) return arrived
    arrived.push(open[(choices.next().value as number) % open.length]!.shift()!)
  }
}

function tableAfter(changes: readonly Change[], rules: LocalRules): MemoryTable {
  const table = new MemoryTable(rules)
  for (const change of changes) table.carryOut(resolveChange(change, rules), NOWHERE)
  return table
}

const UNIQUES = [
  { name: 'u', columns: ['u'], nullsCollide: false },
  { name: 'w', columns: ['w'], nullsCollide: true },
]
const PLAIN = DEFAULT_RULES
const DELTA: LocalRules = { ...DEFAULT_RULES, deltas: ['d'] }
const UNIQUE: LocalRules = { ...DEFAULT_RULES, uniques: UNIQUES }
const ALL: LocalRules = { ...DEFAULT_RULES, uniques: UNIQUES, deltas: ['d'] }
const MERGE: LocalRules = {
  ...DEFAULT_RULES,
  uniques: UNIQUES,
  merge: (a, b) => (String(a['v']) > String(b['v']) ? a : String(a['v']) < String(b['v']) ? b : least(a, b)),
}

function least(a: Values, b: Values): Values {
  return JSON.stringify(a) < JSON.stringify(b) ? a : b
}

const runs = { numRuns: 250 }

describe('any interleaving that keeps the order of each origin', () => {
  test.each([
    ['newest wins', PLAIN, { truncate: true, remove: true }],
    ['delta columns', DELTA, { truncate: false, remove: true }],
    ['other unique keys', UNIQUE, { truncate: true, remove: true }],
    ['delta columns and other unique keys', ALL, { truncate: false, remove: true }],
    ['merge function and other unique keys', MERGE, { truncate: false, remove: false }],
  ])('ends with the same rows, tombstones, versions and visibility: %s', (_, rules, kinds) => {
    const order = fc.infiniteStream(fc.nat(5))
    fc.assert(
      fc.property(streams(kinds), order, order, (all, first, second) => {
        const a = tableAfter(interleave(all, first), rules)
        const b = tableAfter(interleave(all, second), rules)
        expect(a.entries()).toEqual(b.entries())
        expect(a.truncated).toEqual(b.truncated)
        expect(a.entries().map(({ key, state }) => [key, state.row?.visible])).toEqual(
          visibleByRows(a, rules),
        )
      }),
      runs,
    )
  })

  test('a row is that of the newest change; oracle: all changes sorted', () => {
    fc.assert(
      fc.property(streams({ truncate: true, remove: true }), fc.infiniteStream(fc.nat(5)), (all, order) => {
        const table = tableAfter(interleave(all, order), PLAIN)
        for (const key of ['k1', 'k2', 'k3']) {
          expect(table.held(key).row?.values ?? null).toEqual(newestOf(all.flat(), key))
        }
      }),
      runs,
    )
  })

  test('sums are those of all contributions, whoever wins; oracle: whole cents added up', () => {
    fc.assert(
      fc.property(streams({ truncate: false, remove: true }), fc.infiniteStream(fc.nat(5)), (all, order) => {
        const table = tableAfter(interleave(all, order), ALL)
        for (const key of ['k1', 'k2', 'k3']) {
          const { row, tombstone } = table.held(key)
          const sum = row ? row.values['d'] : (tombstone?.remainder['d'] ?? '0')
          expect(cents(sum)).toBe(all.flat().reduce((total, change) => total + contribution(change, key), 0))
        }
      }),
      runs,
    )
  })
})

function newestOf(changes: readonly Change[], key: Key): Values | null {
  let row: Values | null = null
  // Stable: within one version, the order of the stream.
  for (const change of changes.toSorted((a, b) => compareVersions(a.version, b.version))) {
    if (change.tag === 'truncate' || (change.tag === 'delete' && change.key === key)) row = null
    if (change.tag === 'update' && change.oldKey === key) row = null
    if ((change.tag === 'insert' || change.tag === 'update') && change.key === key)
      row = change.values as Values
  }
  return row
}

function cents(text: Values[string] | undefined): number {
  return Math.round(Number(text) * 100)
}

function contribution(change: Change, key: Key): number {
  switch (change.tag) {
    case 'insert':
      return change.key === key ? cents(change.values['d']) : 0
    case 'delete':
      return change.key === key ? -cents(change.old?.['d']) : 0
    case 'cancel':
      return change.key === key ? -cents(change.amounts['d']) : 0
    case 'update': {
      const brought = change.key === key ? cents((change.values as Values)['d']) : 0
      return brought - (change.oldKey === key ? cents(change.old?.['d']) : 0)
    }
    case 'truncate':
      return 0
  }
}

/** Visibility from the rows alone: newest first, visible unless a visible one is in the way. */
function visibleByRows(table: MemoryTable, { uniques }: LocalRules): [Key, boolean | undefined][] {
  const rows = table.entries().flatMap(({ key, state: { row } }) => (row ? [{ key, ...row }] : []))
  const inOrder = rows.toSorted((a, b) => compareVersions(b.version!, a.version!) || (a.key < b.key ? 1 : -1))
  const visible: typeof rows = []
  for (const row of inOrder) {
    const isFree = visible.every((it) => collidingConstraints(it.values, row.values, uniques).length === 0)
    if (isFree) visible.push(row)
  }
  const keys = new Set(visible.map(({ key }) => key))
  return table.entries().map(({ key, state }) => [key, state.row ? keys.has(key) : undefined])
}

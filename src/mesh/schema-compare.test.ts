import fc from 'fast-check'
import { describe, expect, it } from 'vitest'

import { compareSchemas, formatDifference, type ColumnShape, type TableShape } from './schema-compare.ts'

const column = (type: string, shape: Partial<ColumnShape> = {}): ColumnShape => ({
  type,
  notNull: false,
  generated: false,
  ...shape,
})
const table = (
  name: string,
  columns: Record<string, ColumnShape>,
  key: string[] | null = ['id'],
): TableShape => ({
  name,
  columns: new Map(Object.entries(columns)),
  key,
})
const id = column('integer', { notNull: true })

function linesOf(...nodes: TableShape[][]): string[] {
  return compareSchemas(nodes.map((tables, at) => ({ node: `n${at + 1}`, tables }))).map(formatDifference)
}

describe('each kind of difference names table, column and node', () => {
  it('missing table, and nothing more about it', () => {
    const t = table('public.t', { id, a: column('text') })
    expect(linesOf([t], [], [t])).toEqual(['public.t: missing on n2'])
  })

  it('missing column', () => {
    const t = table('public.t', { id, Total: column('text') })
    expect(linesOf([t], [table('public.t', { id })], [t])).toEqual([
      'public.t."Total": missing on n2, present on n1, n3',
    ])
  })

  it('type, not null, generated', () => {
    expect(
      linesOf(
        [table('public.t', { id, a: column('numeric(10,2)', { notNull: true }), g: column('int') })],
        [table('public.t', { id, a: column('integer'), g: column('int', { generated: true }) })],
        [table('public.t', { id, a: column('numeric(10,2)', { notNull: true }), g: column('int') })],
      ),
    ).toEqual([
      'public.t.a: numeric(10,2) on n1, n3; integer on n2',
      'public.t.a: not null on n1, n3; nullable on n2',
      'public.t.g: not generated on n1, n3; generated on n2',
    ])
  })

  it('key: other columns, other order, none', () => {
    const a = column('int')
    expect(
      linesOf(
        [table('public.t', { id, a }, ['id', 'a'])],
        [table('public.t', { id, a }, ['a', 'id'])],
        [table('public.t', { id, a }, null)],
      ),
    ).toEqual(['public.t: key (id, a) on n1; key (a, id) on n2; no key on n3'])
  })
})

it('the order of tables and columns does not matter', () => {
  const a = column('text')
  const b = column('bigint')
  expect(
    linesOf(
      [table('public.t', { id, a, b }), table('public.u', { id })],
      [table('public.u', { id }), table('public.t', { b, id, a })],
    ),
  ).toEqual([])
})

it('nodes are equal exactly when no difference is found, whichever node comes first', () => {
  const shape = fc.record({
    type: fc.constantFrom('text', 'integer'),
    notNull: fc.boolean(),
    generated: fc.boolean(),
  })
  const tables = fc.uniqueArray(
    fc.record({
      name: fc.constantFrom('public.a', 'public.b'),
      columns: fc
        .dictionary(fc.constantFrom('x', 'y'), shape)
        .map((columns) => new Map(Object.entries(columns))),
      key: fc.constantFrom(null, ['x']),
    }),
    { selector: (each) => each.name },
  )
  const canonical = (of: readonly TableShape[]): string =>
    JSON.stringify(
      of
        .map((each) => [
          each.name,
          [...each.columns]
            .toSorted(([a], [b]) => (a < b ? -1 : 1))
            .map(([name, c]) => [name, c.type, c.notNull, c.generated]),
          each.key,
        ])
        .toSorted(([a], [b]) => (String(a) < String(b) ? -1 : 1)),
    )
  fc.assert(
    fc.property(tables, tables, (first, second) => {
      const found = compareSchemas([
        { node: 'n1', tables: first },
        { node: 'n2', tables: second },
      ])
      const reversed = compareSchemas([
        { node: 'n2', tables: second },
        { node: 'n1', tables: first },
      ])
      expect(found.length === 0).toBe(canonical(first) === canonical(second))
      expect(reversed.length).toBe(found.length)
    }),
  )
})

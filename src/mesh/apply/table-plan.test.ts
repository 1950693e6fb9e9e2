import { describe, expect, test } from 'vitest'
import type { RemoteColumn, RemoteRelation } from '../../pgwire/pgoutput.ts'
import { deleteSql, planTable, putSql, truncateSql, type LocalColumn, type LocalTable } from './table-plan.ts'

const NODES = { local: 'n1', provider: 'n2' }
const INT4 = 23
const TEXT = 25
const USER_TYPE = 16_500

/** `*` in front: a column of the key. */
function remote(names: readonly string[], change: Partial<RemoteRelation> = {}): RemoteRelation {
  const columns = names.map((name): RemoteColumn => {
    const isKey = name.startsWith('*')
    return { name: isKey ? name.slice(1) : name, isKey, typeOid: INT4 }
  })
  return { id: 1, schema: 'public', name: 't', replicaIdentity: 'd', columns, ...change }
}

function local(
  names: readonly string[],
  key: readonly string[] | null,
  change: Readonly<Record<string, Partial<LocalColumn>>> = {},
): LocalTable {
  const columns = names.map((name): LocalColumn => ({
    name,
    typeOid: INT4,
    generated: false,
    identityAlways: false,
    binaryUnsafe: false,
    parameterOid: change[name]?.typeOid ?? INT4,
    cast: null,
    ...change[name],
  }))
  const keyEquality = key?.map(() => ({ operator: 'operator(pg_catalog.=)', type: null })) ?? null
  return { kind: 'r', columns, key, keyEquality, guardOid: null, oid: 16_400, runAs: null, refusal: null }
}

const withType = (relation: RemoteRelation, typeOid: number): RemoteRelation => ({
  ...relation,
  columns: relation.columns.map((column) => ({ ...column, typeOid: column.isKey ? INT4 : typeOid })),
})

describe('a table that cannot be mapped', () => {
  test.each<[string, RemoteRelation, LocalTable | null, object]>([
    ['is missing', remote(['*id']), null, { code: 'TABLE_MISSING', facts: { table: 'public.t' } }],
    [
      'lacks a column',
      remote(['*id', 'v']),
      local(['id'], ['id']),
      { code: 'COLUMN_MISSING', facts: { column: 'v' } },
    ],
    [
      'generates a column',
      remote(['*id', 'v']),
      local(['id', 'v'], ['id'], { v: { generated: true } }),
      { code: 'COLUMN_MISSING' },
    ],
    [
      'has another key',
      remote(['*id', 'v']),
      local(['id', 'v'], ['v']),
      { code: 'KEY_DIFFERS', facts: { local: ['v'], remote: ['id'] } },
    ],
    ['has a longer key', remote(['*id', 'v']), local(['id', 'v'], ['id', 'v']), { code: 'KEY_DIFFERS' }],
    ['has a shorter key', remote(['*id', '*v']), local(['id', 'v'], ['id']), { code: 'KEY_DIFFERS' }],
    [
      'has no key',
      remote(['*id', 'v']),
      local(['id', 'v'], null),
      { code: 'KEY_DIFFERS', facts: { local: ['none'] } },
    ],
    [
      'has a key, the other has none',
      remote(['id', 'v']),
      local(['id', 'v'], ['id']),
      { code: 'KEY_DIFFERS' },
    ],
    [
      'has a key that is not sent',
      remote(['v'], { replicaIdentity: 'n' }),
      local(['id', 'v'], ['id']),
      { code: 'KEY_DIFFERS' },
    ],
  ])('%s', (_, from, to, expected) => {
    expect(failureOf(() => planTable(from, to, NODES))).toMatchObject(expected)
  })

  test('the message says on which node, and leaves nothing open', () => {
    const tries = [
      () => planTable(remote(['*id']), null, NODES),
      () => planTable(remote(['*id', 'v']), local(['id'], ['id']), NODES),
      () => planTable(remote(['id']), local(['id'], ['id']), NODES),
    ]
    for (const attempt of tries) {
      const { message } = failureOf(attempt)
      expect(message).toContain('n1')
      expect(message).toContain('n2')
      expect(message).not.toMatch(/\?|\(\)/)
    }
  })
})

function failureOf(attempt: () => unknown): Error {
  try {
    attempt()
  } catch (error) {
    return error as Error
  }
  throw new Error('it did not fail')
}

describe('a table that is mapped', () => {
  test('by names, whatever the order of columns and of the key, with more columns here', () => {
    const plan = planTable(
      remote(['v', '*b', '*a']),
      local(['a', 'b', 'extra', 'v'], ['a', 'b'], { v: { typeOid: 99 } }),
      NODES,
    )
    expect(plan.keyPositions).toEqual([2, 1])
    expect(plan.typeOids).toEqual([99, INT4, INT4])
  })

  test('the real key is taken where the provider marks all columns', () => {
    expect(
      planTable(remote(['*id', '*v'], { replicaIdentity: 'f' }), local(['id', 'v'], ['id']), NODES)
        .keyPositions,
    ).toEqual([0])
  })

  test('insert-only tables: without any key, and with a key only here', () => {
    expect(planTable(remote(['a']), local(['a'], null), NODES).keyPositions).toEqual([])
    expect(
      planTable(remote(['a'], { replicaIdentity: 'n' }), local(['a'], ['a']), NODES).keyPositions,
    ).toEqual([0])
  })

  test.each<[string, number, number, boolean]>([
    ['the same built-in type', INT4, INT4, false],
    ['different built-in types', TEXT, INT4, true],
    ['a type of users on both sides, with other oids', USER_TYPE, USER_TYPE + 1, false],
    ['a type of users there, a built-in one here', USER_TYPE, TEXT, true],
    ['a built-in type there, one of users here', TEXT, USER_TYPE, true],
  ])('%s: text is needed or not', (_, from, to, needed) => {
    const plan = planTable(
      withType(remote(['*id', 'v']), from),
      local(['id', 'v'], ['id'], { v: { typeOid: to } }),
      NODES,
    )
    expect(plan.needsText).toBe(needed)
  })

  test('a type whose binary form is of its server needs text', () => {
    expect(
      planTable(remote(['*id']), local(['id'], ['id'], { id: { binaryUnsafe: true } }), NODES).needsText,
    ).toBe(true)
  })
})

const ORIGIN = { nodeId: 2, oid: 3, equalUntil: null }

test('every name is quoted', () => {
  const odd = `o"d`
  const plan = planTable(
    remote([`*${odd}`, `v"`], { schema: 's"', name: 't"' }),
    local([odd, `v"`], [odd]),
    NODES,
  )
  for (const sql of [
    putSql(plan, 'insert', ORIGIN),
    putSql(plan, 'update', ORIGIN),
    deleteSql(plan, ORIGIN),
    truncateSql(plan, ORIGIN),
  ]) {
    expect(sql).toContain('"s"""."t"""')
    expect(sql.replaceAll(/"(?:[^"]|"")*"/g, '')).not.toContain('"')
  }
})

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { quoteIdent, quoteLiteral } from '../../core/quote.ts'
import { formatPgTime, pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import type { RemoteRelation } from '../../pgwire/pgoutput.ts'
import { PgConnection, type QueryResult } from '../../postgres/connection.ts'
import { mayReplace, type RowVersion } from '../conflict/version.ts'
import { installSchema } from '../schema.ts'
import {
  deleteSql,
  planTable,
  putSql,
  truncateSql,
  type LocalTable,
  type Origin,
  type TablePlan,
} from './table-plan.ts'

/** With tombstones, as every replicated table has them, and without. */
const MATRIX: readonly (readonly [ServerVersion, guarded: boolean])[] = [
  ['18', true],
  ['18', false],
  ['system15', true],
]
/** The node of the tests' server; the changes come from others. */
const LOCAL_NODE = 2
const NODES = { local: 'n2', provider: 'n1' }
/** No row here was last written by such an origin: the closer look decides always. */
const originOf = (nodeId: number): Origin => ({ nodeId, oid: 65_000, equalUntil: null })
/** 2026-01-01. */
const T = 820_454_400_000_000n
const at = (micros: bigint): PgTime => pgTimeOf(T + micros)

/** A change's version against that of the row, which node 2 of the origins wrote at T. */
const ROW: RowVersion = { time: at(0n), nodeId: 3 }
const CHANGES: readonly (readonly [string, RowVersion])[] = [
  ['much older', { time: at(-1_000_000n), nodeId: 4 }],
  ['older by a microsecond', { time: at(-1n), nodeId: 4 }],
  ['of the same time and a lower node', { time: at(0n), nodeId: 1 }],
  ['the same version', ROW],
  ['of the same time and a higher node', { time: at(0n), nodeId: 4 }],
  ['newer by a microsecond', { time: at(1n), nodeId: 1 }],
]

interface Shape {
  readonly name: string
  readonly ddl: string
  readonly columns: readonly string[]
  readonly key: readonly string[]
  readonly identity?: string
  /** A row, and another one with the same key. */
  readonly row: readonly string[]
  readonly other: readonly string[]
}

const SHAPES: readonly Shape[] = [
  {
    name: 'plain',
    ddl: '(id int primary key, v text)',
    columns: ['id', 'v'],
    key: ['id'],
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'Od"d',
    ddl: '("I""d" int primary key, "select" text)',
    columns: ['I"d', 'select'],
    key: ['I"d'],
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'composite',
    ddl: '(v text, b int, a int, primary key (a, b))',
    columns: ['v', 'b', 'a'],
    key: ['a', 'b'],
    row: ['x', '1', '2'],
    other: ['y', '1', '2'],
  },
  {
    name: 'identity_always',
    ddl: '(id int generated always as identity primary key, v text)',
    columns: ['id', 'v'],
    key: ['id'],
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'identity_beside',
    ddl: '(id int primary key, n int generated always as identity)',
    columns: ['id', 'n'],
    key: ['id'],
    row: ['1', '7'],
    other: ['1', '7'],
  },
  {
    name: 'key_only',
    ddl: '(a int, b int, primary key (a, b))',
    columns: ['a', 'b'],
    key: ['a', 'b'],
    row: ['1', '2'],
    other: ['1', '2'],
  },
  {
    name: 'key_only_identity',
    ddl: '(id int generated always as identity primary key)',
    columns: ['id'],
    key: ['id'],
    row: ['1'],
    other: ['1'],
  },
  {
    name: 'half_identity_key',
    ddl: '(id int generated always as identity, b int, primary key (id, b))',
    columns: ['id', 'b'],
    key: ['id', 'b'],
    row: ['1', '2'],
    other: ['1', '2'],
  },
  {
    name: 'generated',
    ddl: `(id int primary key, v text, twice text generated always as (v || v) stored)`,
    columns: ['id', 'v'],
    key: ['id'],
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'partitioned',
    ddl: '(id int, v text, primary key (id)) partition by range (id)',
    columns: ['id', 'v'],
    key: ['id'],
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'whole',
    ddl: '(id int primary key, v text)',
    columns: ['id', 'v'],
    key: ['id'],
    identity: 'full',
    row: ['1', 'a'],
    other: ['1', 'b'],
  },
  {
    name: 'by_index',
    ddl: '(v text, u int not null unique)',
    columns: ['v', 'u'],
    key: ['u'],
    identity: 'using index by_index_u_key',
    row: ['a', '1'],
    other: ['b', '1'],
  },
]

describe.each(MATRIX)('changes executed on version %s, with tombstones: %s', (version, guarded) => {
  let servers: TestServers
  let conn: PgConnection
  /** One session for each origin: they are set up once. */
  const sessions = new Map<number, PgConnection>()

  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning; set search_path = public')
    await installSchema(conn)
    await conn.query(`select sterna.node_create('n2', 'host=h', info => '{"node_id": ${LOCAL_NODE}}')`)
    for (const shape of SHAPES) {
      const table = quoteIdent(shape.name)
      await conn.exec(`create table ${table} ${shape.ddl}`)
      if (shape.identity) await conn.exec(`alter table ${table} replica identity ${shape.identity}`)
    }
    await conn.exec('create table part_low partition of partitioned for values from (0) to (100)')
    await conn.exec('create table keyless (a int, v text)')
    await conn.exec('create table large (id int generated always as identity primary key, v text, w text)')
    if (!guarded) await conn.exec('select sterna.tombstone_detach(table_oid) from sterna.guarded')
  })
  afterAll(async () => {
    for (const session of sessions.values()) await session.close()
    await conn.close()
    await servers.stop()
  })

  async function sessionOf(nodeId: number): Promise<PgConnection> {
    const known = sessions.get(nodeId)
    if (known) return known
    const parameters = { session_replication_role: 'replica', search_path: 'pg_catalog' }
    const session = await PgConnection.connect(servers.nodes[0]!.dsn, { parameters })
    const { name } = (await session.row<{ name: string }>(
      `select 'sterna_' || oid || '_${nodeId}' as name from pg_database where datname = current_database()`,
    ))!
    await session.query('select pg_replication_origin_create($1)', [name])
    await session.query('select pg_replication_origin_session_setup($1)', [name])
    sessions.set(nodeId, session)
    return session
  }

  /** Runs statements as one transaction of another node. */
  async function as(version_: RowVersion, ...statements: readonly string[]): Promise<QueryResult[]> {
    const session = await sessionOf(version_.nodeId)
    const time = quoteLiteral(formatPgTime(version_.time))
    const results = await session.transaction(async () => {
      await session.exec(`select pg_replication_origin_xact_setup('0/${version_.nodeId}', ${time})`)
      const out: QueryResult[] = []
      for (const statement of statements) out.push(...(await session.exec(statement)))
      return out
    })
    return results
  }

  async function planOf(shape: Pick<Shape, 'name' | 'columns' | 'key' | 'identity'>): Promise<TablePlan> {
    const row = await conn.row<{ table: LocalTable }>('select sterna.describe_table($1, $2) as table', [
      'public',
      shape.name,
    ])
    const types = new Map(row!.table.columns.map(({ name, typeOid }) => [name, typeOid]))
    const whole = shape.identity === 'full'
    const relation: RemoteRelation = {
      id: 1,
      schema: 'public',
      name: shape.name,
      replicaIdentity: whole ? 'f' : 'd',
      columns: shape.columns.map((name) => ({
        name,
        isKey: whole || shape.key.includes(name),
        typeOid: types.get(name)!,
      })),
    }
    return planTable(relation, row!.table, NODES)
  }

  /** A statement with its parameters, which have the types that apply gives them. */
  async function withParams(
    sql: string,
    plan: TablePlan,
    positions: readonly number[],
    values: readonly string[],
    time?: PgTime,
  ): Promise<string> {
    const { rows } = await conn.query<{ name: string }>(
      'select format_type(t.oid, null) as name from unnest($1::oid[]) with ordinality as t(oid, i) order by i',
      [[...positions.map((position) => plan.typeOids[position]!), ...(time === undefined ? [] : [1184])]],
    )
    const types = rows.map(({ name }) => name).join(', ')
    const literals = [...values, ...(time === undefined ? [] : [formatPgTime(time)])]
      .map(quoteLiteral)
      .join(', ')
    return `deallocate all; prepare p (${types}) as ${sql}; execute p (${literals})`
  }

  const all = (plan: TablePlan): number[] => plan.remote.columns.map((_, position) => position)
  const put = (plan: TablePlan, values: readonly string[], { time, nodeId }: RowVersion): Promise<string> =>
    withParams(putSql(plan, 'insert', originOf(nodeId)), plan, all(plan), values, time)
  const remove = (
    plan: TablePlan,
    values: readonly string[],
    { time, nodeId }: RowVersion,
  ): Promise<string> =>
    withParams(
      deleteSql(plan, originOf(nodeId)),
      plan,
      plan.keyPositions,
      plan.keyPositions.map((position) => values[position]!),
      time,
    )

  /** The rows with the time of their version. */
  async function rowsOf(plan: TablePlan): Promise<unknown[]> {
    const columns = plan.remote.columns.map(({ name }) => `${quoteIdent(name)}::text`)
    const { rows } = await conn.query(
      `select array[${columns.join(', ')}] as values, (extract(epoch from pg_xact_commit_timestamp(tableoid_xmin)) * 1000000)::bigint - 946684800000000 as time
         from (select *, xmin as tableoid_xmin from ${plan.target}) t`,
    )
    return rows
  }

  /** No rows, and nothing remembered of earlier ones. */
  async function empty(plan: TablePlan): Promise<void> {
    await conn.exec(`delete from ${plan.target}; delete from sterna.tombstone; delete from sterna.truncation`)
    expect(plan.guardOid !== null).toBe(guarded)
  }

  /** Leaves just the first row of the shape, written with version ROW. */
  async function reset(shape: Shape, plan: TablePlan): Promise<void> {
    await empty(plan)
    await as(ROW, await put(plan, shape.row, ROW))
    expect(await rowsOf(plan)).toEqual([{ values: shape.row, time: ROW.time }])
  }

  const shapes = guarded
    ? SHAPES
    : SHAPES.filter(({ name }) => name === 'plain' || name === 'key_only_identity')
  describe.each(shapes)('table $name', (shape) => {
    let plan: TablePlan
    beforeAll(async () => {
      plan = await planOf(shape)
    })

    test.each(CHANGES)('put, %s', async (_, change) => {
      await reset(shape, plan)
      await as(change, await put(plan, shape.other, change))
      const wins = mayReplace(change, ROW)
      expect(await rowsOf(plan)).toEqual([
        wins ? { values: shape.other, time: change.time } : { values: shape.row, time: ROW.time },
      ])
    })

    test.each(CHANGES)('delete, %s', async (_, change) => {
      await reset(shape, plan)
      await as(change, await remove(plan, shape.row, change))
      expect(await rowsOf(plan)).toHaveLength(mayReplace(change, ROW) ? 0 : 1)
    })

    test.each(CHANGES)('truncate, %s', async (_, change) => {
      await reset(shape, plan)
      await as(
        change,
        await withParams(truncateSql(plan, originOf(change.nodeId)), plan, [], [], change.time),
      )
      expect(await rowsOf(plan)).toHaveLength(mayReplace(change, ROW) ? 0 : 1)
    })

    test('the row is missing: put makes it, delete does nothing', async () => {
      await empty(plan)
      await as(ROW, await remove(plan, shape.row, ROW))
      // Without the tombstone: where there is one, apply must ask first.
      await empty(plan)
      await as(ROW, await put(plan, shape.row, ROW))
      expect(await rowsOf(plan)).toEqual([{ values: shape.row, time: ROW.time }])
    })

    test('several times in one transaction: the last one stays', async () => {
      await empty(plan)
      const statements = [
        await put(plan, shape.row, ROW),
        await put(plan, shape.other, ROW),
        await remove(plan, shape.row, ROW),
        await put(plan, shape.other, ROW),
      ]
      await as(ROW, ...statements)
      expect(await rowsOf(plan)).toEqual([{ values: shape.other, time: ROW.time }])
    })

    test('a local write of now wins against the past', async () => {
      await empty(plan)
      await conn.exec(
        `insert into ${plan.target} (${shape.columns.map(quoteIdent).join(', ')}) overriding system value values (${shape.row.map(quoteLiteral).join(', ')})`,
      )
      const change = { time: at(0n), nodeId: 4 }
      await as(change, await put(plan, shape.other, change), await remove(plan, shape.row, change))
      expect(await rowsOf(plan)).toMatchObject([{ values: shape.row }])
    })
  })

  test('the row count says whether a put and a delete did anything', async () => {
    const shape = SHAPES[0]!
    const plan = await planOf(shape)
    const older = { time: at(-5n), nodeId: 4 }
    await reset(shape, plan)
    const lost = await as(older, await put(plan, shape.other, older), await remove(plan, shape.row, older))
    expect(lost.filter(({ command }) => /\d$/.test(command)).map(({ rowCount }) => rowCount)).toEqual([0, 0])
  })

  test('a table without key takes every insert', async () => {
    const plan = await planOf({ name: 'keyless', columns: ['a', 'v'], key: [] })
    const insert = await withParams(putSql(plan, 'insert', originOf(3)), plan, all(plan), ['1', 'x'])
    await as(ROW, insert, insert)
    expect(await rowsOf(plan)).toHaveLength(2)
  })

  describe('version_not_greater', () => {
    test('agrees with mayReplace, for rows of several origins and of this node, and changes of several nodes', async () => {
      await conn.exec('create table seen (id int primary key)')
      const versions: RowVersion[] = []
      for (const nodeId of [1, 3, 4])
        for (const time of [at(-1n), at(0n), at(1n)]) versions.push({ nodeId, time })
      for (const [i, one] of versions.entries()) await as(one, `insert into public.seen values (${i})`)
      await conn.exec(`insert into seen values (${versions.length})`)
      const local = await conn.row<{ time: bigint }>(
        `select (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint - 946684800000000 as time from seen where id = ${versions.length}`,
      )
      versions.push({ nodeId: LOCAL_NODE, time: pgTimeOf(local!.time) })
      const times = [
        at(-1n),
        at(0n),
        at(1n),
        ...[-1n, 0n, 1n].map((micros) => pgTimeOf(local!.time + micros)),
      ]
      const changes = times.flatMap((time) => [1, 2, 3, 4, 5].map((nodeId): RowVersion => ({ nodeId, time })))
      for (const change of changes) {
        const { rows } = await conn.query<{ id: number; may: boolean }>(
          'select id, sterna.version_not_greater(xmin, $1, $2) as may from seen order by id',
          [formatPgTime(change.time), change.nodeId],
        )
        expect(rows.map(({ may }) => may)).toEqual(versions.map((row) => mayReplace(change, row)))
      }
    })

    test('what is unknown is older than everything: the own transaction, and an origin that is no node', async () => {
      await conn.exec('create table unknown (id int primary key)')
      const own = await conn.transaction(async () => {
        await conn.exec('insert into unknown values (1)')
        return conn.row(`select sterna.version_not_greater(xmin, '1999-01-01', 1) as may from unknown`)
      })
      expect(own).toEqual({ may: true })
      const session = await PgConnection.connect(servers.nodes[0]!.dsn)
      await session.exec(
        `select pg_replication_origin_create('foreign'), pg_replication_origin_session_setup('foreign')`,
      )
      await session.transaction(async () => {
        await session.query(`select pg_replication_origin_xact_setup('0/1', $1)`, [formatPgTime(at(0n))])
        await session.exec('insert into unknown values (2)')
      })
      await session.close()
      const may = async (time: PgTime): Promise<unknown> =>
        conn.row('select sterna.version_not_greater(xmin, $1, 1) as may from unknown where id = 2', [
          formatPgTime(time),
        ])
      expect([await may(at(-1n)), await may(at(0n)), await may(at(1n))]).toEqual([
        { may: false },
        { may: true },
        { may: true },
      ])
    })
  })

  test('two sessions at once: the one that waits sees what the other one committed', async () => {
    const shape = SHAPES[0]!
    const plan = await planOf(shape)
    await empty(plan)
    const first = { time: at(5n), nodeId: 4 }
    const second = { time: at(3n), nodeId: 1 }
    await as(first, await put(plan, shape.row, { time: at(0n), nodeId: 4 }))
    const session = await sessionOf(first.nodeId)
    await session.exec(
      `begin; select pg_replication_origin_xact_setup('0/9', ${quoteLiteral(formatPgTime(at(7n)))})`,
    )
    await session.exec(await put(plan, ['1', 'first'], { time: at(7n), nodeId: 4 }))
    const waiting = as(second, await put(plan, ['1', 'second'], { time: at(6n), nodeId: 1 }))
    await session.exec('commit')
    await waiting
    expect(await rowsOf(plan)).toMatchObject([{ values: ['1', 'first'] }])
  })
})

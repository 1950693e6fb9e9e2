import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'
import { deleteSql, planTable, putSql, type LocalTable, type TablePlan } from './table-plan.ts'

const MATRIX: readonly (readonly [ServerVersion, guarded: boolean])[] = [
  ['18', true],
  ['18', false],
  ['system15', true],
]
const at = (second: number): string => `timestamptz '2026-01-01 00:00:00+00' + interval '${second} seconds'`

describe.each(MATRIX)(
  'rows that another node wrote last, version %s, with tombstones: %s',
  (version, guarded) => {
    let servers: TestServers
    let conn: PgConnection
    const sessions = new Map<number, PgConnection>()
    beforeAll(async () => {
      servers = await startServers({ count: 1, version })
      conn = await PgConnection.connect(servers.nodes[0]!.dsn)
      await conn.exec('set search_path = public')
      await installSchema(conn)
      await conn.query(`select sterna.node_create('n2', 'host=h', info => '{"node_id": 2}')`)
      await conn.exec('create table t (id int primary key, v text)')
      await conn.exec(`create table "o'dd$" ("k'$g$%s" int, b int, v text, primary key (b, "k'$g$%s"))`)
      if (!guarded) await conn.exec('select sterna.tombstone_detach(table_oid) from sterna.guarded')
      for (const node of [3, 4, 5]) {
        const parameters = { session_replication_role: 'replica', search_path: 'pg_catalog' }
        const session = await PgConnection.connect(servers.nodes[0]!.dsn, { parameters })
        const name = `(select 'sterna_' || oid || '_${node}' from pg_database where datname = current_database())`
        await session.query(`select pg_replication_origin_create(${name})`)
        await session.query(`select pg_replication_origin_session_setup(${name})`)
        sessions.set(node, session)
      }
    })
    beforeEach(async () => {
      await conn.exec('delete from sterna.heard_heartbeat')
    })
    afterAll(async () => {
      for (const session of sessions.values()) await session.close()
      await conn.close()
      await servers.stop()
    })

    /** One transaction of another node; the messages with which it tells of conflicts. */
    async function as(node: number, second: number, ...statements: readonly string[]): Promise<string[]> {
      const session = sessions.get(node)!
      const heard: string[] = []
      session.onNotice = ({ sqlstate, message }) => {
        if (sqlstate === 'ST011') heard.push(message)
      }
      await session.exec(
        `begin; select pg_replication_origin_xact_setup('0/${node}', ${at(second)}); ${statements.join(';')}; commit`,
      )
      return heard
    }

    async function planOf(name: string, key: readonly string[]): Promise<TablePlan> {
      const row = await conn.row<{ table: LocalTable }>('select sterna.describe_table($1, $2) as table', [
        'public',
        name,
      ])
      const { table } = row!
      expect(table.guardOid !== null).toBe(guarded)
      const columns = table.columns.map((column) => ({ ...column, isKey: key.includes(column.name) }))
      return planTable({ id: 1, schema: 'public', name, replicaIdentity: 'd', columns }, table, {
        local: 'n2',
        provider: 'n4',
      })
    }

    /** A put or delete of a row at a node and moment, as a plain statement. */
    function change(
      plan: TablePlan,
      node: number,
      second: number,
      values: readonly string[],
      operation: 'insert' | 'update' | 'delete',
    ): string {
      const origin = { nodeId: node, oid: 65_000, equalUntil: null }
      const sql = operation === 'delete' ? deleteSql(plan, origin) : putSql(plan, operation, origin)
      const given = operation === 'delete' ? plan.keyPositions.map((position) => values[position]!) : values
      const parameters = [...given.map((value) => `'${value}'`), at(second)]
      return sql.replaceAll(/\$(\d+)/g, (text, number: string) => {
        const value = parameters[Number(number) - 1]
        return value === undefined ? text : `(${value})`
      })
    }

    /** Node `node` had applied everything of node 3 up to here, by a heartbeat of its own. */
    const beat = async (node: number, second: number, applied: number, seen: number): Promise<unknown> =>
      as(
        node,
        second,
        `insert into sterna.heard_heartbeat values (${node}, ${second},
         jsonb_build_object('3', sterna.pg_time(${at(applied)})), jsonb_build_object('3', sterna.pg_time(${at(seen)})), ${at(second)})`,
      )

    async function history(): Promise<unknown[]> {
      const { rows } = await conn.query<{ entry: unknown[] }>(
        `select jsonb_build_array(conflict_type, table_name, key, local_row, remote_row, (local_version).node_id,
          (remote_version).node_id, resolution, concurrent) as entry from sterna.conflict_history order by id`,
      )
      await conn.exec('delete from sterna.conflict_history')
      return rows.map(({ entry }) => entry)
    }

    test('ordered: nothing is recorded; unknown and concurrent: both rows, and one message for each', async () => {
      const plan = await planOf('t', ['id'])
      const rows = (node: number, second: number, v: string): string[] =>
        [1, 2, 3].map((id) => change(plan, node, second, [String(id), v], 'insert'))
      await as(3, 10, ...rows(3, 10, 'old'))
      // Of rows of several writers in one transaction, the answer about one is not that about another.
      await as(5, 12, change(plan, 5, 12, ['3', 'of 5'], 'update'))
      await history()
      await beat(4, 15, 11, 11)
      expect(await as(4, 20, ...rows(4, 20, 'new'))).toEqual(['insert_exists'])
      expect(await history()).toEqual([
        [
          'insert_exists',
          'public.t',
          { id: '3' },
          { id: '3', v: 'of 5' },
          { id: '3', v: 'new' },
          5,
          4,
          'apply_remote',
          null,
        ],
      ])
      await as(
        3,
        30,
        change(plan, 3, 30, ['1', 'third'], 'update'),
        change(plan, 3, 30, ['2', 'third'], 'update'),
      )
      await history()
      // Node 4 had not seen what node 3 wrote at 30 when it was already past 40.
      await beat(4, 41, 29, 29)
      expect(
        await as(
          4,
          40,
          change(plan, 4, 40, ['1', 'fourth'], 'update'),
          change(plan, 4, 40, ['2', 'x'], 'delete'),
        ),
      ).toEqual(['update_origin_differs', 'delete_origin_differs'])
      expect(await history()).toEqual([
        [
          'update_origin_differs',
          'public.t',
          { id: '1' },
          { id: '1', v: 'third' },
          { id: '1', v: 'fourth' },
          3,
          4,
          'apply_remote',
          true,
        ],
        [
          'delete_origin_differs',
          'public.t',
          { id: '2' },
          { id: '2', v: 'third' },
          null,
          3,
          4,
          'apply_remote',
          true,
        ],
      ])
      // The older one stays out, and is recorded all the same.
      expect(await as(5, 35, change(plan, 5, 35, ['1', 'late'], 'update'))).toEqual(['update_origin_differs'])
      expect(await history()).toMatchObject([
        [
          'update_origin_differs',
          'public.t',
          { id: '1' },
          { v: 'fourth' },
          { v: 'late' },
          4,
          5,
          'keep_local',
          true,
        ],
      ])
      expect(await conn.row('select v from t where id = 1')).toEqual({ v: 'fourth' })
    })

    test('odd names, and keys of several columns in another order', async () => {
      const plan = await planOf("o'dd$", ['b', "k'$g$%s"])
      await as(3, 10, change(plan, 3, 10, ['1', '2', 'old'], 'insert'))
      await as(4, 20, change(plan, 4, 20, ['1', '2', 'new'], 'update'))
      expect(await history()).toMatchObject([
        [
          'update_origin_differs',
          `public."o'dd$"`,
          { b: '2', "k'$g$%s": '1' },
          { v: 'old', b: '2', "k'$g$%s": '1' },
          { v: 'new' },
          3,
          4,
          'apply_remote',
          null,
        ],
      ])
      await as(5, 30, change(plan, 5, 30, ['1', '2', ''], 'delete'))
      expect(await conn.row(`select count(*) as n from "o'dd$"`)).toEqual({ n: 0n })
      await history()
    })

    test.runIf(guarded)(
      'rows as texts are those of today: after columns came, went and changed',
      async () => {
        await conn.exec(`create type mood as enum ('sad', 'glad')`)
        await conn.exec(
          'create table wide (id int primary key, a text, m money, gone int, mood mood, f float8)',
        )
        await conn.exec(
          `insert into wide values (1, null, 12.5, 1, 'sad', 0.1), (2, '', null, null, null, 1e300)`,
        )
        const texts = async (): Promise<unknown> => {
          const { rows } = await conn.query<{ fast: unknown; slow: unknown }>(
            `select sterna.texts_${String(oid)}(w.*) as fast, sterna.row_texts(w.*) as slow from wide w order by id`,
          )
          expect(rows.map(({ fast }) => fast)).toEqual(rows.map(({ slow }) => slow))
          return rows[0]!.fast
        }
        const { oid } = (await conn.row<{ oid: bigint }>(`select 'wide'::regclass::oid::bigint as oid`))!
        expect(await texts()).toEqual({ id: '1', a: null, m: '12.50', gone: '1', mood: 'sad', f: '0.1' })
        await conn.exec('alter table wide drop column gone')
        await conn.exec('alter table wide add column added date default $$2026-01-02$$')
        await conn.exec('alter table wide rename column a to "b""c"')
        await conn.exec('alter table wide alter column f type text')
        expect(await texts()).toEqual({
          id: '1',
          'b"c': null,
          m: '12.50',
          mood: 'sad',
          f: '0.1',
          added: '2026-01-02',
        })
        // A column that goes with its type.
        await conn.exec('set sterna.ddl_replication = off')
        await conn.exec('drop type mood cascade')
        await conn.exec('reset sterna.ddl_replication')
        expect(await texts()).toEqual({ id: '1', 'b"c': null, m: '12.50', f: '0.1', added: '2026-01-02' })
      },
    )

    test.runIf(guarded)('a partition whose columns stand in another order', async () => {
      await conn.exec('create table parted (id int, v text, primary key (id)) partition by range (id)')
      await conn.exec('create table leaf (gone int, v text, id int not null)')
      await conn.exec('alter table leaf drop column gone')
      await conn.exec('alter table parted attach partition leaf for values from (0) to (10)')
      const plan = await planOf('parted', ['id'])
      await as(3, 10, change(plan, 3, 10, ['1', 'a'], 'insert'))
      await as(4, 20, change(plan, 4, 20, ['1', 'b'], 'insert'))
      expect(await history()).toMatchObject([
        [
          'insert_exists',
          'public.parted',
          { id: '1' },
          { id: '1', v: 'a' },
          { id: '1', v: 'b' },
          3,
          4,
          'apply_remote',
          null,
        ],
      ])
      const leaf = await planOf('leaf', ['id'])
      await as(5, 30, change(leaf, 5, 30, ['c', '1'], 'update'))
      expect(await history()).toMatchObject([
        [
          'update_origin_differs',
          'public.leaf',
          { id: '1' },
          { id: '1', v: 'b' },
          { id: '1', v: 'c' },
          4,
          5,
          'apply_remote',
          null,
        ],
      ])
    })
  },
)

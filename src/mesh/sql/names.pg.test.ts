import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection, type Row } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

const CODE = 'x$g$; create table if not exists public.owned(); select $g$'
const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`

const KEY = ["k'g", CODE]
/** x, t, c and the like are names that the statements of Sterna use themselves. */
const VALUES = ['d"q', '%s', '\\$f$', 'x', 't', 'p', 'c', 'r']
const KEY_SQL = KEY.map(quoted).join(', ')
const keyOf = (value: string): Record<string, string> => Object.fromEntries(KEY.map((name) => [name, value]))
const rowOf = (key: string, value: string): Record<string, string> => ({
  ...keyOf(key),
  ...Object.fromEntries(VALUES.map((name) => [name, value])),
  parent1: '1',
  parent2: '1',
})

// Names of columns, tables and constraints are anybody's; what is made of them is executed with more rights.
describe.each(MATRIX)('names with quotes, dollars and code in them, version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    await installSchema(conn)
    await conn.exec(`select sterna.node_create('n1', 'host=x', info => '{"node_id": 1}')`)
    // For the database, since guards reset what was set in the session.
    for (const setting of [
      'client_min_messages = warning',
      'check_function_bodies = off',
      'sterna.ddl_replication = off',
    ])
      await conn.exec(`alter database app set ${setting}`)
    await conn.close()
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec(`create role mallory;
      create function fired() returns trigger language plpgsql as 'begin return coalesce(new, old); end';
      alter function fired() owner to mallory;
      select sterna.clock_check(null, null, false);
      select sterna.sub_create('s', 'host=nowhere'); update sterna.subscription set provider_node_id = 2;
      insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, complete_until) values (2, now(), 1, '0/0', 'infinity')`)
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })

  const rows = async (sql: string, values: unknown[] = []): Promise<Row[]> =>
    (await conn.query(sql, values as never)).rows
  const exec = (sql: string): Promise<unknown> => conn.exec(sql)

  describe.each(['postgres', 'mallory'])('tables of %s', (owner) => {
    const table = quoted(`o'dd"$g$%s ${owner}`)
    const parent = quoted(`p'"$g$%s ${owner}`)
    const regclass = `$n$${table}$n$::regclass`
    const mine = async (columns: string): Promise<Row[]> =>
      rows(`select ${columns} from ${table} t order by 1`)
    const expectNothingRan = async (): Promise<void> =>
      expect(await rows(`select 1 as one from pg_class where relname = 'owned'`)).toEqual([])
    const add = (key: string, value: string): Promise<unknown> =>
      exec(`insert into ${table} values (${[key, key, ...VALUES.map(() => value), 1, 1].join(', ')})`)

    beforeAll(async () => {
      await exec(`create table ${parent} (${KEY.map((name) => `${quoted(name)} int`).join(', ')}, t int, primary key (${KEY_SQL}));
        create table ${table} (${[...KEY, ...VALUES].map((name) => `${quoted(name)} int`).join(', ')}, parent1 int, parent2 int,
          primary key (${KEY_SQL}), constraint ${quoted(CODE)} foreign key (parent1, parent2) references ${parent},
          constraint "u'$g$%s ${owner}" unique ("d""q", "%s"));
        insert into ${parent} values (1, 1)`)
      if (owner === 'mallory')
        for (const name of [table, parent])
          await exec(`create trigger fired before insert or update or delete on ${name} for each row execute function fired();
            alter table ${name} enable always trigger fired; alter table ${name} owner to mallory`)
      await exec(
        'truncate sterna.review, sterna.aside, sterna.tombstone, sterna.row_message, sterna.orphan restart identity',
      )
    })

    describe('the review queue', () => {
      const open = async (): Promise<unknown> =>
        (
          await rows(
            `insert into sterna.review (reason, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version)
           values ('manual', 'update_origin_differs', ${regclass}, 'odd', $1, $2, $3, row(now(), 1)::sterna.row_version, row(now(), 2)::sterna.row_version)
           returning id`,
            [keyOf('1'), rowOf('1', '1'), rowOf('1', '5')].map((value) => JSON.stringify(value)),
          )
        )[0]!['id']
      const resolve = async (choice: string, given: object | null = null): Promise<unknown> =>
        (
          await rows('select sterna.review_resolve($1, $2, $3) as done', [
            await open(),
            choice,
            given && JSON.stringify(given),
          ])
        )[0]!['done']

      it('entries are settled by each choice', async () => {
        expect(await resolve('remote')).toBe('inserted')
        expect(await resolve('row', { '\\$f$': '7' })).toBe('updated')
        expect(await resolve('local')).toBe('updated')
        expect(await mine('"d""q" as d, "\\$f$" as f')).toEqual([{ d: 5, f: 7 }])
        await expectNothingRan()
      })

      it('what is shown to be executed is one call, whatever the columns are called', async () => {
        await exec(`alter table ${table} rename "%s" to ${quoted(`'); create table public.owned(); --`)};
          alter table ${table} rename "d""q" to ${quoted(`"}'); create table public.owned(); --\\`)}`)
        await conn.query(
          `insert into sterna.aside (table_oid, key_hash, table_name, key, row_values, constraints)
           values (${regclass}, 1, 'odd', $1, $1, array['u''$g$%s ' || $2])`,
          [JSON.stringify(keyOf('9')), owner],
        )
        const [{ shown }] = (await rows(
          `select substring(comes_back from '(select sterna.review_resolve.*)$') as shown from sterna.rows_aside`,
        )) as [{ shown: string }]
        await exec(
          `do $do$ begin ${shown.replace('<review id>', '-1').replace('select', 'perform')}; exception when sqlstate 'ST150' then null; end $do$`,
        )
        await expectNothingRan()
        await exec(`delete from sterna.aside; alter table ${table} rename ${quoted(`'); create table public.owned(); --`)} to "%s";
          alter table ${table} rename ${quoted(`"}'); create table public.owned(); --\\`)} to "d""q"`)
      })
    })

    describe('a clock that stepped back', () => {
      const doubt = (): Promise<unknown> =>
        exec(
          `update sterna.clock_state set doubt_xid = '3', doubt_from = '-infinity', doubt_until = 'infinity'`,
        )
      afterAll(() =>
        exec('update sterna.clock_state set doubt_xid = null, doubt_from = null, doubt_until = null'),
      )

      it('rows are written again as they are', async () => {
        await add('3', '3')
        await doubt()
        const before = await mine(`t.*`)
        const [{ xmin }] = (await mine('min(xmin::text::bigint) as xmin')) as [{ xmin: bigint }]
        await exec('begin; set local session_replication_role = replica')
        expect(await rows(`select sterna.clock_rewrite_rows(${regclass}, 0, 10)::int as n`)).toEqual([
          { n: before.length },
        ])
        await exec('commit')
        expect(await mine('t.*')).toEqual(before)
        expect((await mine('min(xmin::text::bigint) as xmin'))[0]!['xmin']).not.toEqual(xmin)
        await expectNothingRan()
      })

      it('deletes are sent again', async () => {
        await exec(`truncate sterna.row_message; delete from ${table}`)
        expect(await rows(`select sterna.clock_rewrite_deletes(${regclass}) > 0 as some`)).toEqual([
          { some: true },
        ])
        expect(await rows(`select key from sterna.row_message order by key::text`)).toContainEqual({
          key: keyOf('3'),
        })
        await expectNothingRan()
      })
    })

    describe('foreign keys', () => {
      beforeAll(() =>
        exec(`truncate sterna.tombstone, sterna.row_message;
        select pg_replication_origin_create('sterna_names') where not exists (select from pg_replication_origin where roname = 'sterna_names')`),
      )
      /** The parent goes as by apply: with a tombstone that has an origin. */
      const orphan = async (): Promise<void> => {
        await exec(`delete from ${table}; insert into ${parent} values (1, 1) on conflict do nothing`)
        await add('4', '4')
        await exec(`select pg_replication_origin_session_setup('sterna_names')`)
        await exec(`begin; set local session_replication_role = replica; delete from ${parent};
          insert into sterna.tombstone (table_oid, key_hash, key) values ($n$${parent}$n$::regclass, 1, '["1", "1"]')
          on conflict (table_oid, key_hash) do update set key = excluded.key; commit`)
        await exec('select pg_replication_origin_session_reset()')
      }
      const found = async (): Promise<void> => {
        expect(await rows('select key, failure from sterna.orphan')).toEqual([
          { key: keyOf('4'), failure: null },
        ])
        await expectNothingRan()
      }

      it('orphans are found, of deletes and by comparison, with their rows where those can be read', async () => {
        await exec('select sterna.fk_look()')
        await orphan()
        await exec('select sterna.fk_look()')
        await found()
        await exec('truncate sterna.orphan, sterna.review')
        await exec(
          `select sterna.fk_compare(w.constraint_oid) from sterna.fk_watched() w where w.child = ${regclass}`,
        )
        await found()
        expect(await rows('select key, local_row from sterna.review')).toEqual([
          { key: keyOf('4'), local_row: owner === 'mallory' ? null : rowOf('4', '4') },
        ])
      })

      it.each([
        ['set_null', [{ parent1: null, there: 0 }]],
        ['recreate_parent', [{ parent1: 1, there: 1 }]],
        ['delete_child', []],
      ])('%s is carried out', async (policy, after) => {
        await exec('truncate sterna.orphan, sterna.review')
        await orphan()
        await exec('select sterna.fk_look()')
        await found()
        await conn.query(`select sterna.fk_policy_set(${regclass}, $1, $2)`, [CODE, policy])
        await exec(`update sterna.orphan set found_at = '2020-01-01'`)
        expect(await rows('select sterna.fk_settle()::int as n')).toEqual([{ n: 1 }])
        expect(await rows('select key, failure from sterna.orphan')).toEqual([])
        expect(await mine(`parent1, (select count(*)::int from ${parent}) as there`)).toEqual(after)
        await expectNothingRan()
      })
    })
  })
})

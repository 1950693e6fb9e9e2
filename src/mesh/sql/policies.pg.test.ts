import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection, type Row } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('delta columns and policies of a single node, version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    await installSchema(conn)
    await conn.exec(`select sterna.node_create('n1', 'host=x', info => '{"node_id": 1}')`)
    await conn.close()
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning; set sterna.ddl_replication = off')
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })

  const rows = async (sql: string): Promise<Row[]> => (await conn.query(sql)).rows
  const identity = async (table: string): Promise<string> =>
    (await conn.row<{ i: string }>(`select relreplident::text as i from pg_class where oid = $1::regclass`, [
      table,
    ]))!.i
  const triggers = async (table: string): Promise<string[]> =>
    (
      await conn.query<{ name: string }>(
        `select tgname::text as name from pg_trigger where tgrelid = $1::regclass and not tgisinternal
            and tgname not in ('sterna_delete', 'sterna_rekey', 'sterna_revive', 'sterna_truncate') order by 1`,
        [table],
      )
    ).rows.map(({ name }) => name)

  describe('which columns can be delta columns', () => {
    beforeAll(() =>
      conn.exec(`create table many (id int primary key, i int not null, s smallint not null, b bigint not null, n numeric(10, 2) not null,
          m money not null, free numeric not null, r real not null, f float not null, t text not null, nullable int,
          u int not null unique, serial int generated always as identity);
        create table keyless (i int not null);
        create table by_index (id int not null unique, i int not null);
        alter table by_index replica identity using index by_index_id_key;
        create table listed (id int primary key, i int not null, t text);
        create table filtered (id int primary key, i int not null);
        create table nan (id int primary key, n numeric(10, 2) not null);
        insert into nan values (1, 'NaN');
        create table part (id int, i int not null, primary key (id)) partition by range (id);
        create table part_1 partition of part for values from (0) to (100);
        create table gen (id int primary key, i int not null, twice int generated always as (i * 2) stored);
        create unlogged table unlogged (id int primary key, i int not null);
        create table inserts (id int primary key, i int not null);
        select sterna.repset_remove_table('default', 'inserts'), sterna.repset_add_table('default_insert_only', 'inserts');
        select sterna.repset_remove_table('default', 'listed'), sterna.repset_create('some'),
               sterna.repset_add_table('some', 'listed', columns => '{id,i}');
        alter table filtered replica identity full;
        select sterna.repset_remove_table('default', 'filtered'), sterna.repset_add_table('some', 'filtered', row_filter => 'i > 0');
        create table nowhere (id int primary key, i int not null);
        select sterna.repset_remove_table('default', 'nowhere')`),
    )

    it.each([
      ['many', 'none', /there is no such column/],
      ['many', 'free', /numeric without a scale/],
      ['many', 'r', /not added up exactly/],
      ['many', 'f', /not added up exactly/],
      ['many', 't', /it is text/],
      ['many', 'nullable', /can be null/],
      ['many', 'id', /belongs to the key/],
      ['many', 'u', /unique index/],
      ['many', 'serial', /generated/],
      ['keyless', 'i', /no primary key/],
      ['by_index', 'i', /replica identity is an index/],
      ['listed', 'i', /list of its columns/],
      ['filtered', 'i', /filters rows by it/],
      ['nan', 'n', /holds NaN/],
      ['part_1', 'i', /it is a partition: name (public\.)?part,/],
      ['unlogged', 'i', /unlogged/],
      ['nowhere', 'i', /in no replication set/],
      ['inserts', 'i', /in no replication set that replicates/],
    ])('%s.%s is refused', async (table, column, reason) => {
      expect(
        await failureOf(conn.query('select sterna.delta_add($1::regclass, $2)', [table, column])),
      ).toMatchObject({
        sqlstate: 'ST160',
        message: expect.stringMatching(reason),
        hint: expect.stringContaining('policies.md'),
      })
    })

    it('a generated column is in the way of whole old rows on PostgreSQL 18 only', async () => {
      const declared = conn.query(`select sterna.delta_add('gen', 'i')`)
      if (version !== '18') await declared
      else
        expect(await failureOf(declared)).toMatchObject({
          sqlstate: 'ST160',
          message: expect.stringMatching(/generated/),
        })
      await conn.exec('insert into gen (id, i) values (1, 1); update gen set i = 2')
    })

    it.each(['i', 's', 'b', 'n', 'm'])('many.%s is taken', async (column) => {
      expect(await conn.row(`select sterna.delta_add('many', $1) is null as nothing`, [column])).toEqual({
        nothing: false,
      })
      expect(await conn.row(`select sterna.delta_add('many', $1) is null as nothing`, [column])).toEqual({
        nothing: true,
      })
    })

    it('takes effect at once where there is one node', async () => {
      expect(await rows(`select sterna.table_rules('many'::regclass) as rules`)).toEqual([
        {
          rules: {
            deltas: ['b', 'i', 'm', 'n', 's'],
            merge: null,
            manual: [],
            oneWay: null,
            uniques: [{ name: 'many_u_key', columns: ['u'], nullsCollide: false }],
            otherUniques: [],
          },
        },
      ])
      expect(await identity('many')).toBe('f')
      expect(
        await rows(`select 1 as one from sterna.careful_table where table_oid = 'many'::regclass`),
      ).toEqual([{ one: 1 }])
      expect(
        await rows(
          "select distinct state, waiting_for from sterna.definitions where table_name = 'public.many'",
        ),
      ).toEqual([{ state: 'active', waiting_for: [] }])
      await conn.exec(`insert into many (id, i, s, b, n, m, free, r, f, t, u) values (1, 1, 1, 1, 1, 1::money, 1, 1, 1, '', 1);
        update many set i = 2; delete from many`)
    })

    it('a column that is renamed stays one; one that is dropped goes', async () => {
      await conn.exec('alter table many rename column s to short')
      await conn.exec('alter table many drop column b')
      expect(await rows(`select sterna.table_rules('many'::regclass) -> 'deltas' as deltas`)).toEqual([
        { deltas: ['i', 'm', 'n', 'short'] },
      ])
      expect(await rows(`select column_name::text from sterna.rules order by 1`)).toContainEqual({
        column_name: 'short',
      })
    })

    it('NaN stays out', async () => {
      expect(
        await failureOf(
          conn.query(
            `insert into many (id, i, short, n, m, free, r, f, t, u) values (2, 1, 1, 'NaN', 1::money, 1, 1, 1, '', 2)`,
          ),
        ),
      ).toMatchObject({ sqlstate: 'ST165' })
    })

    it('goes by delta_remove, with the replica identity that it came with', async () => {
      for (const column of ['i', 'short', 'n', 'm'])
        await conn.query(`select sterna.delta_remove('many', $1)`, [column])
      expect(await conn.row(`select sterna.delta_remove('many', 'i') is null as nothing`)).toEqual({
        nothing: true,
      })
      expect(await identity('many')).toBe('d')
      expect(await triggers('many')).toEqual([])
      expect(await rows(`select sterna.table_rules('many'::regclass) -> 'deltas' as deltas`)).toEqual([
        { deltas: [] },
      ])
    })

    it('what it needs cannot be altered away; the type of the key can be changed', async () => {
      await conn.exec('create table kept (id int primary key, d int not null)')
      await conn.exec(`select sterna.delta_add('kept', 'd')`)
      for (const change of ['alter d type float', 'alter d drop not null', 'drop constraint kept_pkey'])
        expect(await failureOf(conn.query(`alter table kept ${change}`))).toMatchObject({ sqlstate: 'ST160' })
      const before = await triggers('kept')
      await conn.exec('alter table kept alter d type bigint')
      await conn.exec('alter table kept alter id type bigint')
      await conn.exec('alter table kept rename id to "Id"')
      expect(await triggers('kept')).toEqual(before)
      await conn.exec('insert into kept values (1, 1); update kept set "Id" = 2; truncate kept')
    })

    it('partitions get what the table above them needs', async () => {
      await conn.query(`select sterna.delta_add('part', 'i')`)
      expect([await identity('part'), await identity('part_1')]).toEqual(['f', 'f'])
      expect(await triggers('part')).toEqual(['sterna_truncate_rows', 'sterna_truncate_undo'])
      expect(await triggers('part_1')).toContain('sterna_unseen')
    })
  })

  describe('local writes of a table with delta columns', () => {
    const messages = (): Promise<Row[]> =>
      rows(
        'select node_id, table_name::text, operation, key, amounts from sterna.row_message order by message_id',
      )
    const hash = (key: string): string => `pg_catalog.hash_record_extended(row(${key}), 0)`

    beforeAll(async () => {
      await conn.exec(`create table account (id int, branch text, d int not null, m money not null, e text unique, primary key (id, branch));
        create function account_removed() returns trigger language plpgsql as 'begin raise ''fired''; end';
        create trigger removed before delete on account for each row execute function account_removed();
        alter table account disable trigger removed`)
      await conn.exec(`select sterna.delta_add('account', 'd'), sterna.delta_add('account', 'm')`)
    })

    it('an insert over a remainder takes it off', async () => {
      await conn.exec(`insert into sterna.tombstone (table_oid, key_hash, key, remainder)
        values ('account'::regclass, ${hash("1, 'x'::text")}, '["1","x"]', '{"d": "5", "m": "0.00"}')`)
      await conn.exec(`insert into account values (1, 'x', 100, '0', 'a')`)
      expect(await messages()).toEqual([
        {
          node_id: 1,
          table_name: 'account',
          operation: 'cancel',
          key: { id: '1', branch: 'x' },
          amounts: { d: '5', m: '0.00' },
        },
      ])
      expect(await rows(`select 1 from sterna.tombstone where table_oid = 'account'::regclass`)).toEqual([])
    })

    it('so does an update that brings a row under that key; an insert without a remainder says nothing', async () => {
      await conn.exec(`truncate sterna.row_message; insert into sterna.tombstone (table_oid, key_hash, key, remainder)
        values ('account'::regclass, ${hash("2, 'x'::text")}, '["2","x"]', '{"d": "-3"}')`)
      await conn.exec(`insert into account values (3, 'x', 7, '0', 'c')`)
      await conn.exec('update account set d = d + 1 where id = 3')
      expect(await messages()).toEqual([])
      await conn.exec('update account set id = 2 where id = 3')
      expect(await messages()).toMatchObject([
        { operation: 'cancel', key: { id: '2', branch: 'x' }, amounts: { d: '-3' } },
      ])
    })

    it('an insert over a row set aside takes its sums off, and the row', async () => {
      await conn.exec(`truncate sterna.row_message;
        insert into sterna.aside (table_oid, key_hash, table_name, key, row_values)
        values ('account'::regclass, ${hash("4, 'x'::text")}, 'account', '{"id": "4", "branch": "x"}',
                '{"id": "4", "branch": "x", "d": "9", "m": "$1,234.50", "e": "a"}');
        insert into sterna.review (reason, table_oid, table_name, key_hash, key)
        values ('set_aside', 'account'::regclass, 'account', ${hash("4, 'x'::text")}, '{}')`)
      await conn.exec(`insert into account values (4, 'x', 1, '0', 'd')`)
      expect(await messages()).toMatchObject([
        { operation: 'cancel', key: { id: '4', branch: 'x' }, amounts: { d: '9', m: '1234.50' } },
      ])
      expect(await rows('select 1 from sterna.aside')).toEqual([])
      expect(await rows('select 1 from sterna.review where closed_at is null')).toEqual([])
    })

    it('an insert with an old snapshot fails rather than overlook a remainder', async () => {
      const other = await PgConnection.connect(servers.nodes[0]!.dsn)
      try {
        await other.exec('begin isolation level repeatable read; select 1')
        await conn.exec(`insert into sterna.tombstone (table_oid, key_hash, key, remainder)
          values ('account'::regclass, ${hash("5, 'x'::text")}, '["5","x"]', '{"d": "5"}')`)
        expect(
          await failureOf(other.query(`insert into account values (5, 'x', 1, '0', 'e')`)),
        ).toMatchObject({
          sqlstate: '40001',
        })
        await other.exec('rollback')
        await conn.exec(`insert into account values (5, 'x', 1, '0', 'e')`)
      } finally {
        await other.close()
      }
    })

    it('an insert waits for the one who writes a remainder down', async () => {
      const other = await PgConnection.connect(servers.nodes[0]!.dsn)
      try {
        await conn.exec('truncate sterna.row_message')
        await other.exec(`begin; select pg_advisory_xact_lock(sterna.unseen_lock('account'::regclass));
          insert into sterna.tombstone (table_oid, key_hash, key, remainder)
          values ('account'::regclass, ${hash("6, 'x'::text")}, '["6","x"]', '{"d": "5"}')`)
        const insert = conn.query(`insert into account values (6, 'x', 1, '0', 'f')`)
        await other.exec(`do $$ begin
          while not exists (select from pg_locks where locktype = 'advisory' and not granted) loop perform pg_sleep(0.01); end loop; end $$`)
        await other.exec('commit')
        await insert
        expect(await messages()).toMatchObject([{ operation: 'cancel', amounts: { d: '5' } }])
      } finally {
        await other.close()
      }
    })

    it('a truncate becomes deletes, with tombstones, and takes rows set aside along', async () => {
      await conn.exec(`truncate sterna.row_message; delete from sterna.tombstone;
        alter table account enable trigger removed;
        insert into sterna.aside (table_oid, key_hash, table_name, key, row_values)
        values ('account'::regclass, ${hash("9, 'x'::text")}, 'account', '{"id": "9", "branch": "x"}',
                '{"id": "9", "branch": "x", "d": "2", "m": "$0.50", "e": "a"}')`)
      const held = await rows('select id from account order by id')
      expect(held.length).toBeGreaterThan(3)
      const lsn = await conn.row<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn')
      await conn.exec('truncate account')
      expect(lsn).toBeDefined()
      expect(await rows('select id from account')).toEqual([])
      expect(await messages()).toMatchObject([
        { operation: 'delete', key: { id: '9', branch: 'x' }, amounts: { d: '2', m: '0.50' } },
      ])
      expect(
        await rows(
          `select (key ->> 0)::int as id from sterna.tombstone where table_oid = 'account'::regclass order by 1`,
        ),
      ).toEqual([...held, { id: 9 }])
      expect(await rows('select 1 from sterna.truncation')).toEqual([])
      expect(await rows('select 1 from sterna.aside')).toEqual([])
    })

    it('whoever may truncate, and no more, can; code that would fire at the deletes is not run', async () => {
      await conn.exec(`create role emptier; grant truncate, insert on account to emptier;
        insert into account values (1, 'x', 1, '0', 'a')`)
      await conn.exec('set role emptier; truncate account; reset role')
      expect(await rows('select 1 from account')).toEqual([])
      await conn.exec(`create role mallory; create schema lair authorization mallory;
        create table lair.t (id int primary key, d int not null); alter table lair.t owner to mallory`)
      await conn.exec(`select sterna.delta_add('lair.t', 'd')`)
      await conn.exec(`set role mallory; set search_path = lair;
        create function evil() returns trigger language plpgsql as 'begin perform set_config(''lair.ran'', current_user, false); return old; end';
        create trigger evil before delete on t for each row execute function evil();
        insert into t values (1, 1)`)
      await conn.exec('truncate t')
      expect(await rows(`select current_setting('lair.ran', true) as ran`)).toEqual([{ ran: null }])
      await conn.exec('alter table t enable always trigger evil; reset search_path')
      expect(await failureOf(conn.query('truncate lair.t'))).toMatchObject({ sqlstate: 'ST166' })
      await conn.exec('reset role')
    })

    it('a truncate of a partition takes its own rows', async () => {
      await conn.exec(`create table part_2 partition of part for values from (100) to (200)`)
      await conn.exec('insert into part values (1, 1), (101, 1); truncate part_1')
      expect(await rows('select id from part')).toEqual([{ id: 101 }])
      await conn.exec('truncate part')
      expect(
        await rows(
          `select (key ->> 0)::int as id from sterna.tombstone where table_oid = 'part'::regclass order by 1`,
        ),
      ).toEqual([{ id: 1 }, { id: 101 }])
    })

    it('a local delete leaves no remainder', async () => {
      await conn.exec(`alter table account disable trigger removed; insert into account values (1, 'x', 1, '0', 'a');
        delete from account`)
      expect(
        await rows(
          `select remainder from sterna.tombstone where table_oid = 'account'::regclass and key = '["1", "x"]'`,
        ),
      ).toEqual([{ remainder: null }])
    })
  })

  describe('policies', () => {
    beforeAll(() =>
      conn.exec(`create table best (id int primary key, score int not null, note text, u int unique);
        create function higher(best, best) returns best language sql immutable return case when
          ($1.score, coalesce($1.note, ''), coalesce($1.u, 0)) >= ($2.score, coalesce($2.note, ''), coalesce($2.u, 0)) then $1 else $2 end;
        create function first(best, best) returns best language sql immutable return $1;
        create function average(best, best) returns best language sql immutable
          return row($1.id, ($1.score + $2.score) / 2, null, null)::best;
        create function sum_up(best, best) returns best language sql immutable
          return row($1.id, $1.score + $2.score, null, null)::best;
        create function rekey(best, best) returns best language sql immutable
          return row(0, greatest($1.score, $2.score), greatest($1.note, $2.note), greatest($1.u, $2.u))::best;
        create function unsteady(best, best) returns best language sql stable return $1;
        create function failing(best, best) returns best language plpgsql immutable as 'begin raise ''no''; end';
        create function other(int, int) returns int language sql immutable return 1;
        create function theirs(best, best) returns best language sql immutable return $1;
        alter function theirs owner to mallory;
        insert into best values (1, 10, 'a', 1), (2, 20, 'b', 2), (3, 15, null, 3)`),
    )
    const set = (args: string): Promise<unknown> => conn.query(`select sterna.policy_set('best', ${args})`)

    it.each([
      [`null, 'first_wins'`, 'ST161', /no policy/],
      [`'insert_missing', 'manual'`, 'ST161', /no type of conflict/],
      [`null, 'manual', 'higher(best, best)'`, 'ST161', /takes no function/],
      [`'update_missing', 'merge', 'higher(best, best)'`, 'ST161', /leave the type out/],
      [`null, 'merge'`, 'ST161', /a function is needed/],
      [`null, 'merge', 'other(int, int)'`, 'ST161', /is not \(best, best\) returning best/],
      [`null, 'merge', 'unsteady(best, best)'`, 'ST161', /not immutable/],
      [`null, 'merge', 'theirs(best, best)'`, 'ST161', /belongs to "mallory"/],
      [`null, 'merge', 'first(best, best)'`, 'ST162', /not commutative/],
      [`null, 'merge', 'sum_up(best, best)'`, 'ST162', /not idempotent/],
      [`null, 'merge', 'rekey(best, best)'`, 'ST162', /not idempotent|changes the key/],
      [`null, 'merge', 'failing(best, best)'`, 'ST162', /fails on rows of the table: no/],
      [`null, 'merge', 'average(best, best)'`, 'ST162', /not idempotent|not associative/],
      [`null, 'apply_remote'`, 'ST161', /both directions/],
    ])('policy_set(%s) is refused: %s', async (args, sqlstate, message) => {
      expect(await failureOf(set(args))).toMatchObject({ sqlstate, message: expect.stringMatching(message) })
    })

    it('manual stands beside others, for one type or all', async () => {
      await set(`'update_missing', 'manual'`)
      expect(
        await rows(`select conflict_type, policy from sterna.rules where table_name = 'best'::regclass`),
      ).toEqual([{ conflict_type: 'update_missing', policy: 'manual' }])
      await set(`null, 'manual'`)
      expect(
        await conn.row(`select jsonb_array_length(sterna.table_rules('best'::regclass) -> 'manual') as n`),
      ).toEqual({ n: 9 })
      await conn.query(`select sterna.policy_unset('best')`)
      expect(await rows(`select 1 from sterna.rules where table_name = 'best'::regclass`)).toEqual([])
      expect(await identity('best')).toBe('d')
    })

    it('a merge function is used by local updates, and rows stay', async () => {
      await set(`null, 'merge', 'higher(best, best)'`)
      expect(await rows(`select sterna.table_rules('best'::regclass) ->> 'merge' as merge`)).toEqual([
        { merge: 'public.higher' },
      ])
      expect(await identity('best')).toBe('f')
      await conn.exec(
        `update best set score = 5, note = 'z' where id = 1; update best set score = 99 where id = 2`,
      )
      expect(await rows('select id, score, note from best order by id')).toEqual([
        { id: 1, score: 10, note: 'a' },
        { id: 2, score: 99, note: 'b' },
        { id: 3, score: 15, note: null },
      ])
      for (const sql of [
        'delete from best where id = 1',
        'truncate best',
        'update best set id = 7 where id = 1',
      ])
        expect(await failureOf(conn.query(sql))).toMatchObject({ sqlstate: 'ST163' })
      await conn.exec('delete from best where id = 100')
    })

    it('an insert over a row set aside is merged with it', async () => {
      await conn.exec(`insert into sterna.aside (table_oid, key_hash, table_name, key, row_values)
        values ('best'::regclass, pg_catalog.hash_record_extended(row(8), 0), 'best', '{"id": "8"}',
                '{"id": "8", "score": "50", "note": "aside", "u": "9"}')`)
      await conn.exec(`insert into best values (8, 40, 'new', 8)`)
      expect(await rows('select score, note, u from best where id = 8')).toEqual([
        { score: 50, note: 'aside', u: 9 },
      ])
      expect(await rows('select 1 from sterna.aside')).toEqual([])
    })

    it('another function only after the first is taken back', async () => {
      await conn.exec(
        `create function lower(best, best) returns best language sql immutable return higher($1, $2)`,
      )
      expect(await failureOf(set(`null, 'merge', 'lower(best, best)'`))).toMatchObject({
        sqlstate: 'ST161',
        hint: expect.stringContaining('policy_unset'),
      })
      await conn.query(`select sterna.policy_unset('best')`)
      expect(await identity('best')).toBe('d')
      expect(await triggers('best')).toEqual([])
      await conn.exec('delete from best where id = 8')
    })

    it('apply_remote is for tables that come from elsewhere only', async () => {
      await conn.exec(
        `create table one_way (id int primary key); select sterna.repset_remove_table('default', 'one_way')`,
      )
      expect(
        await failureOf(conn.query(`select sterna.policy_set('one_way', null, 'apply_remote')`)),
      ).toMatchObject({ sqlstate: 'ST161', message: expect.stringMatching(/follows no other/) })
      await conn.exec(
        `select sterna.sub_create('s', 'host=nowhere'); update sterna.subscription set provider_node_id = 2`,
      )
      await conn.query(`select sterna.policy_set('one_way', null, 'apply_remote')`)
      expect(await rows(`select sterna.table_rules('one_way'::regclass) ->> 'oneWay' as way`)).toEqual([
        { way: 'apply_remote' },
      ])
      await conn.query(`select sterna.policy_unset('one_way')`)
      expect(await rows(`select sterna.table_rules('one_way'::regclass) ->> 'oneWay' as way`)).toEqual([
        { way: null },
      ])
      await conn.exec(`delete from sterna.subscription`)
    })
  })

  // Names of columns and tables are anybody's, and stand in functions that run with the rights of Sterna.
  describe('names with quotes, dollars and code in them', () => {
    const CODE = 'x$g$; create table if not exists public.owned(); select $g$'
    const KEY = ["k'g", 'k$g$x', '%s', CODE]
    const DELTAS = ['d"q', "d'%I$g$", 'd\\$f$', `${CODE}d`.slice(0, 63)]
    const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`
    const TABLE = quoted('o\'dd"$g$%s')
    const objectOf = (names: string[], value: string): Record<string, string> =>
      Object.fromEntries(names.map((name) => [name, value]))
    const literal = (value: unknown): string => `'${JSON.stringify(value).replaceAll("'", "''")}'`
    const keyHash = `pg_catalog.hash_record_extended(row(${KEY.map(() => `'1'::text`).join(', ')}), 0)`
    const messages = (): Promise<Row[]> =>
      rows(
        `select operation, key, amounts from sterna.row_message where table_name = $n$o'dd"$g$%s$n$ order by message_id`,
      )
    const add = (deltas: string): string =>
      `insert into ${TABLE} values (${KEY.map(() => `'1'`).join(', ')}, ${deltas})`
    const expectNothingRan = async (): Promise<void> =>
      expect(await rows(`select 1 as one from pg_class where relname = 'owned'`)).toEqual([])

    // Bodies of functions are not checked, and backslashes mean what they once did.
    describe.each(['check_function_bodies', 'standard_conforming_strings'])('where %s is off', (setting) => {
      beforeAll(async () => {
        await conn.exec('truncate sterna.row_message')
        await conn.exec(`create table ${TABLE} (${KEY.map((name) => `${quoted(name)} text`).join(', ')},
          ${DELTAS.map((name) => `${quoted(name)} numeric(10, 2) not null`).join(', ')},
          primary key (${KEY.map(quoted).join(', ')}))`)
        await conn.exec(`set ${setting} = off; set backslash_quote = on; set escape_string_warning = off`)
      })
      afterAll(() => conn.exec(`drop table ${TABLE} cascade; reset ${setting}; reset backslash_quote`))

      it('delta columns are declared; an insert over a remainder takes it off', async () => {
        for (const name of DELTAS)
          await conn.query('select sterna.delta_add($1::regclass, $2)', [TABLE, name])
        await expectNothingRan()
        await conn.exec('set standard_conforming_strings = on')
        await conn.exec(`insert into sterna.tombstone (table_oid, key_hash, key, remainder)
          values (${regclass()}, ${keyHash}, '["1","1","1","1"]', ${literal(objectOf(DELTAS, '5.00'))})`)
        await conn.exec(`set ${setting} = off`)
        await conn.exec(add(DELTAS.map(() => '7').join(', ')))
        expect(await messages()).toEqual([
          { operation: 'cancel', key: objectOf(KEY, '1'), amounts: objectOf(DELTAS, '5.00') },
        ])
        await conn.exec(`update ${TABLE} set ${KEY.map((name) => `${quoted(name)} = '2'`).join(', ')}`)
        expect(
          await failureOf(conn.query(`update ${TABLE} set ${quoted(DELTAS[0]!)} = 'NaN'`)),
        ).toMatchObject({ sqlstate: 'ST165' })
        await expectNothingRan()
      })

      it('a truncate becomes deletes', async () => {
        await conn.exec('truncate sterna.row_message; delete from sterna.tombstone')
        await conn.exec(`truncate ${TABLE}`)
        expect(await rows(`select key from sterna.tombstone`)).toEqual([{ key: ['2', '2', '2', '2'] }])
        expect(await rows(`select 1 from sterna.truncation where table_oid = ${regclass()}`)).toEqual([])
        await expectNothingRan()
      })

      it('a merge function decides', async () => {
        for (const name of DELTAS.slice(1))
          await conn.query('select sterna.delta_remove($1::regclass, $2)', [TABLE, name])
        const [, second] = DELTAS.map(quoted)
        await conn.exec(`create function "m'$g$;""" (${TABLE}, ${TABLE}) returns ${TABLE} language sql immutable
          return case when $1.${second} >= $2.${second} then $1 else $2 end`)
        await conn.exec(add('1, 2, 3, 4'))
        await conn.query('select sterna.policy_set($1::regclass, null, $2, $3::regprocedure)', [
          TABLE,
          'merge',
          `"m'$g$;"""(${TABLE}, ${TABLE})`,
        ])
        await conn.exec(`update ${TABLE} set ${second} = 1, ${quoted(DELTAS[0]!)} = 9`)
        expect(
          await rows(
            `select ${DELTAS.map((name, i) => `${quoted(name)}::int as v${i}`).join(', ')} from ${TABLE}`,
          ),
        ).toEqual([{ v0: 9, v1: 2, v2: 3, v3: 4 }])
        expect(await failureOf(conn.query(`update ${TABLE} set ${quoted(CODE)} = '5'`))).toMatchObject({
          sqlstate: 'ST163',
        })
        await expectNothingRan()
        await conn.query('select sterna.policy_unset($1::regclass)', [TABLE])
      })
    })

    function regclass(): string {
      return `$n$${TABLE}$n$::regclass`
    }

    it('an owner who gives a column such a name does not execute anything by that', async () => {
      await conn.exec(`create schema den; create table den.t (id int primary key, d int not null)`)
      await conn.exec(`select sterna.delta_add('den.t', 'd')`)
      await conn.exec(
        `grant usage on schema den to mallory; alter table den.t owner to mallory; grant create on schema den to mallory`,
      )
      await conn.exec('set role mallory; set check_function_bodies = off')
      await conn.exec(`alter table den.t rename id to ${quoted(CODE)}`)
      await expectNothingRan()
      await conn.exec(
        'insert into den.t values (1, 1); truncate den.t; reset role; reset check_function_bodies',
      )
      await expectNothingRan()
    })

    it('a column t does not hide the row from the trial of a merge function', async () => {
      await conn.exec(`create table letters (id int primary key, t int not null, r int not null, i int not null, v int not null); insert into letters values (1, 1, 1, 1, 1), (2, 2, 2, 2, 2);
        create function larger(letters, letters) returns letters language sql immutable
          return case when ($1.t, $1.r, $1.i, $1.v) >= ($2.t, $2.r, $2.i, $2.v) then $1 else $2 end`)
      await conn.query(`select sterna.policy_set('letters', null, 'merge', 'larger(letters, letters)')`)
      await conn.exec('update letters set t = 0')
      expect(await rows('select t from letters order by id')).toEqual([{ t: 1 }, { t: 2 }])
    })
  })

  it('a table that is dropped leaves nothing behind', async () => {
    await conn.exec('create table gone (id int primary key, d int not null)')
    await conn.exec(`select sterna.delta_add('gone', 'd')`)
    await conn.exec('drop table gone')
    await conn.exec('select sterna.rules_tidy()')
    expect(
      await rows(
        `select 1 from sterna.delta_column d where not exists (select from pg_class c where c.oid = d.table_oid)
         union all select 1 from sterna.ruled_table d where not exists (select from pg_class c where c.oid = d.table_oid)`,
      ),
    ).toEqual([])
  })

  it('definition_wait says what it waits for', async () => {
    const [{ id }] = (await rows(
      `insert into sterna.definition (node_id, kind, schema_name, table_name, body)
       values (1, 'delta_add', 'public', 'account', '{"column": "d", "members": [1, 2]}') returning definition_id::text as id`,
    )) as [{ id: string }]
    expect(await failureOf(conn.query(`call sterna.definition_wait($1, 0)`, [id]))).toMatchObject({
      sqlstate: 'ST167',
      message: expect.stringMatching(/waits for 2, n1/),
    })
    await conn.query(
      `update sterna.definition set state = 'refused', reason = 'n2: no' where definition_id = $1`,
      [id],
    )
    expect(await failureOf(conn.query(`call sterna.definition_wait($1)`, [id]))).toMatchObject({
      sqlstate: 'ST164',
      message: 'the definition was refused: n2: no',
    })
    expect(await failureOf(conn.query('call sterna.definition_wait(gen_random_uuid())'))).toMatchObject({
      sqlstate: 'ST167',
    })
    await conn.query('call sterna.definition_wait(null)')
  })
})

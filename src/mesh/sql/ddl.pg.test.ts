import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('DDL on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  let notices: string[]

  const connect = async (): Promise<PgConnection> => {
    const connection = await PgConnection.connect(servers.nodes[0]!.dsn)
    await connection.exec('set client_min_messages = warning')
    connection.onNotice = (message) => notices.push(message.message)
    return connection
  }
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    notices = []
    conn = await connect()
    await installSchema(conn)
    await conn.close()
    conn = await connect()
    await conn.query(`select sterna.node_create('n2', 'host=x', info => '{"node_id": 2}')`)
    await conn.exec('create role attacker')
    await conn.exec('create role owner_of_all superuser')
    await execOff('grant create on schema public to attacker')
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })
  beforeEach(async () => {
    await conn.exec('truncate sterna.ddl_queue')
    notices = []
  })

  const execOff = async (sql: string): Promise<void> => {
    await conn.exec('set sterna.ddl_replication = off')
    await conn.exec(sql).finally(() => conn.exec('reset sterna.ddl_replication'))
  }
  const queued = async (): Promise<string[]> => {
    const { rows } = await conn.query<{ command: string }>(
      'select command from sterna.ddl_queue order by ddl_id',
    )
    return rows.map((row) => row.command)
  }
  const setsOf = async (table: string): Promise<readonly string[]> =>
    (await conn.row<{ sets: string[] }>(
      'select sets::text[] as sets from sterna.tables where table_name = $1',
      [table],
    ))!.sets

  /** Runs a statement as apply does: replica mode, a path of its own, in one transaction. */
  const apply = async (role: string, path: string, command: string): Promise<void> => {
    await conn.query('select sterna.ddl_apply($1, $2, $3)', [role, path, command])
  }
  const asApply = async (work: () => Promise<void>): Promise<void> => {
    await conn.close()
    conn = await connect()
    await conn.exec(
      `set session_replication_role = replica; set search_path = pg_catalog; set sterna.ddl_replication = off`,
    )
    await work().finally(async () => {
      await conn.close()
      conn = await connect()
    })
  }

  describe('is captured', () => {
    it('as it was written, with the role and the path, in both protocols', async () => {
      const statements = [
        `create /* ; /* x */ ; */ table c1 (id int primary key, a text default ';''--', -- foo ;
           b text default E'\\';', "x;" int, d text default $a$ ; $$ ; $a$);`,
        'alter table c1 add column w int default 5',
        'create unique index on c1 (w)',
        `create function f(int) returns int language sql begin atomic select case when true then 1 end; select 2; end`,
        'create rule r as on insert to c1 do also (select 1; select 2)',
        'drop rule r on c1;  -- gone\n',
        'create or replace view v as select id from c1',
        `comment on table c1 is 'a;b'`,
        `create type mood as enum ('sad')`,
        `alter type mood add value 'happy'`,
        'create schema s1 create table t1 (i int primary key) create view v1 as select i from t1',
        'create materialized view m as select 1 as a',
        'create extension hstore',
        'drop extension hstore',
        'drop schema s1 cascade',
        'drop view v',
        'drop table c1',
      ]
      for (const [i, statement] of statements.entries())
        await (i % 2 === 0 ? conn.exec(statement) : conn.query(statement))
      expect(await queued()).toEqual(statements)

      await conn.exec('set role attacker')
      await conn.exec('set search_path = "$user", public')
      await conn.exec('create table attackers (id int primary key)')
      await conn.exec('reset role; reset search_path')
      expect(
        await conn.row(`select node_id, role_name, search_path, command_tag from sterna.ddl_queue
                         order by ddl_id desc limit 1`),
      ).toEqual({
        node_id: 2,
        role_name: 'attacker',
        search_path: '"$user", public',
        command_tag: 'CREATE TABLE',
      })
    })

    it('at its place in the transaction, and not when that is rolled back', async () => {
      await conn.exec('begin')
      await conn.exec('create table rolled_back (id int)')
      expect(await queued()).toEqual(['create table rolled_back (id int)'])
      await conn.exec('rollback')
      expect(await queued()).toEqual([])
    })

    it('not when it does nothing, is temporary, concerns Sterna, or is switched off', async () => {
      await execOff('create table here_only (id int); create table here_too as select 1 as a')
      for (const statement of [
        'create table if not exists here_only (id int)',
        'drop table if exists nowhere',
        'create temp table tmp as select 1 as a',
        'create index on tmp (a)',
        `comment on table tmp is 'x'`,
        'alter table tmp add column at timestamptz default now()',
        'create trigger g before update on tmp for each row execute function suppress_redundant_updates_trigger()',
        'create temp view tmp_view as select a from tmp',
        'drop table tmp cascade',
        'create function pg_temp.f() returns int return 1',
        'drop function pg_temp.f()',
        'create table sterna.x (i int)',
        'drop table sterna.x',
        'create publication other for table here_only',
        'drop publication other',
        'reindex table here_only',
        'reindex table concurrently here_only',
      ])
        await conn.exec(statement)
      await execOff('create index concurrently here_i on here_only (id)')
      await execOff('drop index concurrently here_i')
      expect(await queued()).toEqual([])
      expect(notices).toEqual([])
      await execOff('drop table here_only, here_too')
    })

    it('not when it grants: that is said', async () => {
      await conn.exec('create table granted (id int primary key)')
      await conn.exec('select 1; grant select on granted to attacker')
      await conn.exec('do $$ begin revoke select on granted from attacker; end $$')
      expect(notices).toEqual([
        'GRANT is not replicated: run it on each node too',
        'REVOKE is not replicated: run it on each node too',
      ])
      expect(await queued()).toHaveLength(1)
    })
  })

  describe('is refused', () => {
    beforeAll(async () => {
      await conn.exec('create table t (id int primary key, v text)')
      await conn.exec('create table other (id int primary key)')
      await conn.exec(`insert into t values (1, 'a')`)
      await conn.exec(
        'create function makes(sql text) returns int language plpgsql as $$ begin execute sql; return 1; end $$',
      )
    })

    it.each([
      ['several statements', 'ST201', 'select 1; create table x (i int)'],
      ['several statements, the DDL first', 'ST201', `create table x (i text default 'a;'); select 1`],
      ['several statements after a line comment', 'ST201', 'create table x (i int) -- ;\n; select 1'],
      ['a transaction in one string', 'ST201', 'begin; create table x (i int); commit'],
      ['in a DO block', 'ST202', 'do $$ begin create table x (i int); end $$'],
      ['in a function', 'ST202', `select makes('create table x (i int)')`],
      [
        'in a function that another DDL calls',
        'ST202',
        `alter table t alter v type varchar using makes('create table y (i int)')`,
      ],
      [
        'in a function that another DDL of the same kind calls',
        'ST202',
        `alter table t alter v type varchar using makes('alter table other add column y int')`,
      ],
      ['CREATE TABLE AS', 'ST203', 'create table x as select 1 as a'],
      ['SELECT INTO', 'ST203', 'select 1 as a into x'],
      ['CREATE INDEX CONCURRENTLY', 'ST204', 'create index concurrently x on t (v)'],
      ['DROP INDEX CONCURRENTLY', 'ST204', 'drop index concurrently t_pkey'],
      ['DROP OWNED', 'ST206', 'drop owned by owner_of_all'],
      ['backslashes in the old style', 'ST210', `create table x (i text default '\\\\')`],
    ])('%s', async (_, sqlstate, sql) => {
      if (sqlstate === 'ST206')
        await execOff('create table gone (i int); alter table gone owner to owner_of_all')
      if (sqlstate === 'ST210') await conn.exec('set standard_conforming_strings = off')
      const failure = await failureOf(conn.exec(sql))
      await conn.exec('rollback; reset standard_conforming_strings')
      expect(failure).toMatchObject({ sqlstate })
      expect(failure.hint).toMatch(
        sqlstate === 'ST210' ? /standard_conforming_strings = on/ : /set sterna.ddl_replication = off/,
      )
      expect(await queued()).toEqual([])
      expect(await conn.row(`select to_regclass('x') as x, to_regclass('y') as y`)).toEqual({
        x: null,
        y: null,
      })
    })

    it('temporary and other tables dropped together', async () => {
      await conn.exec('create temp table tmp (i int)')
      expect(await failureOf(conn.exec('drop table tmp, t'))).toMatchObject({ sqlstate: 'ST209' })
    })

    it('a new column that would have other values on every node, but only where rows are', async () => {
      await conn.exec(`create domain random_id as uuid default gen_random_uuid()`)
      for (const column of [
        'n timestamptz default now()',
        'n timestamptz default current_timestamp',
        'n uuid default gen_random_uuid()',
        'column "n" float8 default random()',
        'if not exists n random_id',
        'n bigint generated always as identity',
        'n serial',
      ])
        expect(await failureOf(conn.exec(`alter table t add ${column}`))).toMatchObject({
          sqlstate: 'ST205',
          hint: expect.stringContaining('Add the column without'),
        })
      // The index of the key is not built when this is looked at.
      await conn.exec('create table keyless (v text)')
      await conn.exec(`insert into keyless values ('a')`)
      const addKey = 'alter table keyless add column id bigint generated always as identity primary key'
      expect(await failureOf(conn.exec(addKey))).toMatchObject({
        sqlstate: 'ST205',
        hint: expect.stringContaining('create a table with the column'),
      })
      await conn.exec('truncate keyless')
      await conn.exec(addKey)
      await conn.exec('truncate sterna.ddl_queue')
      const allowed = [
        `alter table t add column c date default '2026-01-01'`,
        'alter table t add column g int generated always as (id + 1) stored',
        'alter table t alter column id type bigint',
        'alter table t alter column c set default now()',
        'alter table t add constraint positive check (id > 0)',
        'alter table t add column l text default lower($$A$$)',
      ]
      await conn.exec('alter table t drop column if exists g')
      await conn.exec('truncate sterna.ddl_queue')
      for (const statement of allowed.filter((each) => !each.includes('type bigint')))
        await conn.exec(statement)
      expect(await queued()).toEqual(allowed.filter((each) => !each.includes('type bigint')))
      await conn.exec('create table still_empty (id int primary key)')
      await conn.exec('alter table still_empty add column at timestamptz default now()')
      await conn.exec('alter table still_empty alter column id type bigint')
    })
  })

  describe('bookkeeping', () => {
    it('a table moves with its key, before an update fails', async () => {
      await conn.exec('create table keyed (id int not null, v text)')
      expect(await setsOf('keyed')).toEqual(['default_insert_only'])
      await conn.exec('insert into keyed values (1)')
      await conn.exec(`update keyed set v = 'a'`)
      await conn.exec('alter table keyed add primary key (id)')
      expect(await setsOf('keyed')).toEqual(['default'])
      await conn.exec('alter table keyed drop constraint keyed_pkey')
      expect(await setsOf('keyed')).toEqual(['default_insert_only'])
      await conn.exec(`update keyed set v = 'b'`)
      await conn.exec('create unique index keyed_i on keyed (id)')
      await conn.exec('alter table keyed replica identity using index keyed_i')
      expect(await setsOf('keyed')).toEqual(['default'])
      await conn.exec('drop index keyed_i')
      await conn.exec(`update keyed set v = 'c'`)
    })

    it('tables of all kinds join', async () => {
      await conn.exec('create table model (id bigserial, k int, primary key (id, k))')
      await conn.exec('create table alike (like model including all)')
      await conn.exec('create table parts (like model including all) partition by list (k)')
      await conn.exec('create table part1 partition of parts for values in (1)')
      await conn.exec('alter table parts attach partition alike for values in (2)')
      await execOff('create table copied as select 1 as a')
      await conn.exec('create unlogged table not_logged (id int primary key)')
      expect(await setsOf('model')).toEqual(['default'])
      expect(await setsOf('part1')).toEqual(['default'])
      expect(await setsOf('copied')).toEqual(['default_insert_only'])
      expect(await setsOf('not_logged')).toEqual([])
      await conn.exec('alter table parts drop constraint parts_pkey')
      expect(await setsOf('alike')).toEqual(['default_insert_only'])
      await conn.exec('update parts set k = 1')
      await conn.exec('alter table parts detach partition alike')
      expect(await setsOf('alike')).toEqual(['default_insert_only'])
    })

    it('a path of the caller with types and operators of its own does not get them run by Sterna', async () => {
      await execOff('create schema evil authorization attacker')
      await execOff(`create function evil.take() returns bool language plpgsql as $$
        begin if current_user <> 'attacker' then raise exception 'ran as %', current_user; end if; return true; end $$;
        create function evil.eq(text, text) returns bool language sql return evil.take();
        create operator evil.= (function = evil.eq, leftarg = text, rightarg = text);
        create function evil.current_setting(text) returns text language sql return evil.take()::text;
        create function evil.current_setting(pg_catalog.text, bool) returns text language sql return evil.take()::text;
        create domain evil.text as pg_catalog.text check (evil.take())`)
      const other = await connect()
      await other.exec('set role attacker')
      await other.exec('set search_path = evil, public, pg_catalog')
      await other.exec('create table public.trapped (id int primary key)')
      await other.exec('alter table public.trapped add column c int')
      await other.exec('drop table public.trapped')
      await other.close()
      expect(await queued()).toHaveLength(3)
    })
  })

  describe('apply', () => {
    it('executes as the role, with its path, and looks after what was made', async () => {
      await asApply(async () => {
        await conn.exec('begin')
        await apply('attacker', '"$user", public', 'create table made (id serial primary key, v text)')
        await conn.exec(`insert into public.made (v) values ('a')`)
        await conn.exec('commit')
        expect(
          await conn.row(`select tableowner::text as owner from pg_tables where tablename = 'made'`),
        ).toEqual({ owner: 'attacker' })
        expect(await setsOf('made')).toEqual(['default'])
        expect(await conn.row('select id from public.made')).toEqual({ id: 2 })
        await apply('owner_of_all', 'public', 'create table made_by_superuser (id int)')
        expect(
          await conn.row(
            `select tableowner::text as owner from pg_tables where tablename = 'made_by_superuser'`,
          ),
        ).toEqual({ owner: 'owner_of_all' })
        // A function that mentions what is not there yet, as in a dump.
        await apply(
          'attacker',
          '',
          'create function public.later() returns int language sql as $$ select a from nothing $$',
        )
        expect(
          await conn.row(`select current_setting('search_path') as path, current_user::text as role,
          (select count(*)::int from pg_proc where proname ~ '^sterna_ddl_') as left`),
        ).toEqual({
          path: 'pg_catalog',
          role: 'sterna',
          left: 0,
        })
      })
      expect(await queued()).toEqual([])
    })

    it('says what is missing', async () => {
      await asApply(async () => {
        expect(await failureOf(apply('nobody', 'public', 'create table x (i int)'))).toMatchObject({
          sqlstate: 'ST207',
          hint: expect.stringContaining('create role nobody'),
        })
        await conn.exec('create schema closed')
        expect(await failureOf(apply('attacker', 'public', 'create table closed.x (i int)'))).toMatchObject({
          sqlstate: '42501',
        })
        expect(await failureOf(apply('attacker', 'public', 'drop table made_by_superuser'))).toMatchObject({
          sqlstate: '42501',
        })
      })
    })

    it('does not let a role out of itself', async () => {
      await conn.exec('set role attacker')
      await conn.exec('create table own (id int primary key)')
      await conn.exec('insert into own values (1)')
      await conn.exec(
        'create function evil(sql text) returns int language plpgsql as $$ begin execute sql; return 1; end $$',
      )
      await conn.exec('reset role')
      await asApply(async () => {
        const attempt = (sql: string): Promise<void> =>
          apply('attacker', 'public', `alter table own add column a int default evil($x$${sql}$x$)`)
        for (const [sql, sqlstate] of [
          ['reset role', '42501'],
          ['set role sterna', '42501'],
          ['set local role sterna', '42501'],
          ['reset session authorization', '42501'],
          ['set session authorization sterna', '42501'],
          ['set session_replication_role = origin', '42501'],
          ['alter role attacker superuser', '42501'],
          ['discard all', '25001'],
          ['prepare later as select 1', 'ST208'],
          [`declare c cursor with hold for select evil('alter role attacker superuser')`, 'ST208'],
        ] as const) {
          expect({ sql, ...(await failureOf(attempt(sql))) }).toMatchObject({ sql, sqlstate })
          await conn.exec('deallocate all; close all')
        }
        // Several at once cannot leave the function either.
        expect(
          await failureOf(
            apply('attacker', 'public', 'create table y (i int); reset role; alter role attacker superuser'),
          ),
        ).toMatchObject({ sqlstate: '42501' })

        await conn.exec('begin')
        await attempt(
          'set search_path = public; set datestyle = german; set sterna.bookkeeping = on; set sterna.ddl_replication = on; set statement_timeout = 1',
        )
        await conn.exec('commit')
        expect(
          await conn.row(`select current_setting('search_path') as path, current_setting('datestyle') as dates,
            current_setting('sterna.bookkeeping') as bookkeeping, current_setting('sterna.ddl_replication') as ddl, current_setting('statement_timeout') as timeout,
            current_setting('session_replication_role') as mode`),
        ).toEqual({
          path: 'pg_catalog',
          dates: 'ISO, YMD',
          bookkeeping: '',
          ddl: 'off',
          timeout: '0',
          mode: 'replica',
        })
      })
      expect(await conn.row(`select rolsuper from pg_roles where rolname = 'attacker'`)).toEqual({
        rolsuper: false,
      })
    })

    it('is for Sterna only', async () => {
      await conn.exec('set role attacker')
      for (const sql of [
        `select sterna.ddl_apply('sterna', 'public', 'create table x (i int)')`,
        `select sterna.ddl_execute('sterna', 'public', 'create table x (i int)', '')`,
        `select sterna.ddl_capture('ddl_command_end', 'CREATE TABLE', 'public', 'on')`,
        `insert into sterna.ddl_queue (node_id, ddl_id, role_name, search_path, command_tag, command)
           values (2, 1, 'sterna', '', '', '')`,
        'select command from sterna.ddl_queue',
        `select nextval('sterna.ddl_id')`,
      ])
        expect(await failureOf(conn.query(sql))).toMatchObject({ sqlstate: '42501' })
      await conn.exec('reset role')
    })
  })

  it('words, statements, tags and new columns are told from the text', async () => {
    const single = async (sql: string): Promise<unknown> =>
      (await conn.row<{ single: boolean }>('select sterna.ddl_is_single(sterna.ddl_words($1)) as single', [
        sql,
      ]))!.single
    expect(
      await single(`select 'a;b', E'\\';', $x$;$x$, $$;$$, a$b$c, ";""", U&'\\0041' ; -- x;\n /* ; */ ;`),
    ).toBe(true)
    expect(await single(`select E'a'\n'\\';b'`)).toBe(true)
    expect(await single('select a$b$; select $b$')).toBe(false)
    expect(await single(`select '\\'; select 1`)).toBe(false)
    expect(await single('select 1 /* /* */ ; */')).toBe(true)
    expect(await single('select 1 /* /* */ */ ; select 2')).toBe(false)
    expect(await single('')).toBe(true)
    expect(
      await single(`create function f() returns int language plpgsql as '${'x;y$$-- '.repeat(20_000)}'`),
    ).toBe(true)

    const matches = async (sql: string, tag: string): Promise<unknown> =>
      (await conn.row<{ matches: boolean }>(
        'select sterna.ddl_matches_tag(sterna.ddl_words($1), $2) as matches',
        [sql, tag],
      ))!.matches
    expect(await matches('-- x\n Create Or Replace FUNCTION f()', 'CREATE FUNCTION')).toBe(true)
    expect(await matches('create unique index i on t(a)', 'CREATE INDEX')).toBe(true)
    expect(await matches('create constraint trigger g', 'CREATE TRIGGER')).toBe(true)
    expect(await matches('create materialized view m as table t', 'CREATE TABLE')).toBe(false)
    expect(await matches('select f()', 'CREATE TABLE')).toBe(false)
    expect(await matches('', 'CREATE TABLE')).toBe(false)

    expect(
      await conn.row(
        `select sterna.ddl_added_columns(sterna.ddl_words(
          'alter table t add A int, add column b int, add column if not exists "C""c" int, add if not exists d int'))::text[] as names`,
      ),
    ).toEqual({ names: ['a', 'b', 'C"c', 'd'] })
  })

  it('pgbench -i passes untouched, twice', async () => {
    const scripts = [
      'drop table if exists pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers',
      'create table pgbench_history(tid int,bid int,aid    int,delta int,mtime timestamp,filler char(22))',
      'create table pgbench_branches(bid int not null,bbalance int,filler char(88)) with (fillfactor=100)',
      'create table pgbench_tellers(tid int not null,bid int,tbalance int,filler char(84)) with (fillfactor=100)',
      'create table pgbench_accounts(aid    int not null,bid int,abalance int,filler char(84)) with (fillfactor=100)',
      'begin',
      'truncate table pgbench_accounts, pgbench_branches, pgbench_history, pgbench_tellers',
      'insert into pgbench_branches(bid,bbalance) values(1,0)',
      'commit',
      'vacuum analyze pgbench_branches',
      'alter table pgbench_branches add primary key (bid)',
      'alter table pgbench_tellers add primary key (tid)',
      'alter table pgbench_accounts add primary key (aid)',
    ]
    const ddl = scripts.filter((statement) => /^(create|alter|drop)/.test(statement))
    for (const statement of [...scripts, ...scripts]) await conn.exec(statement)
    expect(await queued()).toEqual([...ddl.slice(1), ...ddl])
    expect(await setsOf('pgbench_branches')).toEqual(['default'])
    expect(await setsOf('pgbench_history')).toEqual(['default_insert_only'])
  })

  it('nothing is captured, and nothing is left, after the node was dropped', async () => {
    await conn.exec('select sterna.node_drop($$n2$$)')
    await conn.exec('create table after_all as select 1 as a; create table x (i int)')
    await conn.exec('drop table after_all, x')
    expect(await queued()).toEqual([])
    expect(await conn.row('select count(*)::int as triggers from pg_event_trigger')).toEqual({ triggers: 0 })
    await conn.query(`select sterna.node_create('n2', 'host=x', info => '{"node_id": 2}')`)
    await conn.exec('create table captured_again (id int primary key)')
    expect(await queued()).toHaveLength(1)
  })
})

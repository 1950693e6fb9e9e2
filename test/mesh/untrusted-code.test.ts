import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { failureOf } from '../harness/failure.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { tableHashes } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

/**
 * What an ordinary role that owns tables can make the other nodes execute. `act` tries all that it should not be able to, and
 * takes down as whom it ran, so that a test sees that it did run. Unlogged: PostgreSQL cannot decode an INSERT ... ON CONFLICT
 * in the midst of which a function of an index writes ("invalid ordering of speculative insertion changes").
 */
const PREPARE = `
  create role attacker login password 'a'; create role friend;
  create schema att authorization attacker; create extension citext; create extension hstore;
  create table forbidden (id int primary key, v text); create table plain (id int primary key, v text);
  create table mixed (name citext primary key, v text); create table pairs (h hstore primary key, v text);
  set role attacker;
  create unlogged table att.log (via text, as_role text);
  create unlogged table att.stolen (v text);
  create function att.act(via text) returns boolean language plpgsql as $$
  declare
    v_statement text;
  begin
    foreach v_statement in array array['reset role', 'set role sterna', 'reset session authorization', 'set session authorization sterna',
      'set session_replication_role = origin', 'alter role attacker superuser', 'grant all on forbidden to attacker',
      'insert into att.stolen select provider_dsn from sterna.subscription', 'insert into public.forbidden values (1, current_user)',
      'alter function sterna_apply.n1_1 security invoker', 'create function sterna_apply.mine() returns int language sql return 1',
      'insert into att.stolen select pg_read_file(''PG_VERSION'')']
    loop
      begin
        execute v_statement;
        if v_statement !~ '^(reset|set)' then
          insert into att.log values (v_statement, 'succeeded as ' || current_user);
        end if;
      exception when others then null;
      end;
    end loop;
    insert into att.log values (act.via, current_user);
    return true;
  end $$;
  create function att.computes(via text, i int) returns int language plpgsql immutable as $$
    begin perform att.act(via); return i; end $$;
  create function att.fires() returns trigger language plpgsql as $$
    begin perform att.act(tg_argv[0]); return coalesce(new, old); end $$;
  reset role`

const layout = await testLayout()
const versions = new Set(layout.versions).size > 1 ? layout.versions : layout.versions.slice(0, 2)

describe.skipIf(layout.missing !== null)(`code of ordinary roles, ${layout.name}`, () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let n2: MeshTestNode
  /** The attacker's sessions on the first two nodes. */
  let a1: PgConnection
  let a2: PgConnection

  const login = (node: MeshTestNode): Promise<PgConnection> =>
    PgConnection.connect(node.dsn.replace('sterna:sterna@', 'attacker:a@'))

  beforeAll(async () => {
    mesh = await startMesh({ count: versions.length, version: versions, schema: PREPARE, relays: true })
    ;[n1, n2] = mesh.nodes as [MeshTestNode, MeshTestNode]
    a1 = await login(n1)
    a2 = await login(n2)
  })
  afterAll(async () => {
    await Promise.all([a1?.close(), a2?.close()])
    await mesh?.stop()
  })

  /** As whom code ran on the second node. */
  const ranAs = async (via: string): Promise<string[]> => {
    const rows = await n2.query<{ role: string }>(
      'select distinct as_role as role from att.log where via = $1',
      [via],
    )
    return rows.map(({ role }) => role)
  }

  const expectUnharmed = async (): Promise<void> => {
    for (const node of mesh.nodes) {
      const [row] = await node.query(
        `select (select rolsuper from pg_roles where rolname = 'attacker') as superuser, (select count(*)::int from forbidden) as forbidden,
                (select count(*)::int from att.stolen) as stolen,
                (select string_agg(distinct as_role || ': ' || via, ', ') from att.log where as_role <> 'attacker') as otherwise`,
      )
      expect({ node: node.name, ...row }).toEqual({
        node: node.name,
        superuser: false,
        forbidden: 0,
        stolen: 0,
        otherwise: null,
      })
    }
  }

  const expectSame = async (tables: readonly string[]): Promise<void> => {
    const hashes = await Promise.all(
      mesh.nodes.map(async (node) => {
        const all = await tableHashes(node)
        return tables.map((table) => `${table}: ${all[table] ?? 'missing'}`)
      }),
    )
    for (const each of hashes) expect(each).toEqual(hashes[0])
    expect(hashes[0]!.join(' ')).not.toMatch(/missing|: 0 rows/)
  }

  const expectRefusal = async (message: RegExp): Promise<void> => {
    await waitUntil(
      `the refusal shows: ${message}`,
      async () => {
        const rows = await n2.query<{ code: string | null; error: string }>(
          "select last_error_code as code, last_error as error from sterna.sub_show_status() where status <> 'replicating'",
        )
        if (rows.some(({ code, error }) => code === 'CODE_REFUSED' && message.test(error))) return true
        throw new Error(JSON.stringify(rows))
      },
      20_000,
    )
  }

  /** On all nodes but the first, which does not apply it. */
  const byHand = async (statement: string): Promise<void> => {
    for (const node of mesh.nodes)
      if (node !== n1)
        await node.exec(`set sterna.ddl_replication = off; ${statement}; reset sterna.ddl_replication`)
  }

  describe('runs with the rights of the owner of its table', () => {
    test.each([
      [
        'trigger that fires always',
        'create table att.x (id int primary key, v int)',
        `create trigger t after insert or update or delete on att.x for each row execute function att.fires('VIA');
         alter table att.x enable always trigger t`,
      ],
      [
        'trigger that fires on replicas',
        'create table att.x (id int primary key, v int)',
        `create trigger t before insert or delete on att.x for each row execute function att.fires('VIA');
         alter table att.x enable replica trigger t`,
      ],
      [
        'trigger for statements',
        'create table att.x (id int primary key, v int)',
        `create trigger t before insert or delete on att.x for each statement execute function att.fires('VIA');
         alter table att.x enable always trigger t`,
      ],
      ['check constraint', "create table att.x (id int primary key, v int check (att.act('VIA')))"],
      [
        'check that calls a function of PostgreSQL',
        `create table att.x (id int primary key,
         v int check (query_to_xml('select att.act(''VIA'')', true, true, '') is not null))`,
      ],
      [
        'index expression',
        'create table att.x (id int primary key, v int)',
        "create index on att.x (att.computes('VIA', v))",
      ],
      [
        'index predicate',
        'create table att.x (id int primary key, v int)',
        "create index on att.x (v) where att.computes('VIA', v) > 0",
      ],
      [
        'generated column',
        `create table att.x (id int primary key, v int, g int generated always as (att.computes('VIA', v)) stored)`,
      ],
      [
        'domain',
        `create domain att.d as int check (att.act('VIA')); create table att.x (id int primary key, v att.d)`,
      ],
      [
        'domain of the key',
        `create domain att.d as int check (att.act('VIA')); create table att.x (id att.d primary key, v int)`,
      ],
      [
        'array of a domain',
        `create domain att.d as int check (att.act('VIA')); create table att.x (id int primary key, v int, a att.d[] default '{1}')`,
      ],
      [
        'composite with a domain',
        `create domain att.d as int check (att.act('VIA')); create type att.c as (d att.d);
         create table att.x (id int primary key, v int, c att.c default '(1)')`,
      ],
      [
        'partition key',
        `create table att.x (id int, v int) partition by range (att.computes('VIA', v)); create table att.y partition of att.x for values from (0) to (100)`,
      ],
      ['without a key', `create table att.x (id int, v int check (att.act('VIA')))`],
    ])('%s', async (via, ...ddl) => {
      for (const statement of ddl.join(';').split(';')) await a1.exec(statement.replaceAll('VIA', via))
      await a1.exec('begin; insert into att.x values (1, 1), (2, 2); insert into att.x values (3, 3); commit')
      await mesh.settle()
      expect(await ranAs(via)).toEqual(['attacker'])
      expect(await n2.query('select id::int, v::int from att.x order by id')).toHaveLength(3)
      const [{ keyed } = { keyed: false }] = await n1.query<{ keyed: boolean }>(
        "select exists (select from pg_index where indrelid = 'att.x'::regclass and indisprimary) as keyed",
      )
      if (keyed) {
        await a1.exec('update att.x set v = 7 where id = 1')
        await a1.exec('update att.x set id = 9 where id = 2')
        await a1.exec('delete from att.x where id = 3')
        await mesh.settle()
        expect(await n2.query('select id::int, v::int from att.x order by id')).toEqual([
          { id: 1, v: 7 },
          { id: 9, v: 2 },
        ])
        await a1.exec('truncate att.x')
        await mesh.settle()
        expect(await n2.query('select from att.x')).toEqual([])
      }
      await expectUnharmed()
      await a1.exec('drop table att.x')
      for (const [type] of ddl.join(' ').matchAll(/att\.(?:c|d)\b(?= as)/g)) {
        if (type === 'att.c') await a1.exec('drop type att.c')
      }
      if (ddl.join(' ').includes('create domain')) await a1.exec('drop domain att.d cascade')
      await mesh.settle()
    })

    test('attached on the subscriber after the table was in use, also while a change waits', async () => {
      await a1.exec('create table att.late (id int primary key)')
      await a1.exec('insert into att.late values (1)')
      await mesh.settle()
      await a2.exec('set sterna.ddl_replication = off')
      await a2.exec(
        "begin; create trigger t after insert on att.late for each row execute function att.fires('late')",
      )
      await a1.exec('insert into att.late values (2)')
      await waitUntil('apply waits for the table', async () => {
        const rows = await n2.query(
          "select from pg_locks where relation = 'att.late'::regclass and not granted",
        )
        return rows.length > 0
      })
      await a2.exec('alter table att.late enable always trigger t; commit')
      await a1.exec('insert into att.late values (3)')
      await mesh.settle()
      expect(await ranAs('late')).toEqual(['attacker'])
      expect(await n2.query('select from att.late')).toHaveLength(3)
      await expectUnharmed()
    })

    test('by another schema that takes the name of the table', async () => {
      await n2.exec('grant create on database app to attacker')
      await a1.exec('create table att.named (id int primary key)')
      await a1.exec('insert into att.named values (1)')
      await mesh.settle()
      await a2.exec('set sterna.ddl_replication = off')
      await a2.exec(`create schema twin; create table twin.named (id int primary key check (att.act('twin'))); alter table twin.named disable trigger all;
        begin; alter schema att rename to hidden; alter schema twin rename to att; alter function hidden.act(text) set schema att`)
      await a2.exec('create table att.log (via text, as_role text); commit')
      await a1.exec('insert into att.named values (2)')
      await waitUntil('it arrived', async () => (await n2.query('select from att.named')).length > 0)
      expect(await ranAs('twin')).toEqual(['attacker'])
      await a2.exec(
        'begin; alter function att.act(text) set schema hidden; alter schema att rename to twin; alter schema hidden rename to att; commit',
      )
      await a2.exec('drop schema twin cascade')
      await a1.exec('drop table att.named')
      await mesh.settle()
      await expectUnharmed()
    })

    test('where a row comes that is older than the delete of its key', async () => {
      await a1.exec('create table att.old (id int primary key, v text)')
      await a1.exec(
        "create trigger t after insert or delete on att.old for each row execute function att.fires('old')",
      )
      await a1.exec('alter table att.old enable always trigger t')
      await a1.exec("insert into att.old values (1, 'a')")
      await mesh.settle()
      mesh.link(n1.name, n2.name).cut()
      mesh.link(n2.name, n1.name).cut()
      await a1.exec("update att.old set v = 'b'")
      await a2.exec('reset sterna.ddl_replication')
      await a2.exec('delete from att.old')
      mesh.link(n1.name, n2.name).heal()
      mesh.link(n2.name, n1.name).heal()
      await mesh.settle()
      for (const node of mesh.nodes) expect(await node.query('select from att.old')).toEqual([])
      await expectUnharmed()
    })

    test('a key whose type can be cast to json by a function of its owner', async () => {
      await a1.exec("create type att.e as enum ('x', 'y')")
      await a1.exec(
        "create function att.tojson(att.e) returns json language plpgsql as $$ begin perform att.act('json'); return '1'; end $$",
      )
      await a1.exec('create cast (att.e as json) with function att.tojson(att.e)')
      await a1.exec('create table att.j (e att.e primary key)')
      await a1.exec("insert into att.j values ('x'), ('y')")
      await a1.exec("update att.j set e = 'x' where false")
      await a1.exec("delete from att.j where e = 'x'")
      await mesh.settle()
      expect(await n2.query('select e::text from att.j')).toEqual([{ e: 'y' }])
      await expectUnharmed()
    })
  })

  describe('leaves nothing behind that would run with other rights', () => {
    test('settings: an operator in a search_path of its own', async () => {
      await a1.exec(`create function att.equal(int, int) returns boolean language plpgsql as $$
        begin perform att.act('operator'); return $1 operator(pg_catalog.=) $2; end $$`)
      await a1.exec('create operator att.= (leftarg = int, rightarg = int, function = att.equal)')
      await a1.exec(`create function att.settings() returns trigger language plpgsql as $$
        begin
          if current_setting('session_replication_role') <> 'replica' then return null; end if;
          set search_path = att, pg_catalog; set statement_timeout = 1; set sterna.change_node = 77; set datestyle = 'German';
          create temp table if not exists pg_class (x int); create temp table if not exists pg_trigger (x int);
          perform att.act('settings');
          return null;
        end $$`)
      await a1.exec('create table att.s (id int primary key)')
      await a1.exec('create trigger t after insert on att.s for each row execute function att.settings()')
      await a1.exec('alter table att.s enable always trigger t')
      await n1.exec('grant all on plain to attacker')
      await n1.exec("insert into plain values (1, 'a'), (2, 'a')")
      for (const id of [1, 2, 3]) {
        await a1.exec(
          `begin; insert into att.s values (${id}); insert into plain values (${id}0, 'x'); delete from plain where id = ${id}; commit`,
        )
      }
      await a1.exec("update plain set v = 'c'")
      await mesh.settle()
      expect(await ranAs('settings')).toEqual(['attacker'])
      expect(await ranAs('operator')).toEqual([])
      await expectSame(['public.plain'])
      await expectUnharmed()
      await a1.exec('drop operator att.= (int, int)')
    })

    const remedy = 'alter table att.r disable trigger t'
    test.each([
      [
        'a prepared statement of ours replaced',
        `
         for v_name in select name from pg_prepared_statements where not from_sql and statement not like '%apply_guard%' loop
           execute format('deallocate %I', v_name);
           execute format('prepare %I as select att.act(''prepared'')', v_name);
         end loop;`,
        /prepared a statement/,
      ],
      [
        'a cursor that is held',
        `execute 'declare held cursor with hold for select att.act(''held'')';`,
        /cursor/,
      ],
      [
        'a deferred trigger on another table',
        `insert into att.queue values (2);`,
        /trigger df of table att.queue is deferrable/,
      ],
      [
        'a deferred trigger on a temporary table',
        `
         create temp table q (i int);
         create constraint trigger df after insert on q deferrable initially deferred for each row execute function att.fires('temporary');
         alter table q enable always trigger df; insert into q values (1);`,
        /trigger df of table q is deferrable/,
      ],
    ])('%s', async (_, body, message) => {
      await a1.exec('create table if not exists att.queue (i int)')
      const [made] = await n1.query<{ made: boolean }>(
        "select exists (select from pg_trigger where tgname = 'df') as made",
      )
      if (!made!.made) {
        await a1.exec(`create function att.df() returns trigger language plpgsql as $$
          begin
            perform att.act('deferred');
            if new.i > 0 then set constraints all deferred; insert into att.queue values (new.i - 1); end if;
            return null;
          end $$`)
        await a1.exec(
          'create constraint trigger df after insert on att.queue deferrable initially deferred for each row execute function att.df()',
        )
        await a1.exec('alter table att.queue enable always trigger df')
      }
      await a1.exec('create table att.r (id int primary key)')
      await a1.exec(`create function att.leaves() returns trigger language plpgsql as $$
        declare v_name text;
        begin
          if current_setting('session_replication_role') = 'replica' and new.id = 1 then ${body} end if;
          return null;
        end $$`)
      await a1.exec('create trigger t after insert on att.r for each row execute function att.leaves()')
      await a1.exec('alter table att.r enable always trigger t')
      await a1.exec('begin; insert into att.r values (1); insert into att.r values (2); commit')
      await expectRefusal(message)
      await expectUnharmed()
      await byHand(remedy)
      await mesh.settle()
      expect(await n2.query('select from att.r')).toHaveLength(2)
      await a1.exec('drop table att.r')
      await a1.exec('drop function att.leaves()')
      await mesh.settle()
      await expectUnharmed()
    })

    test('a deferred trigger of a replicated statement, which defers again', async () => {
      await a1.exec(
        'create function att.queues() returns int language plpgsql as $$ begin insert into att.queue values (1); return 1; end $$',
      )
      await a1.exec('create table att.ddl (id int default 1)')
      await a1.exec('insert into att.ddl values (1)')
      await a2.exec('set sterna.ddl_replication = off')
      await mesh.settle()
      await a1.exec('alter table att.ddl add check (att.queues() = 1)')
      await expectRefusal(/trigger df of table att.queue/)
      await expectUnharmed()
      await byHand('alter table att.queue disable trigger df')
      await mesh.settle()
      await a1.exec('drop table att.ddl')
      await mesh.settle()
      await expectUnharmed()
    })
  })

  test('a table with a deferrable trigger is refused by name', async () => {
    await a1.exec('create table att.refused (id int primary key)')
    await a1.exec(
      "create constraint trigger c after insert on att.refused deferrable for each row execute function att.fires('refused')",
    )
    await a1.exec('alter table att.refused enable always trigger c')
    await a1.exec('insert into att.refused values (1)')
    await expectRefusal(/trigger c of table att.refused/)
    await byHand('alter table att.refused disable trigger c')
    await mesh.settle()
    expect(await n2.query('select from att.refused')).toHaveLength(1)
    await expectUnharmed()
  })

  test('honest code of an ordinary owner: results, wide rows, large values, whole rows, partitions', async () => {
    const columns = Array.from({ length: 130 }, (_, i) => `c${i} int`)
    for (const statement of [
      "create function att.valid(t text) returns boolean language sql immutable as $$ select t ~ '^[a-z]' $$",
      'create function att.fold(t text) returns text language sql immutable as $$ select lower(t) $$',
      'create table att.honest (id int primary key, v text check (att.valid(v)), g text generated always as (att.fold(v)) stored, large text)',
      'create unique index on att.honest (att.fold(v))',
      'alter table att.honest alter large set storage external',
      `create table att.wide (id int primary key, v text check (att.valid(v)), ${columns.join(', ')})`,
      'create table att.whole (a int not null, b text check (att.valid(b)))',
      'create unique index whole_key on att.whole (a)',
      'alter table att.whole replica identity full',
      'create table att.part (id int, r text check (att.valid(r)), v int, primary key (id, r)) partition by list (r)',
      "create table att.part_a partition of att.part for values in ('a')",
      "create table att.part_b partition of att.part for values in ('b')",
    ])
      await a1.exec(statement)
    await a1.exec(
      "insert into att.honest (id, v, large) select i, 'a' || i, repeat(md5(i::text), 300) from generate_series(1, 20) i",
    )
    await a1.exec(
      "insert into att.wide (id, v, c0, c129) select i, 'a' || i, i, i from generate_series(1, 20) i",
    )
    await a1.exec(
      "insert into att.part select i, case i % 2 when 0 then 'a' else 'b' end, i from generate_series(1, 20) i",
    )
    await a1.exec("update att.honest set v = 'b' || id where id < 10")
    await a1.exec('update att.wide set c64 = id, id = id + 100 where id < 5')
    await a1.exec("update att.part set r = 'a' where id = 1")
    await a1.exec('delete from att.wide where id > 110')
    await a1.exec('delete from att.part where id = 2')
    await mesh.settle()
    await a2.exec("update att.honest set large = 'short' where id = 3")
    await a2.exec('delete from att.wide where id = 7')
    await mesh.settle()
    await expectSame(['att.honest', 'att.wide', 'att.part_a', 'att.part_b'])
    expect(
      await n2.query('select v, g, length(large) as length from att.honest where id in (3, 4) order by id'),
    ).toEqual([
      { v: 'b3', g: 'b3', length: 5 },
      { v: 'b4', g: 'b4', length: 9600 },
    ])
    await a1.exec('truncate att.wide')
    await mesh.settle()
    expect(await n2.query('select from att.wide')).toEqual([])
  })

  test('tables without such code are written by plain statements', async () => {
    await a1.exec("create type att.mood as enum ('good', 'bad')")
    await a1.exec(`create table att.usual (id int generated by default as identity primary key, mail citext unique, m att.mood, d date check (d < now()),
      n numeric(10, 2) check (n >= 0 and n in (1, 2, 3)), s text check (length(s) < 10 and s ~* '^[a-z]+$'), h hstore, a text[], r int4range,
      total numeric generated always as (n * 2) stored, made timestamptz default clock_timestamp(), exclude using gist (r with &&))`)
    await a1.exec('create index on att.usual (lower(s)) where n > 1')
    await mesh.settle()
    const [row] = await n2.query<{ described: { runAs: number | null } }>(
      `select sterna.describe_table('att', 'usual', '{id,mail,m,d,n,s,h,a,r,made}') as described`,
    )
    expect(row!.described.runAs).toBeNull()
    await a1.exec(
      "insert into att.usual (mail, m, d, n, s, h, a, r) values ('A', 'good', '2020-01-01', 2, 'abc', 'a=>1', '{x}', '[1,5)')",
    )
    await mesh.settle()
    await expectSame(['att.usual'])
  })

  test('keys of types from extensions are found by their own equality', async () => {
    await n1.exec(
      "insert into mixed values ('One', 'a'), ('Two', 'a'), ('Three', 'a'); insert into pairs values ('a=>1', 'a'), ('b=>1', 'a')",
    )
    await mesh.settle()
    await n1.exec(
      "update mixed set name = 'ONE', v = 'b' where name = 'one'; delete from mixed where name = 'TWO'; update pairs set v = 'b' where h = 'a=>1'; delete from pairs where h = 'b=>1'",
    )
    await n2.exec("update mixed set v = 'c' where name = 'three'")
    await mesh.settle()
    await expectSame(['public.mixed', 'public.pairs'])
    expect(await n2.query('select name::text, v from mixed order by v')).toEqual([
      { name: 'ONE', v: 'b' },
      { name: 'Three', v: 'c' },
    ])
  })

  test('the functions of owners can be neither called nor changed by them', async () => {
    const [owned] = await n2.query<{ name: string }>(
      "select p.oid::regprocedure::text as name from pg_proc p where p.pronamespace = 'sterna_apply'::regnamespace and p.proowner = 'attacker'::regrole limit 1",
    )
    for (const statement of [
      `alter function ${owned!.name} security invoker`,
      `drop function ${owned!.name}`,
    ])
      expect(await failureOf(a2.exec(statement))).toMatchObject({ sqlstate: '42501' })
  })
})

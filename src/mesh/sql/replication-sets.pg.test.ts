import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('replication sets on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    const installer = await PgConnection.connect(servers.nodes[0]!.dsn)
    await installSchema(installer)
    await installer.close()
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    // These tests are about the functions themselves, not about the event triggers that call them.
    await conn.exec(`select sterna.node_create('n1', 'host=x')`)
    await conn.exec(`do $$ declare t name; begin
      for t in select evtname from pg_event_trigger loop execute format('alter event trigger %I disable', t); end loop; end $$`)
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })
  beforeEach(async () => {
    await conn.exec('drop schema if exists s cascade; create schema s; set search_path = s')
  })

  const autoJoin = (table: string): Promise<unknown> =>
    conn.query('select sterna.table_auto_join($1::regclass)', [table])
  const add = (rest: string): Promise<unknown> => conn.query(`select sterna.repset_add_table(${rest})`)
  const tables = async (): Promise<unknown> =>
    Object.fromEntries(
      (
        await conn.query<{ name: string; sets: string; how: string; reason: string | null }>(
          `select table_name::text as name, array_to_string(sets, ' ') as sets, replicates as how, reason
             from sterna.tables where schema_name = 's' order by 1`,
        )
      ).rows.map(({ name, sets, how, reason }) => [
        name,
        [sets, how, reason].filter((part) => part !== null).join('; '),
      ]),
    )
  const keyProblem = async (table: string): Promise<unknown> =>
    (
      await conn.row<{ problem: string | null }>('select sterna.table_key_problem($1::regclass) as problem', [
        table,
      ])
    )?.problem

  it.each([
    ['id int primary key', '', null],
    ['id int', '', 'it has no primary key'],
    ['id int unique', '', 'it has no primary key'],
    ['id int primary key deferrable', '', 'its primary key is deferrable'],
    ['id int primary key initially deferred', '', 'its primary key is deferrable'],
    [
      'id int',
      'alter table t replica identity full',
      'it has no primary key; replica identity full does not find rows',
    ],
    ['id int primary key', 'alter table t replica identity full', null],
    ['id int primary key', 'alter table t replica identity nothing', 'its replica identity is nothing'],
    ['id int not null unique', 'alter table t replica identity using index t_id_key', null],
    [
      'id int not null unique',
      'alter table t replica identity using index t_id_key; alter table t drop constraint t_id_key',
      'its replica identity is an index that is gone',
    ],
  ])('key of (%s) %s: %s', async (columns, more, problem) => {
    await conn.exec(`create table t (${columns}, v int); ${more}`)
    expect(await keyProblem('t')).toBe(problem)
    await autoJoin('t')
    // What matters in the end: the application can still write.
    await conn.exec('insert into t values (1); update t set v = 1; delete from t')
    expect(await tables()).toEqual({
      t: problem === null ? 'default; all' : `default_insert_only; insert only; ${problem}`,
    })
  })

  it('a partitioned table has a key when its partitions have', async () => {
    await conn.exec(`create table p (id int primary key, v int) partition by range (id);
      create table p1 partition of p for values from (0) to (10);
      create table p2 partition of p for values from (10) to (20) partition by range (id);
      create table p21 partition of p2 for values from (10) to (20);`)
    await autoJoin('p21')
    expect(await tables()).toEqual({
      p: 'default; all',
      p1: 'default; all',
      p2: 'default; all',
      p21: 'default; all',
    })
    await conn.exec('alter table p21 replica identity nothing')
    await autoJoin('p21')
    expect(await keyProblem('p')).toBe('partition s.p21: its replica identity is nothing')
    expect(await tables()).toMatchObject({ p: expect.stringMatching(/^default_insert_only; insert only/) })
    await conn.exec('insert into p values (11); update p set v = 1; delete from p')
  })

  it('what cannot be replicated stays out, and says why', async () => {
    await conn.exec(`create unlogged table u (id int primary key); create table ordinary (id int primary key);
      create view v as select 1 as a; create materialized view m as select 1 as a; create sequence q;
      create temp table tt (id int primary key);`)
    await conn.exec('select sterna.repset_add_existing_tables()')
    expect(await tables()).toEqual({
      ordinary: 'default; all',
      u: '; no; it is unlogged: its changes are not in the WAL',
    })
    for (const name of [
      'u',
      'v',
      'm',
      'q',
      'tt',
      'pg_class',
      'sterna.node',
      'information_schema.sql_features',
    ])
      expect(await failureOf(add(`'default', '${name}'`))).toMatchObject({ sqlstate: 'ST124' })
    expect(await failureOf(add(`'default', null`))).toMatchObject({ sqlstate: 'ST124' })
    await conn.exec('drop table tt')
  })

  it('a table moves when its key comes or goes', async () => {
    await conn.exec('create table t (id int not null)')
    await autoJoin('t')
    expect(await tables()).toEqual({ t: 'default_insert_only; insert only; it has no primary key' })
    await conn.exec('alter table t add primary key (id)')
    await autoJoin('t')
    expect(await tables()).toEqual({ t: 'default; all' })
    await autoJoin('t')
    expect(await tables()).toEqual({ t: 'default; all' })
    await conn.exec('alter table t drop constraint t_pkey')
    await autoJoin('t')
    expect(await tables()).toEqual({ t: 'default_insert_only; insert only; it has no primary key' })
  })

  it('a table that was taken out stays out until it is added again', async () => {
    await conn.exec('create table t (id int primary key)')
    await autoJoin('t')
    const remove = `select sterna.repset_remove_table('default', 't') as removed`
    expect(await conn.row(remove)).toEqual({ removed: true })
    expect(await conn.row(remove)).toEqual({ removed: false })
    await autoJoin('t')
    await conn.exec(`select sterna.repset_add_all_tables('default', '{s}')`)
    expect(await tables()).toEqual({ t: '; no; it was taken out of the default sets' })
    const again = `select sterna.repset_add_table('default', 't') as added`
    expect(await conn.row(again)).toEqual({ added: true })
    expect(await conn.row(again)).toEqual({ added: false })
    await conn.exec(`alter table t drop constraint t_pkey`)
    await autoJoin('t')
    expect(await tables()).toMatchObject({ t: expect.stringMatching('default_insert_only') })
  })

  it('repset_add_all_tables: keyless tables go to the insert-only set, and to no other', async () => {
    await conn.exec(`create table keyed (id int primary key); create table keyless (id int);
      create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (0) to (1);
      select sterna.repset_create('all_of_it')`)
    const notices: string[] = []
    conn.onNotice = (notice) => notices.push(notice.message)
    await conn.exec('set client_min_messages = notice')
    await conn.exec(`select sterna.repset_add_all_tables('default', '{s}')`)
    await conn.exec(`select sterna.repset_add_all_tables('all_of_it', '{s}')`)
    await conn.exec('set client_min_messages = warning')
    expect(notices).toEqual([
      'table s.keyless goes to default_insert_only: it has no primary key',
      'table s.keyless is left out: it has no primary key',
    ])
    expect(await tables()).toEqual({
      keyed: 'all_of_it default; all',
      keyless: 'default_insert_only; insert only; it has no primary key',
      p: 'all_of_it default; all',
      p1: 'all_of_it default; all',
    })
    expect(
      await failureOf(conn.query(`select sterna.repset_add_all_tables('default', '{s,nope}')`)),
    ).toMatchObject({ sqlstate: 'ST129' })
    await conn.exec(`select sterna.repset_drop('all_of_it')`)
  })

  it('a set: create, alter, drop', async () => {
    const published = async (): Promise<unknown> =>
      (
        await conn.row<{ what: string }>(
          `select concat_ws(' ', pubinsert, pubupdate, pubdelete, pubtruncate) as what from pg_publication
            where pubname = 'sterna_mine'`,
        )
      )?.what
    await conn.exec(
      `select sterna.repset_create('mine', replicate_update => false, replicate_delete => false)`,
    )
    expect(await published()).toBe('t f f t')
    expect(await failureOf(conn.query(`select sterna.repset_create('mine')`))).toMatchObject({
      sqlstate: 'ST121',
    })
    await conn.exec('create table keyless (id int)')
    await add(`'mine', 'keyless'`)
    expect(
      await failureOf(conn.query(`select sterna.repset_alter('mine', replicate_update => true)`)),
    ).toMatchObject({ sqlstate: 'ST123' })
    await conn.exec(`select sterna.repset_remove_table('mine', 'keyless')`)
    await conn.exec(
      `select sterna.repset_alter('mine', replicate_update => true, replicate_truncate => false)`,
    )
    expect(await published()).toBe('t t f f')
    expect(
      await conn.row(`select sterna.repset_drop('mine') as a, sterna.repset_drop('mine', true) as b`),
    ).toEqual({
      a: true,
      b: false,
    })
    expect(await published()).toBeUndefined()
  })

  it.each([
    [`select sterna.repset_create('internal')`, 'ST128'],
    [`select sterna.repset_create('A b')`, 'ST128'],
    [`select sterna.repset_create('')`, 'ST128'],
    [`select sterna.repset_create('default')`, 'ST121'],
    [`select sterna.repset_drop('nope')`, 'ST120'],
    [`select sterna.repset_drop('default')`, 'ST122'],
    [`select sterna.repset_drop('default_insert_only', true)`, 'ST122'],
    [`select sterna.repset_alter('ddl_sql', replicate_update => true)`, 'ST122'],
    [`select sterna.repset_alter('nope')`, 'ST120'],
    [`select sterna.repset_add_table('nope', 'pg_class')`, 'ST120'],
    [`select sterna.repset_remove_table('nope', 'pg_class')`, 'ST120'],
    [`select sterna.repset_add_all_tables('nope', '{s}')`, 'ST120'],
    [`select sterna.repset_add_all_tables('default', '{s}', true)`, 'ST125'],
  ])('%s is refused: %s', async (sql, sqlstate) => {
    const failure = await failureOf(conn.query(sql))
    expect(failure).toMatchObject({ sqlstate, hint: expect.stringMatching(/\.$/) })
  })

  describe('columns and filters', () => {
    beforeEach(async () => {
      await conn.exec(`create table t (id int primary key, v text, "Odd name" int, g int generated always as (id + 1) stored);
        create table f (id int primary key, v int); alter table f replica identity full;
        create table p (id int primary key) partition by range (id);
        select sterna.repset_drop('mine', true); select sterna.repset_create('mine')`)
    })

    it.each([
      [`'mine', 't', columns => '{v}'`, 'ST126', 'lacks key column id'],
      [`'mine', 't', columns => '{id,nope}'`, 'ST126', 'there is no column nope'],
      [`'mine', 't', columns => '{id,id}'`, 'ST126', 'listed twice'],
      [`'mine', 't', columns => '{}'`, 'ST126', 'is empty'],
      [`'mine', 't', columns => '{id,g}'`, 'ST126', 'generated'],
      [`'mine', 't', columns => '{id,ctid}'`, 'ST126', 'there is no column ctid'],
      [`'mine', 'f', columns => '{id}'`, 'ST126', 'replica identity is full'],
      [`'mine', 'p', columns => '{id}'`, 'ST126', 'PostgreSQL does not accept that'],
      [`'mine', 't', row_filter => 'v > ''a'''`, 'ST127', 'uses column v'],
      [`'mine', 't', row_filter => 'id > 1 and "Odd name" > 1'`, 'ST127', 'uses column "Odd name"'],
      [`'mine', 't', row_filter => 'v > ''a''', columns => '{id,v}'`, 'ST127', 'uses column v'],
      [`'mine', 't', row_filter => 'nope > 1'`, 'ST127', 'does not exist'],
      [`'mine', 't', row_filter => 'id > '`, 'ST127', 'syntax error'],
      [`'mine', 't', row_filter => ' '`, 'ST127', 'is empty'],
      [`'mine', 't', row_filter => 'id'`, 'ST127', 'boolean'],
      [`'mine', 't', row_filter => 'random() > 0.5'`, 'ST127', 'PostgreSQL does not accept that'],
      [`'mine', 't', row_filter => '(select true)'`, 'ST127', 'PostgreSQL does not accept that'],
      [`'mine', 'p', row_filter => 'id > 1'`, 'ST127', 'PostgreSQL does not accept that'],
      [`'mine', 't', synchronize_data => true`, 'ST125', 'not supported yet'],
      [`'mine', 'p', include_partitions => false`, 'ST124', 'without its partitions'],
    ])('repset_add_table(%s) is refused: %s %s', async (args, sqlstate, message) => {
      expect(await failureOf(add(args))).toMatchObject({
        sqlstate,
        message: expect.stringContaining(message),
      })
      expect(await tables()).toMatchObject({ t: '; no; it is in no replication set' })
    })

    it('they end up in the publication, and the application can still write', async () => {
      await add(`'mine', 't', columns => '{"id","Odd name"}', row_filter => 'id > 5'`)
      await add(`'mine', 'f', row_filter => 'v > 5'`)
      const { rows } = await conn.query(
        `select tablename::text as table, array_to_string(attnames, ',') as columns, rowfilter as filter
           from pg_publication_tables where pubname = 'sterna_mine' order by 1`,
      )
      expect(rows).toEqual([
        { table: 'f', columns: 'id,v', filter: '(v > 5)' },
        { table: 't', columns: 'id,Odd name', filter: '(id > 5)' },
      ])
      await conn.exec(`insert into t (id) values (1); update t set v = 'x'; delete from t;
        insert into f values (1, 1); update f set v = 9; delete from f`)
    })

    it('they are checked again when the set begins to replicate updates', async () => {
      await conn.exec(
        `select sterna.repset_alter('mine', replicate_update => false, replicate_delete => false)`,
      )
      await add(`'mine', 't', columns => '{id,v}', row_filter => 'v > ''a'''`)
      expect(
        await failureOf(conn.query(`select sterna.repset_alter('mine', replicate_update => true)`)),
      ).toMatchObject({ sqlstate: 'ST127' })
      await add(`'mine', 't', columns => '{v}'`)
      expect(
        await failureOf(conn.query(`select sterna.repset_alter('mine', replicate_delete => true)`)),
      ).toMatchObject({ sqlstate: 'ST126' })
    })

    it('a new list or filter replaces the old one', async () => {
      await add(`'mine', 't', row_filter => 'id > 5'`)
      await add(`'mine', 't', row_filter => 'id > 6'`)
      expect(
        await conn.row(`select rowfilter from pg_publication_tables where pubname = 'sterna_mine'`),
      ).toEqual({ rowfilter: '(id > 6)' })
    })

    it('two lists of columns in two sets are refused, which would stop decoding', async () => {
      await autoJoin('t')
      expect(await failureOf(add(`'mine', 't', columns => '{id,v}'`))).toMatchObject({ sqlstate: 'ST126' })
      await conn.exec(`select sterna.repset_remove_table('default', 't')`)
      await add(`'mine', 't', columns => '{id,v}'`)
      expect(await failureOf(add(`'default', 't'`))).toMatchObject({ sqlstate: 'ST126' })
    })
  })

  it('a table without a key is refused where updates are replicated, and taken where they are not', async () => {
    await conn.exec(`create table keyless (id int); create table d (id int primary key deferrable);
      select sterna.repset_drop('mine', true); select sterna.repset_create('mine')`)
    for (const [table, why] of [
      ['keyless', 'it has no primary key'],
      ['d', 'its primary key is deferrable'],
    ])
      expect(await failureOf(add(`'mine', '${table}'`))).toMatchObject({
        sqlstate: 'ST123',
        message: `table s.${table} cannot be in replication set "mine": ${why}`,
        hint: expect.stringContaining('default_insert_only'),
      })
    await add(`'default_insert_only', 'keyless'`)
    expect(await tables()).toMatchObject({
      keyless: 'default_insert_only; insert only; it has no primary key',
    })
  })

  it('a partition cannot be taken out by itself', async () => {
    await conn.exec(`create table p (id int primary key) partition by range (id);
      create table p1 partition of p for values from (0) to (10)`)
    await autoJoin('p')
    expect(await failureOf(conn.query(`select sterna.repset_remove_table('default', 'p1')`))).toMatchObject({
      sqlstate: 'ST124',
    })
    await conn.exec(`select sterna.repset_remove_table('default', 'p')`)
    await add(`'default', 'p1'`)
    expect(await tables()).toEqual({ p: '; no; it was taken out of the default sets', p1: 'default; all' })
    await autoJoin('p1')
    expect(await tables()).toMatchObject({ p1: 'default; all' })
    await conn.exec(`select sterna.repset_remove_table('default', 'p')`)
    expect(await tables()).toMatchObject({ p1: '; no; it is in no replication set' })
  })

  it('a lost key is warned of where the table is in a set of the user', async () => {
    await conn.exec(`create table t (id int primary key);
      select sterna.repset_drop('mine', true); select sterna.repset_create('mine'); select sterna.repset_add_table('mine', 't');
      alter table t drop constraint t_pkey`)
    const warnings: string[] = []
    conn.onNotice = (notice) => warnings.push(`${notice.severity} ${notice.message}`)
    await autoJoin('t')
    expect(warnings).toEqual(['WARNING table s.t is in replication set "mine", but it has no primary key'])
  })

  it('names that need quotes', async () => {
    await conn.exec(`create table "We""ird Täble" (id int primary key)`)
    await autoJoin('"We""ird Täble"')
    await conn.exec(`select sterna.repset_remove_table('default', '"We""ird Täble"')`)
    await add(`'default', '"We""ird Täble"', row_filter => 'id > 0'`)
    expect(await tables()).toEqual({ 'We"ird Täble': 'default; all' })
  })
})

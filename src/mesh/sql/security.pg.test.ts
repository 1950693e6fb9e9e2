import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

/** What an ordinary role may read. All the rest of the schema it may not touch. */
const READABLE = ['lag', 'nodes', 'sequences', 'status', 'tables']

/** What an ordinary role may call: what those views and the functions of table owners call; nothing that changes anything. */
const CALLABLE = [
  'apply_as_owner',
  'apply_as_owner_now',
  'mask_dsn',
  'meeting',
  'met_none',
  'met_row',
  'record_meeting',
  'second_look',
  'sequence_stride',
  'sequence_unfit',
  'sequence_value',
  'sub_show_status',
  'table_key_problem',
  'table_unsupported',
  'version_not_greater',
]

describe.each(MATRIX)('an ordinary role on version %s', (version) => {
  let servers: TestServers
  let owner: PgConnection
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    const { dsn } = servers.nodes[0]!
    owner = await PgConnection.connect(dsn)
    await installSchema(owner)
    await owner.exec(`select sterna.node_create('n1', 'host=x password=secret');
      select sterna.sub_create('s', 'host=y password=secret'); create role ordinary login password 'o'`)
    await owner.exec('create schema mine authorization ordinary')
    conn = await PgConnection.connect(dsn.replace('sterna:sterna@', 'ordinary:o@'))
    await conn.exec('set search_path = mine')
  })
  afterAll(async () => {
    await Promise.all([conn.close(), owner.close()])
    await servers.stop()
  })

  it('may call nothing but what is on the list', async () => {
    const { rows } = await conn.query<{ name: string; call: string; strict: boolean; allowed: boolean }>(
      `select p.proname::text as name, has_function_privilege(p.oid, 'execute') as allowed, p.proisstrict as strict,
         format('%s sterna.%I(%s)', case when p.prokind = 'p' then 'call' else 'select' end, p.proname,
           (select string_agg('null::' || format_type(case a.type when 'anyelement'::regtype then 'integer'::regtype else a.type end, null), ', ' order by a.position)
              from unnest(case when p.prokind = 'p' then coalesce(p.proallargtypes, p.proargtypes::oid[]) else p.proargtypes::oid[] end)
                   with ordinality as a(type, position))) as call
       from pg_catalog.pg_proc p where p.pronamespace = 'sterna'::regnamespace order by 1`,
    )
    expect(rows.length).toBeGreaterThan(40)
    expect(rows.filter((row) => row.allowed).map((row) => row.name)).toEqual(CALLABLE)
    // A strict function of null is null, without being called.
    for (const row of rows.filter((each) => !CALLABLE.includes(each.name) && !each.strict))
      expect({ ...(await failureOf(conn.query(row.call))), call: row.call }).toMatchObject({
        call: row.call,
        sqlstate: '42501',
      })
  })

  it('may read nothing but what is on the list, and write nothing', async () => {
    const { rows } = await conn.query<{ name: string; kind: string }>(
      `select c.relname::text as name, c.relkind::text as kind from pg_catalog.pg_class c
        where c.relnamespace = 'sterna'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') order by 1`,
    )
    expect(rows.length).toBeGreaterThan(15)
    const readable: string[] = []
    for (const { name, kind } of rows) {
      const statements = [
        `delete from sterna.${name}`,
        `insert into sterna.${name} default values`,
        `select 1 from sterna.${name} for update`,
        `truncate sterna.${name}`,
      ]
      if (kind === 'S') statements.splice(0, 4, `select nextval('sterna.${name}')`)
      for (const sql of statements) {
        const failure = await failureOf(conn.query(sql))
        expect({ sql, ...failure }).toMatchObject({
          sql,
          sqlstate: expect.stringMatching(kind === 'v' ? /^(42501|55000|0A000|42809)$/ : /^42501$/),
        })
      }
      const read = await conn.query(`select 1 from sterna.${name}`).then(
        () => true,
        () => false,
      )
      if (read) readable.push(name)
      const columns = await conn.row(
        `select has_any_column_privilege($1::regclass, 'insert, update, references') as any`,
        [`sterna.${name}`],
      )
      if (kind !== 'S') expect({ name, ...columns }).toEqual({ name, any: false })
    }
    expect(readable).toEqual(READABLE)
  })

  it('may put nothing into the schema, and change nothing of it', async () => {
    for (const sql of [
      'create table sterna.x ()',
      'create function sterna.x() returns int language sql return 1',
      'drop view sterna.status',
      'alter table sterna.node add x int',
      'create trigger t after insert on sterna.node execute function sterna.notify_agent()',
    ])
      expect({ sql, ...(await failureOf(conn.query(sql))) }).toMatchObject({ sql, sqlstate: '42501' })
  })

  it('sees no password in what it may read', async () => {
    for (const view of READABLE) {
      const { rows } = await conn.query<{ row: string }>(`select v::text as row from sterna.${view} v`)
      expect(rows.map(({ row }) => row).join('\n')).not.toContain('secret')
    }
    const { rows } = await conn.query<{ name: string }>(
      'select subscription_name as name from sterna.sub_show_status()',
    )
    expect(rows).toEqual([{ name: 's' }])
  })

  it('every function has a search path of its own, except those that look at the caller’s and say so', async () => {
    const { rows } = await owner.query<{ name: string }>(
      `select p.proname::text as name from pg_catalog.pg_proc p
        where p.pronamespace = 'sterna'::regnamespace
          and not exists (select from unnest(p.proconfig) as c(entry) where c.entry = 'search_path=pg_catalog, pg_temp')
        order by 1`,
    )
    const lookAtCallers = new Set([
      'ddl_apply',
      'on_alter_table',
      'on_ddl_end',
      'on_ddl_start',
      'review_resolve',
    ])
    expect(rows.map(({ name }) => name).filter((name) => !lookAtCallers.has(name))).toEqual([])
  })

  it('its own objects of the same names change nothing', async () => {
    await conn.exec(`create function mine.mask_dsn(text) returns text language sql as 'select $1'`)
    await conn.exec('create table mine.local_node (node_id int)')
    await conn.exec('set search_path = mine, pg_catalog')
    const { rows } = await conn.query<{ dsn: string }>('select dsn from sterna.nodes')
    expect(rows).toEqual([{ dsn: 'host=x password=********' }])
    await conn.exec('set search_path = mine')
  })
})

import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { SternaError } from '../../src/core/errors.ts'
import { PgConnection } from '../../src/postgres/connection.ts'
import { ServerError } from '../../src/postgres/server-error.ts'
import { failureOf } from '../harness/failure.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'

/*
 * Scenario 28: a role without privileges on one node calls every function and writes every table of schema sterna that it
 * can reach, and emits logical messages. It can neither change another node nor read what it may not. What it can do with
 * tables of its own is in untrusted-code.test.ts.
 */

const SECRET = 'the word that nobody may read'

const PREPARE = `
  create role ordinary login password 'o'; create schema mine authorization ordinary;
  create table forbidden (id int primary key, v text); insert into forbidden values (1, 'as it was');
  create table readable (id int primary key, v text); insert into readable values (1, 'as it was'); grant select on readable to ordinary;
  set role ordinary;
  create table mine.t (id int primary key, v text); insert into mine.t values (1, 'a'), (2, 'b');
  create table mine.heartbeat (node_id int primary key, beat_at timestamptz, complete_until timestamptz);
  create table mine.ddl_queue (node_id int, ddl_id bigint, role_name text, search_path text, command_tag text, command text, primary key (node_id, ddl_id));
  reset role`

/** Tables that change by themselves. */
const RESTLESS = 'heartbeat|_mark$|^(agent|subscription|clock)_state$|^sync_event$'

/** Calls of functions that every role may call, as a session that applies would make them, but made up. */
const FORGED_CALLS = [
  `sterna.met_row(t, t, t.xmin, '2099-01-01', 2, 'update') from readable t`,
  `sterna.met_row(t, null::readable, t.xmin, now(), 1, 'delete') from readable t`,
  `sterna.met_row(t, t, t.xmin, '2099-01-01', 2, 'update') from mine.t t`,
  `sterna.met_none(t, 'readable'::regclass, '2099-01-01', 2) from readable t`,
  `sterna.met_none(t, 'mine.t'::regclass, '2099-01-01', 2) from mine.t t`,
  `sterna.second_look('readable'::regclass, '2099-01-01', 2)`,
  `sterna.met_tombstone('readable'::regclass, '{"id": "1"}', 'readable'::regclass, 1)`,
  `sterna.version_not_greater('0'::xid, '2099-01-01', 3)`,
  `sterna.sub_show_status('sub_n1_n2')`,
  `sterna.apply_as_owner(null::readable)`,
  `sterna.mask_dsn('host=x password=y')`,
]

/** Rows that another node would believe. */
const FORGED_ROWS = [
  `insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, complete_until) values (2, '2099-01-01', 1, '0/1', '2099-01-01')`,
  `update sterna.heartbeat set complete_until = '2099-01-01'`,
  `insert into sterna.ddl_queue (node_id, ddl_id, role_name, search_path, command_tag, command)
     values (1, 999999, 'sterna', 'public', 'DROP TABLE', 'drop table forbidden')`,
  `update sterna.ddl_queue set role_name = 'sterna', command = 'drop table forbidden'`,
  `insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts)
     values (1, 'public', 'forbidden', 'delete', '{"id": "1"}', '{}')`,
  `insert into sterna.review_closure (node_id, schema_name, table_name, reason, key, resolution, up_to)
     values (1, 'public', 'forbidden', 'manual', '{"id": "1"}', 'dismiss', '2099-01-01')`,
  `insert into sterna.definition (node_id, kind, schema_name, table_name, body, state)
     values (1, 'policy', 'public', 'forbidden', '{"policy": "merge", "function": "mine.f"}', 'active')`,
  `insert into sterna.definition_step (definition_id, node_id, step) select gen_random_uuid(), 2, 'active'`,
  `insert into sterna.sync_event values (1, 999999, now())`,
  `update sterna.node set dsn = 'host=attacker'`,
  `update sterna.subscription set provider_dsn = 'host=attacker'`,
  `insert into sterna.subscription (sub_name, provider_dsn, replication_sets) values ('x', 'host=attacker', '{default}')`,
  `insert into sterna.setting values ('x', 'y')`,
  `insert into sterna.tombstone (table_oid, key_hash, key) values ('forbidden'::regclass, 1, '[]')`,
  `delete from sterna.tombstone`,
  `insert into sterna.policy (table_oid, policy) values ('forbidden'::regclass, 'merge')`,
  `insert into sterna.aside (table_oid, key_hash, table_name, key, row_values) values (1, 1, 'x', '{}', '{}')`,
  `delete from sterna.exception`,
]

/** Ways around: objects of its own that lead into the schema. */
const DETOURS = [
  `create table sterna.x ()`,
  `create function sterna_apply.x() returns int language sql return 1`,
  `create table mine.child () inherits (sterna.ddl_queue)`,
  `alter table mine.ddl_queue inherit sterna.ddl_queue`,
  `alter table mine.ddl_queue set schema sterna`,
  `create rule r as on insert to sterna.heartbeat do instead nothing`,
  `create trigger t after insert on sterna.heartbeat for each row execute function sterna.notify_agent()`,
  `create trigger t after insert on mine.t for each row execute function sterna.on_review_closure()`,
  `create trigger t before insert on mine.t for each row execute function sterna.on_review()`,
  `create table mine.refers (id int references sterna.node)`,
  `alter publication sterna_internal add table mine.heartbeat`,
  `alter publication sterna_ddl_sql add table mine.ddl_queue`,
  `drop publication sterna_default`,
  `create publication sterna_x for table mine.t`,
  `create event trigger e on ddl_command_end execute function sterna.on_ddl_end()`,
  `grant all on sterna.ddl_queue to ordinary`,
  `alter schema sterna owner to ordinary`,
  `set role sterna`,
  `set session authorization sterna`,
  `set session_replication_role = replica`,
  `do 'begin lock table sterna.heartbeat in access exclusive mode; end'`,
  `copy sterna.ddl_queue to stdout`,
  `copy (select 1) to program 'true'`,
  `create table mine.copied as select * from forbidden`,
  `select pg_replication_origin_session_setup(roname) from pg_replication_origin limit 1`,
  `select pg_replication_origin_advance(roname, 'FFFFFFFF/0') from pg_replication_origin`,
  `select pg_replication_origin_drop(roname) from pg_replication_origin`,
  `select pg_replication_origin_xact_setup('0/1', '2099-01-01')`,
  `select pg_drop_replication_slot(slot_name) from pg_replication_slots`,
  `select pg_logical_slot_peek_binary_changes(slot_name, null, null) from pg_replication_slots`,
  `select pg_create_logical_replication_slot('x', 'pgoutput')`,
  `select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'sterna %'`,
  `select pg_read_file('PG_VERSION')`,
]

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`a role without privileges, ${layout.name}`, () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let attacker: PgConnection
  const before = new Map<string, unknown>()

  beforeAll(async () => {
    const versions = layout.versions.slice(0, 3)
    mesh = await startMesh({ count: versions.length, version: versions, schema: PREPARE })
    n1 = mesh.nodes[0]!
    // Entries as apply makes them, with row data that the role may not read. Nothing retries the exception.
    for (const node of mesh.nodes)
      await node.exec(`
        insert into sterna.conflict_history (conflict_type, table_oid, table_name, key, local_row, remote_row, remote_version, resolution)
          values ('update_origin_differs', 'forbidden'::regclass, 'public.forbidden', '{"id": "1"}', '{"v": "${SECRET}"}', null,
                  row('2026-01-01', 3)::sterna.row_version, 'keep_local');
        insert into sterna.review (reason, table_oid, table_name, key, local_row)
          values ('manual', 'forbidden'::regclass, 'public.forbidden', '{"id": "1"}', '{"v": "${SECRET}"}');
        insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_oid, table_name, operation, key, new_row, version)
          values ('transaction', 999, '0/1', 1, 'forbidden'::regclass, 'public.forbidden', 'insert', '{"id": "2"}', '{"v": "${SECRET}"}',
                  row('2026-01-01', 999)::sterna.row_version);
        analyze sterna.conflict_history, sterna.review, sterna.exception`)
    await mesh.settle()
    attacker = await PgConnection.connect(n1.dsn.replace('sterna:sterna@', 'ordinary:o@'))
    await attacker.exec(
      `set statement_timeout = '10s'; set lock_timeout = '2s'; set search_path = mine, public`,
    )
    for (const node of mesh.nodes) before.set(node.name, await stateOf(node))
  })
  afterAll(async () => {
    await attacker?.close()
    await mesh?.stop()
  })

  /** Everything that the role must not change: the tables of others, and what Sterna knows, as sorted rows. */
  const stateOf = async (node: MeshTestNode): Promise<unknown> => {
    const tables = await node.query<{ name: string }>(
      `select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind = 'r' and n.nspname in ('public', 'sterna') and c.relname !~ $1 order by 1`,
      [RESTLESS],
    )
    expect(tables.length).toBeGreaterThan(20)
    const state: Record<string, unknown> = {}
    for (const { name } of tables) {
      const rows = await node.query<{ row: string }>(
        `select t::text as row from ${name} t ${name === 'sterna.ddl_queue' ? "where role_name <> 'ordinary'" : ''} order by 1`,
      )
      state[name] = rows.map(({ row }) => row)
    }
    state['objects'] = await node.query(
      `select c.oid::regclass::text as name, c.relacl::text as rights, pg_get_userbyid(c.relowner) as owner
         from pg_class c where c.relnamespace in ('public'::regnamespace, 'sterna'::regnamespace, 'sterna_apply'::regnamespace)
          and c.relname !~ '^pg_toast' order by 1`,
    )
    state['publications'] = await node.query(
      `select p.pubname::text as name, t.tablename::text as member from pg_publication p
         left join pg_publication_tables t using (pubname) order by 1, 2`,
    )
    state['roles'] = await node.query(
      'select rolname::text as name, rolsuper, rolreplication from pg_roles order by 1',
    )
    return state
  }

  const refusalOf = async (sql: string): Promise<{ sql: string; sqlstate: string }> => {
    const { sqlstate } = await failureOf(attacker.query(sql))
    return { sql, sqlstate }
  }

  it('may call nothing that does anything', async () => {
    const { rows } = await attacker.query<{ call: string; allowed: boolean }>(
      `select has_function_privilege(p.oid, 'execute') and has_schema_privilege(p.pronamespace, 'usage') as allowed,
              format('%s %I.%I(%s)', case p.prokind when 'p' then 'call' else 'select' end, n.nspname, p.proname,
                (select string_agg('null::' || format_type(case a.type when 'anyelement'::regtype then 'integer'::regtype else a.type end, null), ', ' order by a.position)
                   from unnest(case p.prokind when 'p' then coalesce(p.proallargtypes, p.proargtypes::oid[]) else p.proargtypes::oid[] end)
                        with ordinality as a(type, position))) as call
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('sterna', 'sterna_apply') and not p.proisstrict order by 2`,
    )
    expect(rows.length).toBeGreaterThan(100)
    for (const { call, allowed } of rows)
      if (!allowed) expect(await refusalOf(call)).toEqual({ sql: call, sqlstate: '42501' })
      else await attempt(call)
    for (const call of FORGED_CALLS) await attempt(`select ${call}`)
    for (const call of FORGED_CALLS.filter((each) => /met_|second_look/.test(each)))
      expect(await refusalOf(`select ${call}`)).toEqual({ sql: `select ${call}`, sqlstate: '42501' })
  })

  it('may write no table, nor a row that another node would believe', async () => {
    const { rows } = await attacker.query<{ name: string }>(
      `select relname::text as name from pg_class where relnamespace = 'sterna'::regnamespace and relkind in ('r', 'p') order by 1`,
    )
    for (const { name } of rows)
      for (const sql of [
        `insert into sterna.${name} default values`,
        `delete from sterna.${name}`,
        `truncate sterna.${name}`,
        `select 1 from sterna.${name}`,
      ])
        expect(await refusalOf(sql)).toEqual({ sql, sqlstate: '42501' })
    for (const sql of FORGED_ROWS) expect(await refusalOf(sql)).toEqual({ sql, sqlstate: '42501' })
  })

  it('finds no way around', async () => {
    for (const sql of DETOURS) {
      const failure = await refusalOf(sql)
      expect(failure).toEqual({ sql, sqlstate: expect.stringMatching(/^(42501|42809|42P17)$/) })
    }
    const replication = PgConnection.connect(n1.dsn.replace('sterna:sterna@', 'ordinary:o@'), {
      parameters: { replication: 'database' },
    })
    await expect(replication.then((conn) => conn.close())).rejects.toThrow(SternaError)
  })

  it('reads nothing of what others wrote, not by views, statistics or what sessions do', async () => {
    for (const view of [
      'conflict_list',
      'review_list',
      'exception_list',
      'rows_aside',
      'resolutions',
      'conflict_history',
      'review',
      'exception',
      'aside',
      'subscription',
      'node',
      'row_message',
    ])
      expect(await refusalOf(`select 1 from sterna.${view}`)).toMatchObject({ sqlstate: '42501' })
    for (const sql of [
      `select s::text as text from pg_stats s where schemaname = 'sterna'`,
      `select query as text from pg_stat_activity where usename <> current_user`,
      `select t::text as text from sterna.tables t union all select s::text from sterna.status s union all select n::text from sterna.nodes n
         union all select l::text from sterna.lag l union all select q::text from sterna.sequences q`,
      `select description as text from pg_description`,
      `select prosrc as text from pg_proc where pronamespace in ('sterna'::regnamespace, 'mine'::regnamespace)`,
    ]) {
      const { rows } = await attacker.query<{ text: string | null }>(sql)
      const found = rows.map(({ text }) => text ?? '').join('\n')
      expect(found).not.toContain(SECRET)
      expect(found).not.toContain('sterna:sterna@')
    }
  })

  it('emits messages, notifies and sets whatever it likes', async () => {
    const payloads = [
      '{"node_id": 2, "complete_until": "2099-01-01"}',
      'drop table forbidden',
      `insert into forbidden values (2, 'x')`,
      '\\x00',
      '',
      'x'.repeat(100_000),
    ]
    for (const prefix of [
      'sterna',
      'sterna.heartbeat',
      'sterna_ddl',
      'sterna.ddl_queue',
      'ddl',
      'spock',
      'pgactive',
      'bdr',
      '',
    ])
      for (const payload of payloads)
        for (const transactional of [true, false])
          await attacker.query('select pg_logical_emit_message($1::boolean, $2, $3::text)', [
            transactional,
            prefix,
            payload,
          ])
    await attacker.exec(`notify sterna, 'subscription'; notify sterna; notify sterna, 'exception'`)
    for (const setting of [
      `sterna.change_time = '2099-01-01'`,
      `sterna.change_node = '2'`,
      `sterna.too_old = '1'`,
      `sterna.bookkeeping = 'on'`,
      `sterna.repair_mode = 'on'`,
      `sterna.careful = 'on'`,
      `application_name = 'sterna n1 sub_n1_n2 apply'`,
    ])
      await attacker.exec(`set ${setting}`)
    await attacker.exec(`update mine.t set v = v || 'x'; delete from mine.t where id = 2;
      insert into mine.heartbeat values (2, '2099-01-01', '2099-01-01');
      insert into mine.ddl_queue values (1, 1, 'sterna', 'public', 'DROP TABLE', 'drop table forbidden')`)
  })

  it('after all that nothing has changed on any node but its own tables, and the mesh replicates', async () => {
    await mesh.settle()
    const own = new Set(['sterna.tombstone', 'sterna.guarded'])
    for (const node of mesh.nodes) {
      const is = (await stateOf(node)) as Record<string, unknown>
      const was = before.get(node.name) as Record<string, unknown>
      for (const name of Object.keys(was))
        if (!own.has(name))
          expect({ node: node.name, [name]: is[name] }).toEqual({ node: node.name, [name]: was[name] })
      // A tombstone of its own table is all that is new.
      expect(
        await node.query(
          `select distinct table_oid::regclass::text as name from sterna.tombstone where table_oid <> 'mine.t'::regclass`,
        ),
      ).toEqual([])
    }
    for (const node of mesh.nodes)
      await node.query('insert into forbidden values ($1, $2)', [Number(node.name.slice(1)) * 10, node.name])
    await mesh.settle()
    const hashes = await expectIdentical(mesh.nodes)
    expect(hashes['public.forbidden']).toMatch(/^4 rows/)
    for (const node of mesh.nodes) {
      const rows = await node.query(
        `select status, last_error from sterna.sub_show_status() where status <> 'replicating' or last_error is not null`,
      )
      expect({ node: node.name, rows, ended: node.agent.ended }).toEqual({
        node: node.name,
        rows: [],
        ended: undefined,
      })
    }
  })

  /** Runs what it may run; whether it succeeds does not matter. */
  async function attempt(sql: string): Promise<void> {
    try {
      await attacker.query(sql)
    } catch (error) {
      if (!(error instanceof ServerError)) throw error
    }
  }
})

import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { maskDsn } from '../../postgres/dsn.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('subscriptions on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    await installSchema(conn)
    await conn.query(
      `select sterna.node_create('n1', 'postgresql://u:secret@h/app', info => '{"node_id": 1}')`,
    )
    await conn.query(`select sterna.peer_upsert(2, 'n2', 'host=n2 password=secret', 'eu', null, null)`)
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })
  beforeEach(() => conn.exec('delete from sterna.subscription; delete from sterna.slot_cleanup'))

  const show = async (columns: string): Promise<unknown> =>
    (await conn.query(`select ${columns} from sterna.sub_show_status()`)).rows

  it('has the signature of Spock, by position and by name, under both names', async () => {
    await conn.query(
      `select sterna.sub_create('a', 'host=a', '{default}', false, false, '{}', '1 hour', true, false, '{}')`,
    )
    await conn.query(
      `select sterna.subscription_create(subscription_name => 'b', provider_dsn => 'host=b', enabled => true)`,
    )
    const { rows } = await conn.query(
      `select sub_name::text as name, provider_dsn, replication_sets, apply_delay::text, force_text_transfer, enabled,
         initialized_at, slot_name from sterna.subscription order by 1`,
    )
    const fresh = { initialized_at: null, slot_name: null }
    expect(rows).toEqual([
      {
        ...fresh,
        name: 'a',
        provider_dsn: 'host=a',
        replication_sets: ['default'],
        apply_delay: '01:00:00',
        force_text_transfer: true,
        enabled: false,
      },
      {
        ...fresh,
        name: 'b',
        provider_dsn: 'host=b',
        replication_sets: ['default', 'default_insert_only', 'ddl_sql'],
        apply_delay: '00:00:00',
        force_text_transfer: false,
        enabled: true,
      },
    ])
    const signature = await conn.row(
      `select pg_get_function_arguments('sterna.sub_create'::regproc) = pg_get_function_arguments('sterna.subscription_create'::regproc) as same`,
    )
    expect(signature).toEqual({ same: true })
  })

  it.each([
    [`'A', 'host=x'`, 'ST132'],
    [`'', 'host=x'`, 'ST132'],
    [`null, 'host=x'`, 'ST132'],
    [`'a b', 'host=x'`, 'ST132'],
    [`'s', ''`, 'ST113'],
    [`'s', null`, 'ST113'],
    [`'s', ' postgresql://u:secret@h/app'`, 'ST133'],
    [`'taken', 'host=x'`, 'ST131'],
    [`'s', 'host=taken'`, 'ST131'],
    [`'s', 'host=x', '{}'`, 'ST135'],
    [`'s', 'host=x', null`, 'ST135'],
    [`'s', 'host=x', '{default,NULL}'`, 'ST135'],
    [`'s', 'host=x', '{"a;b"}'`, 'ST135'],
    [`'s', 'host=x', apply_delay => '-1 s'`, 'ST135'],
    [`'s', 'host=x', synchronize_data => true`, 'ST125'],
    [`'s', 'host=x', synchronize_structure => true`, 'ST134'],
    [`'s', 'host=x', forward_origins => '{all}'`, 'ST134'],
    [`'s', 'host=x', skip_schema => '{x}'`, 'ST134'],
  ])('sub_create(%s) is refused: %s', async (args, sqlstate) => {
    await conn.query(`select sterna.sub_create('taken', 'host=taken')`)
    const failure = await failureOf(conn.query(`select sterna.sub_create(${args})`))
    expect(failure).toMatchObject({ sqlstate, hint: expect.stringMatching(/\.$/) })
    expect(JSON.stringify(failure)).not.toContain('secret')
  })

  it('enable, disable, sets', async () => {
    await conn.query(`select sterna.sub_create('s', 'host=x')`)
    const state = async (): Promise<unknown> =>
      (await conn.query('select enabled, replication_sets as sets from sterna.subscription')).rows[0]
    const call = async (sql: string): Promise<unknown> =>
      (await conn.row<{ r: boolean }>(`select sterna.${sql} as r`))?.r
    expect(await call(`sub_disable('s', true)`)).toBe(true)
    expect(await call(`sub_add_repset('s', 'mine')`)).toBe(true)
    expect(await call(`sub_add_repset('s', 'mine')`)).toBe(false)
    expect(await call(`sub_remove_repset('s', 'ddl_sql')`)).toBe(true)
    expect(await call(`sub_remove_repset('s', 'ddl_sql')`)).toBe(false)
    expect(await state()).toEqual({ enabled: false, sets: ['default', 'default_insert_only', 'mine'] })
    expect(await call(`sub_enable('s')`)).toBe(true)
    expect(await call(`sub_remove_repset('s', 'default')`)).toBe(true)
    expect(await call(`sub_remove_repset('s', 'mine')`)).toBe(true)
    expect(await failureOf(call(`sub_remove_repset('s', 'default_insert_only')`))).toMatchObject({
      sqlstate: 'ST135',
    })
    expect(await failureOf(call(`sub_add_repset('s', 'No')`))).toMatchObject({ sqlstate: 'ST128' })
    for (const sql of [
      `sub_enable('x')`,
      `sub_disable('x')`,
      `sub_drop('x')`,
      `sub_add_repset('x', 'default')`,
      `sub_remove_repset('x', 'default')`,
    ])
      expect(await failureOf(call(sql))).toMatchObject({ sqlstate: 'ST130' })
  })

  it('sub_drop leaves its slot to the agent', async () => {
    await conn.query(
      `select sterna.sub_create('never_contacted', 'host=x'), sterna.sub_create('s', 'host=y')`,
    )
    await conn.exec(
      `update sterna.subscription set slot_name = 'sterna_app_s', origin_name = 'o', provider_node_name = 'n2' where sub_name = 's'`,
    )
    const same = await conn.row(
      `select sterna.sub_drop('never_contacted') as a, sterna.sub_drop('s') = sterna.subscription_id('s') as b,
              sterna.sub_drop('s', true) as c`,
    )
    expect(same).toMatchObject({ b: true, c: null })
    const { rows } = await conn.query(
      'select provider_dsn, slot_name::text, origin_name, provider_node_name::text, last_error from sterna.slot_cleanup',
    )
    expect(rows).toEqual([
      {
        provider_dsn: 'host=y',
        slot_name: 'sterna_app_s',
        origin_name: 'o',
        provider_node_name: 'n2',
        last_error: null,
      },
    ])
  })

  it('slot names have the characters and the length that PostgreSQL takes', async () => {
    const slot = async (database: string, name: string): Promise<string> =>
      (await conn.row<{ n: string }>('select sterna.slot_name_for($1, $2)::text as n', [database, name]))!.n
    expect(await slot('app', 'sub_n1_n2')).toBe('sterna_app_sub_n1_n2')
    expect(await slot('My-App', 'sub-1')).toBe('sterna_my_app_sub_1')
    expect(await slot('Größe', 's')).toBe('sterna_gr__e_s')
    const long = await Promise.all(['x', 'y'].map((end) => slot('d'.repeat(63), `${'s'.repeat(39)}${end}`)))
    expect(new Set(long).size).toBe(2)
    for (const name of long) {
      expect(name).toMatch(/^[a-z0-9_]{63}$/)
      const taken = await conn.row(
        `select slot_name = $1 as ok from pg_create_physical_replication_slot($1)`,
        [name],
      )
      expect(taken).toEqual({ ok: true })
      await conn.query('select pg_drop_replication_slot($1)', [name])
    }
  })

  it('status follows definition, agent and age', async () => {
    await conn.query(`select sterna.sub_create('s', 'host=x password=secret')`)
    const seen = 'status, last_error_code as code, lag_bytes'
    expect(await show(seen)).toEqual([{ status: 'initializing', code: null, lag_bytes: null }])
    await conn.exec(`update sterna.subscription set created_at = now() - interval '1 minute'`)
    expect(await show(seen)).toEqual([{ status: 'initializing', code: 'AGENT_NOT_RUNNING', lag_bytes: null }])
    await conn.exec('update sterna.subscription set initialized_at = now()')
    expect(await show('status, last_error, hint')).toEqual([
      {
        status: 'down',
        last_error: 'the agent of this node is not running',
        hint: expect.stringContaining('sterna agent --node n1'),
      },
    ])
    await conn.exec(
      `insert into sterna.subscription_state (sub_name, status, lag_bytes, last_error_code, conflicts)
       values ('s', 'catching_up', 5, 'X', '{"update_missing": 2}')`,
    )
    expect(await show(`${seen}, conflicts, transactions`)).toEqual([
      { status: 'catching_up', code: 'X', lag_bytes: 5n, conflicts: { update_missing: 2 }, transactions: 0n },
    ])
    await conn.exec(`update sterna.subscription_state set updated_at = clock_timestamp() - interval '16 s'`)
    expect(await show(seen)).toEqual([{ status: 'down', code: 'AGENT_NOT_RUNNING', lag_bytes: null }])
    await conn.query(`select sterna.sub_disable('s')`)
    expect(await show(seen)).toEqual([{ status: 'disabled', code: null, lag_bytes: null }])
    expect(
      (
        await conn.query(
          `select 1 from sterna.sub_show_status('s') union all select 2 from sterna.sub_show_status('t')`,
        )
      ).rows,
    ).toHaveLength(1)
    expect(
      JSON.stringify((await conn.query('select status.* from sterna.status')).rows, bigint),
    ).not.toContain('secret')
    expect(JSON.stringify((await conn.query('select nodes.* from sterna.nodes')).rows, bigint)).not.toContain(
      'secret',
    )
  })

  it.each([
    'postgresql://u:secret@h/db?sslmode=require',
    'postgresql://u:se@cr:et@h/db',
    'postgres://u:secret/secret@h/db',
    'postgres://h/db?user=u&password=secret&sslmode=x',
    'postgres://h/db?sslpassword=secret',
    'POSTGRES://u:secret@h/db',
    'host=h password=secret user=u',
    "host=h password = 'se cret' user=u",
    String.raw`password='se\'secret' host=h`,
    String.raw`password=x\ secret host=h`,
    "host=h password='secret",
  ])('mask_dsn(%s)', async (dsn) => {
    const masked = (await conn.row<{ m: string }>('select sterna.mask_dsn($1) as m', [dsn]))!.m
    expect(masked).toContain('********')
    expect(masked).not.toMatch(/secret|se cret|se@/)
    expect(masked).toMatch(/h/)
  })

  it('mask_dsn leaves what has no password, and agrees with the command line', async () => {
    for (const dsn of ['postgresql://u@h:5432/db?sslmode=require', 'host=h port=5433 user=u dbname=d', ''])
      expect(await conn.row('select sterna.mask_dsn($1) as m', [dsn])).toEqual({ m: dsn })
    for (const dsn of ['postgresql://u:p@h:1/d?sslmode=require', 'host=h password=p user=u'])
      expect(await conn.row('select sterna.mask_dsn($1) as m', [dsn])).toEqual({ m: maskDsn(dsn) })
  })

  describe('waiting', () => {
    const wait = (args: string): Promise<{ result: boolean } | undefined> =>
      conn.row(`call sterna.wait_for_sync_event(null, ${args})`)

    it('sync_event: its LSN is at or before the commit that carries it, and they rise', async () => {
      const first = await conn.row<{ lsn: string }>('select sterna.sync_event()::text as lsn')
      const order = await conn.row(
        `select $1::pg_lsn < pg_current_wal_insert_lsn() as before, sterna.sync_event() > $1::pg_lsn as rises`,
        [first!.lsn],
      )
      expect(order).toEqual({ before: true, rises: true })
      expect((await conn.query('select node_id, requests::int from sterna.sync_event')).rows).toEqual([
        { node_id: 1, requests: 2 },
      ])
    })

    it('wait_for_sync_event returns when the origin is there, and false when time is up', async () => {
      const started = performance.now()
      expect(await wait(`'n2', '0/100', 1`)).toEqual({ result: false })
      expect(performance.now() - started).toBeGreaterThan(950)
      const waiting = wait(`'n2', '0/100'`)
      const other = await PgConnection.connect(servers.nodes[0]!.dsn)
      await other.query(`select pg_replication_origin_create(sterna.origin_name(2))`)
      await other.query(`select pg_replication_origin_advance(sterna.origin_name(2), '0/100')`)
      expect(await waiting).toEqual({ result: true })
      expect(await wait(`2::oid, '0/101', 1`)).toEqual({ result: false })
      expect(await wait(`2::oid, '0/100', 1`)).toEqual({ result: true })
      await other.query(`select pg_replication_origin_drop(sterna.origin_name(2))`)
      await other.close()
    })

    it('wait_for_sync_event: this node is there already; others must be known', async () => {
      expect(await wait(`'n1', '0/100', 1`)).toEqual({ result: true })
      for (const origin of [`'n9'`, '9', 'null::name', '0'])
        expect(await failureOf(wait(`${origin}, '0/100', 1`))).toMatchObject({ sqlstate: 'ST108' })
      expect(await failureOf(wait(`'n2', null, 1`))).toMatchObject({ sqlstate: 'ST135' })
    })

    it('wait_slot_confirm_lsn waits for the slots of this database', async () => {
      await conn.query('select sterna.wait_slot_confirm_lsn(null, null)')
      expect(await failureOf(conn.query(`select sterna.wait_slot_confirm_lsn('nope', null)`))).toMatchObject({
        sqlstate: 'ST140',
      })
      await conn.query(`select pg_create_logical_replication_slot('sterna_app_s', 'pgoutput')`)
      await conn.query(`select sterna.wait_slot_confirm_lsn('sterna_app_s', '0/1')`)
      await conn.query('select sterna.sync_event()')
      const target = (await conn.row<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn'))!.lsn
      const waiting = conn.query('select sterna.wait_slot_confirm_lsn(null, $1)', [target])
      const other = await PgConnection.connect(servers.nodes[0]!.dsn)
      let done = false
      void waiting.then(() => (done = true))
      await other.query('select pg_sleep(0.1)')
      expect(done).toBe(false)
      await other.query(`select pg_replication_slot_advance('sterna_app_s', $1)`, [target])
      await waiting
      await other.query(`select pg_drop_replication_slot('sterna_app_s')`)
      await other.close()
    })
  })
})

function bigint(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value
}

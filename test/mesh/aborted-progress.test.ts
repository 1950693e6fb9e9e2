import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'

/**
 * From PostgreSQL 16 on, a transaction that aborts after pg_replication_origin_xact_setup moves the origin's progress: a
 * transaction that was never applied then looks applied.
 */
describe('a transaction that failed is not taken for applied', () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({
      count: 2,
      schema: 'create table t (id int primary key, v int); create table log (v int)',
    })
  })
  afterAll(() => mesh.stop())

  it('after a change that the subscriber refuses for a while', async () => {
    const [n1, n2] = [mesh.nodes[0]!, mesh.nodes[1]!]
    await n2.exec('set sterna.ddl_replication = off; alter table t add constraint small check (v < 100)')
    await n1.exec('begin; insert into log values (1); insert into t values (1, 500); commit')
    await n1.query('insert into t values (2, 2)')
    // Refused once, then applied again one by one: what is refused waits, what came behind it has been applied.
    await waitUntil(
      'the refused change waits',
      async () => (await n2.query('select from sterna.exception')).length === 1,
    )
    await mesh.settle()
    expect(await n2.query('select id, v from t order by id')).toEqual([{ id: 2, v: 2 }])
    await n2.exec('alter table t drop constraint small')
    await n2.query('select sterna.exception_retry()')
    await waitUntil(
      'it is retried',
      async () => (await n2.query('select from sterna.exception')).length === 0,
    )
    expect(await n2.query('select id, v from t order by id')).toEqual([
      { id: 1, v: 500 },
      { id: 2, v: 2 },
    ])
    expect(await n2.query('select v from log')).toEqual([{ v: 1 }])
  })

  it('after a session that ended between its last statement and its commit', async () => {
    const [n1, n2] = [mesh.nodes[0]!, mesh.nodes[1]!]
    await mesh.settle()
    await n2.agent.kill9()
    await n1.query('insert into log values (7)')
    const [pending] = await n1.query<{ lsn: string; time: string }>(
      `select '0/0'::pg_lsn + ('x' || encode(substring(c.data from 2 for 8), 'hex'))::bit(64)::bigint as lsn,
              ('x' || encode(substring(c.data from 10 for 8), 'hex'))::bit(64)::bigint::text as time
         from pg_logical_slot_peek_binary_changes('sterna_app_sub_n2_n1', null, null,
              'proto_version', '1', 'publication_names', 'sterna_default,sterna_default_insert_only') c
        where get_byte(c.data, 0) = ascii('B') order by 1 desc limit 1`,
    )
    const session = await PgConnection.connect(n2.dsn)
    const [origin] = await n2.query<{ name: string }>('select sterna.origin_name(1) as name')
    await waitUntil('the old session is gone', async () => {
      await session.query('select pg_replication_origin_session_setup($1)', [origin!.name])
      return true
    })
    await session.exec('begin')
    await session.query(
      `select pg_current_xact_id(),
              pg_replication_origin_xact_setup($1::pg_lsn, '2000-01-01 00:00:00+00'::timestamptz + $2::bigint * interval '1 microsecond')`,
      [pending!.lsn, pending!.time],
    )
    await session.exec('rollback')
    await session.close()
    await n2.agent.start()
    await mesh.settle()
    expect(await n2.query('select v from log order by v')).toEqual([{ v: 1 }, { v: 7 }])
  })

  it('and one that was applied is not applied again', async () => {
    const [n1, n2] = [mesh.nodes[0]!, mesh.nodes[1]!]
    for (let round = 0; round < 5; round++) {
      await n1.query('insert into log values (8)')
      await waitUntil(
        'applied',
        async () => (await n2.query('select from log where v = 8')).length === round + 1,
      )
      await n2.agent.kill9()
      await n2.agent.start()
    }
    await mesh.settle()
    expect(await n2.query('select v from log where v = 8')).toHaveLength(5)
  })
})

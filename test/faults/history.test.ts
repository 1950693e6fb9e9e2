import { execFileSync } from 'node:child_process'

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import { installSchema } from '../../src/mesh/schema.ts'
import { PgConnection } from '../../src/postgres/connection.ts'
import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { startServers, type ServerVersion } from '../harness/servers.ts'
import { waitUntil } from '../harness/wait.ts'
import { becomes, downWith, expectClean, only, replicates, startFaultMesh, statusOf } from './rig.ts'

const SCHEMA = 'create table t (id int primary key, v text); create table s (id int primary key, v text)'

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode

async function start(version: ServerVersion): Promise<void> {
  mesh = await startFaultMesh({ count: 2, version, schema: SCHEMA })
  ;[n1, n2] = mesh.nodes as [MeshTestNode, MeshTestNode]
}

async function stop(): Promise<void> {
  try {
    await expectClean(mesh)
  } finally {
    await mesh.stop()
  }
}

const slotCount = `select count(*)::int from pg_replication_slots`

describe.each(['18', '17'] as const)('on PostgreSQL %s', (version) => {
  beforeAll(() => start(version))
  afterAll(stop)

  test('a new set joins a running subscription under load: all that is written after that arrives', async () => {
    for (const node of [n1, n2]) await node.query(`select sterna.repset_remove_table('default', 's')`)
    let stopped = false
    let id = 0
    const writer = await PgConnection.connect(n2.dsn, { applicationName: 'test load' })
    onTestFinished(() => writer.close())
    onTestFinished(() => void (stopped = true))
    const load = (async () => {
      while (!stopped) await writer.query('insert into t values ($1, $2)', [++id, 'load'])
    })()
    for (let round = 0; round < 5; round++) {
      const set = `extra_${round}`
      await n2.query('select sterna.repset_create($1)', [set])
      await n2.query(`select sterna.repset_add_table($1, 's')`, [set])
      await n1.query(`select sterna.sub_add_repset('sub_n1_n2', $1)`, [set])
      const from = round * 1000
      for (let i = 0; i < 100; i++) await n2.query('insert into s values ($1, $2)', [from + i, set])
      await becomes(n1, `select count(*)::int from s where v = '${set}'`, 100)
      await n1.query(`select sterna.sub_remove_repset('sub_n1_n2', $1)`, [set])
      await n2.query('select sterna.repset_drop($1)', [set])
    }
    stopped = true
    await load
    await becomes(n1, 'select count(*)::int from t', id)
    expect(await only(n1, 'select count(*)::int from s')).toBe(500)
    await replicates(n1, 'sub_n1_n2')
  })

  test('a subscription is dropped while its provider is away: its slot is dropped when that is back', async () => {
    await n2.server.stop()
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await waitUntil('the agent has tried', async () =>
      Boolean(await only(n1, 'select max(last_error) is not null from sterna.slot_cleanup')),
    )
    const [left] = await n1.query('select slot_name::text, last_error from sterna.slot_cleanup')
    expect(left).toMatchObject({ slot_name: 'sterna_app_sub_n1_n2' })
    expect(left!['last_error']).toContain('cannot reach')
    const beats = Number(
      await only(n1, 'select beats from sterna.heartbeat join sterna.local_node using (node_id)'),
    )
    await waitUntil('it goes on beating', async () => {
      return (
        Number(await only(n1, 'select beats from sterna.heartbeat join sterna.local_node using (node_id)')) >
        beats + 10
      )
    })
    expect(n1.agent.log.split('slot cannot be dropped yet').length).toBeLessThan(8)
    await n2.server.start()
    expect(await only(n2, slotCount)).toBe(1)
    await becomes(n2, slotCount, 0)
    await becomes(n1, 'select count(*)::int from sterna.slot_cleanup', 0)
    expect(await only(n1, `select count(*)::int from pg_replication_origin`)).toBe(0)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    await replicates(n1, 'sub_n1_n2')
  })
})

describe('a provider that is not what it was', () => {
  beforeAll(() => start('18'))
  afterAll(stop)

  test('another server stands in its place: PROVIDER_REPLACED, and nothing of it is taken', async () => {
    const other = await startServers({ count: 1 })
    onTestFinished(() => other.stop())
    const { dsn } = other.nodes[0]!
    const conn = await PgConnection.connect(dsn)
    onTestFinished(() => conn.close())
    await conn.exec(SCHEMA)
    await installSchema(conn)
    await conn.query(`select sterna.node_create('n2', $1, info => '{"node_id": 2}')`, [dsn])
    await n1.query(`update sterna.subscription set provider_dsn = $1 where sub_name = 'sub_n1_n2'`, [dsn])
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'PROVIDER_REPLACED')
    expect(message).toContain('sub_n1_n2')
    expect(hint).toContain('drop the subscription')
    await conn.exec(`insert into public.t values (666, 'of a stranger')`)
    expect((await conn.row<{ n: number }>('select count(*)::int as n from pg_replication_slots'))!.n).toBe(0)
    await n1.query(`update sterna.subscription set provider_dsn = $1 where sub_name = 'sub_n1_n2'`, [n2.dsn])
    await replicates(n1, 'sub_n1_n2')
    expect(await only(n1, 'select count(*)::int from t where id = 666')).toBe(0)
  })

  test('it was restored from a backup: PROVIDER_REWOUND, even when its WAL has grown past that again', async () => {
    await n2.server.stop()
    const backup = `${n2.server.dataDir}.backup`
    execFileSync('cp', ['-a', n2.server.dataDir, backup])
    await n2.server.start()
    await n2.query(`insert into t select g, 'lost at n2' from generate_series(1000, 1999) g`)
    await becomes(n1, `select count(*)::int from t where v = 'lost at n2'`, 1000)
    await n2.server.stop()
    execFileSync('rm', ['-rf', n2.server.dataDir])
    execFileSync('mv', [backup, n2.server.dataDir])
    await n2.server.start()
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'PROVIDER_REWOUND')
    expect(message).toMatch(/WAL position [0-9A-F]+\/[0-9A-F]+, before [0-9A-F]+\/[0-9A-F]+/)
    expect(hint).toContain('Stop writing there')
    await n2.query(`insert into t select g, 'new at n2' from generate_series(3000, 9999) g`)
    await n1.agent.stop()
    await n1.query('update sterna.subscription_state set last_error_code = null')
    await n1.agent.start()
    await downWith(n1, 'sub_n1_n2', 'PROVIDER_REWOUND')
    expect(await only(n1, `select count(*)::int from t where v = 'new at n2'`)).toBe(0)
    expect((await statusOf(n1)).alarms.map(({ name }) => name)).toContain('subscription_down')

    // What the remedy says: equal data, then a new subscription.
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await becomes(n1, 'select count(*)::int from sterna.slot_cleanup', 0)
    for (const node of [n1, n2])
      await node.exec(`set session_replication_role = replica; delete from t; reset session_replication_role`)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    await replicates(n1, 'sub_n1_n2')
    await n2.query(`insert into t values (1, 'again')`)
    await becomes(n1, 'select v from t where id = 1', 'again')
  })

  test('its slot was dropped behind the back of the agent: SLOT_LOST', async () => {
    await n1.query(`select sterna.sub_disable('sub_n1_n2')`)
    await becomes(n2, `select bool_or(active) from pg_replication_slots`, false)
    await n2.query(`select pg_drop_replication_slot('sterna_app_sub_n1_n2')`)
    await n2.query(`insert into t values (2, 'nobody kept it')`)
    await n1.query(`select sterna.sub_enable('sub_n1_n2')`)
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'SLOT_LOST')
    expect(message).toContain('sterna_app_sub_n1_n2')
    expect(hint).toContain('create it again')
    // It is not made anew in silence: that would hide the hole.
    expect(await only(n2, slotCount)).toBe(0)
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await becomes(n1, 'select count(*)::int from sterna.slot_cleanup', 0)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    await replicates(n1, 'sub_n1_n2')
  })

  test('its slot was dropped while the stream ran', async () => {
    await n2.exec(
      `select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = 'sterna_app_sub_n1_n2'; select pg_drop_replication_slot('sterna_app_sub_n1_n2')`,
    )
    await downWith(n1, 'sub_n1_n2', 'SLOT_LOST')
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    await replicates(n1, 'sub_n1_n2')
  })

  test('dropped and created again at once, ten times: the clean-up never takes the new slot', async () => {
    for (let round = 0; round < 10; round++) {
      // In one transaction: the agent learns of both at once.
      await n1.exec(`select sterna.sub_drop('sub_n1_n2'); select sterna.sub_create('sub_n1_n2', '${n2.dsn}')`)
      await replicates(n1, 'sub_n1_n2')
    }
    await becomes(n1, 'select count(*)::int from sterna.slot_cleanup', 0)
    expect(await only(n2, slotCount)).toBe(1)
    await n2.query(`insert into t values (4, 'still followed')`)
    await becomes(n1, 'select v from t where id = 4', 'still followed')
  })

  test('it removed WAL that the slot needed: SLOT_LOST', async () => {
    await n1.agent.stop()
    await n2.exec(`alter system set max_slot_wal_keep_size = '1MB'`)
    await n2.exec('select pg_reload_conf()')
    for (let i = 0; i < 3; i++) {
      await n2.query(
        `insert into s select g, repeat('x', 1000) from generate_series(${i * 30_000}, ${i * 30_000 + 20_000}) g`,
      )
      await n2.exec('select pg_switch_wal()')
      await n2.exec('checkpoint')
    }
    await becomes(n2, `select wal_status from pg_replication_slots`, 'lost')
    await n1.agent.start()
    const { hint } = await downWith(n1, 'sub_n1_n2', 'SLOT_LOST')
    expect(hint).toContain('Make the data equal')
  })
})

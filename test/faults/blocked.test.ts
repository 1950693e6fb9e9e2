import { readFileSync } from 'node:fs'

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'
import { becomes, downWith, expectClean, only, replicates, shown, startFaultMesh, statusOf } from './rig.ts'

const RSS_LIMIT_MB = 300

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode

beforeAll(async () => {
  mesh = await startFaultMesh({
    count: 2,
    agentEnv: { STERNA_HEARTBEAT_INTERVAL_MS: '200', STERNA_SLOT_WAL_WARNING_MB: '100' },
    settings: { max_wal_size: '4GB' },
    schema: 'create table t (id int primary key, v text); create table big (id int primary key, v text)',
  })
  ;[n1, n2] = mesh.nodes as [MeshTestNode, MeshTestNode]
})
afterAll(async () => {
  try {
    await expectClean(mesh)
  } finally {
    await mesh.stop()
  }
})

/** One more session, which is closed at the end of the test. */
async function session(node: MeshTestNode): Promise<PgConnection> {
  const connection = await PgConnection.connect(node.dsn, { applicationName: 'test blocker' })
  onTestFinished(() => connection.close())
  return connection
}

function rssMb(node: MeshTestNode, what: 'VmRSS' | 'VmHWM'): number {
  const text = readFileSync(`/proc/${node.agent.pid}/status`, 'utf8')
  return Number(new RegExp(`${what}:\\s+(\\d+) kB`).exec(text)![1]) / 1024
}

/** Waits until an apply session of the node waits for a lock. */
async function appliedWaits(node: MeshTestNode): Promise<void> {
  await becomes(
    node,
    `select count(*) > 0 from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'`,
    true,
  )
}

describe('local transactions that stand in the way', () => {
  test('a lock on the row: apply waits for it, and is right then', async () => {
    await n2.query(`insert into t values (1, 'first')`)
    await becomes(n1, 'select v from t where id = 1', 'first')
    const blocker = await session(n1)
    await blocker.exec(`begin; update t set v = 'local, older' where id = 1`)
    await n2.query(`update t set v = 'remote, newer' where id = 1`)
    await appliedWaits(n1)
    expect(await only(n1, 'select v from t where id = 1')).toBe('first')
    // Not down: it only waits.
    expect((await shown(n1, 'sub_n1_n2')).last_error).toBeNull()
    await blocker.exec('commit')
    // The local transaction committed last and is the newer version, on both nodes.
    await mesh.settle()
    const values = await Promise.all([n1, n2].map((node) => only(node, 'select v from t where id = 1')))
    expect(values).toEqual(['local, older', 'local, older'])
  })

  test('a lock that is rolled back: the remote change stands', async () => {
    const blocker = await session(n1)
    await blocker.exec(`begin; delete from t where id = 1`)
    await n2.query(`update t set v = 'remote' where id = 1`)
    await appliedWaits(n1)
    await blocker.exec('rollback')
    await becomes(n1, 'select v from t where id = 1', 'remote')
  })

  test('a lock on the table, while the agent is killed and started again: nothing lost, nothing twice', async () => {
    const blocker = await session(n1)
    await blocker.exec('begin; lock table t')
    await n2.exec(`begin; insert into t values (10, 'a'); update t set v = v || '+' where id = 1; commit`)
    await appliedWaits(n1)
    await n1.agent.kill9()
    await n1.agent.start()
    // The session of the killed agent still waits, and holds the origin.
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'STILL_IN_USE')
    expect(message).toContain('sub_n1_n2')
    expect(hint).toContain('Wait')
    await blocker.exec('commit')
    await becomes(n1, 'select v from t where id = 1', 'remote+')
    await becomes(n1, 'select v from t where id = 10', 'a')
    await replicates(n1, 'sub_n1_n2')
  })

  test('a deadlock: whoever is chosen, nothing is lost', async () => {
    await n2.exec(`insert into t values (20, ''), (21, '')`)
    await becomes(n1, 'select count(*)::int from t where id in (20, 21)', 2)
    const local = await session(n1)
    // The local transaction waits patiently, so that apply is the one that finds the deadlock and is rolled back.
    await local.exec(`set deadlock_timeout = '1min'; begin; update t set v = v || 'l' where id = 21`)
    await n2.exec(
      `begin; update t set v = v || 'r' where id = 20; update t set v = v || 'r' where id = 21; insert into t values (22, 'r'); commit`,
    )
    await appliedWaits(n1)
    await local.exec(`update t set v = v || 'l' where id = 20`)
    await local.exec('commit')
    await becomes(n1, 'select count(*)::int from t where id = 22', 1)
    expect(n1.agent.log).toContain('APPLY_INTERRUPTED')
    expect(n1.agent.log).toContain('40P01')
    await mesh.settle()
    const rows = await Promise.all(
      [n1, n2].map((node) =>
        only(node, `select string_agg(v, ',' order by id) from t where id between 20 and 22`),
      ),
    )
    expect(rows).toEqual(['l,l,r', 'l,l,r'])
    await replicates(n1, 'sub_n1_n2')
  })

  test('an administrator who ends the apply session: repeated', async () => {
    const blocker = await session(n1)
    await blocker.exec('begin; lock table t')
    await n2.query(`insert into t values (30, 'x')`)
    await appliedWaits(n1)
    await n1.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'`,
    )
    await downWith(n1, 'sub_n1_n2', 'APPLY_INTERRUPTED')
    await blocker.exec('commit')
    await becomes(n1, 'select v from t where id = 30', 'x')
    await replicates(n1, 'sub_n1_n2')
  })
})

describe('the memory of the agent is bounded', () => {
  test('when a transaction of 1,000,000 rows arrives', async () => {
    await n2.query(`insert into big select g, 'row ' || g from generate_series(1, 1000000) g`)
    await becomes(n1, 'select exists (select from big where id = 1)', true, 200_000)
    expect(await only(n1, 'select count(*)::int from big')).toBe(1_000_000)
    expect(rssMb(n1, 'VmHWM')).toBeLessThan(RSS_LIMIT_MB)
    await replicates(n1, 'sub_n1_n2')
  }, 240_000)

  test('when the subscriber stands still while 500 MB are written; slot_retains_wal says so; then it drains', async () => {
    const blocker = await session(n1)
    await blocker.exec('begin; lock table big')
    for (let i = 0; i < 10; i++) {
      await n2.query(
        `insert into big select ${2_000_000 + i * 50_000} + g, repeat('x', 1000) from generate_series(1, 50000) g`,
      )
    }
    await appliedWaits(n1)
    await waitUntil('an alarm says what the slot keeps', async () =>
      (await statusOf(n1)).alarms.some(({ name }) => name === 'slot_retains_wal'),
    )
    const alarm = (await statusOf(n1)).alarms.find(({ name }) => name === 'slot_retains_wal')!
    expect(alarm.subject).toBe('sub_n1_n2')
    expect(alarm.message).toMatch(/sterna_app_sub_n1_n2.*n2.*GB/)
    expect(
      Number(
        await only(n2, `select sum(pg_current_wal_lsn() - restart_lsn)::float8 from pg_replication_slots`),
      ),
    ).toBeGreaterThan(500_000_000)
    expect((await shown(n1, 'sub_n1_n2')).lag_bytes!).toBeGreaterThan(300_000_000n)
    expect(rssMb(n1, 'VmHWM')).toBeLessThan(RSS_LIMIT_MB)
    await blocker.exec('commit')
    await becomes(n1, 'select exists (select from big where id = 2500000)', true, 200_000)
    expect(await only(n1, 'select count(*)::int from big')).toBe(1_500_000)
    expect(rssMb(n1, 'VmHWM')).toBeLessThan(RSS_LIMIT_MB)
    await replicates(n1, 'sub_n1_n2')
    await waitUntil('the alarm is over', async () => (await statusOf(n1)).alarms.length === 0)
  }, 240_000)
})

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import type { StatusJson } from '../../src/agent/status-json.ts'
import { PgConnection } from '../../src/postgres/connection.ts'
import { parseDsn } from '../../src/postgres/dsn.ts'
import { startAgent, type TestAgent } from '../harness/agent.ts'
import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { reservePorts } from '../harness/ports.ts'
import { waitUntil } from '../harness/wait.ts'
import { startFakePostgres } from './fake-server.ts'
import {
  becomes,
  downWith,
  dsnWith,
  expectFree,
  expectClean,
  only,
  PASSWORD,
  replicates,
  shown,
  startFaultMesh,
  statusOf,
  WRONG_PASSWORD,
} from './rig.ts'

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode
const otherLogs: (() => string)[] = []

beforeAll(async () => {
  mesh = await startFaultMesh({ count: 2, schema: 'create table t (id int primary key, v text)' })
  ;[n1, n2] = mesh.nodes as [MeshTestNode, MeshTestNode]
})
afterAll(async () => {
  try {
    await expectClean(
      mesh,
      otherLogs.map((log) => log()),
    )
  } finally {
    await mesh.stop()
  }
})

/** One more agent, which is stopped at the end of the test. */
async function anotherAgent(dsn: string): Promise<{ agent: TestAgent; status: () => Promise<StatusJson> }> {
  const [port] = await reservePorts(1)
  const env = { STERNA_HEARTBEAT_INTERVAL_MS: '200' }
  const agent = await startAgent({ node: 'n1', dsn, env, http: `127.0.0.1:${port}` })
  otherLogs.push(() => agent.log)
  onTestFinished(() => agent.stop())
  const ask = async (): Promise<StatusJson> => {
    const response = await fetch(`http://127.0.0.1:${port}/status`, { headers: { connection: 'close' } })
    const body = await response.text()
    expectFree([body])
    return JSON.parse(body) as StatusJson
  }
  return { agent, status: ask }
}

/** Waits until an agent says why it cannot serve its node. */
async function says(
  ask: () => Promise<StatusJson>,
  code: string,
): Promise<{ message: string; hint: string }> {
  let last: StatusJson | undefined
  await waitUntil(`the agent says ${code}`, async () => {
    last = await ask()
    return last.last_error?.code === code
  })
  expect(last!.connected).toBe(false)
  expect(last!.ready).toBe(false)
  expect(last!.alarms.map((alarm) => alarm.name)).toContain('server_unusable')
  return last!.last_error!
}

describe('an agent whose own server cannot be used says so, and serves as soon as it can', () => {
  test('the password is wrong', async () => {
    const agent = await anotherAgent(dsnWith(n1, { password: WRONG_PASSWORD }))
    const { message, hint } = await says(agent.status, 'AUTH_FAILED')
    expect(message).toContain(`127.0.0.1:${n1.server.port}/app`)
    expect(hint).toContain('password')
  })

  test('the database is missing', async () => {
    const agent = await anotherAgent(dsnWith(n1, { database: 'nowhere' }))
    await says(agent.status, 'DATABASE_MISSING')
  })

  test('it is PostgreSQL 14', async () => {
    const old = await startFakePostgres('14.2')
    onTestFinished(() => old.close())
    const agent = await anotherAgent(dsnWith(n1, { port: old.port }))
    const { message } = await says(agent.status, 'SERVER_TOO_OLD')
    expect(message).toContain('14.2')
  })

  test('another agent serves the node: the second one says so and takes over when the first is killed', async () => {
    const second = await anotherAgent(n1.dsn)
    const { message, hint } = await says(second.status, 'AGENT_ALREADY_RUNNING')
    expect(message).toContain('n1')
    expect(hint).toContain('sterna.agent_state')
    await becomes(n1, 'select pid from sterna.agent_state', n1.agent.pid)
    await n1.agent.kill9()
    await n2.query(`insert into t values (1, 'while nobody served')`)
    await becomes(n1, 'select pid from sterna.agent_state', second.agent.pid)
    await becomes(n1, 'select v from t where id = 1', 'while nobody served')
    await n1.agent.start()
    await waitUntil('the first one waits now', async () => {
      return (await statusOf(n1)).last_error?.code === 'AGENT_ALREADY_RUNNING'
    })
    await second.agent.stop()
    await becomes(n1, 'select pid from sterna.agent_state', n1.agent.pid)
    await replicates(n1, 'sub_n1_n2')
  })

  test('the server restarts: the agent shows its subscriptions as down meanwhile, and goes on', async () => {
    await n1.server.stop()
    let last: StatusJson | undefined
    await waitUntil('the agent has noticed', async () => {
      last = await statusOf(n1)
      return !last.connected && last.last_error?.code === 'SERVER_UNREACHABLE'
    })
    expect(
      last!.subscriptions.map(({ name, status: is, last_error: error }) => [name, is, error?.code]),
    ).toEqual([['sub_n1_n2', 'down', 'SERVER_UNREACHABLE']])
    await n2.query(`insert into t values (2, 'while n1 was stopped')`)
    await downWith(n2, 'sub_n2_n1', 'SERVER_UNREACHABLE')
    await n1.server.start()
    await becomes(n1, 'select v from t where id = 2', 'while n1 was stopped')
    await replicates(n2, 'sub_n2_n1')
    expect((await statusOf(n1)).connected).toBe(true)
  })

  test('the agent is stopped for a while with load running: status says so, then it catches up', async () => {
    await n1.agent.stop()
    for (let i = 0; i < 200; i++) await n2.query('insert into t values ($1, $2)', [1000 + i, 'load'])
    // 15 seconds of silence: the state is made old instead of waiting.
    await n1.query(`update sterna.subscription_state set updated_at = updated_at - interval '20 seconds'`)
    await n1.query(`update sterna.subscription set created_at = created_at - interval '1 minute'`)
    const down = await downWith(n1, 'sub_n1_n2', 'AGENT_NOT_RUNNING')
    expect(down.hint).toContain('sterna agent --node n1')
    await n1.agent.start()
    await becomes(n1, `select count(*)::int from t where v = 'load'`, 200)
    await replicates(n1, 'sub_n1_n2')
  })
})

describe('a server that lost a setting', () => {
  test('wal_level is replica: said by its own agent and by those that follow it', async () => {
    // The server does not start so while there is a logical slot.
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await becomes(n2, 'select count(*)::int from pg_replication_slots', 0)
    await n2.server.stop()
    await n2.server.start({ wal_level: 'replica' })
    let own: StatusJson | undefined
    await waitUntil('its own agent says so', async () => {
      own = await statusOf(n2)
      return own.last_error?.code === 'WAL_LEVEL_TOO_LOW'
    })
    expect(own!.last_error!.message).toContain('wal_level=replica')
    expect(own!.last_error!.hint).toContain('alter system set wal_level = logical')
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'WAL_LEVEL_TOO_LOW')
    expect(message).toContain(`127.0.0.1:${n2.server.port}/app`)
    expect(hint).toContain('wal_level = logical')
    await n1.query(`insert into t values (10, 'while n2 could not')`)
    await n2.server.stop()
    await n2.server.start()
    await replicates(n1, 'sub_n1_n2')
    await becomes(n2, 'select v from t where id = 10', 'while n2 could not')
  })

  test('track_commit_timestamp is off: its agent applies nothing', async () => {
    await n2.server.stop()
    await n2.server.start({ track_commit_timestamp: 'off' })
    await waitUntil('its agent says so', async () => {
      return (await statusOf(n2)).last_error?.code === 'COMMIT_TIMESTAMPS_OFF'
    })
    expect((await statusOf(n2)).last_error!.hint).toContain('track_commit_timestamp = on')
    await n1.query(`insert into t values (11, 'while it was off')`)
    await n2.server.stop()
    await n2.server.start()
    await becomes(n2, 'select v from t where id = 11', 'while it was off')
    await replicates(n1, 'sub_n1_n2')
  })
})

describe('no room', () => {
  /** Waits until nothing is left of n1's subscription: neither slot nor origin. */
  async function dropSubscription(): Promise<void> {
    await n1.query(`select sterna.sub_drop('sub_n1_n2')`)
    await becomes(n1, 'select count(*)::int from sterna.slot_cleanup', 0)
    await becomes(n2, 'select count(*)::int from pg_replication_slots', 0)
  }

  test('no free slot at the provider', async () => {
    await dropSubscription()
    await n2.server.stop()
    await n2.server.start({ max_replication_slots: '1' })
    await n2.query(`select pg_create_physical_replication_slot('hog')`)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'SLOTS_EXHAUSTED')
    expect(message).toContain(`127.0.0.1:${n2.server.port}/app`)
    expect(hint).toContain('max_replication_slots')
    await n2.query(`select pg_drop_replication_slot('hog')`)
    await replicates(n1, 'sub_n1_n2')
    await n2.query(`insert into t values (20, 'slots')`)
    await becomes(n1, 'select v from t where id = 20', 'slots')
  })

  test('no free walsender at the provider', async () => {
    await n2.server.stop()
    await n1.query(`select sterna.sub_disable('sub_n1_n2')`)
    await n2.server.start({ max_wal_senders: '1' })
    const hog = await PgConnection.connect(parseDsn(n2.dsn), { applicationName: 'hog', replication: true })
    await n1.query(`select sterna.sub_enable('sub_n1_n2')`)
    await n2.query(`insert into t values (21, 'senders')`)
    const { hint } = await downWith(n1, 'sub_n1_n2', 'SLOTS_EXHAUSTED')
    expect(hint).toContain('max_wal_senders')
    await hog.close()
    await becomes(n1, 'select v from t where id = 21', 'senders')
    await replicates(n1, 'sub_n1_n2')
  })

  test('no free replication origin at the subscriber', async () => {
    await dropSubscription()
    await n1.server.stop()
    await n1.server.start({ max_active_replication_origins: '1' })
    await n1.query(`select pg_replication_origin_create('hog')`)
    await n1.query(`select pg_replication_origin_advance('hog', '0/1')`)
    await n1.query(`select sterna.sub_create('sub_n1_n2', $1)`, [n2.dsn])
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'ORIGINS_EXHAUSTED')
    expect(message).toContain(`127.0.0.1:${n1.server.port}/app`)
    expect(hint).toContain('max_active_replication_origins')
    await n1.query(`select pg_replication_origin_drop('hog')`)
    await replicates(n1, 'sub_n1_n2')
    await n2.query(`insert into t values (22, 'origins')`)
    await becomes(n1, 'select v from t where id = 22', 'origins')
  })
})

describe('a role that may not', () => {
  test('of the agent: all that is missing is said at once, and the remedy is enough', async () => {
    await n1.exec(`create role weak login password '${PASSWORD}'`)
    await n1.exec('grant select, insert, update, delete on t to weak')
    await n1.agent.stop()
    const weak = await anotherAgent(dsnWith(n1, { user: 'weak' }))
    const { message, hint } = await says(weak.status, 'PRIVILEGE_MISSING')
    expect(message).toContain('"weak"')
    expect(message).toContain('session_replication_role')
    expect(message).toContain('origin functions')
    expect(message).toContain('schema sterna')
    const remedy = hint.replace('As a superuser there: ', '')
    expect(remedy).not.toBe(hint)
    await n1.exec(remedy)
    await waitUntil('it serves', async () => (await weak.status()).connected)
    await n2.query(`insert into t values (30, 'by a weak agent')`)
    await becomes(n1, 'select v from t where id = 30', 'by a weak agent')
    await n1.exec('revoke insert on t from weak')
    await n2.query(`insert into t values (31, 'not allowed')`)
    const refused = await downWith(n1, 'sub_n1_n2', 'APPLY_FAILED')
    expect(refused.message).toContain('public.t')
    await n1.exec('grant insert on t to weak')
    await becomes(n1, 'select v from t where id = 31', 'not allowed')
    await weak.agent.stop()
    await n1.agent.start()
    await replicates(n1, 'sub_n1_n2')
  })

  test('of the connection to the provider', async () => {
    await n2.exec(`create role reader login password '${PASSWORD}'`)
    await n1.query(`update sterna.subscription set provider_dsn = $1 where sub_name = 'sub_n1_n2'`, [
      dsnWith(n2, { user: 'reader' }),
    ])
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'PRIVILEGE_MISSING')
    expect(message).toContain('"reader"')
    expect(message).toContain('REPLICATION')
    expect(message).toContain('SELECT')
    await n2.query(`insert into t values (32, 'before the grant')`)
    await n2.exec(hint.replace('As a superuser there: ', ''))
    await becomes(n1, 'select v from t where id = 32', 'before the grant')
    await replicates(n1, 'sub_n1_n2')
    await n2.exec('alter role reader noreplication')
    await n2.query(
      `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name like 'sterna%'`,
    )
    const again = await downWith(n1, 'sub_n1_n2', 'PRIVILEGE_MISSING')
    expect(again.message).toContain('REPLICATION')
    await n2.exec('alter role reader replication')
    await replicates(n1, 'sub_n1_n2')
    expect((await shown(n1, 'sub_n1_n2')).last_error).toBeNull()
    expect(await only(n1, 'select count(*)::int from t where id >= 30 and id < 33')).toBe(3)
  })
})

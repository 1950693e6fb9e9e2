import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { startRelay } from '../harness/relay.ts'
import { waitUntil } from '../harness/wait.ts'
import { startFakePostgres, startFakeServer } from './fake-server.ts'
import {
  becomes,
  downWith,
  dsnWith,
  expectClean,
  only,
  PASSWORD,
  replicates,
  shown,
  startFaultMesh,
  WRONG_PASSWORD,
} from './rig.ts'

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode

beforeAll(async () => {
  mesh = await startFaultMesh({ count: 2, schema: 'create table t (id int primary key, v text)' })
  ;[n1, n2] = mesh.nodes as [MeshTestNode, MeshTestNode]
})
afterAll(async () => {
  try {
    await expectClean(mesh)
  } finally {
    await mesh.stop()
  }
})

/** Subscribes n1 to what `dsn` leads to, waits for the code, and drops the subscription again. */
async function subscribed(dsn: string, code: string): Promise<{ message: string; hint: string }> {
  const name = `bad_${code.toLowerCase()}`
  await n1.query('select sterna.sub_create($1, $2)', [name, dsn])
  try {
    return await downWith(n1, name, code)
  } finally {
    await n1.query('select sterna.sub_drop($1)', [name])
  }
}

describe('a provider that cannot be used is said with code and remedy, and the other subscription goes on', () => {
  test('nothing listens at its port', async () => {
    const relay = await startRelay({ to: { host: '127.0.0.1', port: n2.server.port } })
    await relay.close()
    const { message, hint } = await subscribed(dsnWith(n2, { port: relay.port }), 'SERVER_UNREACHABLE')
    expect(message).toContain(`127.0.0.1:${relay.port}/app`)
    expect(message).toContain('ECONNREFUSED')
    expect(hint).toContain('firewall')
  })

  test('its host does not resolve', async () => {
    const dsn = dsnWith(n2, { host: 'no-such-host.invalid' })
    const { message } = await subscribed(dsn, 'SERVER_UNREACHABLE')
    expect(message).toContain('no-such-host.invalid')
  })

  test('it takes the connection and never answers', async () => {
    const silent = await startFakeServer((socket) => socket.resume())
    onTestFinished(() => silent.close())
    const dsn = `${dsnWith(n2, { port: silent.port })}?connect_timeout=2`
    const { message } = await subscribed(dsn, 'SERVER_UNREACHABLE')
    expect(message).toContain('no answer within 2 s')
  })

  test('the password is wrong', async () => {
    const { message, hint } = await subscribed(dsnWith(n2, { password: WRONG_PASSWORD }), 'AUTH_FAILED')
    expect(message).toContain('"sterna"')
    expect(message).toContain(`127.0.0.1:${n2.server.port}/app`)
    expect(hint).toContain('password')
  })

  test('it has no such database', async () => {
    const { message, hint } = await subscribed(dsnWith(n2, { database: 'nowhere' }), 'DATABASE_MISSING')
    expect(message).toContain('"nowhere"')
    expect(hint).toContain('create database "nowhere"')
  })

  test('it is PostgreSQL 14', async () => {
    const old = await startFakePostgres('14.19 (Debian 14.19-1)')
    onTestFinished(() => old.close())
    const { message, hint } = await subscribed(dsnWith(n2, { port: old.port }), 'SERVER_TOO_OLD')
    expect(message).toContain('14.19')
    expect(hint).toContain('pg_upgrade')
  })

  test('it is no PostgreSQL: a web server', async () => {
    const web = await startFakeServer((socket) =>
      socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')),
    )
    onTestFinished(() => web.close())
    const { message } = await subscribed(dsnWith(n2, { port: web.port }), 'PROTOCOL_VIOLATION')
    expect(message).toContain(`127.0.0.1:${web.port}`)
  })

  test('it says that it is PostgreSQL and then sends noise', async () => {
    const noisy = await startFakeServer((socket) => {
      let count = 0
      socket.on('data', () => socket.write(count++ === 0 ? 'N' : Buffer.alloc(70_000, 0xa5)))
    })
    onTestFinished(() => noisy.close())
    await subscribed(dsnWith(n2, { port: noisy.port }), 'PROTOCOL_VIOLATION')
  })

  test('its database is no node', async () => {
    const { message, hint } = await subscribed(dsnWith(n2, { database: 'postgres' }), 'PROVIDER_NOT_A_NODE')
    expect(message).toContain('/postgres')
    expect(hint).toContain('sterna cluster create')
  })

  test('it is the node itself, under another spelling', async () => {
    const { message, hint } = await subscribed(dsnWith(n1, { host: 'localhost' }), 'SUBSCRIPTION_TO_SELF')
    expect(message).toContain('n1')
    expect(hint).toContain('sterna sub drop')
  })

  test('it has no free connection', async () => {
    await n2.exec(`create role crowded login password '${PASSWORD}' connection limit 0`)
    onTestFinished(() => n2.exec('drop role crowded'))
    const { hint } = await subscribed(dsnWith(n2, { user: 'crowded' }), 'CONNECTIONS_EXHAUSTED')
    expect(hint).toContain('max_connections')
  })

  test('it does not have a replication set that is asked for; it replicates when it has', async () => {
    await n1.query(`select sterna.sub_add_repset('sub_n1_n2', 'special')`)
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'REPLICATION_SET_MISSING')
    expect(message).toMatch(/sub_n1_n2.*special/)
    expect(hint).toContain('sterna repset create')
    await n2.query(`insert into t values (1, 'while it was missing')`)
    await n2.query(`select sterna.repset_create('special')`)
    await replicates(n1, 'sub_n1_n2')
    await becomes(n1, 'select v from t where id = 1', 'while it was missing')
    await n1.query(`select sterna.sub_remove_repset('sub_n1_n2', 'special')`)
    await n2.query(`select sterna.repset_drop('special')`)
    await replicates(n1, 'sub_n1_n2')
  })

  test('all of them at once do not make the good one slower than a second', async () => {
    const silent = await startFakeServer((socket) => socket.resume())
    onTestFinished(() => silent.close())
    const bad = [
      dsnWith(n2, { port: silent.port }),
      dsnWith(n2, { password: WRONG_PASSWORD }),
      dsnWith(n2, { database: 'nowhere' }),
    ]
    for (const [i, dsn] of bad.entries())
      await n1.query('select sterna.sub_create($1, $2)', [`many_${i}`, dsn])
    await waitUntil('they fail', async () => (await shown(n1, 'many_2')).last_error_code !== null)
    for (let id = 100; id < 110; id++) {
      const before = performance.now()
      await n2.query('insert into t values ($1, $2)', [id, 'x'])
      await becomes(n1, `select count(*)::int from t where id = ${id}`, 1, 5000)
      expect(performance.now() - before).toBeLessThan(1500)
    }
    const lag = await shown(n1, 'sub_n1_n2')
    expect(lag.status).toBe('replicating')
    expect(lag.lag_seconds!).toBeLessThan(2)
    for (const i of bad.keys()) await n1.query('select sterna.sub_drop($1)', [`many_${i}`])
  })
})

describe('two nodes with one identity', () => {
  async function otherNode(name: string, id: number): Promise<string> {
    await n2.exec('create database twin template template0')
    const twin = dsnWith(n2, { database: 'twin' })
    const { PgConnection } = await import('../../src/postgres/connection.ts')
    const { installSchema } = await import('../../src/mesh/schema.ts')
    const conn = await PgConnection.connect(twin)
    try {
      await installSchema(conn)
      await conn.query('select sterna.node_create($1, $2, info => $3::jsonb)', [
        name,
        twin,
        JSON.stringify({ node_id: id }),
      ])
    } finally {
      await conn.close()
    }
    return twin
  }
  const dropTwin = (): Promise<void> => n2.exec('drop database twin with (force)')

  test('the provider has the name of this node', async () => {
    const dsn = await otherNode('n1', 77)
    const { message, hint } = await subscribed(dsn, 'NODE_IDENTITY_CLASH')
    expect(message).toMatch(/n1 with id 77.*n1 with id 1/)
    expect(hint).toContain('another')
    await dropTwin()
  })

  test('the provider has the id of a third one', async () => {
    const id = Number(await only(n1, `select node_id from sterna.node where node_name = 'n2'`))
    const dsn = await otherNode('n9', id)
    const { message } = await subscribed(dsn, 'NODE_IDENTITY_CLASH')
    expect(message).toMatch(/n9 with id 2.*n2 with id 2/)
    await dropTwin()
  })

  test('the provider has the name of a third one', async () => {
    const dsn = await otherNode('n2', 78)
    const { message } = await subscribed(dsn, 'NODE_IDENTITY_CLASH')
    expect(message).toMatch(/n2 with id 78.*n2 with id 2/)
    await dropTwin()
  })
})

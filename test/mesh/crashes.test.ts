import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { surviveCrashes } from '../harness/crashes.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { TPCB_SCHEMA } from '../harness/tpcb.ts'
import { waitUntil } from '../harness/wait.ts'

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`kill -9, ${layout.name}`, () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      schema: `${TPCB_SCHEMA} create table unflushed (id int primary key)`,
      // What is applied stays unflushed for long: neither the WAL writer nor commits of heartbeats make it durable soon.
      settings: { wal_writer_delay: '10s' },
      agentEnv: { STERNA_HEARTBEAT_INTERVAL_MS: '2000' },
    })
  })
  afterAll(() => mesh?.stop())

  test('what a server had applied but not flushed when it was killed arrives again', async () => {
    const provider = mesh.nodes[0]!
    const subscriber = mesh.nodes[2]!
    const has = async (id: number): Promise<boolean> =>
      (await subscriber.query('select from unflushed where id = $1', [id])).length === 1
    let lost = 0
    for (let attempt = 1; attempt <= 10 && lost < 2; attempt++) {
      await provider.query('insert into unflushed values ($1)', [attempt])
      await waitUntil('it is applied', () => has(attempt))
      // Long enough for the agent to look at the WAL, and to confirm what it must not.
      await delay(600)
      await subscriber.server.kill9()
      await subscriber.agent.kill9()
      await subscriber.server.start()
      await waitUntil('the server answers', async () => {
        if (!(await has(attempt))) lost++
        return true
      })
      await subscriber.agent.start()
      await waitUntil(`row ${attempt} is there again`, () => has(attempt))
    }
    expect(lost, 'times that the crash took the row away').toBeGreaterThan(0)
    await mesh.settle()
    await expectIdentical(mesh.nodes)
  }, 120_000)

  test('agents and servers are killed ten times under load: nothing is lost, nothing doubled', async () => {
    const seed = Number(process.env['STERNA_TEST_SEED'] ?? Date.now() % 1_000_000)
    await surviveCrashes(mesh, { kills: 10, seed, transactionsBetween: 50 })
  }, 300_000)
})

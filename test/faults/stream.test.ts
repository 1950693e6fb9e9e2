import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import type { Relay } from '../harness/relay.ts'
import { waitUntil } from '../harness/wait.ts'
import {
  becomes,
  downWith,
  expectClean,
  expectEqual,
  only,
  replicates,
  shown,
  startFaultMesh,
  statusOf,
} from './rig.ts'

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode
let n3: MeshTestNode
/** The way from n2 to n1. */
let link: Relay

beforeAll(async () => {
  mesh = await startFaultMesh({
    count: 3,
    relays: true,
    schema: 'create table t (id int primary key, v text); create table big (id int primary key, v text)',
  })
  ;[n1, n2, n3] = mesh.nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
  link = mesh.link('n1', 'n2')
})
afterAll(async () => {
  try {
    await expectClean(mesh)
  } finally {
    await mesh.stop()
  }
})

/** Writes on n2 until told to stop; resolves with how many rows that were. */
function load(from: number): () => Promise<number> {
  let id = from
  let stopped = false
  const done = (async () => {
    // At most 200 rows a second: a bad link must not look alive by what is lost on it.
    while (!stopped) await n2.query('insert into t select $1, $2 from pg_sleep(0.005)', [id, `row ${id++}`])
  })()
  const stop = async (): Promise<number> => {
    stopped = true
    await done
    return id - from
  }
  onTestFinished(async () => void (await stop()))
  return stop
}

/** Waits until n1 applies something. A damaged length may swallow the stream for a while: then the connection breaks. */
async function appliesOnN1(): Promise<void> {
  const count = (): Promise<unknown> => only(n1, 'select max(id) from t')
  const before = await count()
  try {
    await waitUntil('n1 applies', async () => (await count()) !== before, 3000)
  } catch {
    link.cut()
    link.heal()
    await waitUntil('n1 applies again', async () => (await count()) !== before, 20_000)
  }
}

describe('a replication connection that breaks', () => {
  test('in the middle of a transaction of 200,000 rows, five times: it arrives once and whole', async () => {
    const ROWS = 200_000
    const cutAtMb = [1, 3, 6, 10, 15]
    let received = 0
    let cuts = 0
    link.tamper((chunk) => {
      received += chunk.length
      const limit = cutAtMb[cuts]
      if (limit !== undefined && received > limit * 1_000_000) {
        cuts++
        received = 0
        setImmediate(() => {
          link.cut()
          link.heal()
        })
      }
      return chunk
    })
    await n2.query(`insert into big select g, repeat('x', 90) || g from generate_series(1, ${ROWS}) g`)
    const counts = new Set<unknown>()
    await waitUntil(
      'n1 has it',
      async () => {
        if (!(await only(n1, 'select exists (select from big where id = 1)'))) return false
        counts.add(await only(n1, 'select count(*)::int from big'))
        return true
      },
      120_000,
    )
    expect([...counts].filter((count) => count !== 0)).toEqual([ROWS])
    expect(cuts).toBe(cutAtMb.length)
    link.tamper(undefined)
    await expectEqual(mesh, 'big')
    await replicates(n1, 'sub_n1_n2')
  }, 150_000)

  test('with bytes put into it or left out of it, again and again: detected, the agent survives, data equal', async () => {
    const { pid } = n1.agent
    const stop = load(1)
    let seed = 42
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0
      return Math.floor((seed / 2 ** 32) * below)
    }
    const codes = new Set<string | null>()
    for (let round = 0; round < 20; round++) {
      await appliesOnN1()
      let damaged = false
      const after = random(6)
      let chunks = 0
      link.tamper((chunk) => {
        if (damaged || chunks++ < after || chunk.length < 8) return chunk
        damaged = true
        const at = random(chunk.length)
        const end = round % 3 === 0 ? Math.min(at + 1 + random(9), chunk.length) : at
        const noise = Buffer.from(Array.from({ length: end === at ? 1 + random(40) : 0 }, () => random(256)))
        return Buffer.concat([chunk.subarray(0, at), noise, chunk.subarray(end)])
      })
      await waitUntil(`round ${round} did harm`, () => damaged)
      link.tamper(undefined)
      codes.add((await shown(n1, 'sub_n1_n2')).last_error_code)
    }
    link.cut()
    link.heal()
    const rows = await stop()
    await becomes(n1, 'select count(*)::int from t', rows)
    await expectEqual(mesh, 't')
    await replicates(n1, 'sub_n1_n2')
    expect(n1.agent.pid).toBe(pid)
    expect([...codes].filter((code) => code === 'UNEXPECTED')).toEqual([])
    expect(n1.agent.log).toContain('PROTOCOL_VIOLATION')
  })
})

describe('a link that is silent', () => {
  test('is noticed though no end of connection is, and the other subscriptions are not disturbed', async () => {
    // n1 gets nothing of n2 any more; the stream to n3 is swallowed by a message that claims to be very long.
    const stop = load(1_000_000)
    let swallowed = false
    const toN3 = mesh.link('n3', 'n2')
    toN3.tamper((chunk) => {
      if (swallowed || chunk[0] !== 0x64) return chunk
      swallowed = true
      return Buffer.concat([Buffer.from('643fffff00', 'hex'), chunk])
    })
    await waitUntil('the stream to n3 is damaged', () => swallowed)
    link.blackhole()
    const lags: number[] = []
    const watch = setInterval(() => {
      shown(n1, 'sub_n1_n3').then(
        ({ lag_seconds: lag, status: is }) => lags.push(is === 'replicating' ? (lag ?? 99) : 99),
        () => lags.push(99),
      )
    }, 500)
    onTestFinished(() => clearInterval(watch))
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'CONNECTION_LOST')
    expect(message).toMatch(/127\.0\.0\.1:\d+\/app.*(no answer|nothing received)/)
    expect(hint).toContain('reconnects')
    // Then there is no answer to new connections either.
    await downWith(n1, 'sub_n1_n2', 'SERVER_UNREACHABLE')
    clearInterval(watch)
    expect(lags.length).toBeGreaterThan(10)
    expect(Math.max(...lags)).toBeLessThan(3)
    const before = performance.now()
    await n1.agent.stop()
    expect(performance.now() - before).toBeLessThan(6000)
    await n1.agent.start()
    await replicates(n1, 'sub_n1_n3')
    link.heal()
    await replicates(n1, 'sub_n1_n2')
    await waitUntil('n3 has noticed', () => n3.agent.log.includes('does not begin as it should'))
    const rows = await stop()
    for (const node of [n1, n3]) await becomes(node, 'select count(*)::int from t where id >= 1000000', rows)
    await expectEqual(mesh, 't')
  }, 120_000)

  test('a provider that is killed and stays away disturbs nobody', async () => {
    await n3.server.kill9()
    await downWith(n1, 'sub_n1_n3', 'SERVER_UNREACHABLE')
    for (let id = 2_000_000; id < 2_000_020; id++) {
      const before = performance.now()
      await n2.query('insert into t values ($1, $2)', [id, 'while n3 is away'])
      await becomes(n1, `select count(*)::int from t where id = ${id}`, 1, 5000)
      expect(performance.now() - before).toBeLessThan(1000)
    }
    expect((await shown(n1, 'sub_n1_n2')).lag_seconds!).toBeLessThan(1)
    expect((await statusOf(n1)).alarms).toEqual([
      expect.objectContaining({ name: 'subscription_down', subject: 'sub_n1_n3' }),
    ])
    await n3.server.start()
    await becomes(n3, `select count(*)::int from t where v = 'while n3 is away'`, 20)
    await expectEqual(mesh, 't')
  })
})

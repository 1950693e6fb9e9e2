import { setTimeout as delay } from 'node:timers/promises'
import { expect } from 'vitest'
import type { MeshTestNode, TestMesh } from './mesh.ts'
import { expectIdentical } from './table-hash.ts'
import { startTpcb, type TpcbOutcome } from './tpcb.ts'
import { waitUntil } from './wait.ts'

export interface CrashOptions {
  readonly kills: number
  readonly seed: number
  /** Transactions that must commit between two kills: nothing is shown by killing what does nothing. */
  readonly transactionsBetween: number
}

/**
 * Kills agents and servers at random under load on all nodes, each time starting them again, and then judges by the
 * markers of the clients: every committed transaction is on every node exactly once, none that failed is anywhere, and all
 * nodes are identical. Needs TPCB_SCHEMA.
 */
export async function surviveCrashes(mesh: TestMesh, options: CrashOptions): Promise<void> {
  const { nodes } = mesh
  const random = seeded(options.seed)
  console.log(`crashes: seed ${options.seed}, ${options.kills} kills`)
  const load = startTpcb(nodes, { clientsPerNode: 2, random: Math.random })
  const killed = { agent: 0, server: 0 }
  for (let i = 0; i < options.kills; i++) {
    const before = load.committedCount
    await waitUntil(
      `the load goes on after ${i} kills`,
      () => load.committedCount >= before + options.transactionsBetween,
      60_000,
    )
    await delay(random() * 300)
    const node = nodes[Math.floor(random() * nodes.length)]!
    const what = random() < 0.5 ? 'agent' : 'server'
    killed[what]++
    await node[what].kill9()
    await delay(random() * 700)
    await node[what].start()
  }
  const outcome = await load.stop()
  for (const node of nodes)
    await waitUntil(`${node.name} answers`, async () => (await node.query('select 1')).length === 1)
  await mesh.settle(120_000)
  await judge(nodes, outcome)
  console.log(
    `crashes: ${JSON.stringify(killed)}, ${outcome.committed.length} committed, ${outcome.unknown.length} unknown, ${outcome.failed.length} failed`,
  )
}

async function judge(nodes: readonly MeshTestNode[], outcome: TpcbOutcome): Promise<void> {
  const unknown = new Set(outcome.unknown)
  const failed = new Set(outcome.failed)
  for (const node of nodes) {
    const rows = await node.query<{ marker: string; n: bigint }>(
      'select marker, count(*) as n from tpcb_history group by marker',
    )
    const seen = new Set(rows.map(({ marker }) => marker))
    expect(
      rows.filter(({ n }) => n > 1n),
      `transactions that are on ${node.name} more than once`,
    ).toEqual([])
    expect(
      outcome.committed.filter((marker) => !seen.has(marker)),
      `committed transactions that ${node.name} lacks`,
    ).toEqual([])
    expect(
      [...seen].filter((marker) => failed.has(marker)),
      `failed transactions on ${node.name}`,
    ).toEqual([])
    const surplus = [...seen].filter((marker) => unknown.has(marker)).length
    expect(seen.size, `transactions on ${node.name}`).toBe(outcome.committed.length + surplus)
  }
  await expectIdentical(nodes)
}

/** Numbers from 0 to 1 that follow from the seed (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
  }
}

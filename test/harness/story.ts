import { expect } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { startMesh, type MeshTestNode, type StartMeshOptions, type TestMesh } from './mesh.ts'
import { expectIdentical } from './table-hash.ts'
import { waitUntil } from './wait.ts'

/** A mesh in which the test decides what arrives where, and when. All times told in it are just an order in time. */
export interface Story {
  readonly mesh: TestMesh
  readonly nodes: readonly MeshTestNode[]
  readonly n1: MeshTestNode
  readonly n2: MeshTestNode
  readonly n3: MeshTestNode
  /** From now on `at` receives nothing of what `from` writes, until `release`; nothing is lost, and no connection. */
  hold(at: MeshTestNode, from: MeshTestNode): void
  release(at: MeshTestNode, from: MeshTestNode): void
  /** No node receives anything of any other. */
  holdAll(): void
  releaseAll(): void
  /** Waits until each node has sent two more heartbeats, received or not: now it has said what it knew. */
  beat(): Promise<void>
  /** Waits until each node knows by heartbeats that every other one has all that was written before. */
  allKnow(): Promise<void>
  /** Waits until a query has these rows on a node. */
  becomes(node: MeshTestNode, sql: string, rows: readonly unknown[]): Promise<void>
  /**
   * Releases everything and waits until all has arrived. Then each node has these rows, all tables are identical, and so is
   * what the nodes keep beside them.
   */
  ends(sql: string, rows: readonly unknown[]): Promise<void>
  /** As `ends`, where something happens after the arrival: rows come back, parked changes are retried, clocks pass. */
  comesTo(sql: string, rows: readonly unknown[], timeoutMs?: number): Promise<void>
  stop(): Promise<void>
}

/** Starts it: links with relays, and heartbeats that come often. */
export async function startStory(options: StartMeshOptions): Promise<Story> {
  const mesh = await startMesh({
    relays: true,
    ...options,
    agentEnv: { STERNA_HEARTBEAT_INTERVAL_MS: '200', ...options.agentEnv },
  })
  const { nodes } = mesh
  const [n1, n2, n3] = nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
  const links = nodes.flatMap((at) =>
    nodes.filter((from) => from !== at).map((from) => mesh.link(at.name, from.name)),
  )
  const releaseAll = (): void => links.forEach((link) => link.release())
  const expectRows = async (sql: string, rows: readonly unknown[]): Promise<void> => {
    for (const node of nodes) expect(await node.query(sql), `on ${node.name}`).toEqual(rows)
    await expectConverged(nodes)
  }
  return {
    mesh,
    nodes,
    n1,
    n2,
    n3,
    hold: (at, from) => mesh.link(at.name, from.name).hold(),
    release: (at, from) => mesh.link(at.name, from.name).release(),
    holdAll: () => links.forEach((link) => link.hold()),
    releaseAll,
    async beat() {
      const before = await Promise.all(nodes.map((node) => beatsKnown(node)))
      await waitUntil('two more heartbeats of each node', async () => {
        const now = await Promise.all(nodes.map((node) => beatsKnown(node)))
        return now.every((beats, i) => beats.get(nodes[i]!.name)! >= before[i]!.get(nodes[i]!.name)! + 2n)
      })
    },
    async allKnow() {
      await mesh.settle(25_000)
      // Of each: one that claims to be complete, one of another node that has it, and one more.
      const before = await beatsKnown(n1)
      await waitUntil('heartbeats of each node on each node', async () => {
        const now = await Promise.all(nodes.map((node) => beatsKnown(node)))
        return now.every((beats) => [...beats].every(([name, count]) => count >= before.get(name)! + 4n))
      })
    },
    becomes: (node, sql, rows) => becomes(node, sql, rows),
    async ends(sql, rows) {
      releaseAll()
      await mesh.settle(25_000)
      await expectRows(sql, rows)
    },
    async comesTo(sql, rows, timeoutMs = 30_000) {
      releaseAll()
      await mesh.settle(25_000)
      await agreed(async () => expectRows(sql, rows), timeoutMs)
    },
    stop: () => mesh.stop(),
  }
}

/** How many heartbeats of each node, by name, have arrived on this one. */
async function beatsKnown(node: MeshTestNode): Promise<Map<string, bigint>> {
  const rows = await node.query<{ name: string; beats: bigint }>(
    'select node_name as name, beats from sterna.heartbeat join sterna.node using (node_id)',
  )
  return new Map(rows.map(({ name, beats }) => [name, beats]))
}

/** Waits until a query has these rows on a node; the error shows those that it has. */
export async function becomes(
  node: MeshTestNode,
  sql: string,
  rows: readonly unknown[],
  timeoutMs = 30_000,
): Promise<void> {
  await agreed(async () => expect(await node.query(sql), `on ${node.name}: ${sql}`).toEqual(rows), timeoutMs)
}

/** Waits until an expectation holds; fails with what it says last. */
export async function agreed(expectation: () => Promise<unknown>, timeoutMs = 30_000): Promise<void> {
  let last: unknown
  try {
    await waitUntil(
      'the nodes agree',
      async () => {
        try {
          await expectation()
          return true
        } catch (error) {
          last = error
          return false
        }
      },
      timeoutMs,
    )
  } catch (error) {
    throw last ?? error
  }
}

const SIDES = {
  'rows aside': `select table_name, key::text, row_values::text, version::text from sterna.aside order by 1, 2`,
  remainders: `select table_oid::regclass::text as table_name, key::text, remainder::text from sterna.tombstone
                where exists (select from jsonb_each_text(remainder) r where r.value::numeric <> 0) order by 1, 2`,
} as const

/** All nodes have the same rows in every table, set the same rows aside, and remember the same remainders. */
export async function expectConverged(nodes: readonly MeshTestNode[]): Promise<void> {
  await expectIdentical(nodes)
  for (const [what, sql] of Object.entries(SIDES)) {
    const [first, ...others] = await Promise.all(nodes.map((node) => node.query(sql)))
    for (const [i, rows] of others.entries()) expect(rows, `${what} of ${nodes[i + 1]!.name}`).toEqual(first)
  }
}

/** Rows aside of a table on a node, by key. */
export async function asideKeys(node: MeshTestNode, table: string): Promise<string[]> {
  const rows = await node.query<{ key: string }>(
    `select e.value as key from sterna.aside a, jsonb_each_text(a.key) e where a.table_oid = $1::regclass order by 1`,
    [table],
  )
  return rows.map(({ key }) => key)
}

/** Declares something on one node and waits until it is in force on all. */
export async function define(nodes: readonly MeshTestNode[], sql: string): Promise<void> {
  await nodes[0]!.query(sql)
  await waitUntil(`in force everywhere: ${sql}`, async () => {
    const all = await Promise.all(
      nodes.map((node) =>
        node.query<{ id: string; state: string; reason: string | null }>(
          'select definition_id::text as id, state, reason from sterna.definition order by 1',
        ),
      ),
    )
    const refused = all.flat().find(({ state }) => state === 'refused')
    if (refused) throw new Error(`refused: ${refused.reason}`)
    const ids = all.map((rows) => rows.map(({ id }) => id).join())
    return new Set(ids).size === 1 && ids[0] !== '' && all.flat().every(({ state }) => state === 'active')
  })
}

/** A statement that one node keeps to itself, on a session of its own. */
export async function byHand(node: MeshTestNode, sql: string): Promise<void> {
  const session = await PgConnection.connect(node.dsn, { applicationName: 'test by hand' })
  try {
    await session.exec(`set sterna.ddl_replication = off; ${sql}`)
  } finally {
    await session.close()
  }
}

/** A large value that does not compress, another for each seed; `kilobytes` of it. */
export const large = (seed: string, kilobytes: number): string =>
  `(select string_agg(md5('${seed}' || i), '') from generate_series(1, ${kilobytes * 32}) i)`

/** Waits until a session that applies on this node waits for a lock. */
export async function applyWaits(node: MeshTestNode): Promise<void> {
  await waitUntil(`apply on ${node.name} waits for a lock`, async () => {
    const waiting = `select from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'`
    return (await node.query(waiting)).length > 0
  })
}

import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

/** How long the node is cut off, by how. */
const CUTS = [
  ['cut', Number(process.env['STERNA_TEST_CUT_SECONDS'] ?? 15)],
  ['blackhole', 6],
] as const
/** What the nodes that are not cut off may be behind each other on a busy machine. */
const MAX_AGE_SECONDS = 4

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`links that fail, ${layout.name}`, () => {
  let mesh: TestMesh
  let nodes: readonly MeshTestNode[]

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      relays: true,
      schema: `create table load (node text, n int, at timestamptz not null, primary key (node, n));
               create table shared (id int primary key, node text not null, n int not null)`,
    })
    nodes = mesh.nodes
  })
  afterAll(() => mesh?.stop())

  for (const [how, seconds] of CUTS)
    test(`a node is ${how === 'cut' ? 'cut off' : 'silently unreachable'} for a while under load on all: it catches up, the others never noticed`, async () => {
      const lone = nodes.at(-1)!
      const others = nodes.slice(0, -1)
      const links = others.flatMap((node) => [
        mesh.link(node.name, lone.name),
        mesh.link(lone.name, node.name),
      ])
      await Promise.all(nodes.map((node) => node.exec(`delete from load where node = '${node.name}'`)))
      await mesh.settle()
      let running = true
      const counts = await Promise.all(nodes.map((node) => PgConnection.connect(node.dsn)))
      const load = counts.map(async (session, k) => {
        let n = 0
        for (; running; n++) {
          await session.query('insert into load values ($1, $2, clock_timestamp())', [`n${k + 1}`, n])
          await session.query(
            `insert into shared values ($1, $2, $3) on conflict (id) do update set node = excluded.node, n = excluded.n`,
            [n % 50, `n${k + 1}`, n],
          )
          await new Promise((resolve) => setTimeout(resolve, 2))
        }
        await session.close()
        return n
      })
      await waitUntil('every node has rows of every other', async () =>
        (await ages(nodes)).every(({ age }) => age < 2),
      )
      for (const link of links) link[how]()
      const worst = { others: 0, lone: 0 }
      const until = performance.now() + seconds * 1000
      await waitUntil(
        'the time is over',
        async () => {
          for (const { of, at, age } of await ages(nodes)) {
            const crosses = of === lone.name || at === lone.name
            if (crosses) worst.lone = Math.max(worst.lone, age)
            else worst.others = Math.max(worst.others, age)
          }
          return performance.now() > until
        },
        seconds * 1000 + 30_000,
      )
      for (const link of links) link.heal()
      expect(worst.lone, 'the cut was one').toBeGreaterThan(seconds - 2)
      expect(worst.others, 'age of the newest row, between nodes that were not cut off').toBeLessThan(
        MAX_AGE_SECONDS,
      )
      await waitUntil(
        'the node that was cut off has caught up, while the load goes on',
        async () => (await ages(nodes)).every(({ age }) => age < 2),
        60_000,
      )
      running = false
      const written = await Promise.all(load)
      await mesh.settle()
      const hashes = await expectIdentical(nodes)
      const total = written.reduce((sum, n) => sum + n, 0)
      expect(hashes['public.load']).toMatch(new RegExp(`^${total} rows`))
      console.log(`age of the newest row, in seconds: ${JSON.stringify(worst)}, ${total} rows`)
    }, 180_000)
})

/** For each ordered pair, how old the newest row of the one is on the other, in seconds. All servers share a clock here. */
async function ages(nodes: readonly MeshTestNode[]): Promise<{ of: string; at: string; age: number }[]> {
  const rows = await Promise.all(
    nodes.map(async (node) => {
      const shown = await node.query<{ of: string; age: number }>(
        `select node as of, extract(epoch from clock_timestamp() - max(at))::float8 as age from load group by node`,
      )
      return nodes
        .filter((of) => of !== node)
        .map(({ name }) => ({
          of: name,
          at: node.name,
          age: shown.find((row) => row.of === name)?.age ?? Number.POSITIVE_INFINITY,
        }))
    }),
  )
  return rows.flat()
}

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { expect } from 'vitest'
import { parseDsn } from '../../src/postgres/dsn.ts'
import type { MeshTestNode, TestMesh } from './mesh.ts'
import { expectIdentical } from './table-hash.ts'
import { waitUntil } from './wait.ts'

const run = promisify(execFile)

/** Runs pgbench against a node's database; returns what it printed. */
async function pgbench(program: string, node: MeshTestNode, args: readonly string[]): Promise<string> {
  const { host, port, user, password, database } = parseDsn(node.dsn)
  const connection = ['-h', host, '-p', String(port), '-U', user, database]
  const { stdout } = await run(program, [...args, ...connection], {
    env: { ...process.env, PGPASSWORD: password, PGSSLMODE: 'disable' },
    maxBuffer: 16 * 1024 * 1024,
  })
  return stdout
}

/** Creates pgbench's tables and rows on the first node: its DDL and its rows arrive on the others. */
export async function initPgbench(program: string, mesh: TestMesh, scale: number): Promise<void> {
  await pgbench(program, mesh.nodes[0]!, ['-i', '-q', '-s', String(scale)])
  await mesh.settle(300_000)
  const hashes = await expectIdentical(mesh.nodes)
  expect(hashes['public.pgbench_accounts']).toMatch(new RegExp(`^${scale * 100_000} rows`))
  for (const node of mesh.nodes)
    expect(
      await node.query(
        `select count(*) as n from pg_index where indisprimary and indrelid::regclass::text like 'pgbench%'`,
      ),
      `primary keys on ${node.name}`,
    ).toEqual([{ n: 3n }])
}

/** TPC-B on two nodes at once; afterwards all nodes are identical, and every transaction is in the history once. */
export async function runPgbench(program: string, mesh: TestMesh, seconds: number): Promise<void> {
  const { nodes } = mesh
  const outputs = await Promise.all(
    nodes
      .slice(0, 2)
      .map((node) => pgbench(program, node, ['-n', '-c', '4', '-j', '2', '-T', String(seconds)])),
  )
  const counts = outputs.map((output) => {
    const [, count] = /number of transactions actually processed: (\d+)/.exec(output) ?? []
    expect(count, `a count in: ${output}`).toBeDefined()
    return Number(count)
  })
  const began = performance.now()
  await mesh.settle(300_000)
  console.log(
    `pgbench: ${counts.join(' and ')} transactions in ${seconds} s, everywhere ${Math.round(performance.now() - began)} ms later`,
  )
  const total = counts.reduce((sum, count) => sum + count, 0)
  expect(total).toBeGreaterThan(seconds * 20)
  const hashes = await expectIdentical(nodes)
  expect(hashes['public.pgbench_history']).toMatch(new RegExp(`^${total} rows`))
}

/** Waits until every subscription has been seen with nothing left to apply. */
export async function expectNoLag(mesh: TestMesh): Promise<void> {
  for (const node of mesh.nodes) {
    const caughtUp = new Set<string>()
    await waitUntil(`status of ${node.name} shows no lag`, async () => {
      const rows = await node.query<{
        name: string
        status: string
        bytes: bigint | null
        seconds: number | null
      }>(
        'select subscription_name as name, status, lag_bytes as bytes, lag_seconds as seconds from sterna.sub_show_status()',
      )
      for (const { name, status, bytes, seconds } of rows)
        if (status === 'replicating' && bytes === 0n && seconds !== null && seconds < 1) caughtUp.add(name)
      return rows.length > 0 && caughtUp.size === rows.length
    })
  }
}

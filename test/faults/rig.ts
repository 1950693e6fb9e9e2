import { readdirSync, readFileSync } from 'node:fs'

import { expect } from 'vitest'

import type { StatusJson } from '../../src/agent/status-json.ts'
import { formatDsn, parseDsn } from '../../src/postgres/dsn.ts'
import { startMesh, type MeshTestNode, type StartMeshOptions, type TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'

/** Role `sterna` has it on every server of these tests; it must not appear in anything that they produce. */
export const PASSWORD = 'hVq7wNcTz0'
/** A password that is not the right one, which must not appear either. */
export const WRONG_PASSWORD = 'xW3kPdRb9y'

/** All that the tests of a file have seen: messages, hints, HTTP answers. */
const seen: string[] = []

/** A subscription as sterna.sub_show_status() shows it. */
export interface Shown {
  readonly status: string
  readonly provider_node: string | null
  readonly slot_name: string | null
  readonly lag_bytes: bigint | null
  readonly lag_seconds: number | null
  readonly transactions: bigint
  readonly last_error_code: string | null
  readonly last_error: string | null
  readonly hint: string | null
}

/** A mesh whose agents answer HTTP, and whose password is looked for afterwards. */
export function startFaultMesh(options: StartMeshOptions): Promise<TestMesh> {
  return startMesh({
    password: PASSWORD,
    http: true,
    agentEnv: { STERNA_HEARTBEAT_INTERVAL_MS: '200' },
    ...options,
  })
}

/** The connection string of a node with something else in it. */
export function dsnWith(node: MeshTestNode, changes: Partial<ReturnType<typeof parseDsn>>): string {
  return formatDsn({ ...parseDsn(node.dsn), ...changes })
}

/** How a subscription stands now. */
export async function shown(node: MeshTestNode, name: string): Promise<Shown> {
  const [row] = await node.query<Shown>('select * from sterna.sub_show_status($1)', [name])
  if (!row) throw new Error(`${node.name} has no subscription ${name}`)
  seen.push(JSON.stringify(row, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value)))
  return row
}

/** Waits until a subscription is down with this code; resolves with what is shown then. */
export async function downWith(
  node: MeshTestNode,
  name: string,
  code: string,
  timeoutMs = 30_000,
): Promise<{ message: string; hint: string }> {
  let last: Shown | undefined
  await waitUntil(
    `${name} on ${node.name} is down with ${code}`,
    async () => {
      last = await shown(node, name)
      if (last.last_error_code === code && last.status === 'down') return true
      throw new Error(`it is ${last.status} with ${last.last_error_code}: ${last.last_error}`)
    },
    timeoutMs,
  )
  expect(last!.hint).toBeTruthy()
  expect(`${last!.last_error} ${last!.hint}`).not.toContain('?')
  return { message: last!.last_error!, hint: last!.hint! }
}

/** Waits until a subscription replicates and shows no error. */
export async function replicates(node: MeshTestNode, name: string, timeoutMs = 30_000): Promise<void> {
  await waitUntil(
    `${name} on ${node.name} replicates`,
    async () => {
      const { status, last_error: error } = await shown(node, name)
      if (status === 'replicating' && error === null) return true
      throw new Error(`it is ${status}: ${error}`)
    },
    timeoutMs,
  )
}

/** Waits until a query of one value gives that value. */
export async function becomes(
  node: MeshTestNode,
  sql: string,
  value: unknown,
  timeoutMs = 30_000,
): Promise<void> {
  await waitUntil(
    `on ${node.name}: ${sql} is ${String(value)}`,
    async () => {
      const actual = await only(node, sql)
      if (actual === value) return true
      throw new Error(`it is ${String(actual)}`)
    },
    timeoutMs,
  )
}

/** The one value of a query. */
export async function only(node: MeshTestNode, sql: string): Promise<unknown> {
  const [row] = await node.query(sql)
  return Object.values(row!)[0]
}

/** Waits until all is applied; then all nodes have the same rows in a table. */
export async function expectEqual(mesh: TestMesh, table: string): Promise<void> {
  await mesh.settle()
  const sql = `select count(*) || ' ' || coalesce(sum(hashtextextended(x::text, 0)::numeric), 0) from ${table} x`
  const hashes = await Promise.all(mesh.nodes.map((node) => only(node, sql)))
  expect(hashes).toEqual(hashes.map(() => hashes[0]))
}

/** The agent's answer to GET /status. */
export async function statusOf(node: MeshTestNode): Promise<StatusJson> {
  const response = await fetch(`${node.http}/status`, { headers: { connection: 'close' } })
  const body = await response.text()
  seen.push(body)
  return JSON.parse(body) as StatusJson
}

/** No agent has met a bug, and everything that the tests have produced and that others may read is free of passwords. */
export async function expectClean(mesh: TestMesh, more: readonly string[] = []): Promise<void> {
  for (const node of mesh.nodes) {
    for (const path of ['/status', '/ready', '/metrics', '/health']) {
      const answer = await fetch(node.http + path, { headers: { connection: 'close' } }).catch(
        () => undefined,
      )
      if (answer) seen.push(await answer.text())
    }
    const views = ['status', 'nodes', 'tables', 'lag']
    for (const view of views) seen.push(text(await node.query(`select * from sterna.${view}`)))
  }
  for (const { agent } of mesh.nodes) expect(agent.log).not.toMatch(/UNEXPECTED|crashed/)
  expectFree([...seen, ...more, ...mesh.nodes.map(({ agent }) => agent.log), ...processTitles()])
}

/** Fails when a password stands in one of these texts. */
export function expectFree(texts: readonly string[]): void {
  for (const password of [PASSWORD, WRONG_PASSWORD]) {
    const found = texts.find((it) => it.includes(password))
    const at = found?.indexOf(password) ?? 0
    // What stands before the password tells where it comes from.
    expect(found?.slice(Math.max(0, at - 200), at)).toBeUndefined()
  }
}

function text(rows: unknown): string {
  return JSON.stringify(rows, (_, value: unknown) => (typeof value === 'bigint' ? String(value) : value))
}

/** What `ps` shows of every process of this machine. */
function processTitles(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      } catch {
        return ''
      }
    })
}

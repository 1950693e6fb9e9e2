import { chmod, mkdtemp, readFile, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { afterAll, beforeAll, expect, it } from 'vitest'

import { runCommand } from '../harness/command.ts'
import { guardDirectory, guardGroup } from '../harness/guard.ts'
import { reservePorts } from '../harness/ports.ts'
import { startServers, type TestServers } from '../harness/servers.ts'
import { waitUntil } from '../harness/wait.ts'

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))
const NODES = ['n1', 'n2', 'n3']

let servers: TestServers
let directory: string
let httpPort: number
beforeAll(async () => {
  servers = await startServers({ count: 3, version: ['18', 'system15', '16'] })
  directory = await mkdtemp(join(tmpdir(), 'sterna-cli-'))
  guardDirectory(directory)
  httpPort = (await reservePorts(1))[0]!
})
afterAll(async () => {
  for (const node of NODES) {
    const pid = Number(await readFile(join(directory, `shop.${node}.agent.pid`), 'utf8').catch(() => '0'))
    if (pid > 0) process.kill(pid, 'SIGTERM')
  }
  await servers.stop()
})

interface Ran {
  code: number
  stdout: string
  stderr: string
}

function sterna(...args: string[]): Promise<Ran> {
  return runCommand([MAIN, ...args], { cwd: directory })
}

async function json<T>(...args: string[]): Promise<{ code: number; document: T }> {
  const { code, stdout } = await sterna(...args, '--json')
  return { code, document: JSON.parse(stdout) as T }
}

function createArguments(): string[] {
  const nodes = servers.nodes.flatMap(({ name, dsn }) => ['--node', `${name}=${dsn}`])
  return ['cluster', 'create', 'shop', ...nodes, '--region', 'n1=eu', '--http-port', String(httpPort)]
}

const CLUSTER = ['--cluster', 'shop.cluster.json']

it('what blocks is said at once, and nothing is changed', async () => {
  const [n1] = servers.nodes
  const { code, document } = await json<{ error: { code: string; message: string } }>(
    'cluster',
    'create',
    'shop',
    '--node',
    `n1=${n1!.dsn}`,
    '--node',
    `again=${n1!.dsn.replace('127.0.0.1', 'localhost')}`,
    '--node',
    'away=postgresql://u:secret@127.0.0.1:1/app',
  )
  expect(code).toBe(3)
  expect(document.error.code).toBe('CHECKS_FAILED')
  expect(document.error.message).toMatch(/one and the same database.*|cannot reach/)
  expect(JSON.stringify(document)).not.toContain('secret')
  await expect(stat(join(directory, 'shop.cluster.json'))).rejects.toThrow('ENOENT')
})

it('one node is not a cluster, a node twice neither', async () => {
  const { dsn } = servers.nodes[0]!
  expect((await sterna('cluster', 'create', 'shop', '--node', `n1=${dsn}`)).code).toBe(2)
  const twice = await sterna('cluster', 'create', 'shop', '--node', `n1=${dsn}`, '--node', `n1=${dsn}`)
  expect([twice.code, twice.stderr]).toEqual([2, expect.stringContaining('NODE_NAME_TWICE')])
})

it('servers of 15, 16 and 18 become a cluster, with files that only their owner can read', async () => {
  const { code, document } = await json<{ nodes: { agent_command: string; agent_config_file: string }[] }>(
    ...createArguments(),
  )
  expect(code).toBe(0)
  expect(document.nodes.map((node) => node.agent_command)).toEqual(
    NODES.map((node) => `sterna agent --config shop.${node}.agent.json`),
  )
  for (const file of ['shop.cluster.json', ...NODES.map((node) => `shop.${node}.agent.json`)])
    expect((await stat(join(directory, file))).mode & 0o777).toBe(0o600)
})

it('without agents status says so and exits with 5', async () => {
  const { code, document } = await json<{ ok: boolean; alarms: { name: string; subject: string }[] }>(
    'status',
    ...CLUSTER,
  )
  expect([code, document.ok]).toEqual([5, false])
  expect(document.alarms.map(({ name, subject }) => [name, subject])).toEqual(
    NODES.map((node) => ['agent_down', node]),
  )
})

it('--start-agents on a second run completes it: rows travel between all versions', async () => {
  const created = await sterna(...createArguments(), '--start-agents')
  for (const node of NODES) {
    const pid = Number(await readFile(join(directory, `shop.${node}.agent.pid`), 'utf8').catch(() => '0'))
    if (pid > 0) guardGroup(pid)
  }
  expect(created.stderr).toContain('6 of 6 subscriptions replicate')
  expect(created.code).toBe(0)
  await sterna(
    'sql',
    'n1',
    "create table t (id int primary key, a text); insert into t values (1, 'from n1')",
    ...CLUSTER,
  )
  for (const node of ['n2', 'n3'])
    await waitUntil(`the row on ${node}`, async () =>
      (await sterna('sql', node, 'select a from t', ...CLUSTER)).stdout.includes('from n1'),
    )
  const { code, document } = await json<{ ok: boolean; nodes: { region: string | null }[] }>(
    'status',
    ...CLUSTER,
  )
  expect([code, document.ok, document.nodes.map(({ region }) => region)]).toEqual([
    0,
    true,
    ['eu', null, null],
  ])
})

it('no process title shows a password', async () => {
  for (const node of NODES) {
    const pid = (await readFile(join(directory, `shop.${node}.agent.pid`), 'utf8')).trim()
    const title = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    expect(title).not.toContain('sterna:sterna')
  }
})

it('one connection string is enough to find the others', async () => {
  const { document } = await json<{ nodes: { name: string }[] }>('status', '--dsn', servers.nodes[1]!.dsn)
  expect(document.nodes.map(({ name }) => name)).toEqual(['n2', 'n1', 'n3'])
})

it('subscriptions and replication sets from the command line', async () => {
  expect((await sterna('sub', 'disable', 'sub_n1_n2', '--on', 'n1', ...CLUSTER)).code).toBe(0)
  await waitUntil('disabled', async () =>
    (await sterna('sub', 'list', ...CLUSTER)).stdout.includes('disabled'),
  )
  expect((await sterna('sub', 'disable', 'sub_n1_n2', ...CLUSTER)).code).toBe(2)
  expect((await sterna('sub', 'enable', 'sub_n1_n2', '--on', 'n1', ...CLUSTER)).code).toBe(0)
  const refused = await json<{ error: { code: string; hint: string } }>(
    'sub',
    'drop',
    'nope',
    '--on',
    'n1',
    ...CLUSTER,
  )
  expect([refused.code, refused.document.error.code]).toEqual([3, 'REFUSED'])
  await sterna('repset', 'create', 'reports', '--replicate', 'insert', '--on', 'all', ...CLUSTER)
  const columns = ['repset', 'add-table', 'reports', 't', '--columns', 'id', '--on', 'n1', ...CLUSTER]
  const both = await sterna(...columns)
  expect([both.code, both.stderr]).toEqual([3, expect.stringContaining('another list of columns')])
  expect((await sterna('repset', 'remove-table', 'default', 't', '--on', 'n1', ...CLUSTER)).code).toBe(0)
  expect((await sterna(...columns)).code).toBe(0)
  const { document } = await json<{
    replication_sets: { on: string; set_name: string; operations: string[]; tables: string[] }[]
  }>('repset', 'list', ...CLUSTER)
  expect(document.replication_sets.filter((set) => set.set_name === 'reports')).toEqual([
    { on: 'n1', set_name: 'reports', operations: ['insert'], tables: ['public.t'] },
    { on: 'n2', set_name: 'reports', operations: ['insert'], tables: [] },
    { on: 'n3', set_name: 'reports', operations: ['insert'], tables: [] },
  ])
  expect((await sterna('repset', 'remove-table', 'reports', 't', '--on', 'n1', ...CLUSTER)).code).toBe(0)
  expect((await sterna('repset', 'drop', 'reports', '--on', 'all', ...CLUSTER)).code).toBe(0)
})

it('a dead node does not hold up status, which names it and shows the others', async () => {
  await servers.nodes[2]!.kill9()
  const started = performance.now()
  const { code, document } = await json<{
    nodes: {
      name: string
      reachable: boolean
      error: { code: string } | null
      server_version: string | null
    }[]
    alarms: { name: string; subject: string; action: string }[]
  }>('status', ...CLUSTER)
  expect(performance.now() - started).toBeLessThan(8_000)
  expect(code).toBe(5)
  expect(document.nodes.map(({ name, reachable, error }) => [name, reachable, error?.code ?? null])).toEqual([
    ['n1', true, null],
    ['n2', true, null],
    ['n3', false, 'SERVER_UNREACHABLE'],
  ])
  expect(document.alarms).toContainEqual(expect.objectContaining({ name: 'node_unreachable', subject: 'n3' }))
  await servers.nodes[2]!.start()
  await waitUntil('all is well again', async () => (await sterna('status', ...CLUSTER)).code === 0, 60_000)
})

it('mistakes on the command line are told, with a suggestion', async () => {
  const mistyped = await sterna('stauts')
  expect([mistyped.code, mistyped.stderr]).toEqual([2, expect.stringContaining('status')])
  const option = await sterna('status', '--jsn')
  expect([option.code, option.stderr]).toEqual([2, expect.stringContaining('--json')])
  const unknown = await sterna('sql', 'n9', 'select 1', ...CLUSTER)
  expect([unknown.code, unknown.stderr]).toEqual([2, expect.stringContaining('n1, n2, n3')])
  const nowhere = await sterna('status')
  expect([nowhere.code, nowhere.stderr]).toEqual([3, expect.stringContaining('sterna up')])
  await writeFile(join(directory, 'broken.json'), '{"name": "x", "nodes": []}')
  await chmod(join(directory, 'broken.json'), 0o600)
  expect((await sterna('status', '--cluster', 'broken.json')).stderr).toContain('nodes')
})

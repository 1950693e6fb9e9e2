import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { localDsn, readLocalCluster, readPassword } from '../../src/local/cluster-file.ts'
import { nodePaths } from '../../src/local/layout.ts'
import { PgConnection } from '../../src/postgres/connection.ts'
import { findPostmaster } from '../../src/postgres/server/postmaster-pid.ts'
import { runCommand, type RunningCommand, startCommand } from '../harness/command.ts'
import { guardDirectory, guardServer } from '../harness/guard.ts'
import { releasePort, reserveClusterPorts } from '../harness/ports.ts'
import { waitUntil } from '../harness/wait.ts'

const MAIN = fileURLToPath(new URL('sterna-without-mesh.ts', import.meta.url))
const NODES = 2
const isRoot = process.getuid?.() === 0

let base: string
let dir: string
let port: number
let meshLog: string

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'sterna-up-'))
  await chmod(base, 0o755)
  guardDirectory(base)
  dir = join(base, '.sterna')
  meshLog = join(base, 'mesh.log')
  port = await reserveClusterPorts(NODES)
  for (let k = 1; k <= NODES; k++) guardServer(nodePaths(dir, `n${k}`).data)
})

afterEach(async () => {
  if (existsSync(join(dir, 'cluster.json'))) await sterna('down', '--destroy', '--yes', '--dir', dir)
  for (let i = 0; i < NODES; i++) [port + i, port + 100 + i].forEach(releasePort)
})

const sterna = (...args: string[]): ReturnType<typeof runCommand> =>
  runCommand([MAIN, ...args], { cwd: base, env: { TEST_MESH_LOG: meshLog } })

const up = (...args: string[]): RunningCommand =>
  startCommand([MAIN, 'up', '--dir', dir, '--nodes', String(NODES), '--port', String(port), ...args], {
    cwd: base,
    env: { TEST_MESH_LOG: meshLog },
  })

async function ask(node: number, sql: string): Promise<unknown> {
  const cluster = (await readLocalCluster(dir))!
  const dsn = localDsn(cluster, cluster.nodes[node - 1]!, await readPassword(dir))
  const connection = await PgConnection.connect(dsn)
  try {
    return Object.values((await connection.query(sql)).rows[0] ?? {})[0]
  } finally {
    await connection.close()
  }
}

async function stopWith(command: RunningCommand, ...signals: NodeJS.Signals[]): Promise<number> {
  for (const signal of signals) command.child.kill(signal)
  return command.exitCode
}

async function agentPid(node: string): Promise<number> {
  const text = await readFile(nodePaths(dir, node).agentFile, 'utf8')
  return (JSON.parse(text) as { pid: number }).pid
}

const answers = (node: number): Promise<boolean> =>
  fetch(`http://127.0.0.1:${port + 99 + node}/health`).then(
    (response) => response.ok,
    () => false,
  )

describe('sterna up', () => {
  test('creates and runs a cluster, stops on Ctrl-C, and goes on with the data', async () => {
    const first = up('--json')
    await first.sees('"nodes"')
    await waitUntil('the whole document', () => first.stdout.trimEnd().endsWith('\n}'))
    expect(JSON.parse(first.stdout)).toMatchObject({
      name: 'local',
      directory: dir,
      already_running: false,
      supervisor_pid: first.pid,
      password_file: join(dir, 'password'),
      nodes: [
        { name: 'n1', port, http_port: port + 100, dsn: `postgresql://sterna@127.0.0.1:${port}/app` },
        { name: 'n2', port: port + 1, http_port: port + 101 },
      ],
    })
    expect(first.stderr).toContain('mesh of n1, n2')
    expect((await stat(join(dir, 'password'))).mode & 0o777).toBe(0o600)
    await ask(1, 'create table kept as select 7 as x')
    expect(await ask(2, 'show fsync')).toBe('off')
    const password = await readPassword(dir)
    const { stdout: processes } = await promisify(execFile)('ps', ['-eo', 'args'])
    expect(processes).toContain('agent --node n1')
    expect(processes).not.toContain(password)
    expect(await readFile(join(dir, 'cluster.json'), 'utf8')).not.toContain(password)

    expect(await stopWith(first, 'SIGINT', 'SIGINT', 'SIGTERM')).toBe(0)
    expect(await findPostmaster(nodePaths(dir, 'n1').data)).toBeUndefined()
    expect(await answers(1)).toBe(false)
    expect(existsSync(join(dir, 'supervisor.json'))).toBe(false)

    const second = up()
    await second.sees('is ready')
    expect(second.stdout).not.toContain(password)
    expect(Number(await ask(1, 'select x from kept'))).toBe(7)
    expect(await readFile(meshLog, 'utf8')).toBe('local 2\n')
    expect(await stopWith(second, 'SIGTERM')).toBe(0)
  })

  test('what is killed comes back; with the supervisor killed, the next up cleans up', async () => {
    const first = up()
    await first.sees('is ready')
    await ask(2, 'create table kept as select 1 as x')

    const oldAgent = await agentPid('n1')
    process.kill(oldAgent, 'SIGKILL')
    await waitUntil('another agent', async () => (await answers(1)) && (await agentPid('n1')) !== oldAgent)
    const oldServer = (await findPostmaster(nodePaths(dir, 'n2').data))!.pid
    process.kill(oldServer, 'SIGKILL')
    await first.sees('n2: server runs again')
    expect(Number(await ask(2, 'select x from kept'))).toBe(1)

    await stopWith(first, 'SIGKILL')
    expect(await answers(2)).toBe(true)
    const orphan = (await findPostmaster(nodePaths(dir, 'n1').data))!.pid

    const second = up()
    await second.sees('is ready')
    expect(second.stderr).toContain('n1: agent, n2: agent, n1: server, n2: server')
    expect((await findPostmaster(nodePaths(dir, 'n1').data))!.pid).not.toBe(orphan)
    expect(Number(await ask(2, 'select x from kept'))).toBe(1)

    const third = await sterna('up', '--dir', dir)
    expect(third).toMatchObject({ code: 0 })
    expect(third.stderr).toContain('runs already')
    expect(third.stdout).toContain('sterna dsn n1')
    const other = await sterna('up', '--dir', dir, '--nodes', '5')
    expect(other).toMatchObject({ code: 3 })
    expect(other.stderr).toContain('CLUSTER_DIFFERS')
    const wrong = await sterna('up', '--dir', dir, '--port', 'abc')
    expect(wrong).toMatchObject({ code: 2 })
    expect(wrong.stderr).toContain('--port: "abc" is not valid')
    expect(await stopWith(second, 'SIGINT')).toBe(0)
  })

  test('everything killed at once, in the middle of work and of creation', async () => {
    const first = up()
    await first.sees('creating')
    await stopWith(first, 'SIGKILL')
    const second = up()
    await second.sees('is ready')
    expect(second.stderr).toContain('did not finish')
    await ask(1, 'create table kept as select 1 as x')
    const pids = [second.pid, await agentPid('n1'), await agentPid('n2')]
    for (const node of ['n1', 'n2']) pids.push((await findPostmaster(nodePaths(dir, node).data))!.pid)
    for (const pid of pids) process.kill(pid, 'SIGKILL')
    await second.exitCode
    const third = up()
    await third.sees('is ready')
    expect(Number(await ask(1, 'select x from kept'))).toBe(1)
    expect(await stopWith(third, 'SIGINT')).toBe(0)
  })

  test('Ctrl-C while it starts leaves nothing running, and the next start goes on', async () => {
    const first = up()
    await first.sees('starting servers')
    expect(await stopWith(first, 'SIGINT')).toBe(130)
    expect(await findPostmaster(nodePaths(dir, 'n1').data)).toBeUndefined()
    const second = up()
    await second.sees('is ready')
    expect(await stopWith(second, 'SIGINT')).toBe(0)
  })

  test('Ctrl-C while it waits for the mesh', async () => {
    const args = ['up', '--dir', dir, '--nodes', String(NODES), '--port', String(port)]
    const command = startCommand([MAIN, ...args], { cwd: base, env: { TEST_MESH_WAITS: '1' } })
    await command.sees('starting agents')
    await waitUntil('the agents answer', async () => (await answers(1)) && (await answers(2)))
    const before = performance.now()
    expect(await stopWith(command, 'SIGINT')).toBe(130)
    expect(performance.now() - before).toBeLessThan(15_000)
    expect(await answers(1)).toBe(false)
    expect(await findPostmaster(nodePaths(dir, 'n1').data)).toBeUndefined()
  })

  test('in the background, and down', async () => {
    const started = await up('--detach').exitCode
    expect(started).toBe(0)
    expect(await answers(1)).toBe(true)
    const refused = await sterna('down', '--dir', dir, '--destroy')
    expect(refused).toMatchObject({ code: 2 })
    expect(refused.stderr).toContain('CONFIRMATION_NEEDED')
    expect(await answers(1)).toBe(true)

    const stopped = await sterna('down', '--dir', dir, '--json')
    expect(stopped.code).toBe(0)
    expect(JSON.parse(stopped.stdout)).toMatchObject({ was_running: true, destroyed: false })
    expect(await findPostmaster(nodePaths(dir, 'n1').data)).toBeUndefined()
    expect((await sterna('down', '--dir', dir)).stdout).toContain('was not running')

    await writeFile(join(dir, 'mine.txt'), 'not of Sterna')
    expect((await sterna('down', '--dir', dir, '--destroy', '--yes')).code).toBe(0)
    expect(await readdir(dir)).toEqual(['mine.txt'])
  })

  test('in the background, an error of the mesh comes to the front and nothing stays', async () => {
    const result = await runCommand(
      [MAIN, 'up', '--dir', dir, '--nodes', String(NODES), '--port', String(port), '--detach'],
      { cwd: base, env: { TEST_MESH_FAILS: '1' } },
    )
    expect(result).toMatchObject({ code: 1 })
    expect(result.stderr).toContain('SUPERVISOR_FAILED')
    expect(result.stderr).toContain('the mesh was told to fail')
    expect(await findPostmaster(nodePaths(dir, 'n1').data)).toBeUndefined()
  })

  test('a busy port is named with its holder before anything is created', async () => {
    const holder = createServer().listen(port + 1, '127.0.0.1')
    await once(holder, 'listening')
    const result = await runCommand([MAIN, 'up', '--dir', dir, '--nodes', '2', '--port', String(port)], {
      cwd: base,
    })
    holder.close()
    expect(result).toMatchObject({ code: 3 })
    expect(result.stderr).toContain(`port ${port + 1} on 127.0.0.1 is in use by`)
    expect(result.stderr).toContain(`(pid ${process.pid})`)
    expect(existsSync(dir)).toBe(false)
  })

  test('a foreign directory stays untouched', async () => {
    await mkdir(dir)
    await writeFile(join(dir, 'thesis.txt'), 'x')
    const result = up('--json')
    expect(await result.exitCode).toBe(3)
    expect(JSON.parse(result.stdout)).toMatchObject({ error: { code: 'CLUSTER_DIR_UNUSABLE' } })
    expect(await readdir(dir)).toEqual(['thesis.txt'])
    expect((await sterna('down', '--dir', dir, '--destroy', '--yes')).code).toBe(3)
    expect(await readdir(dir)).toEqual(['thesis.txt'])
  })

  test('missing programs and wrong options', async () => {
    expect((await sterna('up', '--pg', '/nowhere/bin')).stderr).toContain('PG_BINARIES_MISSING')
    expect((await sterna('up', '--pg', 'old')).stderr).toContain('INVALID_VALUE')
    expect((await sterna('up', '--nodes', 'x')).code).toBe(2)
    expect(existsSync(join(base, '.sterna'))).toBe(false)
  })

  test.runIf(isRoot)('root in a directory that the server user cannot enter', async () => {
    await chmod(base, 0o700)
    const command = up()
    await command.sees('is ready')
    const { nodes } = (await readLocalCluster(dir))!
    expect(nodes[0]!.dataDir).toMatch(/^\/var\/lib\/sterna\/sterna-[0-9a-f]{8}\/n1\/data$/)
    expect(command.stderr).toContain('cannot enter')
    expect(await ask(1, 'select 1 as x')).toBeDefined()
    expect(await stopWith(command, 'SIGINT')).toBe(0)
    expect((await sterna('down', '--dir', dir, '--destroy', '--yes')).code).toBe(0)
    expect(existsSync(join(nodes[0]!.dataDir, '..', '..'))).toBe(false)
  })
})

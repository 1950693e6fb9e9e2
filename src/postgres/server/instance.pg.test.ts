import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { releasePort, reservePorts } from '../../../test/harness/ports.ts'
import {
  type ServerVersion,
  startServers,
  type TestServer,
  type TestServers,
} from '../../../test/harness/servers.ts'
import { PgConnection } from '../connection.ts'
import { PgInstance, stopForeignServer } from './instance.ts'
import { serverUser, spawnAs } from './os-user.ts'
import { findPostmaster } from './postmaster-pid.ts'
import { serverSettings } from './settings.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('a server of version %s', (version) => {
  let servers: TestServers
  let node: TestServer
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    node = servers.nodes[0]!
  })
  afterAll(() => servers.stop())

  async function instance(port: number, extra: Record<string, string> = {}): Promise<PgInstance> {
    const settings = serverSettings({
      port,
      clusterName: 'x',
      major: node.binaries.major,
      nodeCount: 1,
      extra,
    })
    const { binaries, dataDir, logFile } = node
    return new PgInstance({
      name: 'n1',
      binaries,
      dataDir,
      logFile,
      port,
      user: await serverUser(),
      settings,
    })
  }

  test('a second one on the same data is refused, and the first goes on', async () => {
    const [port] = (await reservePorts(1)) as [number]
    const error = await (await instance(port)).start().catch((reason: unknown) => reason)
    releasePort(port)
    expect(error).toMatchObject({ code: 'SERVER_START_FAILED' })
    expect(String(error)).toContain(`another server (pid ${node.pid}) already runs`)
    expect((await findPostmaster(node.dataDir))?.pid).toBe(node.pid)
  })

  test('a busy port is said with its holder', async () => {
    await node.stop()
    const holder = createServer().listen(node.port, '127.0.0.1')
    await once(holder, 'listening')
    const error = await (await instance(node.port)).start().catch((reason: unknown) => reason)
    holder.close()
    await once(holder, 'close')
    expect(error).toMatchObject({ code: 'PORT_BUSY' })
    // Who holds a port can be seen on Linux only.
    const by = process.platform === 'linux' ? `(pid ${process.pid})` : 'in use'
    expect(String(error)).toContain(by)
  })

  test('a wrong setting is the reason', async () => {
    const error = await (
      await instance(node.port, { work_mem: 'lots' })
    )
      .start()
      .catch((reason: unknown) => reason)
    expect(error).toMatchObject({ code: 'SERVER_START_FAILED' })
    expect(String(error)).toContain('contains errors')
  })

  test('a stale postmaster.pid whose pid is now another program of the same user', async () => {
    const other = spawn('sleep', ['1000'], { ...spawnAs(await serverUser()), cwd: '/' })
    await once(other, 'spawn')
    try {
      const text = `${other.pid}\n${node.dataDir}\n1\n${node.port}\n\n127.0.0.1\n  1  1\nready   \n`
      await writeFile(join(node.dataDir, 'postmaster.pid'), text)
      expect(await findPostmaster(node.dataDir)).toBeUndefined()
      expect(await stopForeignServer(node.dataDir)).toBe(false)
      const server = await instance(node.port)
      await server.start()
      await server.stop()
      expect(other.exitCode ?? other.signalCode).toBeNull()
    } finally {
      other.kill()
    }
  })

  test('a start that is not wanted any more', async () => {
    const server = await instance(node.port)
    await expect(server.start({ signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'SERVER_START_FAILED',
    })
    expect(server.pid).toBeUndefined()
    expect(await findPostmaster(node.dataDir)).toBeUndefined()
  })

  test('killed with sessions open, again and again, it starts each time', async () => {
    await node.start()
    for (let round = 0; round < 3; round++) {
      const session = await PgConnection.connect(node.dsn)
      const busy = session.query('select pg_sleep(30)').catch(() => {})
      await node.kill9()
      await node.start()
      await busy
    }
    const session = await PgConnection.connect(node.dsn)
    expect((await session.query<{ one: unknown }>('select 1 as one')).rows).toHaveLength(1)
    await session.close()
  })

  test('a server whose parent does not know it is found and stopped', async () => {
    expect((await findPostmaster(node.dataDir))?.status).toBe('ready')
    expect(await stopForeignServer(node.dataDir)).toBe(true)
    expect(await findPostmaster(node.dataDir)).toBeUndefined()
    expect(await stopForeignServer(node.dataDir)).toBe(false)
  })
})

import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import { createMeshService } from '../src/agent/mesh-service.ts'
import { loadConfig } from '../src/agent/config.ts'
import { createLogger } from '../src/agent/logger.ts'
import type { StatusJson } from '../src/agent/status-json.ts'
import { installSchema } from '../src/mesh/schema.ts'
import { PgConnection } from '../src/postgres/connection.ts'
import { startCommand, type RunningCommand } from './harness/command.ts'
import { reservePorts } from './harness/ports.ts'
import { startServers, type TestServer, type TestServers } from './harness/servers.ts'
import { serviceContract } from './harness/service-contract.ts'
import { TEST_LOGIN } from './harness/templates.ts'
import { waitUntil } from './harness/wait.ts'

const STERNA = join(import.meta.dirname, '../src/cli/main.ts')
let servers: TestServers
let server: TestServer
let http: string

beforeAll(async () => {
  servers = await startServers({ count: 1 })
  server = servers.nodes[0]!
  http = `127.0.0.1:${(await reservePorts(1))[0]}`
})
afterAll(() => servers.stop())

function startAgent(node: string): RunningCommand {
  const env = { STERNA_DSN: server.dsn, STERNA_HTTP: http, STERNA_HEARTBEAT_INTERVAL_MS: '100' }
  const agent = startCommand([STERNA, 'agent', '--node', node], { env })
  onTestFinished(() => void agent.child.kill('SIGKILL'))
  return agent
}

async function get<T>(path: string): Promise<{ status: number; body: T }> {
  const response = await fetch(`http://${http}${path}`, { headers: { connection: 'close' } })
  return { status: response.status, body: (await response.json()) as T }
}

serviceContract('MeshService', () => {
  const { config } = loadConfig({ commandLine: { node: 'n1', dsn: server.dsn, http: 'off' }, env: {} })
  return createMeshService(config, {
    log: createLogger({ node: 'n1', level: 'silent' }),
    httpAddress: undefined,
  })
})

describe('sterna agent on a real server', () => {
  test('waits for its database to become a node, is ready then, and goes through a restart of the server', async () => {
    const agent = startAgent('n1')
    await agent.sees('agent started')
    expect(await get('/health')).toEqual({ status: 200, body: { status: 'ok' } })
    await agent.sees('own server not usable')
    expect(await get('/ready')).toMatchObject({
      status: 503,
      body: { ready: false, reasons: [{ subject: 'n1' }] },
    })

    const connection = await PgConnection.connect(server.dsn)
    await installSchema(connection)
    await connection.query('select sterna.node_create($1, $2, $3)', ['n1', server.dsn, 'eu-west'])
    await connection.close()
    await waitUntil('the agent is ready', async () => (await get('/ready')).status === 200)
    const { body } = await get<StatusJson>('/status')
    expect(body).toMatchObject({
      node_name: 'n1',
      region: 'eu-west',
      connected: true,
      ready: true,
      subscriptions: [],
    })
    expect(body.node_id).toBeGreaterThan(0)
    expect(body.server_version).toMatch(/^18/)
    expect(Math.abs(body.clock_offset_ms!)).toBeLessThan(1_000)

    await server.kill9()
    await waitUntil('the agent is not ready', async () => (await get('/ready')).status === 503)
    await server.start()
    await waitUntil('the agent is ready again', async () => (await get('/ready')).status === 200)

    agent.child.kill('SIGTERM')
    expect(await agent.exitCode).toBe(0)
    expect(agent.stdout).toBe('')
    expect(agent.stderr).not.toContain(`:${TEST_LOGIN.password}@`)
  })

  test('the database of another node: exit 3, with both names', async () => {
    const agent = startAgent('n2')
    expect(await agent.exitCode).toBe(3)
    const last = JSON.parse(agent.stderr.trim().split('\n').at(-1)!) as {
      err: { code: string; message: string }
    }
    expect(last.err.code).toBe('NODE_NAME_MISMATCH')
    expect(last.err.message).toMatch(/n1.*n2|n2.*n1/)
  })
})

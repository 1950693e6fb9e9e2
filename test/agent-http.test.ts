import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { connect, createServer, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { afterEach, describe, expect, test } from 'vitest'

import { listenHttp, type AgentHttp, type HttpOptions } from '../src/agent/http.ts'
import { createLogger } from '../src/agent/logger.ts'
import { createMetrics } from '../src/agent/metrics.ts'
import { nodeReport } from './harness/fake-service.ts'

const TOKEN = 'a-token-of-enough-length'
const lines: string[] = []
const log = createLogger({
  node: 'n1',
  level: 'info',
  destination: { write: (line) => void lines.push(line) },
})
const open: AgentHttp[] = []

afterEach(async () => {
  await Promise.all(open.splice(0).map((http) => http.close()))
  lines.length = 0
})

async function start(changes: Partial<HttpOptions> = {}): Promise<AgentHttp> {
  const http = await listenHttp({
    address: { host: '127.0.0.1', port: 0 },
    token: undefined,
    report: () => nodeReport(),
    metrics: createMetrics('n1'),
    log,
    ...changes,
  })
  open.push(http)
  return http
}

interface Got {
  readonly response: IncomingMessage
  readonly body: string
}

async function get(
  http: AgentHttp,
  path: string,
  options: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Got> {
  const { method = 'GET', headers = {}, body } = options
  const { host, port } = http.address
  const sent = request({ host, port, path, method, headers, agent: false, timeout: 5_000 })
  sent.on('timeout', () => sent.destroy(new Error('no answer in 5 s')))
  sent.end(body)
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  return { response, body: await text(response) }
}

/** What the server says to raw bytes until it closes the connection. */
async function converse(http: AgentHttp, bytes: string): Promise<string> {
  const socket = connect(http.address.port, http.address.host)
  socket.on('error', () => {})
  socket.write(bytes)
  return text(socket)
}

describe('answers', () => {
  test('all four routes, as JSON and as Prometheus text', async () => {
    const http = await start()
    const health = await get(http, '/health')
    expect(health.response.headers).toMatchObject({
      'content-type': 'application/json; charset=utf-8',
      'cache-control': 'no-store',
      'x-content-type-options': 'nosniff',
    })
    expect(health.body).toBe('{"status":"ok"}\n')
    expect(JSON.parse((await get(http, '/ready')).body)).toEqual({ ready: true, reasons: [] })
    expect(JSON.parse((await get(http, '/status')).body)).toMatchObject({ node_name: 'n1', ready: true })
    const metrics = await get(http, '/metrics')
    expect(metrics.response.headers['content-type']).toContain('text/plain; version=0.0.4')
    expect(metrics.body).toContain('sterna_mesh_subscription_lag_bytes')
  })

  test('HEAD has the headers and no body', async () => {
    const { response, body } = await get(await start(), '/status', { method: 'HEAD' })
    expect(response.statusCode).toBe(200)
    expect(Number(response.headers['content-length'])).toBeGreaterThan(100)
    expect(body).toBe('')
  })

  test('IPv6 loopback', async () => {
    const http = await start({ address: { host: '::1', port: 0 } })
    expect((await get(http, '/ready')).response.statusCode).toBe(200)
  })

  test('the token is asked for', async () => {
    const http = await start({ token: TOKEN })
    expect((await get(http, '/health')).response.statusCode).toBe(200)
    expect((await get(http, '/status')).response.statusCode).toBe(401)
    const headers = { authorization: `Bearer ${TOKEN}` }
    expect((await get(http, '/status', { headers })).response.statusCode).toBe(200)
  })

  test('a bug in a report is a 500 without details, and is logged', async () => {
    const http = await start({
      report: () => {
        throw new TypeError('secret detail')
      },
    })
    const { response, body } = await get(http, '/status')
    expect(response.statusCode).toBe(500)
    expect(body).not.toContain('secret detail')
    expect(lines.join('')).toContain('secret detail')
    expect((await get(http, '/health')).response.statusCode).toBe(200)
  })
})

describe('limits', () => {
  test('a body is refused and the connection ends', async () => {
    const http = await start()
    const { response, body } = await get(http, '/status', { method: 'POST', body: 'x'.repeat(100_000) })
    expect(response.statusCode).toBe(413)
    expect(response.headers.connection).toBe('close')
    expect(JSON.parse(body)).toMatchObject({ error: { code: 'BODY_NOT_ACCEPTED' } })
  })

  test('large headers', async () => {
    const said = await converse(
      await start(),
      `GET / HTTP/1.1\r\nhost: localhost\r\nx: ${'x'.repeat(10_000)}\r\n\r\n`,
    )
    expect(said).toMatch(/^HTTP\/1\.1 431 /)
    expect(said).toContain('HEADERS_TOO_LARGE')
  })

  test('what is not HTTP', async () => {
    const http = await start()
    expect(await converse(http, '\x16\x03\x01\x02\x00\x01\x00\r\n\r\n')).toMatch(
      /^HTTP\/1\.1 400 [^]*BAD_REQUEST/,
    )
    expect((await get(http, '/health')).response.statusCode).toBe(200)
  })

  test('a client that never finishes its headers is cut off', { timeout: 20_000 }, async () => {
    const said = await converse(await start(), 'GET /health HTTP/1.1\r\nhost: localhost\r\n')
    expect(said).toMatch(/^HTTP\/1\.1 408 [^]*REQUEST_TIMEOUT/)
  })
})

describe('listening', () => {
  test('a busy port is said, with the address', async () => {
    const other = createServer().listen(0, '127.0.0.1')
    await once(other, 'listening')
    const { port } = other.address() as AddressInfo
    try {
      await expect(start({ address: { host: '127.0.0.1', port } })).rejects.toMatchObject({
        code: 'AGENT_HTTP_PORT_BUSY',
        message: `the agent's HTTP address 127.0.0.1:${port} is already in use`,
        exitCode: 3,
      })
    } finally {
      other.close()
    }
  })

  test('an address of another host is said', async () => {
    await expect(start({ address: { host: '192.0.2.1', port: 0 } })).rejects.toMatchObject({
      code: 'AGENT_HTTP_FAILED',
    })
  })

  test('closing stops accepting at once and cuts off who does not go', async () => {
    const http = await start()
    const idle = connect(http.address.port, http.address.host)
    await once(idle, 'connect')
    idle.write('GET /health HTTP/1.1\r\n')
    const gone = once(idle, 'close')
    idle.resume()
    idle.on('error', () => {})
    // The server must have accepted it: its half request is then what close() waits for.
    await get(http, '/health')
    const closedAtMs = Date.now()
    const closing = http.close()
    await expect(get(http, '/health')).rejects.toMatchObject({ code: 'ECONNREFUSED' })
    await closing
    await gone
    expect(Date.now() - closedAtMs).toBeLessThan(3_000)
    await http.close()
  })
})

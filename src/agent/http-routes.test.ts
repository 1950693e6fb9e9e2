import { describe, expect, test } from 'vitest'

import { nodeReport, subscriptionReport } from '../../test/harness/fake-service.ts'
import type { NodeReport } from '../mesh/report.ts'
import { answer, type HttpAnswer, type HttpQuestion } from './http-routes.ts'
import { createMetrics } from './metrics.ts'

const TOKEN = 'a-token-of-enough-length'
const metrics = createMetrics('n1')

function ask(
  question: Partial<HttpQuestion>,
  { token, report = nodeReport() }: { token?: string; report?: NodeReport } = {},
): Promise<HttpAnswer> {
  return answer(
    {
      method: 'GET',
      url: '/',
      host: '127.0.0.1:7101',
      authorization: undefined,
      hasBody: false,
      ...question,
    },
    { token, report: () => report, metrics },
  )
}

test('/health answers whatever the node is like, and without a token', async () => {
  const report = nodeReport({ connected: false })
  const question = { url: '/health', host: 'elsewhere.example' }
  expect(await ask(question, { token: TOKEN, report })).toEqual({ status: 200, body: { status: 'ok' } })
  expect(await ask(question, { report })).toEqual({ status: 200, body: { status: 'ok' } })
})

describe('/ready', () => {
  test('200 while all that is enabled replicates or catches up', async () => {
    const report = nodeReport({
      subscriptions: [
        subscriptionReport(),
        subscriptionReport({ name: 'sub_n1_n3', status: 'catching_up' }),
        subscriptionReport({ name: 'sub_n1_n4', status: 'disabled' }),
      ],
      alarms: [{ name: 'clock_offset', subject: 'n1', message: 'm', action: 'a', severity: 'warning' }],
    })
    expect(await ask({ url: '/ready' }, { report })).toEqual({
      status: 200,
      body: { ready: true, reasons: [] },
    })
  })

  test('503 with every reason', async () => {
    const lastError = { code: 'AUTH_FAILED', message: 'refused', hint: 'h', atMs: 0 }
    const report = nodeReport({
      connected: false,
      lastError: { ...lastError, message: 'cannot reach PostgreSQL' },
      subscriptions: [
        subscriptionReport({ status: 'initializing' }),
        subscriptionReport({ name: 'sub_n1_n3', status: 'down', lastError }),
      ],
      alarms: [
        { name: 'disconnected', subject: 'n1', message: 'said already', action: 'a', severity: 'critical' },
        {
          name: 'slot_retains_wal',
          subject: 's3',
          message: 'slot holds 9 GB',
          action: 'a',
          severity: 'critical',
        },
      ],
    })
    expect(await ask({ url: '/ready' }, { report })).toEqual({
      status: 503,
      body: {
        ready: false,
        reasons: [
          { subject: 'n1', reason: 'not connected to its own server: cannot reach PostgreSQL' },
          { subject: 'sub_n1_n2', reason: 'subscription is initializing' },
          { subject: 'sub_n1_n3', reason: 'subscription is down: refused' },
          { subject: 's3', reason: 'slot holds 9 GB' },
        ],
      },
    })
  })
})

test('/status: snake_case, LSNs as text, times in ISO 8601', async () => {
  const report = nodeReport({
    subscriptions: [
      subscriptionReport({
        appliedLsn: null,
        lastError: { code: '53100', message: 'disk full', hint: 'free some', atMs: 1_000 },
        retryAtMs: 2_000,
      }),
    ],
  })
  const { status, body } = await ask({ url: '/status?pretty' }, { report })
  expect(status).toBe(200)
  expect(JSON.parse(JSON.stringify(body))).toEqual({
    node_id: 1,
    node_name: 'n1',
    region: 'eu-west',
    sterna_version: '0.1.0',
    server_version: '18.1',
    connected: true,
    ready: true,
    started_at: '2026-11-21T03:00:00.000Z',
    clock_offset_ms: -12.5,
    last_error: null,
    subscriptions: [
      {
        name: 'sub_n1_n2',
        status: 'replicating',
        provider_name: 'n2',
        slot_name: 'sterna_app_sub_n1_n2',
        replication_sets: ['default', 'ddl_sql'],
        received_lsn: '1/16B3748',
        applied_lsn: null,
        confirmed_lsn: '1/16B3000',
        provider_lsn: 'FFFFFFFF/FFFFFFFF',
        lag_bytes: 8,
        lag_seconds: 0.25,
        retained_wal_bytes: 4096,
        transactions: 7,
        changes: 70,
        conflicts: { update_missing: 2 },
        exceptions: 1,
        last_error: {
          code: '53100',
          message: 'disk full',
          hint: 'free some',
          at: '1970-01-01T00:00:01.000Z',
        },
        retry_at: '1970-01-01T00:00:02.000Z',
      },
    ],
    open_reviews: 3,
    rows_aside: 2,
    alarms: [],
  })
})

describe('who may ask', () => {
  test.each(['/ready', '/status', '/metrics', '/nothing'])('%s needs the token', async (url) => {
    const refused = await ask({ url }, { token: TOKEN })
    expect(refused).toMatchObject({ status: 401, headers: { 'www-authenticate': 'Bearer realm="sterna"' } })
    expect(refused.body).toMatchObject({ error: { code: 'UNAUTHORIZED' } })
    for (const authorization of [
      `Bearer ${TOKEN}x`,
      `Bearer ${TOKEN.slice(1)}`,
      `Basic ${TOKEN}`,
      'Bearer',
      TOKEN,
    ]) {
      expect((await ask({ url, authorization }, { token: TOKEN })).status).toBe(401)
    }
    const accepted = await ask({ url, authorization: `bearer ${TOKEN}` }, { token: TOKEN })
    expect(accepted.status).toBe(url === '/nothing' ? 404 : 200)
  })

  test('with a token, any host name will do', async () => {
    const question = { url: '/ready', host: 'n1.example', authorization: `Bearer ${TOKEN}` }
    expect((await ask(question, { token: TOKEN })).status).toBe(200)
  })

  test.each(['localhost:7101', 'LOCALHOST', '127.0.0.1', '[::1]:7101', undefined])(
    'without a token, %s is this machine',
    async (host) => expect((await ask({ url: '/ready', host })).status).toBe(200),
  )

  test.each(['evil.example:7101', 'localhost.evil.example', ''])(
    'without a token, a page that calls itself %j is refused',
    async (host) => expect(await ask({ url: '/ready', host })).toMatchObject({ status: 403 }),
  )
})

describe('what cannot be asked', () => {
  test('an unknown path', async () => {
    expect(await ask({ url: '/' })).toMatchObject({
      status: 404,
      body: { error: { code: 'NOT_FOUND', message: 'there is only /health, /ready, /status, /metrics' } },
    })
    expect((await ask({ url: '/status/../metrics' })).status).toBe(404)
  })

  test('a method that changes things', async () => {
    expect(await ask({ url: '/status', method: 'POST' })).toMatchObject({
      status: 405,
      headers: { allow: 'GET, HEAD' },
      body: { error: { code: 'METHOD_NOT_ALLOWED' } },
    })
    expect((await ask({ url: '/status', method: 'HEAD' })).status).toBe(200)
  })

  test('with a body', async () => {
    expect(await ask({ url: '/status', hasBody: true })).toMatchObject({
      status: 413,
      headers: { connection: 'close' },
    })
  })
})

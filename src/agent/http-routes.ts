import { createHash, timingSafeEqual } from 'node:crypto'
import { isIP } from 'node:net'

import type { NodeReport } from '../mesh/report.ts'
import type { Metrics } from './metrics.ts'
import { notReadyReasons } from './readiness.ts'
import { statusJson } from './status-json.ts'

/** What of a request decides its answer. */
export interface HttpQuestion {
  readonly method: string
  /** Path with query. */
  readonly url: string
  readonly host: string | undefined
  readonly authorization: string | undefined
  /** Whether the client sends a body, which no route takes. */
  readonly hasBody: boolean
}

/** An answer. Objects are sent as JSON, text as it is. */
export interface HttpAnswer {
  readonly status: number
  readonly body: object | string
  readonly headers?: Readonly<Record<string, string>>
}

/** What the routes answer from. */
export interface RouteOptions {
  /** Demanded on every route but /health; undefined: nobody is asked. */
  readonly token: string | undefined
  readonly report: () => NodeReport
  readonly metrics: Metrics
}

const ROUTES = ['/health', '/ready', '/status', '/metrics'] as const
type Route = (typeof ROUTES)[number]

/** Answers a request: who may ask, then what. */
export async function answer(question: HttpQuestion, options: RouteOptions): Promise<HttpAnswer> {
  const path = question.url.split('?', 1)[0]!
  const route = ROUTES.find((it) => it === path)
  if (question.hasBody) {
    return failure(413, 'BODY_NOT_ACCEPTED', 'requests must not have a body', { connection: 'close' })
  }
  if (route !== '/health') {
    const refusal = refuse(question, options.token)
    if (refusal) return refusal
  }
  if (route === undefined) return failure(404, 'NOT_FOUND', `there is only ${ROUTES.join(', ')}`)
  if (question.method !== 'GET' && question.method !== 'HEAD') {
    return failure(405, 'METHOD_NOT_ALLOWED', 'only GET and HEAD', { allow: 'GET, HEAD' })
  }
  return answerRoute(route, options)
}

/** A failed request in the one shape that all of them have. */
export function failure(
  status: number,
  code: string,
  message: string,
  headers: Readonly<Record<string, string>> = {},
): HttpAnswer {
  return { status, body: { error: { code, message } }, headers }
}

async function answerRoute(route: Route, { report, metrics }: RouteOptions): Promise<HttpAnswer> {
  switch (route) {
    case '/health':
      return { status: 200, body: { status: 'ok' } }
    case '/ready': {
      const reasons = notReadyReasons(report())
      const ready = reasons.length === 0
      return { status: ready ? 200 : 503, body: { ready, reasons } }
    }
    case '/status':
      return { status: 200, body: statusJson(report()) }
    case '/metrics': {
      const body = await metrics.render(report())
      return { status: 200, body, headers: { 'content-type': metrics.contentType } }
    }
  }
}

function refuse(question: HttpQuestion, token: string | undefined): HttpAnswer | undefined {
  if (token === undefined) {
    // Without a token only this machine can ask. A web page in a browser here could too, under a name of its own
    // that it lets point to 127.0.0.1 (DNS rebinding): its requests carry that name.
    if (isOwnHost(question.host)) return undefined
    return failure(403, 'HOST_NOT_ACCEPTED', 'without a token, ask by IP address or as localhost')
  }
  const given = /^Bearer +(\S+) *$/i.exec(question.authorization ?? '')?.[1]
  if (given !== undefined && sameSecret(given, token)) return undefined
  return failure(401, 'UNAUTHORIZED', 'an Authorization header with the bearer token is needed', {
    'www-authenticate': 'Bearer realm="sterna"',
  })
}

function isOwnHost(host: string | undefined): boolean {
  if (host === undefined) return true
  const name = host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1')
  return name.toLowerCase() === 'localhost' || isIP(name) !== 0
}

/** Compares in a time that tells nothing about where, or in what length, the two differ. */
function sameSecret(a: string, b: string): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest()
  return timingSafeEqual(digest(a), digest(b))
}

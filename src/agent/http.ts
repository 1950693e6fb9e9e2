import { createServer, STATUS_CODES, type IncomingMessage, type Server, type ServerResponse } from 'node:http'

import { messageOf, SternaError } from '../core/errors.ts'
import { formatHttpAddress, type HttpAddress } from './http-address.ts'
import { answer, failure, type HttpAnswer, type RouteOptions } from './http-routes.ts'
import type { Logger } from './logger.ts'

/** A listening HTTP server of an agent. */
export interface AgentHttp {
  /** The real address: with the chosen port where port 0 was asked for. */
  readonly address: HttpAddress
  /** Stops accepting at once; resolves when the open requests are answered, or cut off after a grace period. Idempotent. */
  close(): Promise<void>
}

/** What an agent's HTTP server needs. */
export interface HttpOptions extends RouteOptions {
  readonly address: HttpAddress
  readonly log: Logger
}

// Scrapers and probes ask small questions: whoever needs more than this is broken or hostile.
const MAX_HEADER_BYTES = 8 * 1024
const MAX_CONNECTIONS = 100
const REQUEST_TIMEOUT_MS = 5_000
const KEEP_ALIVE_TIMEOUT_MS = 5_000
const IDLE_SOCKET_TIMEOUT_MS = 15_000
const CLOSE_GRACE_MS = 1_000

/**
 * Serves /health, /ready, /status and /metrics.
 * @throws AGENT_HTTP_PORT_BUSY, AGENT_HTTP_FAILED
 */
export async function listenHttp(options: HttpOptions): Promise<AgentHttp> {
  const { log } = options
  const server = createServer(
    {
      maxHeaderSize: MAX_HEADER_BYTES,
      requestTimeout: REQUEST_TIMEOUT_MS,
      keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
      connectionsCheckingInterval: 1_000,
    },
    (request, response) => {
      void handle(request, response, options)
    },
  )
  server.maxConnections = MAX_CONNECTIONS
  server.setTimeout(IDLE_SOCKET_TIMEOUT_MS)
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    if (socket.writable) socket.end(rawAnswer(clientErrorAnswer(error.code)))
    else socket.destroy()
  })
  const address = await listen(server, options.address)
  server.on('error', (error) => log.error({ err: error }, 'HTTP server failed'))
  let closed: Promise<void> | undefined
  return { address, close: () => (closed ??= close(server)) }
}

async function handle(
  request: IncomingMessage,
  response: ServerResponse,
  options: HttpOptions,
): Promise<void> {
  const { 'content-length': length, 'transfer-encoding': encoding, host, authorization } = request.headers
  try {
    send(
      response,
      await answer(
        {
          method: request.method ?? '',
          url: request.url ?? '',
          host,
          authorization,
          hasBody: encoding !== undefined || (length !== undefined && length !== '0'),
        },
        options,
      ),
    )
  } catch (error) {
    options.log.error({ err: error }, 'HTTP request failed')
    if (response.headersSent) response.destroy()
    else send(response, failure(500, 'INTERNAL', 'the agent failed to answer; its log says why'))
  }
}

function send(response: ServerResponse, { status, body, headers }: HttpAnswer): void {
  const bytes = Buffer.from(typeof body === 'string' ? body : `${JSON.stringify(body)}\n`)
  response.writeHead(status, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': bytes.length,
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    ...headers,
  })
  response.end(bytes)
}

function clientErrorAnswer(code: string | undefined): HttpAnswer {
  if (code === 'HPE_HEADER_OVERFLOW') {
    return failure(431, 'HEADERS_TOO_LARGE', `request headers are limited to ${MAX_HEADER_BYTES} bytes`)
  }
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return failure(408, 'REQUEST_TIMEOUT', 'the request did not arrive in time')
  }
  return failure(400, 'BAD_REQUEST', 'this is not HTTP')
}

/** An answer where Node has no response object, because the request could not be parsed. */
function rawAnswer({ status, body }: HttpAnswer): string {
  const text = `${JSON.stringify(body)}\n`
  return [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    'connection: close',
    'content-type: application/json; charset=utf-8',
    `content-length: ${Buffer.byteLength(text)}`,
    '',
    text,
  ].join('\r\n')
}

function listen(server: Server, address: HttpAddress): Promise<HttpAddress> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const facts = { address: formatHttpAddress(address) }
      reject(
        error.code === 'EADDRINUSE'
          ? new SternaError('AGENT_HTTP_PORT_BUSY', facts, error)
          : new SternaError('AGENT_HTTP_FAILED', { ...facts, reason: messageOf(error) }, error),
      )
    })
    server.listen({ host: address.host, port: address.port }, () => {
      server.removeAllListeners('error')
      const bound = server.address()
      resolve({ host: address.host, port: typeof bound === 'object' && bound ? bound.port : address.port })
    })
  })
}

function close(server: Server): Promise<void> {
  return new Promise((resolve) => {
    const cutOff = setTimeout(() => server.closeAllConnections(), CLOSE_GRACE_MS)
    server.close(() => {
      clearTimeout(cutOff)
      resolve()
    })
  })
}

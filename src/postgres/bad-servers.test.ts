import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { afterEach, describe, expect, test } from 'vitest'
import { BACKEND } from '../pgwire/backend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import { PgConnection } from './connection.ts'
import type { SslMode } from './dsn.ts'
import { ReplicationStream, type StreamHandler } from './replication-stream.ts'
import { WireSocket } from './wire-socket.ts'
import { LSN_ZERO } from '../core/lsn.ts'

const PASSWORD = 'hunter2'
const closers: (() => void)[] = []

/** A rejection that nobody takes fails the run: vitest reports it. */
afterEach(() => {
  for (const close of closers.splice(0)) close()
})

/** A server made of one function, which gets each connection. Returns its port. */
async function listen(serve: (socket: Socket) => void): Promise<number> {
  const open = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    open.add(socket)
    socket.on('error', () => {})
    serve(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  closers.push(() => {
    server.close()
    for (const socket of open) socket.destroy()
  })
  return (server.address() as AddressInfo).port
}

function targetOf(port: number, sslMode: SslMode = 'disable', connectTimeoutMs = 5000) {
  const login = { user: 'ann', password: PASSWORD, database: 'app' }
  return { host: '127.0.0.1', port, sslMode, connectTimeoutMs, ...login }
}

/** Connects, and expects a refusal that does not show the password. */
async function refusal(port: number, sslMode?: SslMode, connectTimeoutMs?: number) {
  const attempt = PgConnection.connect(targetOf(port, sslMode, connectTimeoutMs))
  const error = await attempt.then(
    (connection) => {
      connection.destroy()
      return new Error('connected')
    },
    (reason: unknown) => reason as Error & { code?: string },
  )
  for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
    expect(`${cause.message}${cause.stack}${JSON.stringify(cause)}`).not.toContain(PASSWORD)
  }
  return error as Error & { code?: string }
}

/** Messages by type and body. */
function messages(
  ...list: readonly (readonly [type: number, body: (w: MessageWriter) => unknown])[]
): Buffer {
  const w = new MessageWriter()
  for (const [type, body] of list) {
    w.begin(type)
    body(w)
    w.end()
  }
  return w.take()
}

const AUTHENTICATION_OK = [BACKEND.authentication, (w: MessageWriter) => w.int32(0)] as const
const KEY = [BACKEND.backendKeyData, (w: MessageWriter) => w.int32(1).int32(2)] as const
const READY = [BACKEND.readyForQuery, (w: MessageWriter) => w.byte(0x49)] as const
const LOGGED_IN = messages(AUTHENTICATION_OK, KEY, READY)

const errorMessage = (severity: string, sqlstate: string, text: string) =>
  [
    BACKEND.error,
    (w: MessageWriter) =>
      w.byte(0x56).cstring(severity).byte(0x43).cstring(sqlstate).byte(0x4d).cstring(text).byte(0),
  ] as const

describe('what answers is not PostgreSQL', () => {
  const answering = (bytes: Buffer | string) =>
    listen((socket) => socket.once('data', () => socket.write(bytes)))
  const http = 'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n'

  test.each<SslMode>(['disable', 'allow', 'prefer', 'require'])(
    'an HTTP server, sslmode %s',
    async (sslMode) => {
      expect(await refusal(await answering(http), sslMode)).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
    },
  )

  test('a greeting before anything was said', async () => {
    const port = await listen((socket) => socket.write('220 mail.example ESMTP\r\n'))
    expect(await refusal(port)).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
    expect(await refusal(port, 'require')).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
  })

  test('random bytes', async () => {
    let seed = 7
    for (let round = 0; round < 30; round++) {
      const bytes = Buffer.from(
        Array.from({ length: 200 }, () => (seed = (seed * 16_807) % 2_147_483_647) & 0xff),
      )
      const port = await listen((socket) => socket.once('data', () => socket.end(bytes)))
      expect((await refusal(port, 'disable', 2000)).code).toMatch(
        /PROTOCOL_VIOLATION|SERVER_UNREACHABLE|AUTH_FAILED/,
      )
    }
  })

  test('a message that claims 2 GB, in the handshake and after it', async () => {
    const huge = Buffer.from([BACKEND.dataRow, 0x7f, 0xff, 0xff, 0xff])
    expect(await refusal(await answering(huge))).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
    const later = await listen((socket) => {
      socket.once('data', () => {
        socket.write(LOGGED_IN)
        socket.once('data', () => socket.write(huge))
      })
    })
    const connection = await PgConnection.connect(targetOf(later))
    await expect(connection.exec('select 1')).rejects.toMatchObject({ code: 'PROTOCOL_VIOLATION' })
    await expect(connection.exec('select 1')).rejects.toMatchObject({ code: 'PROTOCOL_VIOLATION' })
  })

  test.each([
    ['a byte that is neither S nor N', 'X', 'PROTOCOL_VIOLATION'],
    ['S with more bytes behind it', 'S\0\0\0', 'PROTOCOL_VIOLATION'],
    ['N with more bytes behind it', 'NR\0\0\0\x08\0\0\0\0', 'PROTOCOL_VIOLATION'],
    ['N', 'N', 'TLS_FAILED'],
  ])('the TLS request is answered with %s', async (_, bytes, code) => {
    expect(await refusal(await answering(bytes), 'require')).toMatchObject({ code })
  })

  test('TLS is accepted, and then comes no TLS', async () => {
    const port = await listen((socket) =>
      socket.once('data', () => {
        socket.write('S')
        socket.once('data', () => socket.end('this is not TLS'))
      }),
    )
    expect(await refusal(port, 'require')).toMatchObject({ code: 'TLS_FAILED' })
  })

  test.each<[string, readonly (readonly [number, (w: MessageWriter) => unknown])[]]>([
    ['a message without its fields', [[BACKEND.authentication, () => {}]]],
    ['an unknown authentication method', [[BACKEND.authentication, (w) => w.int32(99)]]],
    ['SASL in the middle', [[BACKEND.authentication, (w) => w.int32(11).bytes(Buffer.from('r=x'))]]],
    ['only unknown SASL mechanisms', [[BACKEND.authentication, (w) => w.int32(10).cstring('X').byte(0)]]],
    ['a row before log-in', [[BACKEND.dataRow, (w) => w.int16(0)]]],
  ])('%s', async (_, list) => {
    const error = await refusal(await answering(messages(...list)))
    expect(error.code).toMatch(/PROTOCOL_VIOLATION|AUTH_FAILED/)
  })

  test.each<[string, readonly (readonly [number, (w: MessageWriter) => unknown])[]]>([
    ['a row that was not described', [[BACKEND.dataRow, (w: MessageWriter) => w.int16(1).textValue('x')]]],
    [
      'a number that is none',
      [
        [
          BACKEND.rowDescription,
          (w: MessageWriter) =>
            w.int16(1).cstring('n').int32(0).int16(0).int32(20).int16(8).int32(-1).int16(0),
        ],
        [BACKEND.dataRow, (w: MessageWriter) => w.int16(1).textValue('x')],
      ],
    ],
    [
      'JSON that is none',
      [
        [
          BACKEND.rowDescription,
          (w: MessageWriter) =>
            w.int16(1).cstring('n').int32(0).int16(0).int32(114).int16(8).int32(-1).int16(0),
        ],
        [BACKEND.dataRow, (w: MessageWriter) => w.int16(1).textValue('{')],
      ],
    ],
    ['an unknown message', [[0x7a, (w: MessageWriter) => w.int32(0)]]],
    ['a row that is cut off', [[BACKEND.dataRow, (w: MessageWriter) => w.int16(3)]]],
  ])('as the answer to a statement: %s', async (_, list) => {
    const port = await listen((socket) => {
      socket.once('data', () => {
        socket.write(LOGGED_IN)
        socket.once('data', () => socket.write(messages(...list, READY)))
      })
    })
    const connection = await PgConnection.connect(targetOf(port))
    const lost = new Promise((resolve) => {
      connection.onLost = resolve
    })
    await expect(connection.exec('select 1')).rejects.toMatchObject({ code: 'PROTOCOL_VIOLATION' })
    expect(await lost).toMatchObject({ code: 'PROTOCOL_VIOLATION' })
  })
})

describe('a server that does not prove itself', () => {
  const scramServer = (after: (socket: Socket) => void) =>
    listen((socket) => {
      socket.once('data', () => {
        socket.write(messages([BACKEND.authentication, (w) => w.int32(10).cstring('SCRAM-SHA-256').byte(0)]))
        socket.once('data', (first: Buffer) => {
          const nonce = /r=([^,]+)$/.exec(first.toString('latin1'))![1]
          const serverFirst = Buffer.from(`r=${nonce}more,s=c2FsdA==,i=4096`)
          socket.write(messages([BACKEND.authentication, (w) => w.int32(11).bytes(serverFirst)]))
          socket.once('data', () => after(socket))
        })
      })
    })

  test('a wrong signature', async () => {
    const port = await scramServer((socket) =>
      socket.write(
        Buffer.concat([
          messages([
            BACKEND.authentication,
            (w) => w.int32(12).bytes(Buffer.from(`v=${Buffer.alloc(32).toString('base64')}`)),
          ]),
          LOGGED_IN,
        ]),
      ),
    )
    const error = await refusal(port)
    expect(error).toMatchObject({ code: 'AUTH_FAILED' })
    expect(error.message).toContain('may not be the server it claims to be')
  })

  test('no signature at all', async () => {
    const port = await scramServer((socket) => socket.write(LOGGED_IN))
    expect(await refusal(port)).toMatchObject({ code: 'AUTH_FAILED' })
  })
})

describe('silence', () => {
  const silent = () => listen((socket) => socket.resume())

  test.each<SslMode>(['disable', 'prefer', 'require'])(
    'nothing is ever said, sslmode %s',
    async (sslMode) => {
      const error = await refusal(await silent(), sslMode, 300)
      expect(error).toMatchObject({ code: 'SERVER_UNREACHABLE' })
      expect(error.message).toContain('no answer within 0.3 s')
    },
  )

  test('in the middle of TLS', async () => {
    const port = await listen((socket) => socket.once('data', () => socket.write('S')))
    const error = await refusal(port, 'require', 300)
    expect(error).toMatchObject({ code: 'SERVER_UNREACHABLE' })
    expect(error.message).toContain('no answer within 0.3 s')
  })

  test('after an endless row of notices', async () => {
    const port = await listen((socket) => {
      const timer = setInterval(() => socket.write(messages([BACKEND.notice, (w) => w.byte(0)])), 10)
      socket.on('close', () => clearInterval(timer))
    })
    expect(await refusal(port, 'disable', 300)).toMatchObject({ code: 'SERVER_UNREACHABLE' })
  })

  test('the caller gives up', async () => {
    const attempt = WireSocket.open(targetOf(await silent()), {
      applicationName: 'test',
      signal: AbortSignal.timeout(100),
    })
    await expect(attempt).rejects.toMatchObject({ code: 'SERVER_UNREACHABLE' })
    await expect(attempt).rejects.toThrow('given up')
  })

  test('the caller had given up before', async () => {
    const attempt = WireSocket.open(targetOf(await silent()), {
      applicationName: 'test',
      signal: AbortSignal.abort(),
    })
    await expect(attempt).rejects.toMatchObject({ code: 'SERVER_UNREACHABLE' })
  })

  test('to a statement with a time limit, and to its cancel', async () => {
    let connections = 0
    const port = await listen((socket) => {
      if (connections++ === 0) socket.once('data', () => socket.write(LOGGED_IN))
      else socket.resume()
    })
    const connection = await PgConnection.connect(targetOf(port))
    const limited = connection.query('select 1', [], { timeoutMs: 50 })
    const behind = connection.exec('select 2')
    const results = await Promise.allSettled([limited, behind])
    for (const result of results) {
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'CONNECTION_LOST' } })
    }
  })

  test('to START_REPLICATION, until the caller gives up', async () => {
    const port = await listen((socket) => socket.once('data', () => socket.write(LOGGED_IN)))
    const stop = new AbortController()
    const handler: StreamHandler = { onData() {}, onBatchEnd() {}, onKeepalive() {}, onEnd() {} }
    const start = ReplicationStream.start(
      targetOf(port),
      { slotName: 's', applicationName: 't', startLsn: LSN_ZERO, pluginOptions: {}, signal: stop.signal },
      handler,
    )
    setTimeout(() => stop.abort(), 100)
    await expect(start).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
  })
})

describe('the end of a connection', () => {
  test('nobody listens there', async () => {
    const port = await listen(() => {})
    for (const close of closers.splice(0)) close()
    expect(await refusal(port)).toMatchObject({ code: 'SERVER_UNREACHABLE' })
    expect(await refusal(port, 'require')).toMatchObject({ code: 'SERVER_UNREACHABLE' })
  })

  test('a host name that does not exist', async () => {
    const target = { ...targetOf(5432), host: 'no-such-host.invalid' }
    await expect(PgConnection.connect(target)).rejects.toMatchObject({ code: 'SERVER_UNREACHABLE' })
  })

  test('a socket directory that does not exist', async () => {
    const target = { ...targetOf(5432), host: '/nonexistent' }
    await expect(PgConnection.connect(target)).rejects.toMatchObject({ code: 'SERVER_UNREACHABLE' })
  })

  test.each<SslMode>(['disable', 'require'])('it hangs up at once, sslmode %s', async (sslMode) => {
    expect(await refusal(await listen((socket) => socket.end()), sslMode)).toMatchObject({
      code: 'SERVER_UNREACHABLE',
    })
    expect(await refusal(await listen((socket) => socket.resetAndDestroy()), sslMode)).toMatchObject({
      code: 'SERVER_UNREACHABLE',
    })
  })

  test('too many connections, and a server that starts up', async () => {
    const saying = (sqlstate: string, text: string) =>
      listen((socket) =>
        socket.once('data', () => socket.end(messages(errorMessage('FATAL', sqlstate, text)))),
      )
    expect(await refusal(await saying('53300', 'sorry, too many clients already'))).toMatchObject({
      code: 'CONNECTIONS_EXHAUSTED',
      retry: true,
    })
    expect(await refusal(await saying('57P03', 'the database system is starting up'))).toMatchObject({
      code: 'SERVER_NOT_READY',
      retry: true,
    })
    expect(await refusal(await saying('XX000', 'odd'))).toMatchObject({
      code: 'STATEMENT_FAILED',
      sqlstate: 'XX000',
    })
  })

  test('in the middle of an answer: everything that waits is rejected, and onLost is told once', async () => {
    const port = await listen((socket) => {
      socket.once('data', () => {
        socket.write(LOGGED_IN)
        socket.once('data', () =>
          socket.end(messages([BACKEND.commandComplete, (w) => w.cstring('SELECT 1')])),
        )
      })
    })
    const connection = await PgConnection.connect(targetOf(port))
    const told: unknown[] = []
    connection.onLost = (error) => told.push(error)
    const results = await Promise.allSettled([
      connection.exec('a'),
      connection.exec('b'),
      connection.query('c'),
    ])
    expect(results.map(({ status }) => status)).toEqual(['rejected', 'rejected', 'rejected'])
    await expect(connection.exec('d')).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    await connection.close()
    connection.destroy()
    expect(told).toHaveLength(1)
  })

  test('a farewell between statements is the reason that is told', async () => {
    const port = await listen((socket) => {
      socket.once('data', () => {
        socket.write(LOGGED_IN)
        setTimeout(() => socket.end(messages(errorMessage('FATAL', '57P01', 'terminating connection'))), 50)
      })
    })
    const connection = await PgConnection.connect(targetOf(port))
    const error = await new Promise((resolve) => {
      connection.onLost = resolve
    })
    expect(error).toMatchObject({
      code: 'CONNECTION_LOST',
      message: expect.stringContaining('terminating connection'),
    })
  })

  test('closing against a server that never closes ends by itself', async () => {
    const port = await listen((socket) => {
      socket.once('data', () => socket.write(LOGGED_IN))
    })
    const connection = await PgConnection.connect(targetOf(port))
    const [waiting] = await Promise.allSettled([connection.exec('select 1'), connection.close()])
    expect(waiting).toMatchObject({ status: 'rejected', reason: { code: 'CONNECTION_LOST' } })
  })
})

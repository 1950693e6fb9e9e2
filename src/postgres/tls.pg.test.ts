import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  chownSync,
  chmodSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startServers, type TestServer, type TestServers } from '../../test/harness/servers.ts'
import { waitUntil } from '../../test/harness/wait.ts'
import { PgConnection } from './connection.ts'
import { parseDsn, SSL_MODES, type ConnectTarget, type SslMode } from './dsn.ts'
import { ReplicationStream } from './replication-stream.ts'
import { ServerError } from './server-error.ts'
import { LSN_ZERO } from '../core/lsn.ts'

const hasOpenssl = (() => {
  try {
    execFileSync('openssl', ['version'])
    return true
  } catch {
    process.stderr.write('SKIPPED: no test of TLS runs, because "openssl" is not on this machine\n')
    return false
  }
})()

const directory = mkdtempSync(join(tmpdir(), 'sterna-test-'))
const file = (name: string): string => join(directory, name)

/** A certificate authority, or a certificate that it signs. */
function certificate(name: string, subject: string, names?: string, issuer?: string): void {
  const args = [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-days',
    '2',
  ]
  args.push('-subj', `/CN=${subject}`, '-keyout', file(`${name}.key`), '-out', file(`${name}.crt`))
  if (names) args.push('-addext', `subjectAltName=${names}`)
  if (issuer)
    args.push(
      '-CA',
      file(`${issuer}.crt`),
      '-CAkey',
      file(`${issuer}.key`),
      '-addext',
      'basicConstraints=critical,CA:FALSE',
    )
  execFileSync('openssl', args, { stdio: 'ignore' })
}

let servers: TestServers
let server: TestServer
let target: ConnectTarget

/** Gives the server a certificate and restarts it, or takes it away. */
async function serve(name: string | null, hba: readonly string[] = []): Promise<void> {
  const { uid, gid } = statSync(server.dataDir)
  for (const kind of name ? ['crt', 'key'] : []) {
    const path = join(server.dataDir, `server.${kind}`)
    copyFileSync(file(`${name}.${kind}`), path)
    chownSync(path, uid, gid)
    chmodSync(path, 0o600)
  }
  writeFileSync(join(server.dataDir, 'pg_hba.conf'), [...hba, originalHba].join('\n'))
  await server.stop()
  await server.start({ ssl: name ? 'on' : 'off', ssl_ca_file: name ? caOfClients : '' })
}
let originalHba = ''
let caOfClients = ''

/** `tls` or `plain`, or the code of the refusal. */
async function outcome(change: Partial<ConnectTarget>): Promise<string> {
  try {
    const connection = await PgConnection.connect({ ...target, ...change })
    try {
      const row = await connection.row<{ ssl: boolean }>(
        'select ssl from pg_stat_ssl where pid = pg_backend_pid()',
      )
      return row!.ssl ? 'tls' : 'plain'
    } finally {
      await connection.close()
    }
  } catch (error) {
    expect((error as Error).message).not.toContain('hunter2')
    return (error as { code: string }).code
  }
}

async function outcomes(change: Partial<ConnectTarget> = {}): Promise<Record<SslMode, string>> {
  const list: [SslMode, string][] = []
  for (const sslMode of SSL_MODES) list.push([sslMode, await outcome({ ...change, sslMode })])
  return Object.fromEntries(list) as Record<SslMode, string>
}

describe.runIf(hasOpenssl)('TLS', () => {
  beforeAll(async () => {
    certificate('ca', 'Sterna test')
    certificate('other-ca', 'Somebody else')
    certificate('good', 'n1', 'DNS:localhost,DNS:n1.example,IP:127.0.0.1', 'ca')
    certificate('elsewhere', 'db.example', 'DNS:db.example,IP:10.9.8.7', 'ca')
    certificate('self', 'localhost', 'DNS:localhost,IP:127.0.0.1')
    certificate('client', 'sterna', undefined, 'ca')
    servers = await startServers({ count: 1 })
    server = servers.nodes[0]!
    target = parseDsn(server.dsn, {})
    originalHba = readFileSync(join(server.dataDir, 'pg_hba.conf'), 'utf8')
    const { uid, gid } = statSync(server.dataDir)
    copyFileSync(file('ca.crt'), join(server.dataDir, 'clients.crt'))
    chownSync(join(server.dataDir, 'clients.crt'), uid, gid)
    caOfClients = 'clients.crt'
  })
  afterAll(async () => {
    await servers?.stop()
    rmSync(directory, { recursive: true, force: true })
  })

  test('a server without TLS', async () => {
    expect(await outcomes({ sslRootCert: file('ca.crt') })).toEqual({
      disable: 'plain',
      allow: 'plain',
      prefer: 'plain',
      require: 'TLS_FAILED',
      'verify-ca': 'TLS_FAILED',
      'verify-full': 'TLS_FAILED',
    })
    expect(await outcome({ sslMode: 'prefer', password: 'hunter2' })).toBe('AUTH_FAILED')
  })

  describe('with a self-signed certificate', () => {
    beforeAll(() => serve('self'))

    test('and no root certificate here', async () => {
      expect(await outcomes()).toEqual({
        disable: 'plain',
        allow: 'plain',
        prefer: 'tls',
        require: 'tls',
        'verify-ca': 'TLS_FAILED',
        'verify-full': 'TLS_FAILED',
      })
    })

    test('which is the root certificate here', async () => {
      expect(await outcomes({ sslRootCert: file('self.crt') })).toMatchObject({
        require: 'tls',
        'verify-ca': 'tls',
        'verify-full': 'tls',
      })
    })

    test('and another root certificate here', async () => {
      expect(await outcomes({ sslRootCert: file('ca.crt') })).toEqual({
        disable: 'plain',
        allow: 'plain',
        prefer: 'tls',
        require: 'TLS_FAILED',
        'verify-ca': 'TLS_FAILED',
        'verify-full': 'TLS_FAILED',
      })
    })

    test('and the root certificates of the system', async () => {
      expect(await outcome({ sslMode: 'verify-full', sslRootCert: 'system' })).toBe('TLS_FAILED')
    })

    test.each(['nonexistent.crt', 'ca.key'])('and a root certificate file that is none: %s', async (name) => {
      expect(await outcome({ sslMode: 'verify-ca', sslRootCert: file(name) })).toBe('TLS_FAILED')
    })

    test('a wrong password', async () => {
      expect(await outcome({ sslMode: 'require', password: 'hunter2' })).toBe('AUTH_FAILED')
    })

    test('a statement is cancelled, and a stream is refused in words', async () => {
      const secure = { ...target, sslMode: 'require' } as const
      const connection = await PgConnection.connect(secure)
      const sleeping = connection.query('select pg_sleep(60)', [], { timeoutMs: 100 })
      await expect(sleeping).rejects.toMatchObject({ sqlstate: '57014' })
      const big = await connection.row<{ t: string }>(`select repeat('x', 20000000) as t`)
      expect(big!.t).toHaveLength(20_000_000)
      await connection.close()
      const stream = ReplicationStream.start(
        secure,
        { slotName: 'none', applicationName: 't', startLsn: LSN_ZERO, pluginOptions: {} },
        { onData() {}, onBatchEnd() {}, onKeepalive() {}, onEnd() {} },
      )
      await expect(stream).rejects.toBeInstanceOf(ServerError)
      await expect(stream).rejects.toMatchObject({ sqlstate: '42704' })
    })

    test('a server that is killed', async () => {
      const connection = await PgConnection.connect({ ...target, sslMode: 'require' })
      let lost: unknown
      connection.onLost = (error) => {
        lost = error
      }
      await server.kill9()
      await waitUntil('it is noticed', () => lost !== undefined)
      expect(lost).toMatchObject({ code: 'CONNECTION_LOST' })
      await server.start({ ssl: 'on' })
    })
  })

  describe('with a certificate of an authority', () => {
    test('for this host', async () => {
      await serve('good')
      const trusting = { sslRootCert: file('ca.crt') }
      for (const sslMode of ['verify-ca', 'verify-full'] as const) {
        expect(await outcome({ ...trusting, sslMode })).toBe('tls')
        expect(await outcome({ ...trusting, sslMode, host: 'localhost' })).toBe('tls')
        expect(await outcome({ ...trusting, sslMode, host: 'n1.example', hostAddr: '127.0.0.1' })).toBe('tls')
        expect(await outcome({ sslRootCert: file('other-ca.crt'), sslMode })).toBe('TLS_FAILED')
      }
      expect(
        await outcome({ ...trusting, sslMode: 'verify-full', host: 'n2.example', hostAddr: '127.0.0.1' }),
      ).toBe('TLS_FAILED')
      expect(
        await outcome({ ...trusting, sslMode: 'verify-ca', host: 'n2.example', hostAddr: '127.0.0.1' }),
      ).toBe('tls')
    })

    test('for another host', async () => {
      await serve('elsewhere')
      expect(await outcomes({ sslRootCert: file('ca.crt') })).toMatchObject({
        require: 'tls',
        'verify-ca': 'tls',
        'verify-full': 'TLS_FAILED',
      })
    })
  })

  describe('rules of the server', () => {
    test('only TLS: allow falls back to it', async () => {
      await serve('good', ['hostnossl all all all reject'])
      expect(await outcomes()).toMatchObject({
        disable: 'AUTH_FAILED',
        allow: 'tls',
        prefer: 'tls',
        require: 'tls',
      })
      expect(await outcome({ sslMode: 'allow', password: 'hunter2' })).toBe('AUTH_FAILED')
    })

    test('only without TLS: prefer falls back to that', async () => {
      await serve('good', ['hostssl all all all reject'])
      expect(await outcomes()).toMatchObject({
        disable: 'plain',
        allow: 'plain',
        prefer: 'plain',
        require: 'AUTH_FAILED',
      })
    })

    test('a client certificate instead of a password', async () => {
      await serve('good', ['hostssl all all all cert'])
      const { password: _, ...without } = target
      target = without
      const own = { sslMode: 'require', sslCert: file('client.crt'), sslKey: file('client.key') } as const
      expect(await outcome(own)).toBe('tls')
      expect(await outcome({ sslMode: 'require' })).toBe('AUTH_FAILED')
      expect(await outcome({ ...own, sslKey: file('nonexistent') })).toBe('TLS_FAILED')
      expect(await outcome({ ...own, sslKey: file('good.key') })).toBe('TLS_FAILED')
    })
  })
})

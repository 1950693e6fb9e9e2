import fc from 'fast-check'
import { expect, test } from 'vitest'

import { messageOf } from '../core/errors.ts'
import { formatDsn, maskDsn, parseDsn, type ConnectTarget } from './dsn.ts'

const PLAIN = { connectTimeoutMs: 10_000, sslMode: 'prefer' }

/** Text with the characters that mean something in a connection string. */
const tricky = fc.string({
  unit: fc.constantFrom(...Array.from('@/:?&=%\'"\\ #[]+,\n\t*$'), 'password', 'a', '7', 'é', '𝄞'),
})
const nonEmpty = tricky.filter((text) => text !== '')

/** What parseDsn makes of a text: the target, or the message that refuses it. */
function attempt(dsn: string, env: NodeJS.ProcessEnv = {}): unknown {
  try {
    return parseDsn(dsn, env)
  } catch (error) {
    return messageOf(error)
  }
}

test.each([
  'postgresql://ann:hunter2/rest@db/app',
  'postgresql://ann:hunter2?rest@db/app',
  'postgresql://ann:start@hunter2@db:5432/app',
  'postgresql://ann:start@hunter2/rest@db/app',
  'postgresql://ann:start@hunter2?rest@db/app',
  'postgresql://ann:start@hunter2?user=rest@db/app',
  'postgresql://ann:start&hunter2=1@db/app?x=y',
  'postgresql://ann:pw@db/app?hunter2=1',
  'postgresql://db/app?password=start&hunter2=1',
  'postgresql://ann:hunter2%zz@db/app',
  'postgresql://ann:hunter2%00@db/app',
  'postgresql://ann:hunter2',
  'postgresql://ann:hunter2/app',
  'postgresql://ann:?hunter2=',
  'host=db password=start hunter2',
  'host=db password=start hunter=hunter2',
  'host=db password=start port=hunter2',
  'host=db password=start sslmode=hunter2',
  "host=db password='hunter2",
  'hunter2',
])('a password that is not escaped is refused and gets into no message: %s', (dsn) => {
  const message = attempt(dsn)
  expect(message).toMatch(/^connection string: /)
  expect(message).not.toContain('hunter2')
})

test('whatever stands around it, a password put in as it is gets into no message and no masked text', () => {
  const forms = [
    (password: string) => `postgresql://ann:${password}@db:5432/app?sslmode=require`,
    (password: string) => `postgresql://db:5432/app?user=ann&password=${password}&sslmode=require`,
    (password: string) => `postgresql://ann:${password}`,
    (password: string) => `host=db user=ann password=${password} sslmode=require`,
    (password: string) => `host=db user=ann password='${password}'`,
    (password: string) => `user=ann password=${password}`,
  ]
  fc.assert(
    fc.property(tricky, tricky, fc.constantFrom(...forms), (before, after, form) => {
      const dsn = form(`${before}hunter2${after}`)
      const result = attempt(dsn)
      if (typeof result === 'string') {
        expect(result).not.toContain('hunter2')
        expect(maskDsn(dsn)).toBe('********')
      } else if ((result as ConnectTarget).password?.includes('hunter2')) {
        expect(maskDsn(dsn)).not.toContain('hunter2')
      }
    }),
    { numRuns: 2000 },
  )
})

test('what is masked has lost its password and nothing else', () => {
  expect(maskDsn('postgresql://ann:a:b%40c@db/app?sslmode=require')).toBe(
    'postgresql://ann:********@db/app?sslmode=require',
  )
  expect(maskDsn('postgresql://ann@db/app')).toBe('postgresql://ann@db/app')
  expect(maskDsn('postgresql://db/app?password=a&password=b&port=1')).toBe(
    'postgresql://db/app?password=********&password=********&port=1',
  )
  expect(maskDsn("user='a b' password = 'x y' host=db")).toBe("user='a b' password=******** host=db")
  expect(maskDsn('password=a\\ b host=db')).toBe('password=******** host=db')
  expect(maskDsn('postgresql://ann:hunter2/rest@db/app')).toBe('********')
  expect(maskDsn('password=a hunter2')).toBe('********')
})

test('properly escaped, any password is taken, and masked', () => {
  fc.assert(
    fc.property(tricky, (text) => {
      const password = `hunter2${text}`
      const uri = `postgresql://ann:${encodeURIComponent(password)}@db/app`
      const quoted = `host=db user=ann password='${password.replaceAll(/['\\]/g, '\\$&')}' dbname=app`
      const bare = `host=db user=ann password=${password.replaceAll(/[\s\\]/g, '\\$&')} dbname=app`
      for (const dsn of [uri, quoted, bare]) {
        expect(parseDsn(dsn, {})).toEqual({
          ...PLAIN,
          host: 'db',
          port: 5432,
          user: 'ann',
          password,
          database: 'app',
        })
        expect(maskDsn(dsn)).not.toContain('hunter2')
      }
    }),
  )
})

test('what formatDsn writes, parseDsn reads', () => {
  const hosts = fc.oneof(
    fc.constantFrom('localhost', '::1', 'fe80::1%eth0', '10.0.0.1', '/var/run/postgresql', '/tmp/a b?c@d'),
    nonEmpty.map((text) => `/${text.replaceAll(',', '')}`),
  )
  const targets = fc.record(
    {
      host: hosts,
      port: fc.integer({ min: 1, max: 65_535 }),
      user: nonEmpty,
      database: nonEmpty,
      password: nonEmpty,
    },
    { requiredKeys: ['host', 'port', 'user', 'database'] },
  )
  fc.assert(
    fc.property(targets, (target) => {
      expect(parseDsn(formatDsn(target), {})).toEqual({ ...PLAIN, ...target })
    }),
  )
})

// Source: PostgreSQL docs, "Connection URIs", and src/interfaces/libpq/test/regress (uri-regress).
test.each([
  [
    'postgresql://host:12345/db?user=uri-user',
    { host: 'host', port: 12345, database: 'db', user: 'uri-user' },
  ],
  ['postgres://uri-user@host', { host: 'host', user: 'uri-user', database: 'uri-user' }],
  ['postgresql://uri-user:secret@', { user: 'uri-user', password: 'secret', host: 'localhost' }],
  ['postgresql://[::1]:5433/db?user=u', { host: '::1', port: 5433 }],
  ['postgresql://[2001:db8::1234]/?user=u', { host: '2001:db8::1234', port: 5432, database: 'u' }],
  ['postgresql://u@%2Fvar%2Flib%2Fsocket/db', { host: '/var/lib/socket', database: 'db' }],
  ['postgresql://u@/db?host=/path/to/socket&port=5433', { host: '/path/to/socket', port: 5433 }],
  ['postgresql://u@host/db?host=other', { host: 'other' }],
  ['postgresql://u@host:/db?', { host: 'host', port: 5432, database: 'db' }],
  ['postgresql://u@h/%64b?application_name=a%20b%26c', { database: 'db', applicationName: 'a b&c' }],
  ['postgresql://u@h/db?ssl=true', { sslMode: 'require' }],
  ['postgresql://u@h/db?options=-c%20geqo%3Doff', { options: '-c geqo=off' }],
  ["host = h user='it''", 'connection string: it is neither a postgresql:// URI nor keyword=value text'],
  ["host = h user = 'it\\'s' dbname=a\\ b", { host: 'h', user: "it's", database: 'a b' }],
  ["user=u password=it's", { user: 'u', password: "it's" }],
  ["user=u dbname='' host=''", { database: 'u', host: 'localhost' }],
  ['user=u host=db.example hostaddr=10.0.0.1', { host: 'db.example', hostAddr: '10.0.0.1' }],
  ['user=u hostaddr=10.0.0.1', { host: '10.0.0.1', hostAddr: '10.0.0.1' }],
  ['user=u connect_timeout=1', { connectTimeoutMs: 2000 }],
  ['user=u connect_timeout=30', { connectTimeoutMs: 30_000 }],
  ['user=u connect_timeout=-1', { connectTimeoutMs: 10_000 }],
  ['user=u connect_timeout=99999999999', { connectTimeoutMs: 2_000_000_000 }],
  ['user=u sslrootcert=system', { sslMode: 'verify-full', sslRootCert: 'system' }],
  ['user=u sslrootcert=/x sslmode=verify-ca', { sslMode: 'verify-ca', sslRootCert: '/x' }],
])('%s', (dsn, expected) => {
  const result = attempt(dsn)
  if (typeof expected === 'string') expect(result).toBe(expected)
  else expect(result).toMatchObject(expected)
})

test.each([
  'postgresql://u@h:99999/db',
  'postgresql://u@h:0/db',
  'postgresql://u@h:5x/db',
  'postgresql://u@::1/db',
  'postgresql://u@[::1]x/db',
  'postgresql://u@[::1/db',
  'postgresql://u@a,b/db',
  'postgresql://u@h/db?sslmode',
  'postgresql://u@h/db?nonsense=1',
  'postgresql://u@h/db?sslmode=strict',
  'postgresql://u%00database%00x@h/db',
  'user=u port=0x10',
  'user=u port=1e3',
  'user=u connect_timeout=soon',
  'user=u nonsense=1',
  'user=u toString=1',
  'user=u channel_binding=require',
  'user=u gssencmode=require',
  'user=u sslmode=require sslrootcert=system',
  'user=u hostaddr=1.1.1.1,2.2.2.2',
  'app',
  'mysql://u@h/db',
  'user=u\0 host=h',
])('refuses %s', (dsn) => {
  expect(attempt(dsn)).toMatch(/^connection string: /)
})

test('the environment stands in for what is not given', () => {
  const env = {
    PGHOST: 'e',
    PGPORT: '1',
    PGUSER: 'eu',
    PGDATABASE: 'ed',
    PGPASSWORD: 'ep',
    PGSSLMODE: 'disable',
  }
  expect(parseDsn('', env)).toMatchObject({
    host: 'e',
    port: 1,
    user: 'eu',
    database: 'ed',
    password: 'ep',
    sslMode: 'disable',
  })
  expect(parseDsn('postgresql://u:p@h:2/d?sslmode=require', env)).toMatchObject({
    host: 'h',
    port: 2,
    user: 'u',
    database: 'd',
    password: 'p',
    sslMode: 'require',
  })
})

test('where a password file may be', () => {
  expect(parseDsn('user=u', {}).passFile).toBeUndefined()
  expect(parseDsn('user=u', { HOME: '/home/ann' }).passFile).toBe('/home/ann/.pgpass')
  expect(parseDsn('user=u', { HOME: '/home/ann', PGPASSFILE: '/x' }).passFile).toBe('/x')
  expect(parseDsn('user=u passfile=/y', { PGPASSFILE: '/x' }).passFile).toBe('/y')
})

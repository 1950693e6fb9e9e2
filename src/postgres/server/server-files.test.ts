import { describe, expect, test } from 'vitest'
import { parseVersion } from './binaries.ts'
import { cleanEnv } from './data-dir.ts'
import { findInPasswd } from './os-user.ts'
import { listeningInodes } from './ports.ts'
import { parsePostmasterPid } from './postmaster-pid.ts'
import { renderSettings, serverSettings } from './settings.ts'
import { classifyStartFailure } from './start-failure.ts'
import { crc32c, newSystemIdentifier, withSystemIdentifier } from './system-identifier.ts'

describe('postmaster.pid', () => {
  test('of a server that is ready', () => {
    const text = '4711\n/data\n1763694000\n7001\n\n127.0.0.1\n  2228224  5\nready   \n'
    expect(parsePostmasterPid(text)).toEqual({ pid: 4711, dataDir: '/data', port: 7001, status: 'ready' })
  })
  test('of a server that has just begun', () => {
    expect(parsePostmasterPid('4711\n/data\n1763694000\n')).toMatchObject({
      pid: 4711,
      port: null,
      status: null,
    })
  })
  test.each(['', '\n', 'x\n/data\n', '0\n/data\n', '1\n/data', '4711'])('damaged: %j', (text) => {
    expect(parsePostmasterPid(text)).toBeUndefined()
  })
})

describe('versions', () => {
  test.each([
    ['postgres (PostgreSQL) 18.4', 18, '18.4'],
    ['postgres (PostgreSQL) 15.18 (Debian 15.18-1.pgdg12+1)', 15, '15.18'],
    ['postgres (PostgreSQL) 19beta1', 19, '19beta1'],
  ])('%s', (text, major, version) => expect(parseVersion(text)).toEqual({ major, version }))
  test('something else', () => expect(parseVersion('mysqld 8.0')).toBeUndefined())
})

describe('why a start failed', () => {
  const line = (text: string): string => `2025-11-21 03:00:00.000 UTC [7] ${text}\n`
  test.each([
    ['memory-in-use', 'FATAL:  pre-existing shared memory block (key 123, ID 4) is still in use'],
    ['lock-file', 'FATAL:  lock file "postmaster.pid" already exists'],
    ['port-busy', 'LOG:  could not bind IPv4 address "127.0.0.1": Address already in use'],
  ])('%s', (tag, text) => {
    const log = line(text) + line('LOG:  database system is shut down')
    expect(classifyStartFailure(log)).toEqual({ tag })
  })
  test('the fatal line is the reason, not the last line', () => {
    const log = line('FATAL:  invalid value for parameter "work_mem"') + line('HINT:  Valid units are ...')
    expect(classifyStartFailure(log)).toEqual({
      tag: 'other',
      reason: 'invalid value for parameter "work_mem"',
    })
  })
  test('an empty log', () => {
    expect(classifyStartFailure('')).toEqual({ tag: 'other', reason: 'no message in the log' })
  })
})

describe('settings', () => {
  const input = { port: 7001, clusterName: 'sterna n1', major: 18, nodeCount: 3 }
  test('older majors have no max_active_replication_origins', () => {
    expect(serverSettings(input)).toHaveProperty('max_active_replication_origins', '40')
    expect(serverSettings({ ...input, major: 17 })).not.toHaveProperty('max_active_replication_origins')
  })
  test('slots and senders grow with the cluster', () => {
    expect(serverSettings({ ...input, nodeCount: 9 })).toMatchObject({
      max_wal_senders: '90',
      max_replication_slots: '90',
    })
  })
  test('extra settings win', () => {
    expect(serverSettings({ ...input, extra: { max_connections: '9' } })).toHaveProperty(
      'max_connections',
      '9',
    )
  })
  test('values are quoted', () => {
    expect(renderSettings({ a: "it's" })).toContain("a = 'it''s'\n")
  })
})

describe('the system identifier', () => {
  test('CRC-32C of the reference text', () => {
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283)
  })
  test.each([288, 296, 300])('a control file with its CRC at %i', (end) => {
    const control = Buffer.alloc(8192)
    for (let i = 0; i < end; i++) control[i] = (i * 7) & 0xff
    control.writeUInt32LE(crc32c(control.subarray(0, end)), end)
    const changed = withSystemIdentifier(control, 0x1122334455667788n)!
    expect(changed.readBigUInt64LE(0)).toBe(0x1122334455667788n)
    expect(changed.readUInt32LE(end)).toBe(crc32c(changed.subarray(0, end)))
    expect(changed.subarray(8, end)).toEqual(control.subarray(8, end))
  })
  test('a damaged control file is left alone', () => {
    const control = Buffer.alloc(8192, 7)
    expect(withSystemIdentifier(control, 1n)).toBeUndefined()
  })
  test('identifiers carry the time like those of initdb', () => {
    const identifier = newSystemIdentifier(1_763_694_000_123.456, 5)
    expect(identifier >> 32n).toBe(1_763_694_000n)
    expect(identifier & 0xfffn).toBe(5n)
  })
})

test('users in /etc/passwd', () => {
  const passwd =
    'root:x:0:0::/root:/bin/sh\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\nbad:x:a:b\n'
  expect(findInPasswd(passwd, 'postgres')).toEqual({ name: 'postgres', uid: 101, gid: 104 })
  expect(findInPasswd(passwd, 'post')).toBeUndefined()
  expect(findInPasswd(passwd, 'bad')).toBeUndefined()
})

test('sockets that listen on a port', () => {
  const table = [
    '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode',
    '   0: 0100007F:1B59 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4242 1',
    '   1: 0100007F:1B59 0100007F:C000 01 00000000:00000000 00:00000000 00000000   101        0 4243 1',
  ].join('\n')
  expect(listeningInodes(table, 7001)).toEqual(['4242'])
  expect(listeningInodes(table, 7002)).toEqual([])
})

test('servers do not inherit what changes their meaning', () => {
  const env = {
    PATH: '/bin',
    PGDATA: '/x',
    PGPORT: '1',
    LANG: 'de_DE',
    LC_ALL: 'de_DE',
    STERNA_DSN: 'secret',
  }
  expect(cleanEnv(env)).toEqual({ PATH: '/bin', LC_ALL: 'C' })
})

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { SternaError } from '../core/errors.ts'
import { loadConfig, type ConfigSources } from './config.ts'

const DSN = 'postgresql://ann:sesame@db:5433/app'
let directory: string

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'sterna-config-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

function fileWith(content: string, mode = 0o600): string {
  const path = join(directory, `${Math.random()}.json`)
  writeFileSync(path, content, { mode })
  return path
}

function load(sources: Partial<ConfigSources>): ReturnType<typeof loadConfig> {
  return loadConfig({ commandLine: {}, env: {}, ...sources })
}

function failureOf(sources: Partial<ConfigSources>): SternaError {
  try {
    load(sources)
  } catch (error) {
    if (error instanceof SternaError) return error
    throw error
  }
  throw new Error('it was accepted')
}

describe('sources', () => {
  test('the command line wins over the environment, which wins over the file', () => {
    const file = fileWith(
      JSON.stringify({
        node: 'from-file',
        dsn: DSN,
        http: 'off',
        heartbeat_interval_ms: 250,
        log_level: 'error',
      }),
    )
    const { config, warnings } = load({
      commandLine: { node: 'from-line' },
      env: { STERNA_NODE: 'from-env', STERNA_LOG_LEVEL: 'debug', STERNA_MAX_CLOCK_SKEW_MS: '50' },
      file,
    })
    expect(config).toMatchObject({
      node: 'from-line',
      logLevel: 'debug',
      heartbeatIntervalMs: 250,
      maxClockSkewMs: 50,
      http: undefined,
      target: { host: 'db', port: 5433, user: 'ann', database: 'app', password: 'sesame' },
    })
    expect(warnings).toEqual([])
  })

  test('defaults', () => {
    expect(load({ commandLine: { node: 'n1', dsn: DSN } }).config).toMatchObject({
      http: { host: '127.0.0.1', port: 7101 },
      httpToken: undefined,
      logLevel: 'info',
      heartbeatIntervalMs: 1000,
      maxClockSkewMs: 1000,
      pidFile: undefined,
    })
  })

  test('an empty variable is no value, and STERNA_CONFIG names the file', () => {
    const file = fileWith(JSON.stringify({ node: 'n1', dsn: DSN }))
    expect(load({ env: { STERNA_NODE: '', STERNA_CONFIG: file } }).config.node).toBe('n1')
  })

  test.each([
    ['7200', { host: '127.0.0.1', port: 7200 }],
    ['127.0.0.5:0', { host: '127.0.0.5', port: 0 }],
    ['[::1]:7101', { host: '::1', port: 7101 }],
    ['localhost:7101', { host: 'localhost', port: 7101 }],
    ['off', undefined],
  ])('http %s', (text, expected) => {
    expect(load({ commandLine: { node: 'n1', dsn: DSN, http: text } }).config.http).toEqual(expected)
  })
})

describe('bad configuration names the key and where it stands', () => {
  test('a missing setting says the three ways to give it', () => {
    const failure = failureOf({ env: { STERNA_NODE: 'n1' } })
    expect(failure).toMatchObject({ code: 'CONFIG_MISSING', message: 'configuration: "dsn" is missing' })
    expect(failure.hint).toBe('Give --dsn, set STERNA_DSN, or put "dsn" into the file that --config names.')
  })

  test.each([
    [
      { commandLine: { http: ':7101' } },
      '"http" from --http: it must be HOST:PORT, a port, or "off", not ":7101"',
    ],
    [{ commandLine: { http: 'db:99999' } }, '"http" from --http: it must be HOST:PORT'],
    [
      { env: { STERNA_LOG_LEVEL: 'loud' } },
      '"log_level" from STERNA_LOG_LEVEL: it must be one of trace, debug',
    ],
    [
      { env: { STERNA_HEARTBEAT_INTERVAL_MS: '1e3' } },
      '"heartbeat_interval_ms" from STERNA_HEARTBEAT_INTERVAL_MS',
    ],
    [
      { commandLine: { node: 'n'.repeat(64) } },
      '"node" from --node: it must be a node name of 1 to 63 characters',
    ],
  ])('%j', (sources, message) => {
    const failure = failureOf({
      ...sources,
      commandLine: { node: 'n1', dsn: DSN, ...('commandLine' in sources ? sources.commandLine : {}) },
    })
    expect(failure.code).toBe('CONFIG_INVALID')
    expect(failure.message).toContain(message)
    expect(failure.exitCode).toBe(2)
  })

  test('in the file', () => {
    const file = fileWith(JSON.stringify({ node: 'n1', dsn: DSN, heartbeat_interval_ms: 5 }))
    expect(failureOf({ file }).message).toBe(
      `configuration: "heartbeat_interval_ms" from ${file}: it must be a whole number of milliseconds from 100 to 60000, not 5`,
    )
  })

  test('a key that does not exist', () => {
    const file = fileWith(JSON.stringify({ node: 'n1', dsn: DSN, heartbeat: 5 }))
    expect(failureOf({ file }).message).toContain(
      `"heartbeat" from ${file}: there is no such setting; there are node`,
    )
  })

  test('a file that is not there, or no JSON object', () => {
    expect(failureOf({ file: join(directory, 'absent.json') })).toMatchObject({ code: 'CONFIG_UNREADABLE' })
    expect(failureOf({ file: fileWith('[]') }).message).toContain('it is not a JSON object')
  })

  test('an address that others can reach needs a token', () => {
    const commandLine = { node: 'n1', dsn: DSN, http: '0.0.0.0:7101' }
    expect(failureOf({ commandLine })).toMatchObject({
      code: 'CONFIG_INVALID',
      message:
        'configuration: "http" from --http: 0.0.0.0 can be reached from other hosts, so "http_token" is needed too (STERNA_HTTP_TOKEN)',
    })
    const env = { STERNA_HTTP_TOKEN: 'a-token-of-enough-length' }
    expect(load({ commandLine, env }).config.httpToken).toBe('a-token-of-enough-length')
  })
})

describe('secrets', () => {
  test('are never repeated', () => {
    const short = failureOf({ commandLine: { node: 'n1', dsn: DSN }, env: { STERNA_HTTP_TOKEN: 'hunter2' } })
    expect(short.message).toBe(
      'configuration: "http_token" from STERNA_HTTP_TOKEN: it must be 16 to 512 visible ASCII characters',
    )
    const broken = failureOf({ commandLine: { node: 'n1', dsn: 'host=db nonsense=1 password=hunter2' } })
    expect(broken.message).toBe(
      'configuration: "dsn" from --dsn: connection string: unknown setting "nonsense"',
    )
    const file = fileWith('{ "node": "n1",\n "dsn": "host=db password=hunter2" oops }')
    const unparsed = failureOf({ file })
    expect(unparsed.message).not.toContain('hunter2')
    expect(unparsed.message).toContain('it is not valid JSON (line 2 column')
  })

  test('a password on the command line and a readable file are warned of', () => {
    expect(load({ commandLine: { node: 'n1', dsn: DSN } }).warnings).toEqual([
      expect.stringContaining('the password of --dsn could be read'),
    ])
    expect(load({ commandLine: { node: 'n1', dsn: 'host=db' }, env: { PGPASSWORD: 'x' } }).warnings).toEqual(
      [],
    )
    const file = fileWith(JSON.stringify({ node: 'n1', dsn: DSN }), 0o644)
    expect(load({ file }).warnings).toEqual([expect.stringContaining('chmod 600')])
  })
})

import { homedir, userInfo } from 'node:os'

import { SternaError } from '../core/errors.ts'

export const SSL_MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const
export type SslMode = (typeof SSL_MODES)[number]

/** Where and how to connect. A host that starts with `/` is a directory of Unix sockets. */
export interface ConnectTarget {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly database: string
  readonly password?: string
  readonly sslMode: SslMode
  readonly sslRootCert?: string
  readonly sslCert?: string
  readonly sslKey?: string
  readonly connectTimeoutMs: number
  readonly applicationName?: string
  /** libpq's `options`: command-line options for the server, such as `-c work_mem=64MB`. */
  readonly options?: string
}

const DEFAULT_CONNECT_TIMEOUT_MS = 10_000

/** libpq's names of the settings we take, and the environment variables that stand in for them. */
const SETTINGS: Readonly<Record<string, string | undefined>> = {
  host: 'PGHOST',
  hostaddr: 'PGHOSTADDR',
  port: 'PGPORT',
  user: 'PGUSER',
  dbname: 'PGDATABASE',
  password: 'PGPASSWORD',
  sslmode: 'PGSSLMODE',
  sslrootcert: 'PGSSLROOTCERT',
  sslcert: 'PGSSLCERT',
  sslkey: 'PGSSLKEY',
  connect_timeout: 'PGCONNECT_TIMEOUT',
  application_name: 'PGAPPNAME',
  options: 'PGOPTIONS',
  channel_binding: undefined,
  gssencmode: undefined,
  target_session_attrs: undefined,
  client_encoding: undefined,
  keepalives: undefined,
  keepalives_idle: undefined,
  keepalives_interval: undefined,
  keepalives_count: undefined,
  fallback_application_name: undefined,
}

/**
 * Parses a connection string, URI or keyword=value, with libpq's defaults and environment variables.
 * Source: PostgreSQL docs, "Connection Strings".
 * @throws DSN_INVALID; the message never contains the password
 */
export function parseDsn(text: string, env: NodeJS.ProcessEnv = process.env): ConnectTarget {
  const trimmed = text.trim()
  const given = /^postgres(ql)?:\/\//.test(trimmed) ? parseUri(trimmed) : parseKeywords(trimmed)
  for (const name of given.keys()) {
    if (!(name in SETTINGS)) throw invalid(`unknown setting "${name}"`)
  }
  const value = (name: string): string | undefined => {
    const variable = SETTINGS[name]
    return given.get(name) ?? (variable === undefined ? undefined : env[variable])
  }
  const host = value('hostaddr') || value('host') || 'localhost'
  if (host.includes(',')) throw invalid('several hosts in one connection string are not supported')
  const port = Number(value('port') || 5432)
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw invalid(`port "${value('port')}" is not 1 to 65535`)
  const sslMode = value('sslmode') || 'prefer'
  if (!isSslMode(sslMode)) throw invalid(`sslmode "${sslMode}" is none of ${SSL_MODES.join(', ')}`)
  const timeout = Number(value('connect_timeout') || 0)
  if (!Number.isFinite(timeout)) throw invalid('connect_timeout is not a number of seconds')
  const user = value('user') || userInfo().username
  return {
    host,
    port,
    user,
    database: value('dbname') || user,
    sslMode,
    connectTimeoutMs: timeout > 0 ? Math.max(timeout, 2) * 1000 : DEFAULT_CONNECT_TIMEOUT_MS,
    ...present({
      password: value('password'),
      sslRootCert: expandHome(value('sslrootcert')),
      sslCert: expandHome(value('sslcert')),
      sslKey: expandHome(value('sslkey')),
      applicationName: value('application_name'),
      options: value('options'),
    }),
  }
}

/** `host:port/database`, for messages: never with user or password. */
export function addressOf(target: Pick<ConnectTarget, 'host' | 'port' | 'database'>): string {
  return `${target.host}:${target.port}/${target.database}`
}

/** A connection string with the password replaced; for output. Text that cannot be parsed is hidden whole. */
export function maskDsn(text: string): string {
  if (/^\s*postgres(ql)?:\/\//.test(text)) {
    return text.replace(/(:\/\/[^:/@]*):.*@/, '$1:********@').replace(/([?&]password=)[^&]*/, '$1********')
  }
  return text.replace(/(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)/g, '$1********')
}

/** A URI that psql and any driver takes. */
export function formatDsn(
  target: Pick<ConnectTarget, 'host' | 'port' | 'user' | 'database' | 'password'>,
): string {
  const login =
    encodeURIComponent(target.user) + (target.password ? `:${encodeURIComponent(target.password)}` : '')
  const database = encodeURIComponent(target.database)
  return target.host.startsWith('/')
    ? `postgresql://${login}@/${database}?host=${encodeURIComponent(target.host)}&port=${target.port}`
    : `postgresql://${login}@${target.host}:${target.port}/${database}`
}

function isSslMode(text: string): text is SslMode {
  return (SSL_MODES as readonly string[]).includes(text)
}

function invalid(reason: string): SternaError {
  return new SternaError('DSN_INVALID', { reason })
}

function expandHome(path: string | undefined): string | undefined {
  return path?.startsWith('~/') ? homedir() + path.slice(1) : path
}

function present<T extends Record<string, string | undefined>>(fields: T): { [K in keyof T]?: string } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value)) as {
    [K in keyof T]?: string
  }
}

function parseUri(text: string): Map<string, string> {
  const match = /^postgres(?:ql)?:\/\/(?:([^@/?]*)@)?([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/.exec(text)
  if (!match) throw invalid('it is not a valid postgresql:// URI')
  const [, login = '', place = '', database = '', query = ''] = match
  // Parsed as it stands, a part of the password would become host, port or setting, and so get into messages.
  if (`${place}${database}`.includes('@') || (match[1] === undefined && text.includes('@'))) {
    throw invalid('in user, password and database, write @ as %40, / as %2F, ? as %3F')
  }
  const out = new Map<string, string>()
  const set = (name: string, raw: string): void => {
    if (raw === '') return
    try {
      out.set(name, decodeURIComponent(raw))
    } catch {
      throw invalid(`"${name}" has a broken %-escape`)
    }
  }
  const colon = login.indexOf(':')
  set('user', colon < 0 ? login : login.slice(0, colon))
  if (colon >= 0) set('password', login.slice(colon + 1))
  const hostPort = /^(\[[^\]]*\]|[^:]*)(?::(.*))?$/.exec(place)
  if (!hostPort) throw invalid('host and port are not of the form host:port')
  set('host', (hostPort[1] ?? '').replace(/^\[|\]$/g, ''))
  set('port', hostPort[2] ?? '')
  set('dbname', database)
  for (const pair of query.split('&').filter(Boolean)) {
    const equals = pair.indexOf('=')
    if (equals < 0) throw invalid('a setting after the ? has no value')
    const name = pair.slice(0, equals)
    set(
      name === 'ssl' ? 'sslmode' : name,
      name === 'ssl' && pair.slice(equals + 1) === 'true' ? 'require' : pair.slice(equals + 1),
    )
  }
  return out
}

function parseKeywords(text: string): Map<string, string> {
  const out = new Map<string, string>()
  const pattern = /\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)/y
  let at = 0
  while (at < text.length) {
    pattern.lastIndex = at
    const match = pattern.exec(text)
    if (!match) throw invalid('it is neither a postgresql:// URI nor keyword=value text')
    out.set(match[1]!, (match[2] ?? match[3] ?? '').replaceAll(/\\(.)/g, '$1'))
    at = pattern.lastIndex
    if (text.slice(at).trim() === '') break
  }
  return out
}

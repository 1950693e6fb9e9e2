import { homedir, userInfo } from 'node:os'
import { join } from 'node:path'

import { SternaError } from '../core/errors.ts'

export const SSL_MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const
export type SslMode = (typeof SSL_MODES)[number]

/** Where and how to connect. A host that starts with `/` is a directory of Unix sockets. */
export interface ConnectTarget {
  readonly host: string
  /** The address to connect to instead of looking up `host`, which then only names the server (TLS, messages). */
  readonly hostAddr?: string
  readonly port: number
  readonly user: string
  readonly database: string
  readonly password?: string
  /** Where to look for a password when there is none here; the file may be missing. */
  readonly passFile?: string
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
/** The longest time a timer takes. */
const MAX_CONNECT_TIMEOUT_S = 2_000_000

/** libpq's names of the settings we take, and the environment variables that stand in for them. */
const SETTINGS: Readonly<Record<string, string | undefined>> = {
  host: 'PGHOST',
  hostaddr: 'PGHOSTADDR',
  port: 'PGPORT',
  user: 'PGUSER',
  dbname: 'PGDATABASE',
  password: 'PGPASSWORD',
  passfile: 'PGPASSFILE',
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

/** Settings that libpq knows and we do not: their names may be shown in messages, which any other text must not be. */
const UNSUPPORTED = new Set(
  'sslpassword sslcertmode sslcrl sslcrldir sslsni sslcompression sslnegotiation sslkeylogfile requiressl requirepeer require_auth ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version krbsrvname gsslib gssdelegation service servicefile replication tcp_user_timeout load_balance_hosts'.split(
    ' ',
  ),
)

/**
 * Parses a connection string, URI or keyword=value, with libpq's defaults and environment variables.
 * No message repeats any value: with a password that is not escaped, every part may be a piece of it.
 * Source: PostgreSQL docs, "Connection Strings".
 * @throws DSN_INVALID; the message never contains the password
 */
export function parseDsn(text: string, env: NodeJS.ProcessEnv = process.env): ConnectTarget {
  const given = readSettings(text)
  const value = (name: string): string | undefined => {
    const variable = SETTINGS[name]
    return given.get(name) ?? (variable === undefined ? undefined : env[variable])
  }
  for (const name of ['channel_binding', 'gssencmode']) {
    if (value(name) === 'require') throw invalid(`${name}=require is not supported`)
  }
  const host = value('host') || value('hostaddr') || 'localhost'
  if (`${host}${value('hostaddr') ?? ''}`.includes(','))
    throw invalid('several hosts in one connection string are not supported')
  const port = value('port') || '5432'
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65_535)
    throw invalid('the port is not a number from 1 to 65535')
  const sslRootCert = expandHome(value('sslrootcert'))
  const sslMode = value('sslmode') || (sslRootCert === 'system' ? 'verify-full' : 'prefer')
  if (!isSslMode(sslMode)) throw invalid(`sslmode is none of ${SSL_MODES.join(', ')}`)
  if (sslRootCert === 'system' && sslMode !== 'verify-full')
    throw invalid('sslrootcert=system needs sslmode=verify-full')
  const timeout = Number(value('connect_timeout') || 0)
  if (!Number.isFinite(timeout)) throw invalid('connect_timeout is not a number of seconds')
  const user = value('user') || currentUser()
  return {
    host,
    port: Number(port),
    user,
    database: value('dbname') || user,
    sslMode,
    connectTimeoutMs:
      timeout > 0 ? Math.min(Math.max(timeout, 2), MAX_CONNECT_TIMEOUT_S) * 1000 : DEFAULT_CONNECT_TIMEOUT_MS,
    ...present({
      hostAddr: value('hostaddr'),
      password: value('password'),
      passFile: expandHome(value('passfile')) || (env['HOME'] ? join(env['HOME'], '.pgpass') : undefined),
      sslRootCert,
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
  let given: Map<string, string>
  try {
    parseDsn(text, { PGUSER: 'unknown' })
    given = readSettings(text)
  } catch {
    return HIDDEN
  }
  if (isUri(text)) {
    // Being valid, it has no other @ than the one behind the password.
    return text
      .replace(/^(\s*\w+:\/\/[^:@]*):[^@]*@/, `$1:${HIDDEN}@`)
      .replaceAll(/([?&]password=)[^&]*/g, `$1${HIDDEN}`)
  }
  return Array.from(
    given,
    ([name, value]) => `${name}=${name === 'password' ? HIDDEN : quoteValue(value)}`,
  ).join(' ')
}

/** A URI that psql and any driver takes. */
export function formatDsn(
  target: Pick<ConnectTarget, 'host' | 'port' | 'user' | 'database' | 'password'>,
): string {
  const login =
    encodeURIComponent(target.user) + (target.password ? `:${encodeURIComponent(target.password)}` : '')
  const database = encodeURIComponent(target.database)
  if (target.host.startsWith('/'))
    return `postgresql://${login}@/${database}?host=${encodeURIComponent(target.host)}&port=${target.port}`
  const host = encodeURIComponent(target.host)
  return `postgresql://${login}@${target.host.includes(':') ? `[${host.replaceAll('%3A', ':')}]` : host}:${target.port}/${database}`
}

const HIDDEN = '********'

function quoteValue(value: string): string {
  return /^[^\s'\\]+$/.test(value) ? value : `'${value.replaceAll(/['\\]/g, '\\$&')}'`
}

function currentUser(): string {
  try {
    return userInfo().username
  } catch {
    // The user id of a container may have no name.
    throw invalid('it names no user, and this process has none')
  }
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

function isUri(text: string): boolean {
  return /^\s*postgres(ql)?:\/\//.test(text)
}

/** The settings that a connection string gives, by libpq's names. */
function readSettings(text: string): Map<string, string> {
  if (text.includes('\0')) throw invalid('it contains a zero byte')
  return isUri(text) ? parseUri(text.trim()) : parseKeywords(text)
}

function checkName(name: string, passwordBefore: boolean): void {
  if (Object.hasOwn(SETTINGS, name)) return
  if (UNSUPPORTED.has(name)) throw invalid(`setting "${name}" is not supported`)
  throw invalid(
    passwordBefore
      ? 'it has an unknown setting (or its password has a character that must be escaped)'
      : `unknown setting "${name}"`,
  )
}

function parseUri(text: string): Map<string, string> {
  const match = /^postgres(?:ql)?:\/\/(?:([^@/?]*)@)?([^/?]*)(?:\/([^?]*))?(?:\?([^]*))?$/.exec(text)
  if (!match) throw invalid('it is not a valid postgresql:// URI')
  const [, login = '', place = '', database = '', query = ''] = match
  // Parsed as it stands, a part of the password would become host, port or setting, and so get into messages.
  if (text.includes('@') && (match[1] === undefined || text.indexOf('@') !== text.lastIndexOf('@'))) {
    throw invalid('in user, password, database and settings, write @ as %40, / as %2F, ? as %3F')
  }
  const out = new Map<string, string>()
  const set = (name: string, raw: string): void => {
    if (raw === '') return
    let value: string
    try {
      value = decodeURIComponent(raw)
    } catch {
      throw invalid(`"${name}" has a broken %-escape`)
    }
    // It would end the value on the wire, and what follows would be taken for another setting.
    if (value.includes('\0')) throw invalid(`"${name}" contains %00`)
    out.set(name, value)
  }
  const colon = login.indexOf(':')
  set('user', colon < 0 ? login : login.slice(0, colon))
  if (colon >= 0) set('password', login.slice(colon + 1))
  const hostPort = /^(\[[^\]]*\]|[^:[\]]*)(?::(\d*))?$/.exec(place)
  if (!hostPort) throw invalid('host and port are not of the form host:port or [IPv6 address]:port')
  set('host', (hostPort[1] ?? '').replace(/^\[|\]$/g, ''))
  set('port', hostPort[2] ?? '')
  set('dbname', database)
  // Where the @ was forgotten, what looks like a port is a password.
  let passwordBefore = colon >= 0 || place.includes(':')
  for (const pair of query.split('&').filter(Boolean)) {
    const equals = pair.indexOf('=')
    if (equals < 0) throw invalid('a setting after the ? has no value')
    const name = pair.slice(0, equals)
    const raw = pair.slice(equals + 1)
    if (name === 'ssl' && raw === 'true') set('sslmode', 'require')
    else {
      checkName(name, passwordBefore)
      passwordBefore ||= name === 'password'
      set(name, raw)
    }
  }
  return out
}

function parseKeywords(text: string): Map<string, string> {
  const out = new Map<string, string>()
  // As libpq: a value that does not begin with a quote ends at the next space, and may have quotes inside.
  const pattern = /\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\[^])*)'|((?!')(?:[^\s\\]|\\[^])*))(?=\s|$)/y
  let at = 0
  while (text.slice(at).trim() !== '') {
    pattern.lastIndex = at
    const match = pattern.exec(text)
    if (!match) throw invalid('it is neither a postgresql:// URI nor keyword=value text')
    checkName(match[1]!, out.has('password'))
    out.set(match[1]!, (match[2] ?? match[3] ?? '').replaceAll(/\\([^])/g, '$1'))
    at = pattern.lastIndex
  }
  return out
}

import { readFileSync, statSync } from 'node:fs'

import { messageOf, SternaError } from '../core/errors.ts'
import { parseDsn, type ConnectTarget } from '../postgres/dsn.ts'
import { isLoopback, parseHttpAddress, type HttpAddress } from './http-address.ts'
import { isSettingKey, SETTINGS, type LogLevel, type SettingKey, type SettingValue } from './settings.ts'

/** What one agent runs with. */
export interface AgentConfig {
  readonly node: string
  /** The agent's own server. */
  readonly target: ConnectTarget
  /** Undefined: no HTTP server. */
  readonly http: HttpAddress | undefined
  /** Demanded from HTTP clients; always set when `http` is not loopback. */
  readonly httpToken: string | undefined
  readonly logLevel: LogLevel
  readonly heartbeatIntervalMs: number
  /** Clock differences beyond it raise an alarm. */
  readonly maxClockSkewMs: number
  /** A slot that makes a provider keep more WAL raises an alarm, critical at ten times as much. */
  readonly slotWalWarningMb: number
  readonly pidFile: string | undefined
}

/** Where settings come from, in the order in which they win: command line, environment, file. */
export interface ConfigSources {
  readonly commandLine: Readonly<Partial<Record<SettingKey, string>>>
  readonly env: NodeJS.ProcessEnv
  /** Path of a JSON file; without it, STERNA_CONFIG names one. */
  readonly file?: string | undefined
}

/** A configuration and what the operator should be told about it. */
export interface LoadedConfig {
  readonly config: AgentConfig
  readonly warnings: readonly string[]
}

const DEFAULT_HTTP = '127.0.0.1:7101'
const DEFAULT_HEARTBEAT_INTERVAL_MS = 1000
const DEFAULT_MAX_CLOCK_SKEW_MS = 1000
const DEFAULT_SLOT_WAL_WARNING_MB = 1024

/**
 * Reads and checks the configuration of an agent.
 * @throws CONFIG_INVALID, CONFIG_MISSING, CONFIG_UNREADABLE; never with the value of a secret
 */
export function loadConfig(sources: ConfigSources): LoadedConfig {
  const path = sources.file ?? (sources.env['STERNA_CONFIG'] || undefined)
  const given = gather(sources, path === undefined ? {} : readConfigFile(path), path)
  const dsn = required(given, 'dsn')
  const node = required(given, 'node')
  const http = optional(given, 'http') ?? parseHttpAddress(DEFAULT_HTTP)
  const config: AgentConfig = {
    node,
    target: parseTarget(dsn, given, sources.env),
    http: http === 'off' ? undefined : http,
    httpToken: optional(given, 'http_token'),
    logLevel: optional(given, 'log_level') ?? 'info',
    heartbeatIntervalMs: optional(given, 'heartbeat_interval_ms') ?? DEFAULT_HEARTBEAT_INTERVAL_MS,
    maxClockSkewMs: optional(given, 'max_clock_skew_ms') ?? DEFAULT_MAX_CLOCK_SKEW_MS,
    slotWalWarningMb: optional(given, 'slot_wal_warning_mb') ?? DEFAULT_SLOT_WAL_WARNING_MB,
    pidFile: optional(given, 'pid_file'),
  }
  if (config.http && !isLoopback(config.http.host) && config.httpToken === undefined) {
    throw invalid(
      'http',
      given,
      `${config.http.host} can be reached from other hosts, so "http_token" is needed too (STERNA_HTTP_TOKEN)`,
    )
  }
  return { config, warnings: warningsOf(sources, given, dsn) }
}

/** A raw value and the words for where it stands. */
interface Given {
  readonly value: unknown
  readonly source: string
}

type GivenSettings = ReadonlyMap<SettingKey, Given>

function gather(
  sources: ConfigSources,
  file: Readonly<Record<string, unknown>>,
  path: string | undefined,
): GivenSettings {
  const given = new Map<SettingKey, Given>()
  for (const [key, { variable, option }] of Object.entries(SETTINGS)) {
    if (!isSettingKey(key)) continue
    const onCommandLine = sources.commandLine[key]
    const inEnv = sources.env[variable]
    if (onCommandLine !== undefined)
      given.set(key, { value: onCommandLine, source: option ?? 'command line' })
    else if (inEnv) given.set(key, { value: inEnv, source: variable })
    else if (file[key] !== undefined && file[key] !== null) {
      given.set(key, { value: file[key], source: String(path) })
    }
  }
  return given
}

function optional<K extends SettingKey>(given: GivenSettings, key: K): SettingValue<K> | undefined {
  const found = given.get(key)
  if (!found) return undefined
  const { schema, expected, secret } = SETTINGS[key]
  const result = schema.safeParse(found.value)
  if (result.success) return result.data as SettingValue<K>
  const shown = secret ? '' : `, not ${JSON.stringify(found.value).slice(0, 60)}`
  throw invalid(key, given, `it must be ${expected}${shown}`)
}

function required<K extends SettingKey>(given: GivenSettings, key: K): SettingValue<K> {
  const value = optional(given, key)
  if (value !== undefined) return value
  const { option, variable } = SETTINGS[key]
  throw new SternaError('CONFIG_MISSING', { key, option: option ?? variable, variable })
}

function parseTarget(dsn: string, given: GivenSettings, env: NodeJS.ProcessEnv): ConnectTarget {
  try {
    return parseDsn(dsn, env)
  } catch (error) {
    throw invalid('dsn', given, messageOf(error), error)
  }
}

function invalid(key: SettingKey, given: GivenSettings, reason: string, cause?: unknown): SternaError {
  const source = given.get(key)?.source ?? 'the default'
  return new SternaError('CONFIG_INVALID', { key, source, reason }, cause)
}

function readConfigFile(path: string): Readonly<Record<string, unknown>> {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    throw new SternaError('CONFIG_UNREADABLE', { path, reason: messageOf(error) }, error)
  }
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (error) {
    // The parser's message quotes the text around the fault, which may be the password: only the place is taken from it.
    const place = /line \d+ column \d+/.exec(messageOf(error))?.[0]
    const reason = `it is not valid JSON${place === undefined ? '' : ` (${place})`}`
    throw new SternaError('CONFIG_UNREADABLE', { path, reason })
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw new SternaError('CONFIG_UNREADABLE', { path, reason: 'it is not a JSON object' })
  }
  for (const key of Object.keys(content)) {
    if (isSettingKey(key)) continue
    const reason = `there is no such setting; there are ${Object.keys(SETTINGS).join(', ')}`
    throw new SternaError('CONFIG_INVALID', { key, source: path, reason })
  }
  return content as Readonly<Record<string, unknown>>
}

function warningsOf(sources: ConfigSources, given: GivenSettings, dsn: string): string[] {
  const warnings: string[] = []
  const passwordInDsn = parseDsn(dsn, {}).password !== undefined
  if (passwordInDsn && sources.commandLine.dsn !== undefined) {
    warnings.push(
      'the password of --dsn could be read by other users of this host while the agent started: prefer STERNA_DSN or --config',
    )
  }
  const path = sources.file ?? sources.env['STERNA_CONFIG']
  const fileHas = (key: SettingKey): boolean => path !== undefined && given.get(key)?.source === path
  if (path !== undefined && ((passwordInDsn && fileHas('dsn')) || fileHas('http_token'))) {
    if ((statSync(path).mode & 0o077) !== 0) {
      warnings.push('the configuration file holds a secret and other users can read it: chmod 600')
    }
  }
  return warnings
}

import { z } from 'zod'

import { parseHttpAddress } from './http-address.ts'

/** Levels of the log, the most talkative first. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

const wholeNumber = (least: number, most: number): z.ZodType<number> =>
  z.preprocess(
    (value) => (typeof value === 'string' && /^\d+$/.test(value) ? Number(value) : value),
    z.int().min(least).max(most),
  )

const httpAddress = z.preprocess(
  (value) => (typeof value === 'number' ? String(value) : value),
  z.string().transform((text, context) => {
    if (text === 'off') return 'off' as const
    const address = parseHttpAddress(text)
    if (address) return address
    context.addIssue('not an address')
    return z.NEVER
  }),
)

/** Every setting of the agent: its form, where it may come from, and its default. Secrets are never repeated in messages. */
export const SETTINGS = {
  node: {
    schema: z.string().min(1).max(63),
    expected: 'a node name of 1 to 63 characters',
    variable: 'STERNA_NODE',
    option: '--node',
    secret: false,
  },
  dsn: {
    schema: z.string().min(1),
    expected: 'a connection string',
    variable: 'STERNA_DSN',
    option: '--dsn',
    secret: true,
  },
  http: {
    schema: httpAddress,
    expected: 'HOST:PORT, a port, or "off"',
    variable: 'STERNA_HTTP',
    option: '--http',
    secret: false,
  },
  http_token: {
    schema: z.string().regex(/^[\x21-\x7e]{16,512}$/),
    expected: '16 to 512 visible ASCII characters',
    variable: 'STERNA_HTTP_TOKEN',
    // Not on the command line, where every user of the host could read it.
    option: undefined,
    secret: true,
  },
  log_level: {
    schema: z.enum(LOG_LEVELS),
    expected: `one of ${LOG_LEVELS.join(', ')}`,
    variable: 'STERNA_LOG_LEVEL',
    option: '--log-level',
    secret: false,
  },
  heartbeat_interval_ms: {
    schema: wholeNumber(100, 60_000),
    expected: 'a whole number of milliseconds from 100 to 60000',
    variable: 'STERNA_HEARTBEAT_INTERVAL_MS',
    option: undefined,
    secret: false,
  },
  max_clock_skew_ms: {
    schema: wholeNumber(0, 3_600_000),
    expected: 'a whole number of milliseconds from 0 to 3600000',
    variable: 'STERNA_MAX_CLOCK_SKEW_MS',
    option: undefined,
    secret: false,
  },
  slot_wal_warning_mb: {
    schema: wholeNumber(1, 100_000_000),
    expected: 'a whole number of megabytes from 1 to 100000000',
    variable: 'STERNA_SLOT_WAL_WARNING_MB',
    option: undefined,
    secret: false,
  },
  pid_file: {
    schema: z.string().min(1),
    expected: 'a path',
    variable: 'STERNA_PID_FILE',
    option: '--pid-file',
    secret: false,
  },
} as const

export type SettingKey = keyof typeof SETTINGS

/** The value of a setting after its schema. */
export type SettingValue<K extends SettingKey> = z.output<(typeof SETTINGS)[K]['schema']>

/** Whether the agent has a setting of this name. */
export function isSettingKey(name: string): name is SettingKey {
  return Object.hasOwn(SETTINGS, name)
}

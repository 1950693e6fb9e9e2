import { pino, type DestinationStream, type Logger } from 'pino'

import { messageOf, SternaError } from '../core/errors.ts'
import type { LogLevel } from './settings.ts'

export type { Logger } from 'pino'

/** How to log. */
export interface LogOptions {
  readonly node: string
  readonly level: LogLevel
  /** Default: stderr, written synchronously, so that the last lines before a crash are there. */
  readonly destination?: DestinationStream
}

const SECRET_FIELDS = ['password', 'dsn', 'provider_dsn', 'token', 'http_token', 'httpToken', 'authorization']

/**
 * The agent's log: JSON lines with the node's name. Parts log through `child({ component })`, with constant messages and
 * facts as fields. Credentials do not belong into facts; those that come by accident are masked.
 */
export function createLogger(options: LogOptions): Logger {
  return pino(
    {
      level: options.level,
      base: { node: options.node, pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: SECRET_FIELDS.flatMap((name) => [name, `*.${name}`]), censor: '********' },
      serializers: { err: describeError, error: describeError },
      hooks: { streamWrite: maskPasswords },
    },
    options.destination ?? pino.destination({ dest: 2, sync: true }),
  )
}

/** An error as fields: with code and hint where it is operational, with the stack where it is a bug. */
export function describeError(error: unknown): Record<string, unknown> {
  if (error instanceof SternaError) {
    return {
      code: error.code,
      message: error.message,
      hint: error.hint,
      ...(error.cause === undefined ? {} : { cause: messageOf(error.cause) }),
    }
  }
  if (!(error instanceof Error)) return { message: String(error) }
  return { name: error.name, message: error.message, stack: error.stack }
}

/**
 * Masks passwords of connection strings in a line of log: the last defence, whatever let them in. The line is JSON, so a
 * backslash of a connection string stands there as two.
 */
export function maskPasswords(line: string): string {
  if (!line.includes('://') && !line.includes('password')) return line
  return line
    .replaceAll(/(postgres(?:ql)?:\/\/[^\s:/@"]*):[^\s"]*@/g, '$1:********@')
    .replaceAll(/([?&]password=)[^\s"&]+/g, '$1********')
    .replaceAll(QUOTED_PASSWORD, '$1********')
    .replaceAll(PLAIN_PASSWORD, '$1********')
}

const QUOTED_PASSWORD = /(\bpassword\s*=\s*)'(?:[^'\\]|\\{4}|\\{2}[^\\]|\\[^\\])*'/g
const PLAIN_PASSWORD = /((?<![?&])\bpassword\s*=\s*)(?:[^\s"'\\]|\\{4}|\\{2}[^\\])+/g

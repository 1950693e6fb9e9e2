import { ERROR_CODES, type ErrorCode } from './error-codes.ts'

/** Facts of an error, by name; they fill the `{placeholders}` of the code's message. Never credentials or row values. */
export type ErrorFacts = Readonly<
  Record<string, string | number | bigint | boolean | readonly string[] | undefined>
>

/** CLI exit codes, as in the error registry. */
export type ExitCode = 1 | 2 | 3 | 4 | 5

/** A condition that an operator can act on. Bugs are AssertionErrors instead. */
export class SternaError extends Error {
  override name = 'SternaError'
  readonly code: ErrorCode
  readonly facts: ErrorFacts

  constructor(code: ErrorCode, facts: ErrorFacts = {}, cause?: unknown) {
    super(fill(ERROR_CODES[code].message, facts), cause === undefined ? undefined : { cause })
    this.code = code
    this.facts = facts
  }

  /** Whether the same attempt may succeed later without anybody's help. */
  get retry(): boolean {
    return ERROR_CODES[this.code].retry
  }

  /** What the operator does about it, with the facts filled in. */
  get hint(): string {
    return fill(ERROR_CODES[this.code].action, this.facts)
  }

  get exitCode(): ExitCode {
    return ERROR_CODES[this.code].exitCode
  }

  /** The shape that `--json` and HTTP answers use. */
  toJSON(): { code: ErrorCode; message: string; hint: string } {
    return { code: this.code, message: this.message, hint: this.hint }
  }
}

/** Any thrown value as one line for a person; never a stack. */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return messageOf(error.errors[0])
  return error instanceof Error ? error.message : String(error)
}

function fill(template: string, facts: ErrorFacts): string {
  return template.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const value = facts[name]
    return Array.isArray(value) ? value.join(', ') : String(value ?? '?')
  })
}

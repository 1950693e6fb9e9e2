import type { ErrorEntry } from '../src/core/error-codes.ts'
import type { SourceFile } from './layer-rules.ts'

/** An error that a function of schema `sterna` raises. */
export interface SqlError {
  /** SQLSTATE of class ST. */
  readonly code: string
  /** As in `raise`: `%` stands for a value. */
  readonly message: string
  readonly hint: string | undefined
}

const SQL_STRING = "'(?:[^']|'')*'"
const RAISE = new RegExp(`\\braise\\s+(?:exception\\s+)?(${SQL_STRING})((?:${SQL_STRING}|[^;'])*);`, 'gi')
const ERRCODE = /\berrcode\s*=\s*'(ST[0-9A-Z]{3})'/i
const HINT = new RegExp(`\\bhint\\s*=\\s*(?:format\\s*\\(\\s*)?(${SQL_STRING})`, 'i')

/** Finds the errors of class ST in SQL files, in the order of their codes; the same code may have several messages. */
export function sqlErrorsOf(files: readonly SourceFile[]): SqlError[] {
  const found = new Map<string, SqlError>()
  for (const { text } of files) {
    for (const [, message, using] of text.matchAll(RAISE)) {
      const code = ERRCODE.exec(using!)?.[1]
      if (code === undefined) continue
      const hint = HINT.exec(using!)?.[1]
      const error = { code, message: unquote(message!), hint: hint === undefined ? undefined : unquote(hint) }
      found.set(JSON.stringify(error), error)
    }
  }
  return [...found.values()].toSorted((a, b) => (a.code < b.code ? -1 : a.code > b.code ? 1 : 0))
}

/** The page docs/errors.md. */
export function renderErrorPage(
  codes: Readonly<Record<string, ErrorEntry>>,
  sqlErrors: readonly SqlError[],
): string {
  const sections = Object.entries(codes)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([code, entry]) => renderEntry(code, entry))
  return [
    '# Errors',
    '',
    '<!-- Made by `npm run docs` from src/core/error-codes.ts and src/mesh/sql: change those. -->',
    '',
    'Every operational error has a code. With `--json`, on HTTP and in the log it stands beside the message and the hint.',
    'Words in braces are filled in. Retried: it may pass by itself, and an agent tries again.',
    '',
    '| exit code | meaning |',
    '|---|---|',
    '| 0 | done |',
    '| 1 | failed |',
    '| 2 | wrong usage or configuration |',
    '| 3 | a precondition does not hold |',
    '| 4 | a server cannot be reached |',
    '| 5 | done in part |',
    '| 70 | a bug in Sterna; a supervisor restarts the agent |',
    '',
    ...sections,
    ...renderSqlErrors(sqlErrors),
  ].join('\n')
}

function renderEntry(code: string, { message, cause, action, retry, exitCode }: ErrorEntry): string {
  return [
    `## ${code}`,
    '',
    `> ${escapeText(message)}`,
    '',
    `- **Cause:** ${escapeText(cause)}`,
    `- **Action:** ${escapeText(action)}`,
    `- **Retried:** ${retry ? 'yes' : 'no'}`,
    `- **Exit code:** ${exitCode}`,
    '',
  ].join('\n')
}

function renderSqlErrors(sqlErrors: readonly SqlError[]): string[] {
  if (sqlErrors.length === 0) return []
  return [
    '## Errors of the SQL functions',
    '',
    'The functions of schema `sterna` raise errors of SQLSTATE class `ST`; `%` stands for a value.',
    '',
    '| SQLSTATE | message | hint |',
    '|---|---|---|',
    ...sqlErrors.map(({ code, message, hint }) => `| ${code} | ${cell(message)} | ${cell(hint ?? '')} |`),
    '',
  ]
}

function cell(text: string): string {
  return escapeText(text).replaceAll('|', '\\|').replaceAll(/\s+/g, ' ')
}

/** Keeps Markdown from taking text for HTML or emphasis. */
function escapeText(text: string): string {
  return text.replaceAll(/[\\*_<>`]/g, '\\$&')
}

function unquote(literal: string): string {
  return literal.slice(1, -1).replaceAll("''", "'")
}

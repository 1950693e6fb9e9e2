import { cancelBackend } from '../postgres/connection.ts'
import { text } from 'node:stream/consumers'

import { Command } from 'commander'

import { SternaError } from '../core/errors.ts'
import type { ServerMessage } from '../pgwire/backend.ts'
import { parseDsn } from '../postgres/dsn.ts'
import type { ServerError } from '../postgres/server-error.ts'
import { WireSocket } from '../postgres/wire-socket.ts'
import {
  displayWidth,
  formatTable,
  note,
  paintFor,
  print,
  printable,
  printJson,
  rawJson,
  type Paint,
} from './output.ts'
import { splitStatements, type ScriptStatement } from './split-statements.ts'
import { endSession, locate, runScript, type ScriptHandlers, type StatementResult } from './sql-session.ts'
import { addTargetOptions, findCluster, nodeNamed, type TargetOptions } from './target.ts'

/** Types whose values are numbers in JSON: int8, int2, int4, oid, float4, float8, numeric. */
const NUMBER_TYPES = new Set([20, 21, 23, 26, 700, 701, 1700])
const BOOL_TYPE = 16
const JSON_TYPES = new Set([114, 3802])

interface SqlOptions extends TargetOptions {
  readonly json?: boolean
}

/** `sterna sql`: runs statements on one node, without psql. */
export function sqlCommand(): Command {
  const command = new Command('sql')
    .description('run SQL on a node; psql is not needed')
    .argument('<node>', 'name of the node, such as n1')
    .argument('<statements>', 'one or more statements; - reads them from standard input')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Examples:
  sterna sql n1 "select * from accounts order by id limit 5"
  sterna sql n2 "insert into accounts values (1, 'Ada'); select count(*) from accounts"
  sterna sql n1 - < schema.sql
  sterna sql n1 "select * from accounts" --json

Statements run one after the other, each a transaction of its own unless there is a begin before; the first error ends
it, with exit code 1.`,
    )
    .action(runSql)
  return addTargetOptions(command)
}

async function runSql(nodeName: string, statements: string, options: SqlOptions): Promise<void> {
  const node = nodeNamed(await findCluster(options), nodeName)
  const sql = statements === '-' ? await text(process.stdin) : statements
  const wire = await WireSocket.open(parseDsn(node.dsn), { applicationName: `sterna ${node.name} sql` })
  const onInterrupt = (): void => {
    // The first Ctrl-C cancels the statement, and its error ends the script; the second does not wait for that.
    process.once('SIGINT', () => wire.fail(interrupted(wire)))
    void cancelBackend(wire)
  }
  process.once('SIGINT', onInterrupt)
  try {
    const results: StatementResult[] = []
    const paint = paintFor(process.stdout)
    const handlers: ScriptHandlers = {
      onResult: (result) => {
        if (options.json) results.push(result)
        else print(...resultLines(result, paint))
      },
      onNotice: (notice) => note(...noticeLines(notice)),
      onCopyData: (bytes) => void (options.json ? process.stderr : process.stdout).write(bytes),
    }
    const failure = await runStatements(wire, sql, handlers)
    if (options.json) printJson(sqlDocument(results, failure))
    else if (failure) note(...errorLines(failure, paintFor(process.stderr)))
    if (failure) process.exitCode = 1
  } finally {
    process.removeAllListeners('SIGINT')
    await endSession(wire)
  }
}

function interrupted({ address }: WireSocket): SternaError {
  return new SternaError('CONNECTION_LOST', { address, reason: 'interrupted' })
}

/** A statement that failed, and where in the script. */
export interface StatementFailure {
  readonly error: ServerError
  /** Null where the server gave no position. */
  readonly place: { readonly line: number; readonly column: number; readonly text: string } | null
}

/** Runs statement by statement, each by itself, as the capture of DDL needs it; the first error ends it. */
async function runStatements(
  wire: WireSocket,
  script: string,
  handlers: ScriptHandlers,
): Promise<StatementFailure | null> {
  for (const statement of splitStatements(script)) {
    const error = await runScript(wire, statement.text, handlers)
    if (error) return { error, place: placeOf(script, statement, error) }
  }
  return null
}

function placeOf(script: string, statement: ScriptStatement, error: ServerError): StatementFailure['place'] {
  const { position } = error.fields
  if (position === undefined) return null
  return locate(script, Array.from(script.slice(0, statement.offset)).length + Number(position))
}

/** A result as a person reads it: the rows as a table and their number, or the command tag. */
export function resultLines(result: StatementResult, paint: Paint): string[] {
  if (result.fields === null) return result.command ? [result.command] : []
  const columns = result.fields.map((field) => ({
    title: printable(field.name),
    align: NUMBER_TYPES.has(field.typeOid) ? ('right' as const) : ('left' as const),
  }))
  const rows = result.rows.map((row) =>
    row.map((value) => (value === null ? paint('dim', 'NULL') : quoteIfAmbiguous(printable(value)))),
  )
  const count = `(${rows.length} ${rows.length === 1 ? 'row' : 'rows'})`
  return columns.length === 0 ? [count] : [...formatTable(columns, rows, paint), count]
}

/** A text that spells NULL, or is empty, is quoted: without colours it could not be told from SQL's NULL. */
function quoteIfAmbiguous(value: string): string {
  return value === '' || /^'*NULL'*$/.test(value) ? `'${value}'` : value
}

/** The document of `sterna sql --json`. */
export function sqlDocument(results: readonly StatementResult[], failure: StatementFailure | null): unknown {
  return {
    statements: results.map(({ command, rowCount, fields, rows }) => {
      const names = uniqueNames((fields ?? []).map((field) => field.name))
      return {
        command,
        row_count: rowCount,
        columns: fields?.map((field, at) => ({ name: names[at], type_oid: field.typeOid })) ?? null,
        rows:
          fields &&
          rows.map((row) =>
            objectOf(
              names,
              row.map((value, at) => jsonValue(value, fields[at]!.typeOid)),
            ),
          ),
      }
    }),
    error: failure && errorDocument(failure),
  }
}

/** JSON has one value per name: later columns of the same name get a number. */
export function uniqueNames(names: readonly string[]): string[] {
  const used = new Set<string>(names)
  const seen = new Set<string>()
  return names.map((name) => {
    let unique = name
    for (let number = 2; seen.has(unique) || (unique !== name && used.has(unique)); number++)
      unique = `${name}_${number}`
    seen.add(unique)
    return unique
  })
}

function objectOf(names: readonly string[], values: readonly unknown[]): Record<string, unknown> {
  return Object.fromEntries(names.map((name, at) => [name, values[at]]))
}

/** As PostgreSQL's to_json: numbers with all their digits, NaN and infinity as text, json as it is, all else text. */
function jsonValue(value: string | null, typeOid: number): unknown {
  if (value === null) return null
  if (typeOid === BOOL_TYPE) return value === 't'
  if (NUMBER_TYPES.has(typeOid)) return /^-?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(value) ? rawJson(value) : value
  if (JSON_TYPES.has(typeOid)) return parseJsonExactly(value)
  return value
}

/** Parses JSON keeping every digit of its numbers. */
function parseJsonExactly(json: string): unknown {
  const parse = JSON.parse as (
    json: string,
    reviver: (key: string, value: unknown, context: { source?: string }) => unknown,
  ) => unknown
  return parse(json, (_, value, { source }) =>
    typeof value === 'number' && source !== undefined ? rawJson(source) : value,
  )
}

function errorDocument({ error, place }: StatementFailure): unknown {
  const { severity, sqlstate, message, detail, hint, context, schema, table, column, constraint } =
    error.fields
  return {
    code: error.code,
    message,
    hint: hint ?? null,
    severity,
    sqlstate,
    detail: detail ?? null,
    context: context ?? null,
    line: place?.line ?? null,
    column: place?.column ?? null,
    object: { schema, table, column, constraint },
  }
}

function noticeLines(notice: ServerMessage): string[] {
  const lines = [`${notice.severity}: ${notice.message}`]
  if (notice.detail) lines.push(`  detail: ${notice.detail}`)
  if (notice.hint) lines.push(`  hint: ${notice.hint}`)
  return lines
}

/** An error as a person reads it: SQLSTATE, message, the place in the script, detail and hint. */
export function errorLines({ error, place }: StatementFailure, paint: Paint): string[] {
  const { severity, sqlstate, message, detail, hint, context } = error.fields
  const lines = [`${paint('red', `${severity} ${sqlstate}:`)} ${message}`]
  if (place) {
    const prefix = `  line ${place.line}, column ${place.column}: `
    const before = Array.from(place.text)
      .slice(0, place.column - 1)
      .join('')
    lines.push(prefix + place.text, `${' '.repeat(prefix.length + displayWidth(before))}^`)
  }
  if (detail) lines.push(`  detail: ${detail}`)
  if (hint) lines.push(`  hint: ${hint}`)
  if (context) lines.push(`  context: ${context.split('\n')[0]}`)
  return lines
}

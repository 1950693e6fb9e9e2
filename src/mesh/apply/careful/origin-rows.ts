import { PgConnection } from '../../../postgres/connection.ts'
import type { ConnectTarget } from '../../../postgres/dsn.ts'
import type { Values } from '../../conflict/change.ts'
import type { FetchAnswer } from '../../conflict/question.ts'
import type { CarefulTable } from './careful-table.ts'
import { versionOf, type VersionJson } from './version-text.ts'

const TIMEOUT_MS = 30_000
/** As values are read as text by the sessions that apply. */
const PARAMETERS = {
  DateStyle: 'ISO, YMD',
  TimeZone: 'UTC',
  IntervalStyle: 'postgres',
  bytea_output: 'hex',
  extra_float_digits: '1',
  lc_monetary: 'C',
  synchronous_commit: 'on',
}

/** Asks a provider for rows of which it did not send all values. Connects when it is first asked. */
export class OriginRows {
  readonly #target: ConnectTarget
  readonly #applicationName: string
  #connection: Promise<PgConnection> | undefined

  constructor(target: ConnectTarget, applicationName: string) {
    this.#target = target
    this.#applicationName = applicationName
  }

  /** The row with this key, in its table there or aside. Durable there when this resolves: a crash cannot take it back. */
  async fetch(table: CarefulTable, key: Values, signal: AbortSignal): Promise<FetchAnswer['row']> {
    this.#connection ??= this.#connect(signal)
    const connection = await this.#connection
    const { schema, name } = table.plan.remote
    const row = await connection.row<{ found: string | null }>(
      'select sterna.fetch_row($1, $2, $3)::text as found',
      [schema, name, JSON.stringify(key)],
    )
    await connection.query("select pg_logical_emit_message(true, 'sterna flush', '')")
    if (row?.found == null) return null
    const found = JSON.parse(row.found) as VersionJson & { readonly values: Values }
    return { values: found.values, version: versionOf(found) }
  }

  async close(): Promise<void> {
    const connection = await this.#connection?.catch(() => undefined)
    await connection?.close()
  }

  async #connect(signal: AbortSignal): Promise<PgConnection> {
    const connection = await PgConnection.connect(this.#target, {
      applicationName: `${this.#applicationName} rows`,
      parameters: PARAMETERS,
      signal,
    })
    connection.defaultTimeoutMs = TIMEOUT_MS
    return connection
  }
}

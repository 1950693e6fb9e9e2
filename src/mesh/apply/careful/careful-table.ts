import { pgTimeOf } from '../../../core/pg-time.ts'
import { quoteIdent, quoteLiteral } from '../../../core/quote.ts'
import type { Key, Values } from '../../conflict/change.ts'
import type { KeyedRow, KeyState } from '../../conflict/key-state.ts'
import type { ConflictType, TableRules } from '../../conflict/rules.ts'
import type { RowVersion } from '../../conflict/version.ts'
import { admitted, keyIs, type Equality, type TablePlan } from '../table-plan.ts'
import type { Ask, Param } from './ask.ts'
import { versionOf, versionParams, type VersionJson } from './version-text.ts'

const INT8_OID = 20
const INT4_OID = 23
const TIMESTAMPTZ_OID = 1184
const LONG_AGO: RowVersion = { time: pgTimeOf(-(1n << 62n)), nodeId: 0 }

interface Description {
  readonly name: string
  readonly columns: readonly {
    readonly name: string
    readonly typeOid: number
    readonly generated: boolean
  }[]
  readonly hash: string
  readonly rowHash: string
  readonly uniques: readonly {
    readonly name: string
    readonly nullsCollide: boolean
    readonly columns: readonly (Equality & { readonly name: string })[]
  }[]
  readonly rules: {
    readonly deltas: readonly string[]
    readonly merge: string | null
    readonly manual: readonly string[]
    readonly oneWay: 'apply_remote' | 'keep_local' | null
  }
}

interface SideFacts {
  readonly tombstone: (VersionJson & { readonly remainder: Readonly<Record<string, string>> | null }) | null
  readonly aside: (VersionJson & { readonly values: Values }) | null
  readonly truncated: VersionJson | null
  readonly clocked: boolean
  readonly parked: boolean
  readonly parkedOfOrigin: boolean
  readonly givenUp: VersionJson | null
}

/** What is here of one key, read under its lock. */
export interface HeldKey {
  readonly key: Key
  readonly state: KeyState
  readonly truncated: RowVersion | null
  /** A row_clock entry exists, valid or not. */
  readonly isClocked: boolean
  readonly isParked: boolean
  readonly isParkedOfOrigin: boolean
  readonly givenUp: RowVersion | null
  /** A row aside, though a row of its key stands in the table: a local insert has taken its place. */
  readonly staleAside: boolean
}

/** A table of which each change is decided one by one: its SQL, with keys and rows as text. */
export class CarefulTable {
  readonly plan: TablePlan
  readonly rules: TableRules
  /** `"schema"."table"`. */
  readonly name: string
  readonly guardOid: number
  /** The function that merges two rows; null: none. */
  readonly merge: string | null
  readonly oneWay: 'apply_remote' | 'keep_local' | null
  readonly #description: Description
  readonly #texts: string
  readonly #keyNames: readonly string[]
  readonly #lockSql: string
  readonly #readSql: string

  private constructor(plan: TablePlan, description: Description) {
    const { name, rules, uniques } = description
    this.plan = plan
    this.name = name
    this.guardOid = plan.guardOid ?? plan.oid
    this.#description = description
    this.merge = rules.merge
    this.oneWay = rules.oneWay
    const sent = new Set(plan.remote.columns.map((column) => column.name))
    this.rules = {
      uniques: uniques
        .filter(({ columns }) => columns.every((column) => sent.has(column.name)))
        .map(({ name: constraint, nullsCollide, columns }) => ({
          name: constraint,
          nullsCollide,
          columns: columns.map((column) => column.name),
        })),
      deltas: rules.deltas,
      merge: rules.merge === null ? null : 'ask',
      manual: new Set(rules.manual as ConflictType[]),
    }
    this.#keyNames = plan.keyPositions.map((position) => plan.remote.columns[position]!.name)
    const columns = description.columns.filter(({ generated }) => !generated)
    this.#texts = `jsonb_object(array[${columns.map((column) => quoteLiteral(column.name)).join(', ')}]::text[], array[${columns
      .map(({ name: column, typeOid }) => textSql(`t.${quoteIdent(column)}`, typeOid))
      .join(', ')}]::text[])`
    const count = this.#keyNames.length
    this.#lockSql = `select 1 from ${plan.rows} t where ${this.#keyIs()} for update`
    this.#readSql = `select h.hash::text, r.texts::text, r.version ->> 'at', r.version ->> 'node', sterna.side_facts(${this.guardOid}, ${plan.oid}, h.hash, o.own)::text
      from (select ${description.hash} as hash) h
     cross join (select row(sterna.time_of($${count + 1}), $${count + 2})::sterna.row_version as own) o
      left join lateral (select ${this.#texts} as texts, sterna.version_json(sterna.version_of_row(${this.guardOid}, h.hash, t.xmin, o.own)) as version
                           from ${plan.rows} t where ${this.#keyIs()}) r on true`
  }

  /** Reads what the lane must know, in the open transaction. */
  static async load(ask: Ask, plan: TablePlan): Promise<CarefulTable> {
    const [row] = await ask.lookup('select sterna.describe_careful($1::oid)', [String(plan.oid)])
    return new CarefulTable(plan, JSON.parse(row![0]!) as Description)
  }

  /** Its rows have no identity: they can only be inserted. */
  get isKeyless(): boolean {
    return this.#keyNames.length === 0
  }

  get keyTypes(): readonly number[] {
    return this.plan.keyPositions.map((position) => this.plan.typeOids[position]!)
  }

  /** SQL for the hash of the key in the first parameters. */
  get hashSql(): string {
    return this.#description.hash
  }

  get rowHashSql(): string {
    return this.#description.rowHash
  }

  /** The values of the key, in the key's order. */
  keyValues(values: Values): (string | null)[] {
    return this.#keyNames.map((name) => values[name] ?? null)
  }

  /** The key as it is shown and kept: column to text. */
  keyObject(values: readonly (string | null)[]): Values {
    return Object.fromEntries(this.#keyNames.map((name, i) => [name, values[i] ?? null]))
  }

  async hashOf(ask: Ask, keyValues: readonly (string | null)[]): Promise<Key> {
    if (this.isKeyless) return '0'
    const [row] = await ask.lookup(`select (${this.hashSql})::text`, keyValues, this.keyTypes)
    return row![0]!
  }

  /** Locks the row with this key if there is one, then reads it and what else is known: two statements, one round trip. */
  async hold(ask: Ask, keyValues: readonly Param[], own: RowVersion): Promise<HeldKey> {
    const [, rows] = await Promise.all([
      ask.lookup(this.#lockSql, keyValues, this.keyTypes),
      ask.lookup(
        this.#readSql,
        [...keyValues, ...versionParams(own)],
        [...this.keyTypes, INT8_OID, INT4_OID],
      ),
    ])
    const [hash, texts, at, node, facts] = rows[0]!
    const side = JSON.parse(facts!) as SideFacts
    return {
      key: hash!,
      state: stateOf(
        texts === null ? null : { values: JSON.parse(texts!) as Values, at: at!, node: node! },
        side,
      ),
      // Of a table with delta columns a truncate is the deletes that it sends, and nothing besides.
      truncated:
        side.truncated && this.rules.deltas.length === 0 ? (versionOf(side.truncated) ?? LONG_AGO) : null,
      isClocked: side.clocked,
      isParked: side.parked,
      isParkedOfOrigin: side.parkedOfOrigin,
      givenUp: side.givenUp && versionOf(side.givenUp),
      staleAside: texts !== null && side.aside !== null,
    }
  }

  /** Locks and reads rows under other keys that share a unique value with this row, in the table and aside. */
  async colliding(ask: Ask, key: Key, values: Values, own: RowVersion): Promise<KeyedRow[]> {
    const found = new Map<Key, KeyedRow>()
    for (const { columns, nullsCollide } of this.#description.uniques) {
      const given = columns.map(({ name }) => values[name] ?? null)
      if (columns.some(({ name }) => !(name in values))) continue
      if (!nullsCollide && given.includes(null)) continue
      const types = columns.map(({ name }) => this.#typeOf(name))
      const visible = columns.map(({ name, operator, type }, i) => {
        const cast = type === null ? '' : `::${type}`
        const equal = `t.${quoteIdent(name)}${cast} ${operator} $${i + 1}${cast}`
        return given[i] === null ? `t.${quoteIdent(name)} is null and $${i + 1} is null` : equal
      })
      const next = columns.length + 1
      const rows = await ask.lookup(
        `select (${this.rowHashSql})::text, ${this.#texts}::text, sterna.version_json(sterna.version_of_row(${this.guardOid}, ${this.rowHashSql}, t.xmin,
                row(sterna.time_of($${next}), $${next + 1})::sterna.row_version))::text
           from ${this.plan.rows} t where ${visible.join(' and ')} for update`,
        [...given, ...versionParams(own)],
        [...types, INT8_OID, INT4_OID],
      )
      for (const [hash, texts, version] of rows)
        found.set(hash!, keyedRow(hash!, texts!, JSON.parse(version!) as VersionJson, true))
      const aside = await ask.lookup(
        `select a.key_hash::text, a.row_values::text, sterna.version_json(a.version)::text from sterna.aside a
          where a.table_oid = ${this.guardOid} and ${columns.map(({ name }, i) => `a.row_values ->> ${quoteLiteral(name)} is not distinct from $${i + 1}::text`).join(' and ')}`,
        given,
      )
      for (const [hash, texts, version] of aside) {
        if (!found.has(hash!))
          found.set(hash!, keyedRow(hash!, texts!, JSON.parse(version!) as VersionJson, false))
      }
    }
    found.delete(key)
    return [...found.values()]
  }

  /** All rows aside, newest first. */
  async aside(ask: Ask): Promise<KeyedRow[]> {
    const rows = await ask.lookup(
      `select a.key_hash::text, a.row_values::text, sterna.version_json(a.version)::text from sterna.aside a
        where a.table_oid = ${this.guardOid} order by (a.version).at desc nulls last limit 1000`,
      [],
    )
    return rows.map(([hash, texts, version]) =>
      keyedRow(hash!, texts!, JSON.parse(version!) as VersionJson, false),
    )
  }

  /**
   * The statement that puts a row with these columns in its place; its parameters are the columns' values. `isThere`: the row that it
   * replaces is locked. Else it is a plain insert, which fails where a session of the application was faster: that row is newer.
   */
  putStatement(
    names: readonly string[],
    isThere: boolean,
  ): { readonly sql: string; readonly types: readonly number[] } {
    const columns = names.map((name) => this.plan.columns.find((column) => column.name === name)!)
    const isFixed = (name: string): boolean => columns[names.indexOf(name)]!.identityAlways
    const settable = names.filter((name) => !this.#keyNames.includes(name) && !isFixed(name))
    const keys = this.#keyNames.filter((name) => !isFixed(name))
    const set = [...settable, ...keys].map((name) => `${quoteIdent(name)} = excluded.${quoteIdent(name)}`)
    const values = columns.map(
      ({ cast }, i) => `${this.#parameter(i + 1, names.length)}${cast === null ? '' : `::${cast}`}`,
    )
    const insert = `insert into ${this.plan.target} as t (${names.map(quoteIdent).join(', ')}) overriding system value values (${values.join(', ')})`
    const types = columns.map(({ parameterOid }) => parameterOid)
    if (!isThere)
      return { sql: `${insert} returning ${admitted(this.plan, names)} into sterna_admitted`, types }
    const conflict =
      set.length === 0
        ? 'do nothing'
        : `(${this.#keyNames.map(quoteIdent).join(', ')}) do update set ${set.join(', ')} where ${admitted(this.plan, names)}`
    return { sql: `${insert} on conflict ${conflict}`, types }
  }

  /** The statement that takes the row with the key in the parameters away. */
  removeStatement(): { readonly sql: string; readonly types: readonly number[] } {
    return {
      sql: `delete from ${this.plan.rows} t where ${this.#keyIs()} and ${admitted(this.plan)}`,
      types: this.keyTypes,
    }
  }

  /** The statement that takes all rows away that are not newer than the truncate at `$1`. */
  truncateStatement(nodeId: number): { readonly sql: string; readonly types: readonly number[] } {
    return {
      sql: `delete from ${this.plan.rows} t where ${admitted(this.plan)} and sterna.version_not_greater(t.xmin, $1, ${nodeId})`,
      types: [TIMESTAMPTZ_OID],
    }
  }

  /** Notes which version the row with the key in the parameters has, if its xmin says another one. */
  clock(ask: Ask, key: Key, keyValues: readonly Param[], version: RowVersion | null): void {
    const n = keyValues.length
    ask.send(
      `insert into sterna.row_clock (table_oid, key_hash, row_xmin, version)
       select ${this.guardOid}, $${n + 1}::bigint, t.xmin, case when $${n + 2}::bigint is not null then row(sterna.time_of($${n + 2}::bigint), $${n + 3}::integer)::sterna.row_version end
         from ${this.plan.rows} t where ${this.#keyIs()}
       on conflict (table_oid, key_hash) do update set row_xmin = excluded.row_xmin, version = excluded.version`,
      [...keyValues, key, ...versionParams(version)],
      this.keyTypes,
    )
  }

  #typeOf(name: string): number {
    return this.#description.columns.find((column) => column.name === name)!.typeOid
  }

  #keyIs(): string {
    return keyIs({ ...this.plan, recordParameters: false }, (_, i) => i + 1)
  }

  #parameter(number: number, count: number): string {
    return count > MAX_FUNCTION_PARAMETERS ? `sterna_row.f${number}` : `$${number}`
  }
}

export const MAX_FUNCTION_PARAMETERS = 100

/** Its text has a currency symbol; the sums of apply are numbers. */
export const MONEY_OID = 790

/** SQL for a value as text, by the output function of its type alone: casts to text can be anybody's. */
export function textSql(value: string, typeOid: number): string {
  return `case num_nulls(${value}) when 0 then format('%s', ${typeOid === MONEY_OID ? `${value}::numeric` : value}) end`
}

function keyedRow(key: Key, texts: string, version: VersionJson, visible: boolean): KeyedRow {
  return { key, values: JSON.parse(texts) as Values, version: versionOf(version), visible }
}

function stateOf(
  row: (VersionJson & { readonly values: Values }) | null,
  { aside, tombstone }: SideFacts,
): KeyState {
  if (row) return { row: { values: row.values, version: versionOf(row), visible: true }, tombstone: null }
  if (aside)
    return { row: { values: aside.values, version: versionOf(aside), visible: false }, tombstone: null }
  if (!tombstone) return { row: null, tombstone: null }
  return {
    row: null,
    tombstone: { version: versionOf(tombstone) ?? LONG_AGO, remainder: tombstone.remainder ?? {} },
  }
}

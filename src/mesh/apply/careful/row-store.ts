import { formatPgTime } from '../../../core/pg-time.ts'
import type { Key, Values } from '../../conflict/change.ts'
import { areZero } from '../../conflict/deltas.ts'
import type { Write } from '../../conflict/resolve.ts'
import type { Collision } from '../../conflict/set-aside.ts'
import { compareVersions, type RowVersion } from '../../conflict/version.ts'
import type { Ask, Param } from './ask.ts'
import type { Care } from './care.ts'
import { MAX_FUNCTION_PARAMETERS, type CarefulTable } from './careful-table.ts'
import { versionParams, versionSql } from './version-text.ts'

/** Why the server refused a row. */
export interface Refusal {
  readonly sqlstate: string
  readonly message: string
  readonly detail: string | null
  readonly constraint: string | null
}

/** What the writes of one decision are about. */
export interface WriteContext {
  readonly table: CarefulTable
  /** Version that the transaction's commit gives what it writes; null: a repair, which has none of its own. */
  readonly stamp: RowVersion | null
  /** The key of each row that is written, as the table's key columns. */
  readonly keyValues: (key: Key) => readonly (string | null)[]
  readonly collisions: readonly Collision[]
  /** The row of a key that is in another one's way, as far as it is known. */
  readonly valuesOf: (key: Key) => Values | null
}

/**
 * Carries out what was decided, in the open transaction: rows by functions that catch what the server refuses, all else in
 * Sterna's own tables.
 */
export class RowStore {
  readonly #ask: Ask
  readonly #care: Care
  readonly #nodeId: number
  readonly #announces: boolean
  readonly #functions = new Map<string, string>()
  #areFresh = true
  /** A function of a table's owner was called: what it left for the commit is to be looked at. */
  hasCalledOwner = false

  /**
   * `nodeId`: the origin whose changes are written; functions of several stores of a database do not meet. `announces`: the
   * session tells triggers the timestamp of each transaction.
   */
  constructor(ask: Ask, care: Care, nodeId: number, announces: boolean) {
    this.#ask = ask
    this.#care = care
    this.#nodeId = nodeId
    this.#announces = announces
  }

  /** After DDL: the functions may not fit any more. */
  forget(): void {
    this.#functions.clear()
    this.#areFresh = true
  }

  /** @returns the refusal of the first row; null: all is written. Throws LaterRefusal when rows had been written before. */
  async write(writes: readonly Write[], context: WriteContext): Promise<Refusal | null> {
    let isFirst = true
    for (const write of writes) {
      const refusal = await this.#writeRow(write, context)
      if (refusal && !isFirst) throw new LaterRefusal(refusal)
      if (refusal) return refusal
      isFirst = false
      await this.#note(write, context)
    }
    return null
  }

  /** Inserts a row into a table without a key. */
  async insert(table: CarefulTable, values: Values, stamp: RowVersion): Promise<Refusal | null> {
    const { names, texts } = writable(table, values)
    const { sql, types } = table.putStatement(names, false)
    return this.#call(table, sql, types, texts, stamp)
  }

  /** Takes all rows of a table away that are not newer than this, those aside too, and remembers it. */
  async truncate(table: CarefulTable, stamp: RowVersion): Promise<Refusal | null> {
    const guard = String(table.guardOid)
    const version = versionParams(stamp)
    const { sql, types } = table.truncateStatement(stamp.nodeId)
    const refusal = await this.#call(table, sql, types, [formatPgTime(stamp.time)], stamp)
    if (refusal) return refusal
    if (table.plan.runAs === null) {
      // Rows that are older than their xmin says.
      this.#ask.send(
        `delete from ${table.plan.rows} t using sterna.row_clock r
          where r.table_oid = $1::oid and r.row_xmin = t.xmin and r.key_hash = ${table.rowHashSql}
            and not sterna.version_greater(r.version, ${versionSql(2)})`,
        [guard, ...version],
      )
    }
    this.#ask.send(
      `with gone as (delete from sterna.aside a where a.table_oid = $1::oid and a.table_name = $4 and not sterna.version_greater(a.version, ${versionSql(2)}) returning a.key_hash)
       update sterna.review r set closed_at = clock_timestamp(), resolution = 'the table was truncated'
         from gone where r.table_oid = $1::oid and r.key_hash = gone.key_hash and r.reason = 'set_aside' and r.closed_at is null`,
      [guard, ...version, table.name],
    )
    this.#ask.send(
      `insert into sterna.truncation as u (table_oid, times) values ($1::oid, 1)
       on conflict (table_oid) do update set times = u.times + 1 where not sterna.version_greater(sterna.version_of_xmin(u.xmin, null), ${versionSql(2)})`,
      [String(table.plan.oid), ...version],
    )
    return null
  }

  async #writeRow(
    { key, before, after }: Write,
    { table, keyValues, stamp }: WriteContext,
  ): Promise<Refusal | null> {
    if (after.row?.visible) {
      const { names, texts } = writable(table, after.row.values)
      const { sql, types } = table.putStatement(names, before.row?.visible ?? false)
      return this.#call(table, sql, types, texts, stamp)
    }
    if (!before.row?.visible) return null
    const { sql, types } = table.removeStatement()
    return this.#call(table, sql, types, keyValues(key), stamp)
  }

  async #call(
    table: CarefulTable,
    statement: string,
    types: readonly number[],
    params: readonly Param[],
    stamp: RowVersion | null,
  ): Promise<Refusal | null> {
    const { runAs } = table.plan
    const asRecord = types.length > MAX_FUNCTION_PARAMETERS
    let name = this.#functions.get(statement)
    if (name === undefined) {
      name = `c${this.#nodeId}_${this.#functions.size + 1}`
      this.#ask.send('select sterna.careful_function($1, $2, $3, $4, $5, $6)', [
        String(this.#nodeId),
        name,
        String(this.#areFresh),
        runAs === null ? null : String(runAs),
        asRecord ? null : `{${types.join(',')}}`,
        statement,
      ])
      this.#areFresh = false
      this.#functions.set(statement, name)
    }
    const list = types.map((_, i) => `$${i + 1}`).join(', ')
    const call = `sterna_apply.${name}(${asRecord ? `row(${list})` : list})`
    let sql = `select ${call}`
    if (runAs !== null) {
      this.hasCalledOwner = true
      const announced = this.#announces && stamp ? `sterna.time_of(${stamp.time})` : 'null'
      sql = `select x.refusal from (select ${call} as refusal offset 0) x where sterna.apply_guard(1, ${announced})`
    }
    const [row] = await this.#ask.lookup(sql, params, types)
    return row?.[0] == null ? null : (JSON.parse(row[0]) as Refusal)
  }

  /** Version, place aside and tombstone of a key, where they differ from what the row's own xmin says. */
  async #note({ key, before, after }: Write, context: WriteContext): Promise<void> {
    const { table, stamp } = context
    const values = context.keyValues(key)
    if (after.row?.visible) {
      const { version } = after.row
      const isOwn = stamp !== null && version !== null && compareVersions(version, stamp) === 0
      if (!isOwn) table.clock(this.#ask, key, values, version)
      if (!isOwn) await this.#mark(table)
    }
    if (after.row && !after.row.visible)
      await this.#setAside(key, before.row?.values ?? {}, after.row, context)
    else if (before.row && !before.row.visible) this.#takeBack(table, key)
    if (after.tombstone) {
      const { version, remainder } = after.tombstone
      const isOwn = stamp !== null && compareVersions(version, stamp) === 0
      const kept = areZero(remainder) ? null : JSON.stringify(remainder)
      this.#ask.send(
        `insert into sterna.tombstone as s (table_oid, key_hash, key, version, remainder)
         values ($1, $2, $3, ${versionSql(4)}, $6)
         on conflict (table_oid, key_hash) do update set key = excluded.key, version = excluded.version, remainder = excluded.remainder`,
        [String(table.guardOid), key, JSON.stringify(values), ...versionParams(isOwn ? null : version), kept],
      )
      if (kept !== null) await this.#mark(table)
      this.#reviewRemainder(table, key, values, kept)
    } else if (before.tombstone) {
      this.#ask.send('delete from sterna.tombstone where table_oid = $1 and key_hash = $2', [
        String(table.guardOid),
        key,
      ])
      this.#reviewRemainder(table, key, values, null)
    }
  }

  async #setAside(
    key: Key,
    before: Values,
    row: { readonly values: Values; readonly version: RowVersion | null },
    { table, keyValues, collisions, valuesOf }: WriteContext,
  ): Promise<void> {
    const collision = collisions.findLast((it) => it.key === key)
    const winner = collision && valuesOf(collision.inFavourOf)
    const params = [
      String(table.guardOid),
      key,
      JSON.stringify(table.keyObject(keyValues(key))),
      JSON.stringify({ ...before, ...row.values }),
      ...versionParams(row.version),
      table.name,
    ]
    this.#ask.send(
      `insert into sterna.aside as a (table_oid, key_hash, key, row_values, version, table_name, in_favour_of, constraints)
       values ($1, $2, $3, $4, ${versionSql(5)}, $7, $8, $9)
       on conflict (table_oid, key_hash) do update
         set row_values = excluded.row_values, version = excluded.version,
             in_favour_of = coalesce(excluded.in_favour_of, a.in_favour_of),
             constraints = case when excluded.in_favour_of is null then a.constraints else excluded.constraints end`,
      [
        ...params,
        winner ? JSON.stringify(table.keyObject(table.keyValues(winner))) : null,
        `{${(collision?.constraints ?? []).map((name) => `"${name.replaceAll(/["\\]/g, '\\$&')}"`).join(',')}}`,
      ],
    )
    this.#ask.send(
      `insert into sterna.review (reason, conflict_type, table_oid, table_name, key_hash, key, local_row, remote_row, remote_version, detail)
       select 'set_aside', 'multiple_unique_conflicts', $1::oid, $7::text, $2::bigint, $3::jsonb, $8::jsonb, $4::jsonb, ${versionSql(5)}, $9::text
        where not exists (select from sterna.review r where r.table_oid = $1::oid and r.key_hash = $2::bigint and r.reason = 'set_aside' and r.closed_at is null)`,
      [
        ...params,
        winner ? JSON.stringify(winner) : null,
        `its values of ${(collision?.constraints ?? []).join(', ')} are those of a newer row`,
      ],
    )
    await this.#mark(table)
  }

  #takeBack(table: CarefulTable, key: Key): void {
    const params = [String(table.guardOid), key]
    this.#ask.send('delete from sterna.aside where table_oid = $1 and key_hash = $2', params)
    this.#ask.send(
      `update sterna.review set closed_at = clock_timestamp(), resolution = 'it is not aside any more'
        where table_oid = $1 and key_hash = $2 and reason = 'set_aside' and closed_at is null`,
      params,
    )
  }

  /** A row in the table has taken the place of a row of its key aside. */
  dropStale(table: CarefulTable, key: Key): void {
    this.#takeBack(table, key)
  }

  #reviewRemainder(
    table: CarefulTable,
    key: Key,
    keyValues: readonly (string | null)[],
    remainder: string | null,
  ): void {
    if (table.rules.deltas.length === 0) return
    const params = [String(table.guardOid), key]
    if (remainder === null) {
      this.#ask.send(
        `update sterna.review set closed_at = clock_timestamp(), resolution = 'nothing is left over'
          where table_oid = $1 and key_hash = $2 and reason = 'remainder' and closed_at is null`,
        params,
      )
      return
    }
    this.#ask.send(
      `with known as (update sterna.review set remote_row = $3::jsonb where table_oid = $1::oid and key_hash = $2::bigint and reason = 'remainder' and closed_at is null returning 1)
       insert into sterna.review (reason, table_oid, table_name, key_hash, key, remote_row, detail)
       select 'remainder', $1::oid, $5::text, $2::bigint, $4::jsonb, $3::jsonb, 'the row was deleted while others added to it' where not exists (select from known)`,
      [...params, remainder, JSON.stringify(table.keyObject(keyValues)), table.name],
    )
  }

  /** The table needs care from now on, in every session. */
  async #mark(table: CarefulTable): Promise<void> {
    await this.#care.mark(table)
  }
}

/** The columns of a row that can be written, with their values. */
function writable(
  { plan }: CarefulTable,
  values: Values,
): { readonly names: string[]; readonly texts: (string | null)[] } {
  const names = plan.columns
    .filter(({ name, generated }) => !generated && name in values)
    .map(({ name }) => name)
  return { names, texts: names.map((name) => values[name] ?? null) }
}

/** A row was refused when others of the same change had been written: the transaction must be tried again without it. */
export class LaterRefusal extends Error {
  override name = 'LaterRefusal'
  readonly refusal: Refusal
  constructor(refusal: Refusal) {
    super(refusal.message)
    this.refusal = refusal
  }
}

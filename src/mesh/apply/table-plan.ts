import { SternaError } from '../../core/errors.ts'
import { quoteIdent, quoteLiteral, quoteQualified } from '../../core/quote.ts'
import type { RemoteRelation } from '../../pgwire/pgoutput.ts'

/** A column of the local table. */
export interface LocalColumn {
  readonly name: string
  readonly typeOid: number
  readonly generated: boolean
  readonly identityAlways: boolean
  /** The type's binary form holds object ids of its server: it must travel as text. */
  readonly binaryUnsafe: boolean
  /** The type as which its values are bound: its own, or what code of others has no part in. */
  readonly parameterOid: number
  /** The type to which a bound text is cast then; null: nothing is cast. */
  readonly cast: string | null
}

/** How two values of a column of the key are compared. */
export interface Equality {
  /** `operator(schema.=)` */
  readonly operator: string
  /** To what both sides are cast; null: to nothing. */
  readonly type: string | null
}

/** The local table that a remote one maps to. `key`: columns of its replica identity or primary key; null: none. */
export interface LocalTable {
  readonly kind: 'r' | 'p'
  readonly columns: readonly LocalColumn[]
  readonly key: readonly string[] | null
  /** Columns of the key of which equal values can look different, such as the numerics 1.0 and 1.00. */
  readonly looseKey?: readonly string[]
  /** Of each column of the key; null: no key. */
  readonly keyEquality: readonly Equality[] | null
  readonly oid: number
  /** The owner with whose rights it is written, since a write calls code of ordinary roles; null: with those of Sterna. */
  readonly runAs: number | null
  /** Why it cannot be written as its owner either; null: it can. */
  readonly refusal: string | null
  /** Oid by which the table's tombstones and guard functions are known; null: it has none. */
  readonly guardOid: number | null
}

/** The two nodes between which a change travels, by name: for messages. */
export interface FlowNodes {
  readonly local: string
  readonly provider: string
}

/** A column whose type is another one here than at the provider, as far as the numbers of types tell. */
export interface TypeDifference {
  readonly column: string
  readonly localOid: number
  readonly remoteOid: number
}

/** How changes to one remote table are applied here: pure text, made once for each description of the table. */
export interface TablePlan {
  readonly remote: RemoteRelation
  /** `schema.table` for messages. */
  readonly label: string
  readonly target: string
  /** Positions of the key's columns in the remote tuple, in the local key's order; empty for a table without key. */
  readonly keyPositions: readonly number[]
  /** Local type OID of each remote column. */
  readonly typeOids: readonly number[]
  /** Whether any column must travel as text. */
  readonly needsText: boolean
  readonly typeDifferences: readonly TypeDifference[]
  readonly guardOid: number | null
  /** Columns of the key that are set along with the others: equal values of theirs can look different. */
  readonly loosePositions: ReadonlySet<number>
  readonly oid: number
  /** See LocalTable. */
  readonly runAs: number | null
  /** Parameters are the fields of one record: there are more than a function can have. */
  readonly recordParameters: boolean
  readonly keyEquality: readonly Equality[]
  /** The table as updates and deletes name it: without those that inherit from it, whose changes come by themselves. */
  readonly rows: string
  /** To which type each remote column's bound value is cast; null: to none. */
  readonly casts: readonly (string | null)[]
  /** Generated-always identity columns, which an UPDATE cannot set. */
  readonly fixedPositions: ReadonlySet<number>
  /** All columns of the local table. */
  readonly columns: readonly LocalColumn[]
  /** A partitioned table: PostgreSQL does not say of a row that went into a partition whether it was inserted. */
  readonly isPartitioned: boolean
}

/** Whose changes are applied. */
export interface Origin {
  readonly nodeId: number
  /** The replication origin here: rows that it wrote last have it in their commit timestamp data. */
  readonly oid: number
  /** Rows that are older than this are of the equal data with which the subscription began: no conflict. Null: none are. */
  readonly equalUntil: string | null
}

const FIRST_USER_OID = 16_384
const MAX_FUNCTION_PARAMETERS = 100

/**
 * Maps a remote table onto the local one by names.
 * @throws TABLE_MISSING, COLUMN_MISSING, KEY_DIFFERS, CODE_REFUSED
 */
export function planTable(remote: RemoteRelation, local: LocalTable | null, nodes: FlowNodes): TablePlan {
  const label = `${remote.schema}.${remote.name}`
  const where = { table: label, node: nodes.local, provider: nodes.provider }
  if (!local) throw new SternaError('TABLE_MISSING', where)
  if (local.refusal !== null) throw new SternaError('CODE_REFUSED', { ...where, reason: local.refusal })
  const byName = new Map(local.columns.map((column) => [column.name, column]))
  const columns = remote.columns.map((column) => {
    const found = byName.get(column.name)
    if (!found || found.generated) {
      const problem = found ? 'is generated' : 'does not exist'
      throw new SternaError('COLUMN_MISSING', { ...where, column: column.name, problem })
    }
    return found
  })
  const key = local.key ?? []
  const keyPositions = key.map((name) => {
    const position = remote.columns.findIndex((column) => column.name === name)
    const sent = position >= 0 && (remote.columns[position]!.isKey || remote.replicaIdentity === 'n')
    if (!sent)
      throw new SternaError('KEY_DIFFERS', { ...where, local: key, remote: orNone(keyNames(remote)) })
    return position
  })
  const remoteKey = keyNames(remote)
  if (remote.replicaIdentity !== 'f' && remoteKey.length > 0 && remoteKey.length !== key.length) {
    throw new SternaError('KEY_DIFFERS', {
      ...where,
      local: orNone(key),
      remote: remoteKey,
    })
  }
  const typeDifferences = columns.flatMap(({ name, typeOid }, position) => {
    const remoteOid = remote.columns[position]!.typeOid
    // Oids of user-defined types differ between servers; what they are is compared by binary_unsafe and by the server.
    const comparable = remoteOid < FIRST_USER_OID || typeOid < FIRST_USER_OID
    const differs = comparable && remoteOid !== typeOid
    return differs ? [{ column: name, localOid: typeOid, remoteOid }] : []
  })
  const target = quoteQualified(remote.schema, remote.name)
  return {
    remote,
    label,
    target,
    rows: local.kind === 'r' ? `only ${target}` : target,
    keyPositions,
    keyEquality: local.keyEquality ?? [],
    typeOids: columns.map((column) => column.parameterOid),
    casts: columns.map((column) => column.cast),
    needsText:
      typeDifferences.length > 0 || columns.some((column) => column.binaryUnsafe || column.cast !== null),
    typeDifferences,
    guardOid: local.guardOid,
    loosePositions: new Set(keyPositions.filter((_, i) => local.looseKey?.includes(key[i]!))),
    oid: local.oid,
    runAs: local.runAs,
    recordParameters: columns.length + keyPositions.length + 1 > MAX_FUNCTION_PARAMETERS,
    fixedPositions: new Set(columns.flatMap((column, position) => (column.identityAlways ? [position] : []))),
    columns: local.columns,
    isPartitioned: local.kind === 'p',
  }
}

function keyNames(remote: RemoteRelation): string[] {
  return remote.columns.filter((column) => column.isKey).map((column) => column.name)
}

/** Names for a message. */
function orNone(names: readonly string[]): readonly string[] {
  return names.length > 0 ? names : ['none']
}

/** A parameter of a statement; in a function with too many of them, a field of its record. */
function parameter(plan: TablePlan, number: number): string {
  return plan.runAs !== null && plan.recordParameters ? `sterna_row.f${number}` : `$${number}`
}

/** A parameter with the value of a remote column. */
function columnValue(plan: TablePlan, position: number, number: number): string {
  const cast = plan.casts[position]
  return parameter(plan, number) + (cast === null ? '' : `::${cast}`)
}

/** The condition that `t` has the key whose values stand in the parameters that `numberOf` says. */
export function keyIs(plan: TablePlan, numberOf: (position: number, i: number) => number): string {
  const terms = plan.keyPositions.map((position, i) => {
    const { operator, type } = plan.keyEquality[i]!
    const cast = type === null ? '' : `::${type}`
    const name = quoteIdent(plan.remote.columns[position]!.name)
    return `t.${name}${cast} ${operator} ${columnValue(plan, position, numberOf(position, i))}${cast}`
  })
  return terms.join(' and ')
}

/**
 * A condition that is checked when the statement is planned and costs nothing when it is executed: that the table may be
 * written with the rights that the statement has. See 010_untrusted_code.sql. `written`: columns that an insert gives values to.
 */
export function admitted(plan: TablePlan, written: readonly string[] | null = null): string {
  const target = 'case when false then t.* end'
  if (plan.runAs !== null) return `sterna.apply_as_owner(${target})`
  const names =
    written === null ? 'null' : `array[${written.map(quoteLiteral).join(', ')}]::pg_catalog.name[]`
  return `sterna.apply_trusted(${target}, ${names})`
}

/**
 * The condition under which a change may replace the local row `t`: the change's version is not smaller. The first branch
 * decides where this origin wrote the row last, or nobody since the subscription began; else the server looks closer, and makes the rows
 * texts if there is a conflict to record. After a lock wait PostgreSQL evaluates it again on the new row. `arriving`: SQL for
 * the new row; null: none.
 */
function mayReplace(
  plan: TablePlan,
  timeParam: number,
  { nodeId, oid, equalUntil }: Origin,
  operation: 'insert' | 'update' | 'delete',
  arriving: string | null,
): string {
  const time = parameter(plan, timeParam)
  const written = 'pg_catalog.pg_xact_commit_timestamp(t.xmin)'
  const isOld = equalUntil === null ? '' : `${written} < timestamptz ${quoteLiteral(equalUntil)} or `
  // A row of unknown age is older than everything.
  const isOurs = `${written} < ${time} and (${isOld}(pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = ${oid}) or ${written} is null`
  const versions = `t.xmin, ${time}, ${nodeId}`
  if (plan.guardOid === null) {
    const row = arriving ?? `null::${plan.target}`
    return `case when ${isOurs} then true else sterna.met_row(t.*, ${row}, ${versions}, '${operation}') end`
  }
  const texts = (row: string | null): string =>
    row === null ? 'null' : `sterna.texts_${plan.guardOid}(${row})`
  const key = plan.keyPositions.map((position) => quoteLiteral(plan.remote.columns[position]!.name))
  const record = `sterna.record_meeting(${texts('t.*')}, ${texts(arriving)}, array[${key.join(', ')}]::pg_catalog.text[], ${plan.oid}, ${plan.guardOid}, ${versions}, '${operation}')`
  return `case when ${isOurs} then true else case sterna.meeting(${versions}) when 1 then true when 0 then false else ${record} end end`
}

/** The same, without a look at who wrote the row. */
function notNewer(plan: TablePlan, timeParam: number, { nodeId }: Origin): string {
  const time = parameter(plan, timeParam)
  return `case when pg_catalog.pg_xact_commit_timestamp(t.xmin) < ${time} then true else sterna.version_not_greater(t.xmin, ${time}, ${nodeId}) end`
}

/**
 * Inserts the row, or replaces the one that has its key unless that is newer. Serves INSERT and UPDATE alike: an update
 * whose row is not here yet creates it, and says so. Parameters: all remote columns in order, then the commit timestamp.
 */
export function putSql(plan: TablePlan, operation: 'insert' | 'update', origin: Origin): string {
  const written = plan.remote.columns.map((column) => column.name)
  const names = written.map(quoteIdent)
  const values = names.map((_, position) => columnValue(plan, position, position + 1))
  const insert = `insert into ${plan.target} as t (${names.join(', ')}) overriding system value values (${values.join(', ')})`
  if (plan.keyPositions.length === 0) return `${insert} returning ${admitted(plan, written)}`
  const key = plan.keyPositions.map((position) => names[position])
  const settable = names.filter(
    (_, position) =>
      (!plan.keyPositions.includes(position) || plan.loosePositions.has(position)) &&
      !plan.fixedPositions.has(position),
  )
  const settableKey = key.filter((_, i) => !plan.fixedPositions.has(plan.keyPositions[i]!))
  if (settable.length + settableKey.length === 0) return putFixedSql(plan, origin)
  // A table of nothing but its key still takes the newer version: setting the key to itself rewrites the row.
  const set = (settable.length > 0 ? settable : settableKey).map((name) => `${name} = excluded.${name}`)
  const time = names.length + 1
  const where = `${admitted(plan, written)} and ${mayReplace(plan, time, origin, operation, 'excluded.*')}`
  const put = `${insert} on conflict (${key.join(', ')}) do update set ${set.join(', ')} where ${where}`
  if (!tellsCreation(plan, operation)) return put
  return `${put} returning case when t.xmax = 0 then sterna.met_none(t.*, ${plan.guardOid}, ${parameter(plan, time)}, ${origin.nodeId}) end`
}

/** Whether a put looks by itself, when it has created a row, for what was deleted. */
export function tellsCreation(plan: TablePlan, operation: 'insert' | 'update'): boolean {
  return operation === 'update' && plan.guardOid !== null && !plan.isPartitioned && canSet(plan)
}

function canSet(plan: TablePlan): boolean {
  return plan.remote.columns.some((_, position) => !plan.fixedPositions.has(position))
}

/**
 * `putSql` for a table in which no column can be set, all being generated always as identity: an older row makes way for
 * the new one. What another session inserts at the same moment stays: its commit is later than the change.
 */
function putFixedSql(plan: TablePlan, origin: Origin): string {
  const written = plan.remote.columns.map((column) => column.name)
  const names = written.map(quoteIdent)
  const where = keyIs(plan, (position) => position + 1)
  const values = names.map((_, position) => columnValue(plan, position, position + 1)).join(', ')
  return `with gone as (delete from ${plan.rows} t where ${where} and ${admitted(plan, written)} and ${notNewer(plan, names.length + 1, origin)} returning 1)
    insert into ${plan.target} (${names.join(', ')}) overriding system value
    select ${values} where (select count(*) from gone) >= 0 on conflict do nothing`
}

/** Deletes the row unless it is newer. Parameters: the key, then the commit timestamp. */
export function removeSql(plan: TablePlan, origin: Origin): string {
  return `delete from ${plan.rows} t where ${keyIs(plan, (_, i) => i + 1)} and ${admitted(plan)} and ${mayReplace(plan, plan.keyPositions.length + 1, origin, 'delete', null)}`
}

/**
 * Deletes the row unless it is newer, and leaves a tombstone, also where there was no row. Parameters: the key, then the
 * commit timestamp. Its tag counts what was deleted.
 */
export function deleteSql(plan: TablePlan, origin: Origin): string {
  const remove = removeSql(plan, origin)
  if (plan.guardOid === null) return remove
  return `with gone as (${remove} returning 1)
    select 1 where ${burySql(plan, 'exists (select from gone)', origin)}`
}

/** Leaves a tombstone for the key that stands in the parameters; true if the row was deleted, now or before. */
export function burySql(plan: TablePlan, gone: string, origin: Origin): string {
  const key = plan.keyPositions.map((_, i) => `$${i + 1}`).join(', ')
  return `sterna.bury_${plan.guardOid}(${key}, ${plan.oid}, ${gone}, $${plan.keyPositions.length + 1}, ${origin.nodeId})`
}

/** Removes the rows that are not newer than the truncate. Parameter: the commit timestamp. */
export function emptySql(plan: TablePlan, origin: Origin): string {
  return `delete from ${plan.rows} t where ${admitted(plan)} and ${notNewer(plan, 1, origin)}`
}

/** Removes the rows that are not newer than the truncate, and remembers it. Parameter: the commit timestamp. */
export function truncateSql(plan: TablePlan, origin: Origin): string {
  const remove = emptySql(plan, origin)
  if (plan.guardOid === null) return remove
  return `with gone as (${remove}) ${rememberTruncateSql(plan, 'values', origin)}`
}

/** Remembers the truncate; `from`: `values`, or the FROM clause of a select. Parameter: the commit timestamp. */
export function rememberTruncateSql(plan: TablePlan, from: string, origin: Origin): string {
  const row = from === 'values' ? `values (${plan.oid}, 1)` : `select ${plan.oid}, 1 ${from}`
  return `insert into sterna.truncation as t (table_oid, times) ${row}
    on conflict (table_oid) do update set times = t.times + 1
    where case when pg_catalog.pg_xact_commit_timestamp(t.xmin) < $1 then true else sterna.version_not_greater(t.xmin, $1, ${origin.nodeId}) end`
}

import { quoteIdent } from '../core/quote.ts'
import type { PgConnection, QueryResult } from '../postgres/connection.ts'

/** A column as replication sees it. */
export interface ColumnShape {
  /** The type with its modifiers; of an enum also its labels. */
  readonly type: string
  readonly notNull: boolean
  /** Whether the value is generated: such a column is not replicated. */
  readonly generated: boolean
}

/** A table as replication sees it. */
export interface TableShape {
  /** `schema.table`, quoted where needed. */
  readonly name: string
  readonly columns: ReadonlyMap<string, ColumnShape>
  /** The columns of the primary key or of the replica identity index, in their order; null without one. */
  readonly key: readonly string[] | null
}

/** The tables of one node. */
export interface NodeTables {
  readonly node: string
  readonly tables: readonly TableShape[]
}

export type DifferenceKind = 'missing_table' | 'missing_column' | 'type' | 'not_null' | 'generated' | 'key'

/** One thing in which the tables of the nodes differ. */
export interface SchemaDifference {
  readonly kind: DifferenceKind
  readonly table: string
  /** Null where the whole table is concerned. */
  readonly column: string | null
  /** What each node has, by node name; null where it has nothing of it. */
  readonly values: Readonly<Record<string, string | null>>
}

/**
 * Compares the tables of several nodes. The order of columns does not matter; what hangs below a missing table or column
 * is not reported again.
 */
export function compareSchemas(nodes: readonly NodeTables[]): SchemaDifference[] {
  const byNode = new Map(
    nodes.map(({ node, tables }) => [node, new Map(tables.map((table) => [table.name, table]))]),
  )
  const names = new Set(nodes.flatMap(({ tables }) => tables.map((table) => table.name)))
  return [...names].toSorted().flatMap((name) => {
    const shapes = [...byNode].map(([node, tables]) => ({ node, shape: tables.get(name) }))
    const missing = shapes.some(({ shape }) => !shape)
    if (missing)
      return [differenceOf('missing_table', name, null, shapes, ({ shape }) => (shape ? 'present' : null))]
    return compareTable(name, shapes as { node: string; shape: TableShape }[])
  })
}

/** A difference as one line: `public.orders.total: numeric on n1, n3; integer on n2`. */
export function formatDifference(difference: SchemaDifference): string {
  const { kind, table, column, values } = difference
  const place = column === null ? table : `${table}.${quoteIfNeeded(column)}`
  const nodesBy = new Map<string | null, string[]>()
  for (const [node, value] of Object.entries(values))
    nodesBy.set(value, [...(nodesBy.get(value) ?? []), node])
  const lacking = (nodesBy.get(null) ?? []).join(', ')
  if (kind === 'missing_table') return `${place}: missing on ${lacking}`
  if (kind === 'missing_column') {
    const having = [...nodesBy].filter(([value]) => value !== null).flatMap(([, on]) => on)
    return `${place}: missing on ${lacking}, present on ${having.join(', ')}`
  }
  return `${place}: ${[...nodesBy].map(([value, on]) => `${value} on ${on.join(', ')}`).join('; ')}`
}

/** The shapes of all tables of the database that could replicate: ordinary and partitioned, logged, not of an extension. */
export async function readTableShapes(conn: PgConnection): Promise<TableShape[]> {
  const { rows } = await conn.transaction(async () => {
    // format_type leaves out schemas that are in the search path.
    await conn.exec('set local search_path = pg_catalog')
    return queryTableShapes(conn)
  })
  return rows.map((row) => ({
    name: row.table_name,
    columns: new Map(row.columns.map(({ name, ...shape }) => [name, shape])),
    key: row.key,
  }))
}

interface TableRow {
  /** Qualified and quoted by the server, which knows the reserved words. */
  readonly table_name: string
  readonly columns: readonly ({ readonly name: string } & ColumnShape)[]
  readonly key: readonly string[] | null
}

function queryTableShapes(conn: PgConnection): Promise<QueryResult<TableRow>> {
  return conn.query<TableRow>(`select quote_ident(n.nspname) || '.' || quote_ident(c.relname) as table_name,
       (select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
            'name', a.attname,
            'type', pg_catalog.format_type(a.atttypid, a.atttypmod) || coalesce(' (' || (
                select pg_catalog.string_agg(pg_catalog.quote_literal(e.enumlabel), ', ' order by e.enumsortorder)
                from pg_catalog.pg_enum e where e.enumtypid in (t.oid, t.typelem)) || ')', ''),
            'notNull', a.attnotnull,
            'generated', a.attgenerated <> '') order by a.attnum), '[]')
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select pg_catalog.array_agg(a.attname::text order by k.position)
        from pg_catalog.pg_index i
        cross join lateral pg_catalog.unnest(i.indkey) with ordinality as k (attnum, position)
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
        where i.indrelid = c.oid and i.indimmediate and i.indisvalid and k.position <= i.indnkeyatts
          and ((c.relreplident = 'i' and i.indisreplident) or (c.relreplident <> 'i' and i.indisprimary))
       ) as key
     from pg_catalog.pg_class c
     join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where ${REPLICABLE_TABLE}
     order by n.nspname, c.relname`)
}

/** SQL condition over pg_class `c` and pg_namespace `n`: tables of the user that replication can be asked for. */
export const REPLICABLE_TABLE = `c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
  and n.nspname not in ('pg_catalog', 'information_schema', 'sterna') and n.nspname not like 'pg\\_%'
  and not exists (
    select from pg_catalog.pg_depend d
    where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e')`

/** A column's name for a message: quoted where it would not be read as it is. */
function quoteIfNeeded(name: string): string {
  return /^[a-z_][a-z0-9_]*$/.test(name) ? name : quoteIdent(name)
}

interface NodeShape {
  readonly node: string
  readonly shape: TableShape
}

function compareTable(name: string, shapes: readonly NodeShape[]): SchemaDifference[] {
  const columns = new Set(shapes.flatMap(({ shape }) => [...shape.columns.keys()]))
  const differences = [...columns].flatMap((column) => compareColumn(name, column, shapes))
  const key = differenceOf('key', name, null, shapes, ({ shape }) =>
    shape.key ? `key (${shape.key.map(quoteIfNeeded).join(', ')})` : 'no key',
  )
  return isDifferent(key) ? [...differences, key] : differences
}

function compareColumn(table: string, column: string, shapes: readonly NodeShape[]): SchemaDifference[] {
  const of = ({ shape }: NodeShape): ColumnShape | undefined => shape.columns.get(column)
  if (shapes.some((each) => !of(each)))
    return [differenceOf('missing_column', table, column, shapes, (each) => of(each)?.type ?? null)]
  return [
    differenceOf('type', table, column, shapes, (each) => of(each)!.type),
    differenceOf('not_null', table, column, shapes, (each) => (of(each)!.notNull ? 'not null' : 'nullable')),
    differenceOf('generated', table, column, shapes, (each) =>
      of(each)!.generated ? 'generated' : 'not generated',
    ),
  ].filter(isDifferent)
}

function differenceOf<T extends { readonly node: string }>(
  kind: DifferenceKind,
  table: string,
  column: string | null,
  shapes: readonly T[],
  valueOf: (shape: T) => string | null,
): SchemaDifference {
  return { kind, table, column, values: Object.fromEntries(shapes.map((each) => [each.node, valueOf(each)])) }
}

function isDifferent({ values }: SchemaDifference): boolean {
  return new Set(Object.values(values)).size > 1
}

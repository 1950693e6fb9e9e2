import type { PgConnection } from '../../postgres/connection.ts'
import type { Finding, Severity } from './finding.ts'
import { listed } from './server-checks.ts'

/** What the checks need to know of a table. */
export interface TableFacts {
  /** `schema.table`, quoted where needed. */
  readonly table: string
  readonly unlogged: boolean
  /** Whether it surely has no rows. */
  readonly empty: boolean
  /** Whether it has a primary key or replica identity index that replication can use. */
  readonly hasKey: boolean
  /** d default, n nothing, f full, i index. */
  readonly replicaIdentity: string
  /** Whether it has a primary key at all, deferrable or not. */
  readonly hasPrimaryKey: boolean
  readonly deferrable: readonly string[]
  /** A unique index over columns that are all not null: it could serve as the key. */
  readonly keyCandidate: string | null
  /** Unique indexes besides the key, over plain columns of all rows. */
  readonly secondaryUnique: readonly string[]
  /** Unique indexes over some rows or over expressions, deferrable unique constraints, and exclusion constraints. */
  readonly otherExclusive: readonly string[]
  readonly foreignKeys: number
}

/** Reads the facts of every table of the user; partitions are seen through their root. */
export async function readTableFacts(conn: PgConnection): Promise<TableFacts[]> {
  const { rows } = await conn.query<{
    table_name: string
    unlogged: boolean
    empty: boolean
    has_key: boolean
    replica_identity: string
    has_primary_key: boolean
    deferrable: string[]
    key_candidate: string | null
    secondary_unique: string[]
    other_exclusive: string[]
    foreign_keys: number
  }>(TABLES_SQL)
  return rows.map((row) => ({
    table: row.table_name,
    unlogged: row.unlogged,
    empty: row.empty,
    hasKey: row.has_key,
    replicaIdentity: row.replica_identity,
    hasPrimaryKey: row.has_primary_key,
    deferrable: row.deferrable,
    keyCandidate: row.key_candidate,
    secondaryUnique: row.secondary_unique,
    otherExclusive: row.other_exclusive,
    foreignKeys: row.foreign_keys,
  }))
}

const TABLES_SQL = `
  with exclusive as (
    select i.indexrelid, i.indrelid,
      i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null as is_plain
    from pg_catalog.pg_index i join pg_catalog.pg_class t on t.oid = i.indrelid
    where (i.indisunique or i.indisexclusion) and not i.indisprimary
      and not (t.relreplident = 'i' and i.indisreplident))
  select quote_ident(n.nspname) || '.' || quote_ident(c.relname) as table_name,
    c.relpersistence = 'u' as unlogged,
    c.relkind = 'r' and pg_catalog.pg_relation_size(c.oid) = 0 as empty,
    c.relreplident::text as replica_identity,
    exists (select from pg_catalog.pg_index i
            where i.indrelid = c.oid and i.indimmediate and i.indisvalid
              and ((c.relreplident = 'i' and i.indisreplident)
                or (c.relreplident <> 'i' and i.indisprimary))) as has_key,
    exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary) as has_primary_key,
    (select coalesce(pg_catalog.array_agg(quote_ident(k.conname) order by k.conname), '{}')
     from pg_catalog.pg_constraint k
     where k.conrelid = c.oid and k.contype in ('p', 'u') and k.condeferrable) as deferrable,
    (select quote_ident(min(x.relname::text))
     from pg_catalog.pg_index i join pg_catalog.pg_class x on x.oid = i.indexrelid
     where i.indrelid = c.oid and i.indisunique and i.indimmediate and i.indisvalid
       and i.indpred is null and i.indexprs is null
       and not exists (select from pg_catalog.pg_attribute a
                       where a.attrelid = c.oid and a.attnum = any(i.indkey::int2[]) and not a.attnotnull)
    ) as key_candidate,
    (select coalesce(pg_catalog.array_agg(x.relname::text order by x.relname) filter (where i.is_plain), '{}')
     from exclusive i join pg_catalog.pg_class x on x.oid = i.indexrelid
     where i.indrelid = c.oid) as secondary_unique,
    (select coalesce(pg_catalog.array_agg(x.relname::text order by x.relname) filter (where not i.is_plain), '{}')
     from exclusive i join pg_catalog.pg_class x on x.oid = i.indexrelid
     where i.indrelid = c.oid) as other_exclusive,
    (select count(*)::int from pg_catalog.pg_constraint k
     where k.conrelid = c.oid and k.contype = 'f') as foreign_keys
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence in ('p', 'u')
    and n.nspname not in ('pg_catalog', 'information_schema', 'sterna') and n.nspname not like 'pg\\_%'
    and not exists (
      select from pg_catalog.pg_depend d
      where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e')
  order by 1`

/** What is to be said about the tables of one server. */
export function checkTables(server: string, tables: readonly TableFacts[]): Finding[] {
  const findings = tables.flatMap((table) => checkTable(server, table))
  const about = (
    severity: Severity,
    check: string,
    which: (table: TableFacts) => boolean,
    what: string,
  ): void => {
    const names = tables.filter(which).map((table) => table.table)
    if (names.length === 0) return
    const tableList = `${count(names.length, 'table')} with ${what.replace('@', listed(names))}`
    findings.push({ severity, check, server, object: null, what: tableList, fix: null })
  }
  about(
    'warn',
    'exclusive_constraint',
    (table) => table.hasKey && table.otherExclusive.length > 0,
    'unique indexes over some rows or over expressions, or exclusion constraints (@): where writes of two nodes collide in them, a change cannot be applied and waits among the exceptions',
  )
  about(
    'info',
    'secondary_unique',
    (table) => table.hasKey && table.secondaryUnique.length > 0,
    'further unique keys (@): when two nodes write the same value under different keys, the older row is set aside and queued for review',
  )
  about(
    'info',
    'foreign_keys',
    (table) => table.foreignKeys > 0,
    'foreign keys (@): what arrives from other nodes is not checked against them, so a row can lose what it refers to',
  )
  return findings
}

function checkTable(server: string, table: TableFacts): Finding[] {
  const found = (severity: Severity, check: string, what: string, fix: string | null): Finding => ({
    severity,
    check,
    server,
    object: table.table,
    what,
    fix,
  })
  if (table.unlogged)
    return [
      found(
        'warn',
        'unlogged_table',
        'is unlogged and does not replicate',
        `alter table ${table.table} set logged;`,
      ),
    ]
  const findings: Finding[] = []
  if (table.deferrable.length > 0)
    findings.push(
      found(
        'warn',
        'deferrable_key',
        `has deferrable keys (${table.deferrable.join(', ')}): they are not checked while changes are applied`,
        `alter table ${table.table} drop constraint ${table.deferrable[0]};  -- and add it again, not deferrable`,
      ),
    )
  if (table.replicaIdentity === 'n')
    findings.push(
      found(
        'warn',
        'replica_identity_nothing',
        'has REPLICA IDENTITY NOTHING: once published, its updates and deletes fail',
        `alter table ${table.table} replica identity default;`,
      ),
    )
  if (!table.hasKey && !(table.hasPrimaryKey && table.deferrable.length > 0))
    findings.push(
      found(
        'warn',
        'table_without_key',
        'has no primary key: only its inserts replicate',
        table.keyCandidate === null
          ? keyFix(table)
          : `alter table ${table.table} replica identity using index ${table.keyCandidate};`,
      ),
    )
  if (table.replicaIdentity === 'f')
    findings.push(
      found(
        'info',
        'replica_identity_full',
        'has REPLICA IDENTITY FULL: every update and delete writes the whole old row to the WAL',
        table.hasPrimaryKey ? `alter table ${table.table} replica identity default;` : null,
      ),
    )
  return findings
}

/** A generated key would get other values for the rows on every node. */
function keyFix({ table, empty }: TableFacts): string {
  return empty
    ? `alter table ${table} add column id bigint generated always as identity primary key;`
    : `alter table ${table} add primary key (...);  -- columns that are unique; without such: docs/ddl.md, "A table without a key"`
}

/** A number with its noun: `1 table`, `2 tables`. */
function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`
}

import { sqlstateOf } from '../../postgres/server-error.ts'
import type { PgConnection } from '../../postgres/connection.ts'
import type { Finding } from './finding.ts'

/** A sequence that feeds a column. */
export interface SequenceFacts {
  readonly sequence: string
  readonly table: string
  readonly column: string
  /** The greatest value that fits both the sequence and the column. */
  readonly limit: bigint
  readonly increment: bigint
  /** Null: not used yet. */
  readonly lastValue: bigint | null
  /** The greatest value in the column; null where it is empty or could not be found out quickly. */
  readonly columnMax: bigint | null
}

/** Part of a sequence's range from which on it is said to run out. */
const NEAR_END_PERCENT = 80

/** Looking for a column's greatest value may take so long; without a fitting index it is not tried. */
const MAX_VALUE_TIMEOUT_MS = 3_000

/** Took too long; insufficient privilege. */
const NOT_TOLD = new Set(['57014', '42501'])

/** Reads the sequences that belong to columns of the user's tables, with what is in these columns. */
export async function readSequenceFacts(conn: PgConnection): Promise<SequenceFacts[]> {
  const { rows } = await conn.query<SequenceRow>(SEQUENCES_SQL)
  const facts: SequenceFacts[] = []
  for (const row of rows) {
    const columnMax = row.indexed ? await greatestValue(conn, row.table_name, row.column_name) : null
    facts.push(factsOf(row, columnMax))
  }
  return facts
}

/** Per cent of its range that a sequence has used; null where it is not used yet or counts down. */
function usedPercent({ lastValue, limit, increment }: SequenceFacts): number | null {
  if (lastValue === null || increment < 0n || limit <= 0n) return null
  return Math.floor((Number(lastValue) / Number(limit)) * 100)
}

/** Names are quoted by the server, which knows the reserved words. */
interface SequenceRow {
  readonly sequence_name: string
  readonly table_name: string
  readonly column_name: string
  readonly seq_limit: bigint
  readonly increment: bigint
  readonly last_value: bigint | null
  readonly indexed: boolean
}

function factsOf(row: SequenceRow, columnMax: bigint | null): SequenceFacts {
  return {
    sequence: row.sequence_name,
    table: row.table_name,
    column: row.column_name,
    limit: row.seq_limit,
    increment: row.increment,
    lastValue: row.last_value,
    columnMax,
  }
}

const SEQUENCES_SQL = `
  select quote_ident(sn.nspname) || '.' || quote_ident(s.relname) as sequence_name,
    quote_ident(n.nspname) || '.' || quote_ident(c.relname) as table_name, quote_ident(a.attname) as column_name,
    least(q.seqmax, case a.atttypid when 21 then 32767 when 23 then 2147483647 else 9223372036854775807 end) as seq_limit,
    q.seqincrement as increment,
    case when pg_catalog.has_sequence_privilege(s.oid, 'SELECT,USAGE')
         then pg_catalog.pg_sequence_last_value(s.oid) end as last_value,
    exists (select from pg_catalog.pg_index i
            where i.indrelid = c.oid and i.indisvalid and i.indpred is null and i.indkey[0] = a.attnum) as indexed
  from pg_catalog.pg_depend d
  join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
  join pg_catalog.pg_namespace sn on sn.oid = s.relnamespace
  join pg_catalog.pg_sequence q on q.seqrelid = s.oid
  join pg_catalog.pg_class c on c.oid = d.refobjid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = d.refobjsubid
  where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    and d.deptype in ('a', 'i') and c.relkind in ('r', 'p') and a.atttypid in (20, 21, 23)
    and n.nspname <> 'sterna'
  order by 1`

async function greatestValue(conn: PgConnection, table: string, column: string): Promise<bigint | null> {
  try {
    const row = await conn.row<{ greatest: bigint | null }>(
      `select max(${column})::bigint as greatest from ${table}`,
      [],
      { timeoutMs: MAX_VALUE_TIMEOUT_MS },
    )
    return row?.greatest ?? null
  } catch (error) {
    if (!NOT_TOLD.has(sqlstateOf(error) ?? '')) throw error
    return null
  }
}

/** What is to be said about the sequences of one server. */
export function checkSequences(server: string, sequences: readonly SequenceFacts[]): Finding[] {
  return sequences.flatMap((facts) => [...checkBehind(server, facts), ...checkNearEnd(server, facts)])
}

function checkBehind(server: string, facts: SequenceFacts): Finding[] {
  const { sequence, table, column, lastValue, columnMax, increment } = facts
  if (columnMax === null || increment < 0n || (lastValue ?? 0n) >= columnMax) return []
  return [
    {
      severity: 'warn',
      check: 'sequence_behind',
      server,
      object: sequence,
      what: `is at ${lastValue ?? 'its start'}, but ${table}.${column} already has ${columnMax}: its next values collide`,
      fix: `select setval('${sequence.replaceAll("'", "''")}', ${columnMax});`,
    },
  ]
}

function checkNearEnd(server: string, facts: SequenceFacts): Finding[] {
  const { sequence, table, column, lastValue, limit } = facts
  const percent = usedPercent(facts)
  if (percent === null || percent < NEAR_END_PERCENT) return []
  const target = `${table}.${column}`
  return [
    {
      severity: 'warn',
      check: 'sequence_near_end',
      server,
      object: sequence,
      what: `has used ${percent} % of what fits into ${target} (${lastValue} of ${limit})`,
      fix: `alter table ${table} alter column ${column} type bigint; alter sequence ${sequence} as bigint;`,
    },
  ]
}

import { SternaError } from '../core/errors.ts'
import type { MeshNode } from '../mesh/mesh-node.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { nodesToChange, type OnNodeOptions } from './node-session.ts'

/**
 * The node whose entry is meant: each node counts its own.
 * @throws USAGE where it is not one node; NODE_UNKNOWN
 */
export async function nodeOfEntry(options: OnNodeOptions): Promise<MeshNode> {
  const nodes = await nodesToChange(options)
  if (nodes.length === 1) return nodes[0]!
  throw new SternaError('USAGE', {
    reason: 'each node counts its own entries: name one with --on',
    help: 'sterna help',
  })
}

/**
 * Ids as they were typed.
 * @throws INVALID_VALUE
 */
export function entryIds(texts: readonly string[]): bigint[] {
  return texts.map((text) => {
    if (/^\d{1,18}$/.test(text)) return BigInt(text)
    throw new SternaError('INVALID_VALUE', { what: 'id', value: text, expected: 'a number from the list' })
  })
}

/** What is said where an entry does not exist; `list`: the command that shows those that do. */
export function unknownEntry(node: string, what: string, list: string): SternaError {
  return new SternaError('REFUSED', {
    node,
    reason: `there is no ${what}`,
    remedy: `Each node counts its own entries: ${list} --on ${node}`,
  })
}

/** The columns of a table in their order; none where it is gone. */
export async function columnOrder(conn: PgConnection, tableOid: number | null): Promise<string[]> {
  const { rows } = await conn.query<{ name: string }>(
    `select attname::text as name from pg_catalog.pg_attribute
     where attrelid = $1 and attnum > 0 and not attisdropped order by attnum`,
    [tableOid],
  )
  return rows.map(({ name }) => name)
}

/** SQL for a column of type timestamptz as text in UTC: `2026-11-21 06:40:00.123456Z`, whatever the session's settings. */
export function formatTime(column: string): string {
  return `pg_catalog.to_char(${column} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"Z"') as ${column}`
}

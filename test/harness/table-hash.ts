import { expect } from 'vitest'
import type { PgConnection } from '../../src/postgres/connection.ts'

/** What runs a query on one node. */
export interface Queryable {
  readonly name: string
  query<R>(sql: string): Promise<R[]>
}

/** By table: the number of rows and an order-independent hash of their text. Nothing of the product is used for it. */
export type TableHashes = Readonly<Record<string, string>>

/** Hashes every permanent table outside of the system's schemas and `sterna`, or only those of one schema. */
export async function tableHashes(node: Queryable, schema?: string): Promise<TableHashes> {
  const tables = await node.query<{ name: string }>(
    `select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'r' and c.relpersistence = 'p' and n.nspname not in ('sterna', 'information_schema') and n.nspname !~ '^pg_'
        and (${schema === undefined ? 'true' : `n.nspname = '${schema}'`})
      order by 1`,
  )
  const hashes: Record<string, string> = {}
  for (const { name } of tables) {
    const [row] = await node.query<{ rows: bigint; hash: string }>(
      `select count(*) as rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text as hash from ${name} t`,
    )
    hashes[name] = `${row!.rows} rows, ${row!.hash}`
  }
  return hashes
}

/** Fails unless all nodes have the same rows in every table; returns what they have. */
export async function expectIdentical(nodes: readonly Queryable[], schema?: string): Promise<TableHashes> {
  const all = await Promise.all(nodes.map((node) => tableHashes(node, schema)))
  const [first] = all
  expect(Object.keys(first!).length, 'there are tables to compare').toBeGreaterThan(0)
  for (const [i, hashes] of all.entries())
    expect(hashes, `${nodes[i]!.name} has the rows of ${nodes[0]!.name}`).toEqual(first)
  return first!
}

/** Every row of a table as text, in the order of the text. The session's settings decide about its form. */
export async function rowTexts(connection: PgConnection, table: string): Promise<string[]> {
  const { rows } = await connection.query<{ row: string }>(
    `select case when length(t::text) > 2000 then length(t::text) || ' characters ' || md5(t::text) else t::text end as row
       from ${table} t order by 1`,
  )
  return rows.map(({ row }) => row)
}

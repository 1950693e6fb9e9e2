import { quoteIdent } from '../src/core/quote.ts'
import type { PgConnection } from '../src/postgres/connection.ts'
import type { BenchTable } from './bed.ts'

/** By table: number of rows and a hash that does not depend on their order. */
export type TableHashes = Readonly<Record<string, string>>

/** Hashes the whole content of tables. */
export async function hashTables(
  connection: PgConnection,
  tables: readonly BenchTable[],
): Promise<TableHashes> {
  const hashes: Record<string, string> = {}
  for (const { name } of tables) {
    const row = await connection.row<{ hash: string }>(
      `select count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) as hash from ${quoteIdent(name)} t`,
    )
    hashes[name] = row!.hash
  }
  return hashes
}

/** The tables in which a subscriber has something else than the provider, each with both hashes. */
export function differences(provider: TableHashes, subscriber: TableHashes): string[] {
  return Object.entries(provider)
    .filter(([table, hash]) => subscriber[table] !== hash)
    .map(([table, hash]) => `${table}: ${hash} at the provider, ${subscriber[table]} at the subscriber`)
}

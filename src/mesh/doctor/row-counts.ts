import { sqlstateOf } from '../../postgres/server-error.ts'
import type { PgConnection } from '../../postgres/connection.ts'
import type { TableShape } from '../schema-compare.ts'

/** Rows are counted up to this number: enough to tell an empty or forgotten table, and quick on any size. */
export const COUNTED_ROWS = 10_000

const INSUFFICIENT_PRIVILEGE = '42501'

/** The number of rows of each table, COUNTED_ROWS + 1 standing for more; a table that cannot be read is left out. */
export async function readRowCounts(
  conn: PgConnection,
  tables: readonly TableShape[],
): Promise<Map<string, number>> {
  const counts = new Map<string, number>()
  for (const { name } of tables) {
    try {
      // The name is quoted already where it must be.
      const row = await conn.row<{ rows: number }>(
        `select count(*)::int as rows from (select from ${name} limit ${COUNTED_ROWS + 1}) as counted`,
      )
      counts.set(name, row?.rows ?? 0)
    } catch (error) {
      if (sqlstateOf(error) !== INSUFFICIENT_PRIVILEGE) throw error
    }
  }
  return counts
}

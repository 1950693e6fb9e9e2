import { PgConnection } from '../../src/postgres/connection.ts'
import type { MeshTestNode } from './mesh.ts'

/** What was added in all to row 1 of table `account`, as the clients know it. */
export interface Sums {
  readonly balance: bigint
  /** Of column `amount`. */
  readonly thousandths: bigint
  /** Of column `paid`. */
  readonly cents: bigint
  readonly count: number
}

/** Reads the row in the units of `Sums`. */
export const ACCOUNT_SQL = `select balance, (amount * 1000)::bigint as thousandths, (paid::numeric * 100)::bigint as cents
                              from account where id = 1`

/** Two clients on each node add to, and subtract from, all columns of one row for some seconds. */
export async function addAndSubtract(nodes: readonly MeshTestNode[], seconds: number): Promise<Sums> {
  const until = performance.now() + seconds * 1000
  const sums = { balance: 0n, thousandths: 0n, cents: 0n, count: 0 }
  const clients = nodes.flatMap((node) => [node, node])
  await Promise.all(
    clients.map(async (node) => {
      const session = await PgConnection.connect(node.dsn, { applicationName: 'test client' })
      while (performance.now() < until) {
        const [a, b, c] = [0, 1, 2].map(() => Math.floor(Math.random() * 2001) - 1000) as [
          number,
          number,
          number,
        ]
        await session.exec(
          `update account set balance = balance + ${a}, amount = amount + ${b / 1000}, paid = paid + (${c} / 100.0)::numeric::money, note = '${node.name}' where id = 1`,
        )
        sums.balance += BigInt(a)
        sums.thousandths += BigInt(b)
        sums.cents += BigInt(c)
        sums.count++
      }
      await session.close()
    }),
  )
  return sums
}

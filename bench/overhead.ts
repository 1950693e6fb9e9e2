import { installSchema } from '../src/mesh/schema.ts'
import { PgConnection } from '../src/postgres/connection.ts'
import { startServers, type ServerVersion } from '../test/harness/servers.ts'
import { CpuMeter } from './cpu.ts'
import type { Drain } from './drain.ts'
import { summarize, type WorkResult } from './summary.ts'

/** What an application does in its own database, one session, one transaction. */
interface LocalWork {
  readonly id: string
  readonly title: string
  readonly sql: (rows: number) => string
}

const SINGLY = (rows: number, statement: string): string =>
  `do $$ begin for i in 1..${rows} loop ${statement}; end loop; end $$`

/** In this order: each finds what the one before left. */
const WORKS: readonly LocalWork[] = [
  {
    id: 'insert',
    title: 'inserts, one row each',
    sql: (rows) => SINGLY(rows, `insert into t values (i, 'inserted')`),
  },
  {
    id: 'update',
    title: 'updates, one row each',
    sql: (rows) => SINGLY(rows, `update t set v = 'updated' where id = i`),
  },
  {
    id: 'delete',
    title: 'deletes, one row each',
    sql: (rows) => SINGLY(rows, 'delete from t where id = i'),
  },
  {
    id: 'bulk-insert',
    title: 'one insert of all rows',
    sql: (rows) => `insert into t select g, 'inserted' from generate_series(1, ${rows}) g`,
  },
  { id: 'bulk-delete', title: 'one delete of all rows', sql: () => 'delete from t' },
]

/** What Sterna's triggers cost local writes: one server, a database that is a node and one that is not, in turns. */
export async function benchOverhead(options: {
  readonly version: ServerVersion
  readonly rounds: number
  readonly rows: number
  readonly onProgress: (message: string) => void
}): Promise<{ readonly serverVersion: string; readonly results: WorkResult[] }> {
  const { rounds, rows, onProgress } = options
  const servers = await startServers({
    count: 1,
    version: options.version,
    settings: { shared_buffers: '512MB', max_wal_size: '8GB', checkpoint_timeout: '1h', autovacuum: 'off' },
  })
  const connections: PgConnection[] = []
  try {
    const { dsn } = servers.nodes[0]!
    const connect = async (to: string): Promise<PgConnection> => {
      const connection = await PgConnection.connect(to, { applicationName: 'bench' })
      connections.push(connection)
      await connection.exec('set synchronous_commit = off')
      return connection
    }
    const node = await connect(dsn)
    await node.exec('create database native')
    const plain = await connect(dsn.replace(/\/\w+$/, '/native'))
    for (const connection of [node, plain])
      await connection.exec('create table t (id int primary key, v text)')
    await installSchema(node)
    await node.query(`select sterna.node_create('n1', $1)`, [dsn])
    const drains = new Map(WORKS.map(({ id }) => [id, { ours: [] as Drain[], native: [] as Drain[] }]))
    for (let round = 1; round <= rounds; round++) {
      const order = round % 2 === 1 ? (['ours', 'native'] as const) : (['native', 'ours'] as const)
      for (const name of order) {
        const connection = name === 'ours' ? node : plain
        await node.exec('truncate sterna.tombstone')
        await connection.exec('vacuum t')
        await connection.exec('checkpoint')
        for (const { id, sql } of WORKS) {
          const drain = await measure(connection, sql(rows))
          drains.get(id)![name].push(drain)
          onProgress(`round ${round} of ${rounds}: ${name} ${id} ${drain.seconds.toFixed(2)} s`)
        }
      }
    }
    const results = WORKS.map(({ id, title }): WorkResult => {
      const both = drains.get(id)!
      const ours = summarize(both.ours, rows)
      const native = summarize(both.native, rows)
      return {
        work: id,
        title: `${rows} ${title}`,
        amount: rows,
        unit: 'rows',
        rounds,
        ours,
        native,
        ratio: ours.rate / native.rate,
        cpuRatio: ours.cpuSeconds.total / native.cpuSeconds.total,
      }
    })
    return { serverVersion: node.parameter('server_version') ?? 'unknown', results }
  } finally {
    await Promise.all(connections.map((connection) => connection.close()))
    await servers.stop()
  }
}

async function measure(connection: PgConnection, sql: string): Promise<Drain> {
  const row = await connection.row<{ pid: number }>('select pg_backend_pid() as pid')
  const processes = { subscriber: [], provider: [row!.pid], agent: [] }
  const meter = await CpuMeter.start(processes)
  const startMs = performance.now()
  await connection.exec(sql)
  const seconds = (performance.now() - startMs) / 1000
  await meter.look(processes)
  return { seconds, cpu: meter.total(), peakAgentBytes: 0 }
}

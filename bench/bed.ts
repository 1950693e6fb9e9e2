import { LSN_ZERO, parseLsn, type Lsn } from '../src/core/lsn.ts'
import { quoteIdent } from '../src/core/quote.ts'
import { PgConnection } from '../src/postgres/connection.ts'
import { startServers, type ServerVersion, type TestServers } from '../test/harness/servers.ts'
import type { Side } from './side.ts'

/** A table of a bench. Without a key it takes inserts only. */
export interface BenchTable {
  readonly name: string
  readonly keyed: boolean
}

/**
 * Those of a server in production, but for: everything fits into memory; no checkpoint and no vacuum in the middle of a
 * measurement, which would fall on one side by chance.
 */
const SETTINGS = {
  fsync: 'on',
  full_page_writes: 'on',
  shared_buffers: '512MB',
  max_wal_size: '8GB',
  checkpoint_timeout: '1h',
  autovacuum: 'off',
} as const

/** The database of the native subscriber; ours has the name of the provider's. */
const NATIVE_DATABASE = 'native'

/** Written after each backlog: commits are applied in order, so who has it has everything. */
const MARK = { name: 'bench_mark', keyed: true } as const
const MARK_SQL =
  'create table bench_mark (id integer primary key, mark bigint not null); insert into bench_mark values (1, 0)'

/**
 * Two servers: a provider with one database, and a subscriber with a database for each side. Both sides so decode the
 * same WAL, on the same servers.
 */
export class Bed {
  readonly #servers: TestServers
  readonly #connections: PgConnection[] = []
  readonly provider: PgConnection
  readonly tables: readonly BenchTable[]
  readonly dsn: { readonly provider: string; readonly ours: string; readonly native: string }

  private constructor(servers: TestServers, provider: PgConnection, tables: readonly BenchTable[]) {
    this.#servers = servers
    this.provider = provider
    this.#connections.push(provider)
    this.tables = tables
    const [first, second] = servers.nodes
    this.dsn = {
      provider: first!.dsn,
      ours: second!.dsn,
      native: second!.dsn.replace(/\/\w+$/, `/${NATIVE_DATABASE}`),
    }
  }

  /** Starts the servers; `schema` makes and fills the tables, the same in each of the three databases. */
  static async open(options: {
    readonly version: ServerVersion
    readonly tables: readonly BenchTable[]
    readonly schema: string
  }): Promise<Bed> {
    const servers = await startServers({ count: 2, version: options.version, settings: SETTINGS })
    try {
      const provider = await PgConnection.connect(servers.nodes[0]!.dsn, { applicationName: 'bench' })
      const bed = new Bed(servers, provider, [...options.tables, MARK])
      const ours = await bed.connect(bed.dsn.ours)
      await ours.exec(`create database ${quoteIdent(NATIVE_DATABASE)}`)
      const native = await bed.connect(bed.dsn.native)
      await Promise.all(
        [provider, ours, native].map(async (connection) => {
          await connection.exec(`set synchronous_commit = off; ${options.schema}; ${MARK_SQL}`)
          await connection.exec('reset synchronous_commit')
          await connection.exec('vacuum (freeze, analyze)')
        }),
      )
      return bed
    } catch (error) {
      await servers.stop()
      throw error
    }
  }

  /** As the provider tells it, such as `18.4`. */
  get serverVersion(): string {
    return this.provider.parameter('server_version') ?? 'unknown'
  }

  /** A session that ends with the bed. */
  async connect(dsn: string): Promise<PgConnection> {
    const connection = await PgConnection.connect(dsn, { applicationName: 'bench' })
    this.#connections.push(connection)
    return connection
  }

  /** Writes the mark after everything else, makes it durable, and returns where it begins. */
  async mark(): Promise<Lsn> {
    const row = await this.provider.row<{ lsn: string }>('select pg_current_wal_insert_lsn()::text as lsn')
    await this.provider.exec('update bench_mark set mark = mark + 1')
    return parseLsn(row!.lsn)
  }

  /** Lets both slots begin here: whatever is in the WAL so far is not sent. Both sides must be stopped. */
  async forget(sides: readonly Side[]): Promise<void> {
    // A checkpoint logs the running transactions: without them the slots would go on reading from further back.
    await this.provider.exec('checkpoint')
    for (const { slot } of sides) {
      await this.provider.query('select pg_replication_slot_advance($1, pg_current_wal_lsn())', [slot])
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.#connections.map((connection) => connection.close()))
    await this.#servers.stop()
  }
}

/** The position in a text such as `0/16B3748`; null is the beginning. */
export function lsnFromText(text: string | null): Lsn {
  return text === null ? LSN_ZERO : parseLsn(text)
}

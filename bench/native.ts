import { formatLsn, type Lsn } from '../src/core/lsn.ts'
import { quoteLiteral } from '../src/core/quote.ts'
import type { PgConnection } from '../src/postgres/connection.ts'
import { waitUntil } from '../test/harness/wait.ts'
import type { Bed } from './bed.ts'
import type { Processes, Progress, Side } from './side.ts'

/** Name of the subscription, and so of the slot and of the provider's application_name. */
const NAME = 'bench_native'

/** PostgreSQL's own logical replication: a subscription in a database beside ours. */
export class Native implements Side {
  readonly name = 'native'
  readonly slot = NAME
  readonly dsn: string
  readonly #provider: PgConnection
  readonly #subscriber: PgConnection
  #origin = ''
  #errorsBefore = 0n

  private constructor(bed: Bed, subscriber: PgConnection) {
    this.dsn = bed.dsn.native
    this.#provider = bed.provider
    this.#subscriber = subscriber
  }

  /** Makes the publications at the provider, and the subscription with its slot, stopped. */
  static async create(bed: Bed): Promise<Native> {
    const side = new Native(bed, await bed.connect(bed.dsn.native))
    const list = (keyed: boolean): string =>
      bed.tables.flatMap((table) => (table.keyed === keyed ? [table.name] : [])).join(', ')
    await bed.provider.exec(`create publication bench_keyed for table ${list(true)}`)
    const keyless = list(false)
    const withKeyless = `${keyless ? `for table ${keyless}` : ''} with (publish = 'insert')`
    await bed.provider.exec(`create publication bench_keyless ${withKeyless}`)
    // Whatever is not named is PostgreSQL's default: streaming, and synchronous_commit = off in the apply worker.
    await side.#subscriber.exec(
      `create subscription ${NAME} connection ${quoteLiteral(bed.dsn.provider)}
         publication bench_keyed, bench_keyless with (binary = true, copy_data = false, enabled = false)`,
    )
    const row = await side.#subscriber.row<{ origin: string }>(
      `select 'pg_' || oid as origin from pg_subscription where subname = $1`,
      [NAME],
    )
    side.#origin = row!.origin
    // There are no tables to copy, but the subscription finds that out only when it runs.
    await side.start()
    await waitUntil(
      'every table of the native subscription is ready',
      async () => {
        const tables = await side.#subscriber.row<{ ready: boolean }>(
          `select bool_and(srsubstate = 'r') as ready from pg_subscription_rel`,
        )
        return tables?.ready === true && (await side.#isActive())
      },
      60_000,
    )
    await side.stop()
    return side
  }

  async prepare(): Promise<void> {
    this.#errorsBefore = await this.#errors()
  }

  async start(): Promise<void> {
    await this.#subscriber.exec(`alter subscription ${NAME} enable`)
  }

  async stop(): Promise<void> {
    await this.#subscriber.exec(`alter subscription ${NAME} disable`)
    await waitUntil('the native subscription stops', async () => {
      const { subscriber, provider } = await this.processes()
      return subscriber.length === 0 && provider.length === 0 && !(await this.#isActive())
    })
  }

  async processes(): Promise<Processes> {
    const pids = (connection: PgConnection, where: string): Promise<number[]> =>
      connection
        .query<{ pid: number }>(`select pid from pg_stat_activity where ${where}`)
        .then(({ rows }) => rows.map((row) => row.pid))
    return {
      subscriber: await pids(
        this.#subscriber,
        `backend_type like 'logical replication%' and datname = current_database()`,
      ),
      provider: await pids(this.#provider, `backend_type = 'walsender' and application_name = '${NAME}'`),
      agent: [],
    }
  }

  async progress(lsn: Lsn): Promise<Progress> {
    return originProgress(this.#subscriber, this.#origin, lsn)
  }

  async trouble(): Promise<string | undefined> {
    const errors = (await this.#errors()) - this.#errorsBefore
    return errors > 0n ? `the native apply worker failed ${errors} times: see the server's log` : undefined
  }

  async close(): Promise<void> {
    await this.#subscriber.exec(`drop subscription if exists ${NAME}`)
  }

  async #isActive(): Promise<boolean> {
    const sql = 'select active from pg_replication_slots where slot_name = $1'
    return (await this.#provider.row<{ active: boolean }>(sql, [NAME]))?.active === true
  }

  async #errors(): Promise<bigint> {
    const sql = 'select apply_error_count as errors from pg_stat_subscription_stats where subname = $1'
    return (await this.#subscriber.row<{ errors: bigint }>(sql, [NAME]))?.errors ?? 0n
  }
}

/** Whether a replication origin of this server has passed a position of its provider. */
export async function originProgress(subscriber: PgConnection, origin: string, lsn: Lsn): Promise<Progress> {
  const row = await subscriber.row<{ passed: boolean; server_ms: number }>(
    `select coalesce(pg_replication_origin_progress($1, false) > $2::pg_lsn, false) as passed,
            (extract(epoch from clock_timestamp()) * 1000)::float8 as server_ms`,
    [origin, formatLsn(lsn)],
  )
  return { passed: row!.passed, serverMs: row!.server_ms }
}

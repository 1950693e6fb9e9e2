import type { Lsn } from '../src/core/lsn.ts'
import { installSchema } from '../src/mesh/schema.ts'
import type { PgConnection } from '../src/postgres/connection.ts'
import { startAgent, type TestAgent } from '../test/harness/agent.ts'
import { waitUntil } from '../test/harness/wait.ts'
import type { Bed } from './bed.ts'
import { originProgress } from './native.ts'
import type { Processes, Progress, Side } from './side.ts'

const PROVIDER = { name: 'n1', id: 1 } as const
const SUBSCRIBER = { name: 'n2', id: 2 } as const
const SUBSCRIPTION = 'bench'
/** How every session of the subscriber's agent names itself. */
const SESSIONS = `application_name like 'sterna ${SUBSCRIBER.name} %'`

/** How the agent of a bench runs. */
export interface OursOptions {
  /** Directory for V8 CPU profiles of the agent, one per run; undefined: no profiles. */
  readonly profileDirectory?: string | undefined
}

/** Sterna: an agent beside the subscriber, as a process of its own, with all of its defaults. */
export class Ours implements Side {
  readonly name = 'ours'
  readonly dsn: string
  slot = ''
  readonly #provider: PgConnection
  readonly #subscriber: PgConnection
  readonly #options: OursOptions
  #origin = ''
  #agent: TestAgent | undefined

  private constructor(bed: Bed, subscriber: PgConnection, options: OursOptions) {
    this.dsn = bed.dsn.ours
    this.#provider = bed.provider
    this.#subscriber = subscriber
    this.#options = options
  }

  /** Makes both databases nodes, and the subscription with its slot, stopped. */
  static async create(bed: Bed, options: OursOptions): Promise<Ours> {
    const side = new Ours(bed, await bed.connect(bed.dsn.ours), options)
    for (const [connection, node, dsn] of [
      [side.#provider, PROVIDER, bed.dsn.provider],
      [side.#subscriber, SUBSCRIBER, bed.dsn.ours],
    ] as const) {
      await installSchema(connection)
      await connection.query('select sterna.node_create(node_name => $1, dsn => $2, info => $3::jsonb)', [
        node.name,
        dsn,
        JSON.stringify({ node_id: node.id }),
      ])
    }
    await side.#subscriber.query(
      'select sterna.sub_create(subscription_name => $1, provider_dsn => $2, enabled => false)',
      [SUBSCRIPTION, bed.dsn.provider],
    )
    await side.#connectFirstTime()
    return side
  }

  async prepare(): Promise<void> {
    await this.#startAgent(this.#options.profileDirectory)
  }

  async start(): Promise<void> {
    await this.#subscriber.query('select sterna.sub_enable($1)', [SUBSCRIPTION])
  }

  async stop(): Promise<void> {
    await this.#agent?.stop()
    this.#agent = undefined
    await this.#subscriber.query('select sterna.sub_disable($1)', [SUBSCRIPTION])
    await waitUntil('our sessions end', async () => {
      const { subscriber, provider } = await this.processes()
      return subscriber.length === 0 && provider.length === 0
    })
  }

  async processes(): Promise<Processes> {
    const sessions = async (connection: PgConnection): Promise<number[]> => {
      const { rows } = await connection.query<{ pid: number }>(
        `select pid from pg_stat_activity where ${SESSIONS}`,
      )
      return rows.map((row) => row.pid)
    }
    return {
      subscriber: await sessions(this.#subscriber),
      provider: await sessions(this.#provider),
      agent: this.#agent?.pid === undefined ? [] : [this.#agent.pid],
    }
  }

  async progress(lsn: Lsn): Promise<Progress> {
    return originProgress(this.#subscriber, this.#origin, lsn)
  }

  async trouble(): Promise<string | undefined> {
    const state = await this.#subscriber.row<{ error: string | null }>(
      `select last_error as error from sterna.subscription_state where sub_name = $1 and status = 'down'`,
      [SUBSCRIPTION],
    )
    return state?.error == null ? undefined : `our subscription is down: ${state.error}\n${this.#agent?.log}`
  }

  async close(): Promise<void> {
    await this.#agent?.stop()
  }

  async #connectFirstTime(): Promise<void> {
    await this.#startAgent(undefined)
    await this.start()
    await waitUntil(
      `our subscription replicates`,
      async () => {
        const row = await this.#subscriber.row<{
          slot: string | null
          origin: string | null
          status: string | null
        }>(
          `select s.slot_name::text as slot, s.origin_name as origin, t.status
             from sterna.subscription s left join sterna.subscription_state t using (sub_name) where sub_name = $1`,
          [SUBSCRIPTION],
        )
        this.slot = row?.slot ?? ''
        this.#origin = row?.origin ?? ''
        return row?.status === 'replicating' || row?.status === 'catching_up'
      },
      60_000,
    ).catch(async (error: unknown) => {
      throw new Error((await this.trouble()) ?? this.#agent?.log, { cause: error })
    })
    await this.stop()
  }

  /** Starts the agent and waits until it serves its node; the subscription is disabled meanwhile. */
  async #startAgent(profileDirectory: string | undefined): Promise<void> {
    const profile = profileDirectory ? { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${profileDirectory}` } : {}
    const agent = await startAgent({
      node: SUBSCRIBER.name,
      dsn: this.dsn,
      env: { STERNA_LOG_LEVEL: 'info', ...profile },
    })
    this.#agent = agent
    await waitUntil('the agent serves its node', async () => {
      const sql = 'select pid from sterna.agent_state where pid = $1'
      return (await this.#subscriber.row(sql, [agent.pid!])) !== undefined
    }).catch((error: unknown) => {
      throw new Error(`the agent does not come up:\n${agent.log}`, { cause: error })
    })
  }
}

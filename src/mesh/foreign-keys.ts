import { messageOf } from '../core/errors.ts'
import { PgConnection } from '../postgres/connection.ts'
import type { ConnectTarget } from '../postgres/dsn.ts'
import { ServerError } from '../postgres/server-error.ts'
import { Beside } from './beside.ts'
import type { Log } from './log.ts'

const LOOK_TIMEOUT_MS = 5000
const COMPARE_TIMEOUT_MS = 10 * 60_000

export interface ForeignKeyWatchOptions {
  readonly node: string
  readonly target: ConnectTarget
  readonly log: Log
}

/**
 * Finds rows whose parent was deleted on another node meanwhile, and settles them by their policy. Works on a connection of its own,
 * beside the heartbeat; what fails is tried again.
 */
export class ForeignKeyWatch {
  readonly #options: ForeignKeyWatchOptions
  readonly #beside: Beside
  #lastFailure: string | undefined

  constructor(options: ForeignKeyWatchOptions) {
    this.#options = options
    this.#beside = new Beside((error) =>
      options.log.debug({ reason: messageOf(error) }, 'foreign keys cannot be compared yet'),
    )
  }

  /**
   * One round, called about once a second, before tombstones are dropped: they say what to look for. Whole tables are compared
   * at long intervals, beside.
   */
  async work(control: PgConnection, signal: AbortSignal): Promise<void> {
    await this.#try(control, 'select sterna.fk_look()')
    await this.#try(control, 'select sterna.fk_settle()')
    const due = await this.#try(control, 'select array(select sterna.fk_due()::bigint) as due')
    const keys = (due?.['due'] ?? []) as readonly bigint[]
    if (keys.length > 0) this.#beside.run(() => this.#compare(keys, signal))
  }

  async #try(control: PgConnection, sql: string): Promise<Record<string, unknown> | undefined> {
    try {
      const row = await control.row<Record<string, unknown>>(sql, [], { timeoutMs: LOOK_TIMEOUT_MS })
      this.#lastFailure = undefined
      return row
    } catch (error) {
      if (!(error instanceof ServerError)) throw error
      const facts = { statement: sql, reason: messageOf(error), sqlstate: error.sqlstate }
      if (error.retry || error.message === this.#lastFailure)
        this.#options.log.debug(facts, 'orphans are left for later')
      else this.#options.log.warn(facts, 'orphans cannot be looked for')
      this.#lastFailure = error.message
      if (error.sqlstate === '57014') await control.query('select sterna.fk_give_up()')
      return undefined
    }
  }

  async #compare(keys: readonly bigint[], signal: AbortSignal): Promise<void> {
    const { node, target } = this.#options
    const session = await PgConnection.connect(target, {
      applicationName: `sterna ${node} foreign keys`,
      parameters: { 'sterna.ddl_replication': 'off' },
      signal,
    })
    try {
      for (const key of keys) {
        signal.throwIfAborted()
        await session.query('select sterna.fk_compare($1)', [key], { timeoutMs: COMPARE_TIMEOUT_MS })
      }
    } finally {
      await session.close()
    }
  }
}

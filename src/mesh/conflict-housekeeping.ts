import { messageOf } from '../core/errors.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { ServerError } from '../postgres/server-error.ts'
import type { Log } from './log.ts'

const CLEAN_INTERVAL_MS = 5000

/** What waits on a node because of conflicts, for somebody to look at. */
export interface ConflictQueues {
  /** Changes that could not be applied, by subscription. */
  readonly exceptions: ReadonlyMap<string, number>
  readonly openReviews: number
  readonly rowsAside: number
}

/**
 * Judges conflict entries as heartbeats come in, and drops what has served: tombstones, versions, history. In batches, so that
 * the heartbeats on the same connection do not wait for it. What fails is tried again: nothing depends on when it is done.
 */
export class ConflictHousekeeping {
  readonly #log: Log
  #cleanedAtMs = 0
  #lastFailure: string | undefined

  constructor(log: Log) {
    this.#log = log
  }

  /** One round; called about once a second. */
  async work(control: PgConnection): Promise<void> {
    await this.#try(control, 'select sterna.conflict_settle()')
    if (Date.now() - this.#cleanedAtMs < CLEAN_INTERVAL_MS) return
    this.#cleanedAtMs = Date.now()
    await this.#try(control, 'select sterna.tombstone_clean()')
    await this.#try(control, 'select sterna.side_clean()')
    await this.#try(control, 'select sterna.conflict_clean()')
  }

  async #try(control: PgConnection, sql: string): Promise<void> {
    try {
      await control.query(sql)
      this.#lastFailure = undefined
    } catch (error) {
      if (!(error instanceof ServerError)) throw error
      const facts = { statement: sql, reason: messageOf(error), sqlstate: error.sqlstate }
      // A lock that somebody holds is nothing to tell.
      if (error.retry || error.message === this.#lastFailure)
        this.#log.debug(facts, 'conflict entries are left for later')
      else this.#log.warn(facts, 'conflict entries cannot be cleaned up')
      this.#lastFailure = error.message
    }
  }
}

/** Reads what waits. */
export async function readConflictQueues(control: PgConnection): Promise<ConflictQueues> {
  const row = await control.row<{
    exceptions: Record<string, number>
    reviews: number
    aside: number
  }>(
    `select (select coalesce(jsonb_object_agg(s.sub_name, e.count), '{}')
               from sterna.subscription s
               join (select origin_node_id, count(*) from sterna.exception group by origin_node_id) e
                 on e.origin_node_id = s.provider_node_id) as exceptions,
            (select count(*)::float8 from sterna.review where closed_at is null) as reviews,
            (select count(*)::float8 from sterna.aside) as aside`,
  )
  return {
    exceptions: new Map(Object.entries(row!.exceptions)),
    openReviews: row!.reviews,
    rowsAside: row!.aside,
  }
}

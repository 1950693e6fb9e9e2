import { formatPgTime, pgTimeOf, type PgTime } from '../core/pg-time.ts'
import { messageOf } from '../core/errors.ts'
import { PgConnection } from '../postgres/connection.ts'
import type { ConnectTarget } from '../postgres/dsn.ts'
import type { Log } from './log.ts'
import type { Alarm } from './report.ts'

/** The server's clock may run slower than ours by so much, while NTP slews it, and still not have stepped. */
const SLOWEST_RATE = 0.9
const SLACK_MS = 10
/** Pages of a table that are searched, and written again, in one transaction. */
const PAGES_AT_ONCE = 2000n

/** What the server's clock showed, and the monotonic time around that moment. */
export interface ClockReading {
  readonly time: PgTime
  readonly askedAtMs: number
  readonly answeredAtMs: number
}

/** What the clock should show when it is asked at `askedAtMs`, if it has not been set back since `previous`. */
export function expectedClock(
  previous: ClockReading,
  askedAtMs: number,
): { readonly atLeast: PgTime; readonly expected: PgTime } {
  const after = (ms: number): PgTime => pgTimeOf(previous.time + BigInt(Math.floor(ms * 1000)))
  return {
    atLeast: after((askedAtMs - previous.answeredAtMs) * SLOWEST_RATE - SLACK_MS),
    expected: after(askedAtMs - previous.askedAtMs),
  }
}

/** What is in doubt after the clock was set back. */
export interface ClockDoubt {
  readonly steppedBackMs: number
  /** Local commits up to this time are in doubt. */
  readonly until: string
}

/** The alarms about the clock of a node's server. `truncated`: tables whose truncate was dated too early. */
export function clockAlarms(node: string, doubt: ClockDoubt | null, truncated: readonly string[]): Alarm[] {
  const alarms: Alarm[] = truncated.map((table) => ({
    name: 'clock_truncate',
    subject: table,
    message: `${table} was truncated on ${node} while its clock had stepped back: other nodes may have kept rows`,
    action: `Compare the table on all nodes, and delete what should be gone. Then: select sterna.clock_truncate_checked('${table}') on ${node}.`,
    severity: 'critical',
  }))
  if (doubt)
    alarms.push({
      name: 'clock_stepped_back',
      subject: node,
      message: `the clock of ${node}'s server stepped back by ${Math.round(doubt.steppedBackMs)} ms; what is written there before ${doubt.until} loses against older rows of other nodes`,
      action: `Find out what sets the clock (NTP, virtual machine), and avoid writes on ${node} until then. Once the clock has passed that time, Sterna writes those rows and deletes again by itself.`,
      severity: 'critical',
    })
  return alarms
}

export interface ClockWatchOptions {
  readonly node: string
  readonly target: ConnectTarget
  readonly log: Log
}

interface CheckRow {
  readonly now: bigint
  readonly until: string | null
  readonly ms: number | null
  readonly rewrite: boolean
  readonly truncated: string[]
}

/**
 * Notices when the server's clock steps back, against the monotonic clock here and against what the server has
 * committed, and has everything written again that was committed with timestamps too old.
 */
export class ClockWatch {
  readonly #options: ClockWatchOptions
  #previous: ClockReading | undefined
  #doubt: ClockDoubt | null = null
  #truncated: readonly string[] = []
  #rewriting = false

  constructor(options: ClockWatchOptions) {
    this.#options = options
  }

  alarms(): Alarm[] {
    return clockAlarms(this.#options.node, this.#doubt, this.#truncated)
  }

  /** Nobody watches the clock until the next check, which looks through what was committed meanwhile. */
  pause(): void {
    this.#previous = undefined
  }

  /** Asks the clock once. What is to be written again is written beside, on a connection of its own. */
  async check(control: PgConnection, signal: AbortSignal): Promise<void> {
    const askedAtMs = performance.now()
    const known = this.#previous && expectedClock(this.#previous, askedAtMs)
    const row = await control.row<CheckRow>(
      `select sterna.pg_time(c.now) as now, c.doubt_until::text as until, c.may_rewrite as rewrite, c.truncated,
              extract(epoch from c.stepped_back)::float8 * 1000 as ms
         from sterna.clock_check($1, $2, $3) c`,
      [known ? formatPgTime(known.atLeast) : null, known ? formatPgTime(known.expected) : null, !known],
    )
    const { now, until, ms, rewrite, truncated } = row!
    this.#previous = { time: pgTimeOf(now), askedAtMs, answeredAtMs: performance.now() }
    if (until !== null && this.#doubt === null)
      this.#options.log.error({ steppedBackMs: ms, until }, 'the clock of the server has stepped back')
    this.#doubt = until === null ? null : { steppedBackMs: ms ?? 0, until }
    this.#truncated = truncated
    if (rewrite && !this.#rewriting) void this.#rewrite(signal)
  }

  async #rewrite(signal: AbortSignal): Promise<void> {
    const { node, target, log } = this.#options
    this.#rewriting = true
    try {
      const session = await PgConnection.connect(target, {
        applicationName: `sterna ${node} clock`,
        parameters: {
          session_replication_role: 'replica',
          'sterna.ddl_replication': 'off',
          lock_timeout: '2s',
        },
        signal,
      })
      try {
        log.info(
          await writeAgain(session, signal),
          'what was written while the clock was back is written again',
        )
      } finally {
        await session.close()
      }
    } catch (error) {
      if (!signal.aborted)
        log.warn(
          { reason: messageOf(error) },
          'what was written while the clock was back cannot be written again yet',
        )
    } finally {
      this.#rewriting = false
    }
  }
}

/** Writes again what is in doubt, in small transactions; what was done before is not in doubt any more. */
async function writeAgain(
  session: PgConnection,
  signal: AbortSignal,
): Promise<{ readonly rows: bigint; readonly deletes: bigint }> {
  const { rows: tables } = await session.query<{ relation: bigint; root: bigint; pages: bigint }>(
    'select relation::bigint, root::bigint, pages from sterna.clock_tables()',
  )
  let rows = 0n
  let deletes = 0n
  for (const root of new Set(tables.map((table) => table.root))) {
    for (let count = 1n; count > 0n; deletes += count) {
      signal.throwIfAborted()
      count = (await session.row<{ n: bigint }>('select sterna.clock_rewrite_deletes($1) as n', [root]))!.n
    }
  }
  for (const { relation, pages } of tables) {
    for (let page = 0n; page < pages; page += PAGES_AT_ONCE) {
      signal.throwIfAborted()
      const row = await session.row<{ n: bigint }>('select sterna.clock_rewrite_rows($1, $2, $3) as n', [
        relation,
        page,
        page + PAGES_AT_ONCE,
      ])
      rows += row!.n
    }
  }
  await session.query('select sterna.clock_settle($1, $2)', [rows, deletes])
  return { rows, deletes }
}

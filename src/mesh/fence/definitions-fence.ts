import { messageOf } from '../../core/errors.ts'
import { PgConnection } from '../../postgres/connection.ts'
import type { ConnectTarget } from '../../postgres/dsn.ts'
import { ServerError, sqlstateOf } from '../../postgres/server-error.ts'
import { pause } from '../backoff.ts'
import type { Log } from '../log.ts'
import { fenceStep, type FenceAttempt, type OpenDefinition } from './fence-step.ts'

/** While a definition is under way. */
const BUSY_INTERVAL_MS = 200
/** Should a notification be lost; and for what is left to tidy up. */
const IDLE_INTERVAL_MS = 10_000
const QUERY_TIMEOUT_MS = 30_000
/** The gate is tried so long, then a pause follows: who writes to the table waits behind us meanwhile. */
const FIRST_LOCK_TIMEOUT_MS = 100
/** Longer than deadlock_timeout, after which an autovacuum makes way. */
const LONGEST_LOCK_TIMEOUT_MS = 1500
const LOCK_NOT_AVAILABLE = '55P03'
/** SQLSTATE with which the functions of schema sterna say that a definition cannot be carried out. */
const NOT_POSSIBLE = 'ST160'

export interface DefinitionsFenceOptions {
  readonly target: ConnectTarget
  readonly node: string
  /** The agent's own connection: what needs no lock goes there. */
  readonly control: PgConnection
  readonly log: Log
}

interface Attempt {
  readonly firstSeenMs: number
  shutAtMs: number | null
  lockTimeoutMs: number
  obstacle: string | null
}

interface OpenRow {
  id: string
  relation: number | null
  is_member: boolean
  is_coordinator: boolean
  age_ms: number
  seen: boolean
  closed: boolean
  ready: boolean
  all_seen: boolean
  all_closed: boolean
  all_ready: boolean
  outcome: 'active' | 'refused' | null
  missing: string[]
}

/**
 * Takes this node through the fence of each definition (delta columns, policies) that needs one, and carries out what has
 * been decided. The gate of a table is shut while a session of its own holds a lock: whatever happens to the agent, it opens.
 */
export class DefinitionsFence {
  readonly #options: DefinitionsFenceOptions
  readonly #attempts = new Map<string, Attempt>()
  readonly #stop = new AbortController()
  #session: PgConnection | undefined
  #done: Promise<void> = Promise.resolve()
  #awake = true
  #wake = (): void => {}

  constructor(options: DefinitionsFenceOptions) {
    this.#options = options
  }

  start(): void {
    this.#done = this.#run(this.#stop.signal)
  }

  /** Something about definitions has changed. */
  wake(): void {
    this.#awake = true
    this.#wake()
  }

  /** Opens the gates. */
  async stop(): Promise<void> {
    this.#stop.abort()
    this.#session?.destroy()
    await this.#done
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#awake = false
      let open = true
      try {
        open = await this.#pass()
      } catch (error) {
        this.#leave()
        if (!signal.aborted)
          this.#options.log.warn({ reason: messageOf(error) }, 'definitions wait: own server not usable')
      }
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      if (!this.#awake) await Promise.race([pause(open ? BUSY_INTERVAL_MS : IDLE_INTERVAL_MS, signal), woken])
    }
    this.#leave()
  }

  /** One step of each definition; whether any is still under way. */
  async #pass(): Promise<boolean> {
    const { control } = this.#options
    const { rows } = await control.query<OpenRow>(
      `select id, relation::bigint, is_member, is_coordinator, age_ms, seen, closed, ready, all_seen, all_closed, all_ready,
              outcome, missing from sterna.definitions_open()`,
    )
    for (const row of rows) await this.#advance(row)
    if (rows.length === 0) {
      this.#leave()
      this.#attempts.clear()
      await control.query('select sterna.rules_tidy()')
    }
    return rows.length > 0
  }

  async #advance(row: OpenRow): Promise<void> {
    const { control, log } = this.#options
    const attempt = this.#attempts.get(row.id) ?? {
      firstSeenMs: performance.now(),
      shutAtMs: null,
      lockTimeoutMs: FIRST_LOCK_TIMEOUT_MS,
      obstacle: null,
    }
    this.#attempts.set(row.id, attempt)
    const step = fenceStep(openDefinition(row), progressOf(attempt))
    switch (step.tag) {
      case 'wait':
        return
      case 'see':
        return this.#unlessImpossible(row, attempt, () =>
          control.query('select sterna.definition_see($1)', [row.id]),
        )
      case 'close':
        return this.#unlessImpossible(row, attempt, () => this.#close(row, attempt))
      case 'ready':
        await this.#unlessImpossible(row, attempt, () =>
          this.#session!.query('select sterna.definition_ready($1)', [row.id]),
        )
        // The coordinator's gate stays shut until it has decided, so that what is written behind it comes behind the decision.
        if (!row.is_coordinator) await this.#openGate(row, attempt)
        return this.wake()
      case 'refuse':
        return this.#refuse(row, attempt, step.reason)
      case 'decide': {
        const session = step.reason === null ? this.#session! : control
        await session.query('select sterna.definition_decide($1, $2)', [row.id, step.reason])
        log.info({ definition: row.id, reason: step.reason }, 'definition decided')
        return this.wake()
      }
      case 'settle':
        return this.#settle(row, attempt)
    }
  }

  /** Waits for writers that are under way, each time not for long, since others wait behind us. */
  async #close(row: OpenRow, attempt: Attempt): Promise<void> {
    const session = await this.#openSession()
    await session.query("select set_config('lock_timeout', $1, false)", [`${attempt.lockTimeoutMs}ms`])
    attempt.lockTimeoutMs = Math.min(attempt.lockTimeoutMs * 2, LONGEST_LOCK_TIMEOUT_MS)
    try {
      await session.query('select pg_advisory_lock(sterna.gate_lock($1::oid))', [row.relation])
      try {
        await session.query('select sterna.definition_close($1)', [row.id])
        attempt.shutAtMs = performance.now()
      } finally {
        if (attempt.shutAtMs === null) await this.#unlock(row)
      }
    } catch (error) {
      if (sqlstateOf(error) !== LOCK_NOT_AVAILABLE) throw error
      attempt.obstacle = 'the table is in use by a transaction that does not end'
    }
  }

  async #settle(row: OpenRow, attempt: Attempt): Promise<void> {
    const { control, log } = this.#options
    try {
      await control.query('select sterna.definition_settle($1)', [row.id])
      log.info({ definition: row.id, outcome: row.outcome }, 'definition carried out')
    } catch (error) {
      if (!(error instanceof ServerError)) throw error
      log.error({ definition: row.id, reason: messageOf(error) }, 'definition cannot be carried out')
    }
    await this.#openGate(row, attempt)
  }

  async #unlessImpossible(row: OpenRow, attempt: Attempt, step: () => Promise<unknown>): Promise<void> {
    try {
      await step()
    } catch (error) {
      if (!(error instanceof ServerError) || error.sqlstate !== NOT_POSSIBLE) throw error
      await this.#refuse(row, attempt, error.fields.message)
    }
  }

  async #refuse(row: OpenRow, attempt: Attempt, reason: string): Promise<void> {
    await this.#options.control.query('select sterna.definition_refuse($1, $2)', [row.id, reason])
    this.#options.log.warn({ definition: row.id, reason }, 'definition refused')
    await this.#openGate(row, attempt)
    this.wake()
  }

  async #openGate(row: OpenRow, attempt: Attempt): Promise<void> {
    if (attempt.shutAtMs === null) return
    attempt.shutAtMs = null
    await this.#unlock(row)
  }

  async #unlock(row: OpenRow): Promise<void> {
    await this.#session?.query('select pg_advisory_unlock(sterna.gate_lock($1::oid))', [row.relation])
  }

  async #openSession(): Promise<PgConnection> {
    if (this.#session) return this.#session
    const { target, node } = this.#options
    const session = await PgConnection.connect(target, {
      applicationName: `sterna ${node} fence`,
      parameters: { 'sterna.ddl_replication': 'off' },
      signal: this.#stop.signal,
    })
    session.defaultTimeoutMs = QUERY_TIMEOUT_MS
    session.onLost = () => this.#leave()
    this.#session = session
    return session
  }

  /** Ends the session, and with it every hold on a gate. */
  #leave(): void {
    this.#session?.destroy()
    this.#session = undefined
    for (const attempt of this.#attempts.values()) attempt.shutAtMs = null
  }
}

function progressOf({ firstSeenMs, shutAtMs, obstacle }: Attempt): FenceAttempt {
  const nowMs = performance.now()
  return { seenMs: nowMs - firstSeenMs, heldMs: shutAtMs === null ? null : nowMs - shutAtMs, obstacle }
}

function openDefinition(row: OpenRow): OpenDefinition {
  return {
    isMember: row.is_member,
    isCoordinator: row.is_coordinator,
    ageMs: row.age_ms,
    seen: row.seen,
    closed: row.closed,
    ready: row.ready,
    allSeen: row.all_seen,
    allClosed: row.all_closed,
    allReady: row.all_ready,
    outcome: row.outcome,
    missing: row.missing,
  }
}

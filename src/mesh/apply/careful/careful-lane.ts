import { SternaError } from '../../../core/errors.ts'
import type { Lsn } from '../../../core/lsn.ts'
import type { Outcome } from '../../conflict/apply-change.ts'
import { keysOf, type Change, type Key, type RowChange, type Values } from '../../conflict/change.ts'
import { areZero } from '../../conflict/deltas.ts'
import { heldVersion } from '../../conflict/key-state.ts'
import { collisionType } from '../../conflict/record.ts'
import { completeChange, resolveChange, type Resolution } from '../../conflict/resolve.ts'
import { compareVersions, type RowVersion } from '../../conflict/version.ts'
import type { Ask } from './ask.ts'
import { CareChanged, type Care } from './care.ts'
import type { CarefulTable, HeldKey } from './careful-table.ts'
import { Driver, KeyChanged, textsOnly, type DriverOptions } from './driver.ts'
import { park, type ParkReason } from './exceptions.ts'
import { incomingOf, type StreamedChange } from './incoming.ts'
import { LaterRefusal, RowStore, type Refusal } from './row-store.ts'
import { versionParams, versionSql } from './version-text.ts'

/** What a subscription does with a change that the server refuses. */
export type OnException = 'park' | 'transdiscard' | 'stop'

/** One change of a table, with the values of the keys that it touches. */
export interface Incoming {
  readonly table: CarefulTable
  readonly change: Change
  readonly keys: ReadonlyMap<Key, readonly (string | null)[]>
  /** What was here of these keys when the change was read, under their locks. */
  readonly held?: ReadonlyMap<Key, HeldKey>
}

/** How a transaction is applied that was refused before. */
export interface Attempt {
  /** Commit LSN at the origin. */
  readonly lsn: Lsn
  /** Changes, by number, that are parked at once. */
  readonly park: ReadonlyMap<number, Refusal>
  /** The whole transaction is parked for this reason. */
  readonly discard: Refusal | null
  /** Changes, by number, for which it is applied again because a session of the application was faster. */
  readonly again: ReadonlySet<number>
}

export interface LaneOptions extends DriverOptions {
  readonly care: Care
  readonly announces: boolean
  readonly onException: OnException
}

interface Place {
  readonly lsn: Lsn
  readonly version: RowVersion
}

/** A key taken by a session of the application in between: decided again so often. */
const MAX_DECISIONS = 5
const UNIQUE_VIOLATION = '23505'

/**
 * Applies changes one by one, each decided by `resolveChange` on what is here of its keys, read under their locks. What the
 * server refuses is parked, or ends the attempt, as the subscription says.
 */
export class CarefulLane {
  readonly #options: LaneOptions
  readonly #ask: Ask
  readonly #store: RowStore
  readonly #locked = new Set<number>()
  /** Keys that the transaction has written here, with all values as they were sent. */
  readonly #streamed = new Set<string>()
  #place: Place | undefined
  #attempt: Attempt | null = null
  #changeNumber = 0

  constructor(options: LaneOptions) {
    this.#options = options
    this.#ask = options.ask
    this.#store = new RowStore(options.ask, options.care, options.originNodeId, options.announces)
  }

  /** A transaction begins. `attempt`: null the first time. */
  begin(lsn: Lsn, version: RowVersion, attempt: Attempt | null): void {
    this.#place = { lsn, version }
    this.#attempt = attempt
    this.#changeNumber = 0
    this.#locked.clear()
    this.#streamed.clear()
    this.#store.hasCalledOwner = false
  }

  /** Code of table owners has been called in this transaction. */
  get hasCalledOwner(): boolean {
    return this.#store.hasCalledOwner
  }

  /** After DDL. */
  forget(): void {
    this.#store.forget()
  }

  /** Takes the next change of the transaction as the stream brings it. @throws as `take` */
  async takeStreamed(table: CarefulTable, streamed: StreamedChange): Promise<void> {
    const ready = table.isKeyless ? undefined : this.#lock(table)
    const reading = incomingOf(this.#ask, table, streamed, this.#place!.version)
    const [incoming] = await Promise.all([reading, ready])
    await this.take(incoming)
  }

  /** Takes the next change of the transaction. @throws AttemptFailed, EXCEPTION_STOPPED, CareChanged */
  async take(incoming: Incoming): Promise<void> {
    const number = ++this.#changeNumber
    const given = this.#attempt?.park.get(number) ?? null
    const discard = this.#attempt?.discard ?? null
    if (discard) return this.#park(incoming, { tag: 'transaction', refusal: discard })
    const refusal = given ?? (await this.#apply(incoming, number))
    if (refusal === 'behind') return this.#park(incoming, { tag: 'behind' })
    if (refusal) await this.#refused(incoming, refusal)
  }

  /** Applies a change that was parked, without looking at what is parked behind it. @returns why it is refused again */
  async retry(incoming: Incoming): Promise<Refusal | null> {
    try {
      return await this.#resolve(incoming)
    } catch (error) {
      return refusalOf(error)
    }
  }

  async #refused(incoming: Incoming, refusal: Refusal): Promise<void> {
    const { onException } = this.#options
    if (onException === 'park') return this.#park(incoming, { tag: 'failed', refusal })
    if (onException === 'transdiscard')
      throw new AttemptFailed(
        { lsn: this.#place!.lsn, park: new Map(), discard: refusal, again: new Set() },
        refusal.message,
      )
    throw new SternaError('EXCEPTION_STOPPED', {
      table: incoming.table.plan.label,
      operation: incoming.change.tag,
      reason: refusal.message,
      sqlstate: refusal.sqlstate,
    })
  }

  async #apply(incoming: Incoming, number: number): Promise<Refusal | 'behind' | null> {
    const { table, change } = incoming
    if (table.isKeyless) return this.#resolve(incoming)
    await this.#lock(table)
    if (change.tag === 'truncate') return this.#truncate(table, change.version)
    const held = incoming.held ?? (await this.#holdAll(incoming))
    if ([...held.values()].some((it) => it.isParkedOfOrigin)) return 'behind'
    try {
      return await this.#resolve({ ...incoming, held })
    } catch (error) {
      if (error instanceof LaterRefusal) throw this.#failed(number, error.refusal)
      return refusalOf(error)
    }
  }

  /** What was written of the change is rolled back with its transaction: it is left out next time, or decided again. */
  #failed(number: number, refusal: Refusal): AttemptFailed {
    const { lsn } = this.#place!
    const { park: parked = new Map<number, Refusal>(), again = new Set<number>() } = this.#attempt ?? {}
    const isRace = refusal.sqlstate === UNIQUE_VIOLATION && !again.has(number)
    return new AttemptFailed(
      {
        lsn,
        discard: null,
        park: isRace ? parked : new Map([...parked, [number, refusal] as const]),
        again: isRace ? new Set([...again, number]) : again,
      },
      refusal.message,
    )
  }

  async #resolve(incoming: Incoming): Promise<Refusal | null> {
    const { table, change } = incoming
    if (change.tag === 'truncate') return this.#store.truncate(table, change.version)
    if (table.isKeyless && change.tag === 'insert')
      return this.#store.insert(table, change.values, change.version)
    await this.#lock(table)
    let isUnseenLocked = false
    for (let decision = 1; ; decision++) {
      const driver = new Driver(this.#options, table, change, incoming.keys, (key) =>
        this.#streamed.has(`${table.name} ${key}`),
      )
      if (decision === 1) driver.hold(incoming.held ?? new Map())
      const resolution = await driver.drive(resolveChange(change, table.rules)).catch(isChanged)
      if (resolution === null) {
        if (decision < MAX_DECISIONS) continue
        throw new CareChanged()
      }
      if (!isUnseenLocked && hidesSums(table, resolution)) {
        // Local inserts look at what they would bring back unseen; one under way may not have seen this.
        this.#ask.send('select pg_advisory_xact_lock(sterna.unseen_lock($1::oid))', [String(table.guardOid)])
        isUnseenLocked = true
        continue
      }
      const refusal = await this.#store.write(resolution.writes, {
        table,
        stamp: change.version,
        keyValues: (key) => driver.keyValues(key),
        collisions: resolution.collisions,
        valuesOf: (key) => driver.valuesOf(key),
      })
      if (refusal?.sqlstate === UNIQUE_VIOLATION && decision < MAX_DECISIONS) continue
      if (refusal) return refusal
      await this.#note(driver, resolution, incoming)
      return null
    }
  }

  async #note(driver: Driver, resolution: Resolution, { table, change }: Incoming): Promise<void> {
    const { outcomes, collisions, fetched, givenUp } = resolution
    for (const key of keysOf(change) ?? []) {
      this.#streamed.add(`${table.name} ${key}`)
      const held = driver.held.get(key)
      if (held?.staleAside) this.#store.dropStale(table, key)
      if (held?.givenUp) this.#forgetGivenUp(table, held, resolution)
    }
    if (fetched !== null) this.#streamed.delete(`${table.name} ${fetched}`)
    if (givenUp !== null) await this.#giveUp(table, givenUp, change.version)
    for (const outcome of outcomes) this.#record(driver, outcome, table, change as RowChange)
    for (const collision of collisions) {
      const winner = driver.versionOf(collision.inFavourOf) ?? null
      const loser = driver.versionOf(collision.key) ?? change.version
      const operation = change.tag === 'insert' ? 'insert' : 'update'
      this.#recordConflict(
        collisionType(operation, collisions),
        table,
        table.keyObject(driver.keyValues(collision.key)),
        driver.valuesOf(collision.inFavourOf),
        driver.valuesOf(collision.key),
        winner,
        loser,
        'set_aside',
      )
    }
  }

  #record(driver: Driver, outcome: Outcome, table: CarefulTable, change: RowChange): void {
    const { conflict, key, met, result } = outcome
    if (conflict === null) return
    const isAlways = /_(missing|deleted)$/.test(conflict)
    if (!isAlways && met?.nodeId === change.version.nodeId) return
    const local = driver.held.get(key)?.state.row?.values ?? null
    const remote = 'values' in change ? textsOnly(change.values as Values) : null
    const resolution =
      result === 'merged'
        ? 'merged'
        : conflict === 'delete_missing'
          ? 'skip'
          : result === 'applied'
            ? 'apply_remote'
            : 'keep_local'
    this.#recordConflict(
      conflict,
      table,
      table.keyObject(driver.keyValues(key)),
      local,
      remote,
      met,
      change.version,
      resolution,
    )
  }

  #recordConflict(
    type: string,
    table: CarefulTable,
    key: Values,
    local: Values | null,
    remote: Values | null,
    localVersion: RowVersion | null,
    remoteVersion: RowVersion,
    resolution: string,
  ): void {
    this.#ask.send(
      `select sterna.record_conflict($1, $2::oid, $3, $4, $5, ${versionSql(6)}, ${versionSql(8)}, $10)`,
      [
        type,
        String(table.plan.oid),
        JSON.stringify(key),
        local && JSON.stringify(local),
        remote && JSON.stringify(remote),
        ...versionParams(localVersion),
        ...versionParams(remoteVersion),
        resolution,
      ],
    )
  }

  /** What superseded the change that was given up, or something newer still, has arrived. */
  #forgetGivenUp(table: CarefulTable, { key, state, givenUp }: HeldKey, { writes }: Resolution): void {
    const version = heldVersion(writes.find((write) => write.key === key)?.after ?? state)
    if (version === null || givenUp === null || compareVersions(version, givenUp) < 0) return
    this.#ask.send('delete from sterna.given_up where table_oid = $1 and key_hash = $2', [
      String(table.guardOid),
      key,
    ])
  }

  async #giveUp(table: CarefulTable, key: Key, version: RowVersion): Promise<void> {
    this.#ask.send(
      `insert into sterna.given_up as g (table_oid, key_hash, version) values ($1, $2, ${versionSql(3)})
       on conflict (table_oid, key_hash) do update set version = excluded.version where sterna.version_greater(excluded.version, g.version)`,
      [String(table.guardOid), key, ...versionParams(version)],
    )
    await this.#options.care.mark(table)
  }

  async #park(incoming: Incoming, reason: ParkReason): Promise<void> {
    const { table, change, keys } = incoming
    await this.#lock(table)
    const driver = new Driver(this.#options, table, change, keys, () => false)
    const { change: whole, givenUp } = await driver.drive(completeChange(change))
    if (givenUp !== null) await this.#giveUp(table, givenUp, change.version)
    if (whole === null) return
    const firstKey = keysOf(whole)?.[0]
    const key = firstKey === undefined ? {} : table.keyObject(driver.keyValues(firstKey))
    const place = { lsn: this.#place!.lsn, changeNumber: this.#changeNumber }
    park(this.#ask, table, whole, key, place, reason)
    await this.#options.care.mark(table)
  }

  /**
   * Once for each table of a transaction. The lock is between sessions that decide about a table, and those that create rows or
   * delete missing ones in the fast lane.
   * @throws RulesPending
   */
  async #lock(table: CarefulTable): Promise<void> {
    if (this.#locked.has(table.guardOid)) return
    this.#locked.add(table.guardOid)
    const guard = String(table.guardOid)
    this.#ask.send('select pg_advisory_xact_lock(sterna.tombstone_lock($1::oid))', [guard])
    const [row] = await this.#ask.lookup('select sterna.definition_pending($1::oid, $2::integer)', [
      guard,
      String(this.#options.originNodeId),
    ])
    if (row?.[0] === 't') throw new RulesPending()
  }

  /** What of its own origin is parked at the table is void. */
  async #truncate(table: CarefulTable, version: RowVersion): Promise<Refusal | null> {
    this.#ask.send(
      'delete from sterna.exception where table_oid = $1::oid and origin_node_id = $2::integer',
      [String(table.guardOid), String(version.nodeId)],
    )
    return this.#store.truncate(table, version)
  }

  async #holdAll({ table, change, keys }: Incoming): Promise<Map<Key, HeldKey>> {
    const own = this.#place!.version
    const held = (keysOf(change) ?? []).map((key) => table.hold(this.#ask, keys.get(key)!, own))
    return new Map((await Promise.all(held)).map((it) => [it.key, it]))
  }
}

/** By which rules the change is decided is not known yet: it comes behind the fence of a definition. Try again in a moment. */
export class RulesPending extends Error {
  override name = 'RulesPending'
}

/** The transaction must be applied again, in this way. */
export class AttemptFailed extends Error {
  override name = 'AttemptFailed'
  readonly attempt: Attempt
  constructor(attempt: Attempt, reason: string) {
    super(reason)
    this.attempt = attempt
  }
}

/** @returns null when a key changed while it was decided about; throws what else it is */
function isChanged(error: unknown): null {
  if (error instanceof KeyChanged) return null
  throw error
}

/** Whether values come to stand, where the application sees no row, that a local insert would have to look at. */
function hidesSums({ rules }: CarefulTable, { writes }: Resolution): boolean {
  if (rules.deltas.length === 0 && rules.merge === null) return false
  return writes.some(
    ({ before, after }) =>
      !before.row?.visible &&
      ((after.row !== null && !after.row.visible) ||
        (after.tombstone !== null && !areZero(after.tombstone.remainder))),
  )
}

function refusalOf(error: unknown): Refusal {
  if (!(error instanceof SternaError) || error.code !== 'INVALID_VALUE') throw error
  return { sqlstate: '22003', message: error.message, detail: null, constraint: null }
}

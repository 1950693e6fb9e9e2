import { assert } from '../core/assert.ts'
import { pgTimeOf, type PgTime } from '../core/pg-time.ts'
import type { Outcome } from '../mesh/conflict/apply-change.ts'
import { keysOf, UNCHANGED, type Change, type Key } from '../mesh/conflict/change.ts'
import { mayApply, noteCommit } from '../mesh/conflict/clock.ts'
import {
  appliedUpTo,
  claimOf,
  hadApplied,
  receiveHeartbeat,
  relationOf,
  type Heartbeat,
} from '../mesh/conflict/heartbeat.ts'
import { mustQueue, settledBy } from '../mesh/conflict/parked.ts'
import type { Answer, Decision, Question } from '../mesh/conflict/question.ts'
import { completeChange, resolveChange, type Resolution } from '../mesh/conflict/resolve.ts'
import { compareVersions, type RowVersion } from '../mesh/conflict/version.ts'
import { copyState, newState, type NodeState, type Parked, type Published } from './node-state.ts'
import type { Rule } from './plan.ts'
import type { Stamp, StoredTable } from './stored-table.ts'
import { describeChange } from './story.ts'
import type { WriteLog } from './write-log.ts'

/** What a node reaches outside of itself. */
export interface Surroundings {
  readonly off: Rule | null
  readonly log: WriteLog
  /** True time; clocks are read relative to it. */
  readonly now: () => number
  readonly peers: () => readonly SimNode[]
  /** Whether a request from one node reaches the other now. */
  readonly reaches: (from: SimNode, to: SimNode) => boolean
  readonly say: (text: () => string) => void
}

const KEPT_HEARTBEATS = 8

/** A server with its agent: the database as `state`, what of it is flushed, and the real decision code between. */
export class SimNode {
  readonly id: number
  readonly around: Surroundings
  state: NodeState
  #durable: NodeState
  readonly published: Published[] = []
  skew: number
  isUp = true
  /** Tables whose rows a local transaction has locked that has its timestamp and has not committed. */
  locked: ReadonlySet<string> = new Set()
  /** Keys that the transaction being applied has written, all values as sent. */
  readonly #streamed = new Set<string>()
  #beat: { readonly claim: PgTime; readonly waitsFor: ReadonlySet<object> } | null = null

  constructor(id: number, tables: ReadonlyMap<string, StoredTable>, skew: number, around: Surroundings) {
    this.id = id
    this.skew = skew
    this.around = around
    this.state = newState(tables)
    this.#durable = copyState(this.state)
  }

  get name(): string {
    return `n${this.id}`
  }

  clock(): PgTime {
    return pgTimeOf(BigInt(this.around.now() + this.skew))
  }

  version(time: PgTime, nodeId = this.id): RowVersion {
    return { time, nodeId: this.around.off === 'tie-break' ? 0 : nodeId }
  }

  stamp(version: RowVersion): Stamp {
    return { xid: this.state.nextXid++, version }
  }

  table(name: string): StoredTable {
    return this.state.tables.get(name)!
  }

  /** How much of its stream others can have: what is flushed. */
  get flushed(): number {
    return this.#durable.published
  }

  flush(): void {
    this.#durable = copyState(this.state)
  }

  /** Loses what was not flushed. */
  crash(): void {
    this.around.log.lose(this.id, this.#durable.published)
    this.published.length = this.#durable.published
    this.state = copyState(this.#durable)
    this.#beat = null
    this.isUp = false
  }

  /** Commits a transaction of this node that peers receive. */
  publish(time: PgTime, changes: Published['changes'], heartbeat: Heartbeat | null = null): void {
    this.published.push({ time, changes, heartbeat, progress: new Map(this.state.progress) })
    this.state.published = this.published.length
    this.state.commits = noteCommit(this.state.commits, { time, nodeId: this.id }, this.id)
  }

  /** Applies the next transaction of an origin. False: not now. */
  apply(from: SimNode, delivered: number, failsAt: number | null, isTransdiscard: boolean): boolean {
    const place = this.state.progress.get(from.id) ?? 0
    const entry = from.published[place]
    if (entry === undefined || place >= delivered) return false
    if (this.around.off !== 'clock-wait' && !mayApply(this.clock(), entry.time)) return false
    if (entry.changes.some(({ table }) => this.locked.has(table))) return false
    if (entry.changes.some(({ change }) => asksOrigin(change)) && !this.around.reaches(this, from))
      return false
    const what = entry.heartbeat ? 'heartbeat ' : ''
    this.around.say(() => `${this.name} applies ${from.name}'s ${what}#${place} @${entry.time}`)
    const stamp = this.stamp(this.version(entry.time, from.id))
    this.#streamed.clear()
    const fails = failsAt !== null && failsAt < entry.changes.length
    for (const [at, { table, change }] of entry.changes.entries()) {
      const failsHere = fails && (isTransdiscard || (at === failsAt && change.tag !== 'truncate'))
      this.#take(table, change, from, place * 1000 + at, stamp, failsHere)
    }
    if (entry.heartbeat) this.#hear(entry.heartbeat)
    this.state.progress.set(from.id, place + 1)
    const seen = this.state.seen.get(from.id)
    if (seen === undefined || seen < entry.time) this.state.seen.set(from.id, entry.time)
    this.state.commits = noteCommit(this.state.commits, { time: entry.time, nodeId: from.id }, this.id)
    return true
  }

  /** One change of a transaction that is being applied: it takes effect, or is parked. */
  #take(table: string, change: Change, from: SimNode, place: number, stamp: Stamp, fails: boolean): void {
    const isOrderKept = this.around.off !== 'parked-order'
    if (change.tag === 'truncate' && isOrderKept && !fails) {
      const settled = new Set<object>(settledBy(this.state.parked, table, from.id))
      this.state.parked = this.state.parked.filter((it) => !settled.has(it))
    }
    const mustWait = isOrderKept && mustQueue(this.state.parked, table, from.id, change)
    if (fails || mustWait) {
      const { change: whole, givenUp } = this.#drive(completeChange(change), table, from, change)
      if (givenUp !== null) this.#giveUp(table, givenUp, stamp.version)
      this.around.say(() => `  parks ${whole ? describeChange(table, whole) : 'nothing: superseded'}`)
      if (whole === null) return
      const parked: Parked = {
        table,
        originId: from.id,
        place: BigInt(place),
        change: whole,
        fails: !mustWait,
      }
      this.state.parked = [...this.state.parked, parked]
      return
    }
    const { rules } = this.table(table)
    const { fetched } = this.carryOut(table, resolveChange(change, rules), from, change, stamp)
    for (const key of keysOf(change) ?? []) this.#streamed.add(`${table} ${key}`)
    this.#streamed.delete(`${table} ${fetched}`)
  }

  #giveUp(table: string, key: Key, version: RowVersion): void {
    if (this.around.off === 'given-up') return
    this.state.givenUp = [...this.state.givenUp, { table, key, version }]
  }

  /** Begins a heartbeat, or ends the one begun if all transactions that ran then have ended. */
  heartbeat(running: readonly object[]): void {
    const waitsFor = this.around.off === 'heartbeat-wait' ? [] : running
    this.#beat ??= { claim: this.clock(), waitsFor: new Set(waitsFor) }
    const { claim, waitsFor: ends } = this.#beat
    if (running.some((it) => ends.has(it))) return
    this.#beat = null
    const { heartbeats, parked, seen } = this.state
    const origins = this.around.peers().flatMap(({ id }) => (id === this.id ? [] : [id]))
    const applied = appliedUpTo(heartbeats, origins, parked)
    const time = this.clock()
    const heartbeat: Heartbeat = { nodeId: this.id, time, claim, applied, seen: new Map(seen) }
    this.#hear(heartbeat)
    this.publish(time, [], heartbeat)
    this.around.say(() => `${this.name} heartbeat #${this.published.length - 1} claims ${claim}`)
  }

  #hear(heartbeat: Heartbeat): void {
    this.state.heartbeats = receiveHeartbeat(this.state.heartbeats, heartbeat, KEPT_HEARTBEATS)
  }

  /** Drives a decision to its end, in the transaction `stamp`. `change`: what it is about; null for a repair. */
  carryOut(
    table: string,
    decision: Decision<Resolution>,
    from: SimNode,
    change: Change | null,
    stamp: Stamp,
  ): Resolution {
    const resolution = this.#drive(decision, table, from, change)
    const stored = this.table(table)
    stored.write(resolution.writes, stamp)
    if (resolution.givenUp !== null && change) this.#giveUp(table, resolution.givenUp, change.version)
    if (resolution.truncated) stored.truncated = resolution.truncated
    for (const outcome of resolution.outcomes) this.#note(outcome, change)
    for (const { key, inFavourOf, constraints } of resolution.collisions) {
      this.around.say(() => `  ${table} ${key} stands back for ${inFavourOf} (${constraints.join(', ')})`)
    }
    return resolution
  }

  #drive<T>(decision: Decision<T>, table: string, from: SimNode, change: Change | null): T {
    let step = decision.next()
    while (!step.done) step = decision.next(this.#answer(step.value, table, from, change))
    return step.value
  }

  #answer(question: Question, name: string, from: SimNode, change: Change | null): Answer {
    const table = this.table(name)
    switch (question.ask) {
      case 'key':
        return { is: 'key', state: table.held(question.key), truncated: table.truncated }
      case 'colliding':
        return { is: 'rows', rows: table.colliding(question.key, question.values) }
      case 'not newer':
        return { is: 'keys', keys: table.notNewer(question.version), truncated: table.truncated }
      case 'base': {
        const third = this.around.peers().filter((it) => it !== this && it !== from)
        const claims = third.map(({ id }) => claimOf(this.state.heartbeats, id))
        const last = this.state.heartbeats.get(from.id)?.at(-1)
        const { key, local } = question
        const isParked = this.state.parked.some(
          (it) => it.table === name && (keysOf(it.change)?.includes(key) ?? true),
        )
        const isGivenUp = this.state.givenUp.some(
          (it) => it.table === name && it.key === key && compareVersions(it.version, local) > 0,
        )
        const isOfThisTransaction = this.#streamed.has(`${name} ${key}`)
        const receivedUpTo = claims.length === 0 ? null : claims.reduce((a, b) => (a < b ? a : b))
        if (this.around.off === 'toast-proof') {
          return {
            is: 'base',
            hadLocal: true,
            receivedUpTo: null,
            isIncomplete: false,
            isOfThisTransaction: true,
          }
        }
        const isIncomplete = isParked || isGivenUp
        const hadLocal = hadApplied(last, local)
        return { is: 'base', hadLocal, receivedUpTo, isIncomplete, isOfThisTransaction }
      }
      case 'fetch': {
        assert(change !== null && from !== this, 'only a change of another node lacks values')
        if (this.around.off !== 'toast-flush') from.flush()
        const { row } = from.table(name).held(question.key)
        this.around.say(
          () => `  fetches ${name} ${question.key} from ${from.name}: ${row ? 'found' : 'gone'}`,
        )
        return { is: 'fetch', row }
      }
      case 'merge':
        assert(table.rules.merge, 'only a table with a merge function asks for its result')
        return { is: 'merge', values: table.rules.merge(question.local, question.arriving) }
    }
  }

  #note({ key, result, met }: Outcome, change: Change | null): void {
    if (change === null) return
    this.around.say(() => `  ${key}: ${result}`)
    const { version } = change
    if (met === null || met.nodeId === version.nodeId) return
    const isNewer = compareVersions(version, met) > 0
    const [newer, older] = isNewer ? [version, met] : [met, version]
    const relation = relationOf(newer, older, this.state.heartbeats)
    if (relation === 'unknown') return
    this.around.log.verdicts.push({
      newer: { node: newer.nodeId, time: Number(newer.time) },
      older: { node: older.nodeId, time: Number(older.time) },
      isConcurrent: relation === 'concurrent',
    })
  }

  /** Remembers keys that were written with a timestamp older than what they replaced. */
  mustRewrite(table: string, keys: readonly Key[]): void {
    if (this.around.off === 'rewrite') return
    this.state.toRewrite = [...this.state.toRewrite, ...keys.map((key) => ({ table, key }))]
  }
}

/** Whether the change may have to ask its origin for values. */
export function asksOrigin(change: Change): boolean {
  return change.tag === 'update' && change.old === null && Object.values(change.values).includes(UNCHANGED)
}

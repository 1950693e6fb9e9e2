import { assert } from '../../core/assert.ts'
import { SternaError } from '../../core/errors.ts'
import { lsnOf, type Lsn } from '../../core/lsn.ts'
import { formatPgTime, pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import {
  COLUMN_KIND,
  parseBegin,
  parseCommit,
  parseRelation,
  parseTruncate,
  PGOUTPUT,
  TUPLE,
  TupleLayout,
  type BeginMessage,
} from '../../pgwire/pgoutput.ts'
import type { Key, Values } from '../conflict/change.ts'
import type { RowVersion } from '../conflict/version.ts'
import type { ApplySession } from './apply-session.ts'
import { CarefulLane, type Attempt, type LaneOptions } from './careful/careful-lane.ts'
import { nextRetriable, postpone, settleRetried, type ParkedEntry } from './careful/exceptions.ts'
import type { StreamedChange } from './careful/incoming.ts'
import { CareChanged } from './careful/care.ts'
import { LaterRefusal, type Refusal } from './careful/row-store.ts'
import { incomingOfMessage, messageOf, ROW_MESSAGE } from './careful/row-message.ts'
import { FastLane, type Table } from './fast-lane.ts'
import type { LocalClock } from './local-clock.ts'
import { TableCatalog } from './table-catalog.ts'
import type { FlowNodes, TablePlan } from './table-plan.ts'

const DDL_QUEUE = 'sterna.ddl_queue'
const TEXT_OID = 25
const JSONB_OID = 3802

export interface ApplierOptions {
  readonly session: ApplySession
  readonly clock: LocalClock
  /** Node whose transactions these are; its id breaks ties between equal timestamps. */
  readonly originNodeId: number
  readonly originName: string
  readonly onException: LaneOptions['onException']
  readonly fetch: LaneOptions['fetch']
  /** Puts the retry of a parked change off, in another session. */
  readonly postpone: (id: string, refusal: Refusal) => Promise<void>
  /** How to apply the transaction that failed before; null: none did. */
  readonly attempt: Attempt | null
  readonly nodes: FlowNodes
  /** Whether the stream carries binary values. */
  readonly binary: boolean
  /** Whether each transaction tells its timestamp at its head, so that tombstones can be compared with it. */
  readonly announce: boolean
  readonly signal: AbortSignal
  /** Applies each transaction so long after its commit; 0: at once. */
  readonly applyDelayMs: number
  /** A change is ahead of the local clock by so many milliseconds, and waits. */
  readonly onClockAhead: (aheadMs: number) => void
  /** The stream has passed a position without anything to apply. */
  readonly onNothingToApply: (endLsn: Lsn) => void
}

/**
 * Turns pgoutput messages of one provider into executions in an ApplySession. Most changes take the fast lane: `handle` is
 * synchronous then. Where a change must wait (an unknown table, a clock that is behind) or be decided with care it returns a
 * promise, and no further message may be given before that resolves.
 */
export class Applier {
  readonly #options: ApplierOptions
  readonly #session: ApplySession
  readonly #tables: TableCatalog
  readonly #fast: FastLane
  readonly #careful: CarefulLane
  readonly #new = new TupleLayout()
  readonly #old = new TupleLayout()
  #transaction: BeginMessage | undefined
  #changes = 0
  #skip = false
  #started = false
  #previousLsn: Lsn | null
  /**
   * The transaction at which the origin's progress stood when the session began: it counts as applied only if its commit
   * is found, since a transaction that aborted at its very end moves progress too.
   */
  #doubtful = false
  /** Until the local clock is past this the transaction waits. */
  #notBefore: PgTime
  /** The transaction failed before: all its changes take the careful lane. */
  #isRepeated = false

  constructor(options: ApplierOptions) {
    const { session, originNodeId, nodes, binary, announce, onException, fetch } = options
    this.#options = options
    this.#session = session
    this.#previousLsn = session.startProgress
    this.#notBefore = pgTimeOf(0n)
    this.#tables = new TableCatalog(session, nodes, binary)
    this.#fast = new FastLane(
      session,
      { nodeId: originNodeId, oid: session.originOid, equalUntil: session.equalUntil },
      announce,
    )
    this.#careful = new CarefulLane({
      ask: session,
      care: session.care,
      originNodeId,
      announces: announce,
      onException,
      fetch,
    })
  }

  /**
   * Takes one message, `buffer[start, end)`.
   * @throws TABLE_MISSING, COLUMN_MISSING, KEY_DIFFERS, CODE_REFUSED, EXCEPTION_STOPPED; TextTransferNeeded, AttemptFailed, CareChanged
   */
  handle(buffer: Buffer, start: number, end: number): Promise<void> | undefined {
    switch (buffer[start]) {
      case PGOUTPUT.begin:
        this.#onBegin(parseBegin(buffer, start + 1))
        return undefined
      case PGOUTPUT.origin:
        // Applied at the provider from elsewhere: it reaches us from there. Providers from 16 on do not even send it.
        this.#skip = true
        return undefined
      case PGOUTPUT.relation:
        this.#tables.add(parseRelation(buffer, start + 1))
        return undefined
      case PGOUTPUT.insert:
      case PGOUTPUT.update:
      case PGOUTPUT.delete:
        return this.#skip ? undefined : this.#onChange(buffer, start, end)
      case PGOUTPUT.truncate:
        return this.#skip ? undefined : this.#onTruncate(Buffer.from(buffer.subarray(start + 1, end)))
      case PGOUTPUT.commit:
        this.#onCommit(parseCommit(buffer, start + 1).endLsn)
        return undefined
      case PGOUTPUT.type:
      case PGOUTPUT.message:
        return undefined
      default:
        throw new SternaError('PROTOCOL_VIOLATION', {
          address: 'the provider',
          reason: `unknown change message 0x${buffer[start]?.toString(16)}`,
        })
    }
  }

  /** A transaction has begun in the stream and not ended. */
  get inTransaction(): boolean {
    return this.#transaction !== undefined
  }

  /** Commit LSN of the transaction that is being taken. */
  get currentLsn(): Lsn | undefined {
    return this.#transaction?.finalLsn
  }

  /** Retries, between two transactions, what is parked and due, each change in a transaction of its own with its own version. */
  async retryParked(): Promise<void> {
    for (;;) {
      const entry = await nextRetriable(this.#session, this.#options.originNodeId)
      if (!entry) return this.#session.endLookups()
      await this.#retry(entry)
    }
  }

  async #retry({ id, schema, table: name, change, key }: ParkedEntry): Promise<void> {
    const { version } = change
    const lsn = this.#previousLsn ?? lsnOf(1n)
    const table = await this.#tables.carefulByName(schema, name)
    this.#session.about = { table: table.plan.label, operation: 'update' }
    this.#careful.begin(lsn, version, null)
    this.#fast.begin(version.time)
    const keys = new Map<Key, readonly (string | null)[]>()
    if (change.tag !== 'truncate') {
      keys.set(change.tag === 'update' ? change.oldKey : change.key, table.keyValues(key))
      if (change.tag === 'update' && change.oldKey !== change.key)
        keys.set(change.key, table.keyValues(change.values as Values))
    }
    const refusal = await this.#careful.retry({ table, change, keys }).catch(async (error: unknown) => {
      if (!(error instanceof LaterRefusal)) throw error
      // The transaction holds a part of the change: it cannot be committed, not even to put the retry off.
      await this.#options.postpone(id, error.refusal)
      throw new CareChanged()
    })
    if (refusal) postpone(this.#session, id, refusal)
    else settleRetried(this.#session, id)
    if (this.#careful.hasCalledOwner) this.#fast.guarded = true
    this.#fast.finish()
    const transaction = { finalLsn: lsn, endLsn: lsn, commitTime: version.time, changes: refusal ? 0 : 1 }
    await this.#session.commitAndWait(transaction, this.#previousLsn)
    this.#previousLsn = lsn
  }

  #onBegin(begin: BeginMessage): void {
    this.#transaction = begin
    this.#session.about = undefined
    this.#notBefore = pgTimeOf(begin.commitTime + BigInt(Math.round(this.#options.applyDelayMs * 1000)))
    this.#changes = 0
    this.#started = false
    // The slot may repeat what is applied already: after a crash it starts at the last confirmed position.
    this.#skip = this.#previousLsn !== null && begin.finalLsn <= this.#previousLsn
    this.#doubtful = begin.finalLsn === this.#session.startProgress
    if (this.#doubtful) this.#skip = false
    const { attempt } = this.#options
    this.#isRepeated = attempt !== null && attempt.lsn === begin.finalLsn
    this.#fast.begin(begin.commitTime)
    this.#careful.begin(begin.finalLsn, this.#version(), this.#isRepeated ? attempt : null)
  }

  #onCommit(endLsn: Lsn): void {
    const { finalLsn, commitTime } = this.#current()
    if (this.#started) {
      if (this.#careful.hasCalledOwner) this.#fast.guarded = true
      this.#fast.finish()
      this.#session.commit({ finalLsn, endLsn, commitTime, changes: this.#changes }, this.#previousLsn)
      this.#previousLsn = finalLsn
    } else this.#options.onNothingToApply(endLsn)
    this.#transaction = undefined
  }

  #onChange(buffer: Buffer, start: number, end: number): Promise<void> | undefined {
    const table = this.#table(buffer.readUInt32BE(start + 1))
    if (table.plan && !this.#doubtful && (this.#started || this.#options.clock.isPast(this.#notBefore))) {
      this.#start()
      return this.#write(table, table.plan, buffer, start)
    }
    return this.#onChangeSlowly(table, Buffer.from(buffer.subarray(start, end)))
  }

  async #onChangeSlowly(table: Table, message: Buffer): Promise<void> {
    if (!(await this.#startWhenPast())) return
    await this.#write(table, await this.#tables.plan(table), message, 0)
  }

  /** Waits until the transaction may be applied; false when it turns out to be applied already. */
  async #startWhenPast(): Promise<boolean> {
    if (this.#doubtful) {
      this.#doubtful = false
      const { commitTime } = this.#current()
      const [row] = await this.#session.lookup('select sterna.was_applied($1, $2)', [
        this.#options.originName,
        formatPgTime(commitTime),
      ])
      if (row?.[0] === 't') this.#skip = true
    }
    if (this.#skip) return false
    const { clock, signal, onClockAhead } = this.#options
    if (!this.#started && !clock.isPast(this.#notBefore)) {
      await clock.waitUntilPast(this.#notBefore, signal, onClockAhead)
    }
    this.#start()
    return true
  }

  #start(): void {
    if (this.#started) return
    this.#started = true
    if (this.#options.announce) this.#session.announce(this.#current().commitTime)
  }

  #write(table: Table, plan: TablePlan, buffer: Buffer, start: number): Promise<void> | undefined {
    this.#changes++
    switch (buffer[start]) {
      case PGOUTPUT.insert:
        this.#new.read(buffer, start + 6)
        return this.#insert(table, plan, buffer)
      case PGOUTPUT.update:
        return this.#update(table, plan, buffer, start)
      default: {
        this.#old.read(buffer, start + 6)
        this.#requireKey(plan)
        if (this.#needsCare(plan)) {
          const isOldWhole = buffer[start + 5] === TUPLE.old
          return this.#carefully(table, plan, {
            tag: 'delete',
            row: null,
            old: this.#old,
            isOldWhole,
            buffer,
          })
        }
        this.#fast.remove(table, plan, this.#old, buffer)
        return undefined
      }
    }
  }

  #insert(table: Table, plan: TablePlan, buffer: Buffer): Promise<void> | undefined {
    if (this.#needsCare(plan)) {
      return this.#carefully(table, plan, {
        tag: 'insert',
        row: this.#new,
        old: null,
        isOldWhole: false,
        buffer,
      })
    }
    this.#fast.put(table, plan, 'insert', this.#new, buffer)
    if (plan.label === DDL_QUEUE) this.#applyDdl(plan, buffer)
    return plan.label === ROW_MESSAGE ? this.#onRowMessage(plan, buffer) : undefined
  }

  #update(table: Table, plan: TablePlan, buffer: Buffer, start: number): Promise<void> | undefined {
    const hasOld = buffer[start + 5] !== TUPLE.new
    const newAt = hasOld ? this.#old.read(buffer, start + 6) : start + 5
    this.#new.read(buffer, newAt + 1)
    this.#requireKey(plan)
    const isOldWhole = buffer[start + 5] === TUPLE.old
    if (this.#new.hasUnchanged && isOldWhole) this.#fillUnchangedFromOld()
    if (this.#new.hasUnchanged || this.#needsCare(plan)) {
      const old = hasOld ? this.#old : null
      return this.#carefully(table, plan, { tag: 'update', row: this.#new, old, isOldWhole, buffer })
    }
    const keyChanged =
      hasOld && plan.keyPositions.some((position) => !this.#new.sameValue(position, this.#old, buffer))
    if (keyChanged) this.#fast.remove(table, plan, this.#old, buffer)
    this.#fast.put(table, plan, 'update', this.#new, buffer)
    return undefined
  }

  /** Whether a change of this table is decided one by one. */
  #needsCare(plan: TablePlan): boolean {
    if (plan.keyPositions.length === 0) return this.#isRepeated
    if (plan.remote.schema === 'sterna') return false
    return this.#isRepeated || this.#session.care.includes(plan.guardOid ?? plan.oid)
  }

  async #carefully(table: Table, plan: TablePlan, streamed: StreamedChange): Promise<void> {
    const { typeDifferences } = table
    this.#session.about = { table: plan.label, operation: streamed.tag, typeDifferences }
    const whole = { ...streamed, buffer: Buffer.from(streamed.buffer) }
    await this.#careful.takeStreamed(await this.#tables.careful(plan), whole)
  }

  async #onRowMessage(plan: TablePlan, buffer: Buffer): Promise<void> {
    const values = this.#textValues(plan, Buffer.from(buffer))
    const message = messageOf(values)
    const table = await this.#tables.carefulByName(message.schema, message.table)
    await this.#careful.take(await incomingOfMessage(this.#session, table, message, this.#version()))
  }

  /** The values of a row of which the binary form is the text, after a version byte for jsonb. */
  #textValues(plan: TablePlan, buffer: Buffer): Values {
    return Object.fromEntries(
      plan.remote.columns.map(({ name, typeOid }, i) => {
        const isJsonb = typeOid === JSONB_OID && this.#new.kinds[i] === COLUMN_KIND.binary
        const from = this.#new.starts[i]! + (isJsonb ? 1 : 0)
        return [name, buffer.toString('utf8', from, this.#new.starts[i]! + this.#new.lengths[i]!)]
      }),
    )
  }

  #version(): RowVersion {
    return { time: this.#current().commitTime, nodeId: this.#options.originNodeId }
  }

  /** With REPLICA IDENTITY FULL the old tuple has the values that the new one leaves out. */
  #fillUnchangedFromOld(): void {
    const { kinds, starts, lengths, count } = this.#new
    for (let i = 0; i < count; i++) {
      if (kinds[i] !== COLUMN_KIND.unchanged) continue
      kinds[i] = this.#old.kinds[i]!
      starts[i] = this.#old.starts[i]!
      lengths[i] = this.#old.lengths[i]!
    }
    this.#new.hasUnchanged = kinds.subarray(0, count).includes(COLUMN_KIND.unchanged)
  }

  /** A provider with REPLICA IDENTITY FULL sends updates and deletes of a table that has no key here. */
  #requireKey(plan: TablePlan): void {
    if (plan.keyPositions.length > 0) return
    const { local: node, provider } = this.#options.nodes
    const facts = { table: plan.label, node, provider, local: ['none'], remote: ['the whole row'] }
    throw new SternaError('KEY_DIFFERS', facts)
  }

  async #onTruncate(message: Buffer): Promise<void> {
    const { relationIds, restartIdentity } = parseTruncate(message, 0)
    if (!(await this.#startWhenPast())) return
    for (const id of relationIds) {
      const table = this.#table(id)
      const plan = await this.#tables.plan(table)
      this.#changes++
      if (plan.guardOid !== null) {
        // Sessions that create rows with older changes must not slip past.
        await this.#session.lookup('select pg_advisory_xact_lock(sterna.tombstone_lock($1))', [
          String(plan.guardOid),
        ])
      }
      const careful = this.#needsCare(plan) ? await this.#tables.careful(plan) : null
      // Of a table with delta columns the rows were deleted, one by one, before.
      if (careful && careful.rules.deltas.length > 0) continue
      if (careful) {
        const change = { tag: 'truncate', version: this.#version() } as const
        await this.#careful.take({ table: careful, change, keys: new Map() })
      } else this.#fast.truncate(table, plan)
      if (restartIdentity) {
        await this.#session.lookup('select sterna.apply_restart_identity($1, $2)', [
          table.remote.schema,
          table.remote.name,
        ])
      }
    }
  }

  /** Runs a captured statement where it stands in the stream; what is known of local tables may be wrong afterwards. */
  #applyDdl(plan: TablePlan, buffer: Buffer): void {
    const statement = this.#session.prepareOnce(
      'select sterna.ddl_apply($1, $2, $3)',
      [0, TEXT_OID, TEXT_OID],
      { table: DDL_QUEUE, operation: 'ddl' },
    )
    const positions = ['role_name', 'search_path', 'command'].map((name) =>
      plan.remote.columns.findIndex((column) => column.name === name),
    )
    assert(
      positions.every((position) => position >= 0),
      'ddl_queue has role_name, search_path and command',
    )
    this.#fast.execute(statement, this.#new, positions, buffer)
    this.#fast.forget()
    this.#careful.forget()
    this.#tables.forget()
  }

  #table(id: number): Table {
    const table = this.#tables.find(id)
    if (!table)
      throw new SternaError('PROTOCOL_VIOLATION', {
        address: 'the provider',
        reason: `a change of a table it did not describe (${id})`,
      })
    return table
  }

  #current(): BeginMessage {
    if (!this.#transaction)
      throw new SternaError('PROTOCOL_VIOLATION', {
        address: 'the provider',
        reason: 'a change outside a transaction',
      })
    return this.#transaction
  }
}

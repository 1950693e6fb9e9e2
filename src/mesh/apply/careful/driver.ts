import { assert } from '../../../core/assert.ts'
import { pgTimeOf } from '../../../core/pg-time.ts'
import { quoteIdent } from '../../../core/quote.ts'
import type { Change, Key, Values } from '../../conflict/change.ts'
import { ABSENT, type KeyedRow, type Row } from '../../conflict/key-state.ts'
import type { Answer, Decision, FetchAnswer, Question } from '../../conflict/question.ts'
import { compareVersions, type RowVersion } from '../../conflict/version.ts'
import type { Ask } from './ask.ts'
import { textSql, type CarefulTable, type HeldKey } from './careful-table.ts'
import { versionParams, versionSql } from './version-text.ts'

/** Newer than everything. */
const FOREVER: RowVersion = { time: pgTimeOf(1n << 62n), nodeId: 0 }

export interface DriverOptions {
  readonly ask: Ask
  readonly originNodeId: number
  /** The row as its origin has it now. */
  readonly fetch: (table: CarefulTable, key: Values) => Promise<FetchAnswer['row']>
}

/** Answers what one decision asks, out of SQL. `about`: the change that is decided; of a repair, which has none, its version. */
export class Driver {
  readonly held = new Map<Key, HeldKey>()
  readonly #options: DriverOptions
  readonly #table: CarefulTable
  readonly #change: Change | null
  readonly #own: RowVersion
  readonly #keys: Map<Key, readonly (string | null)[]>
  readonly #isOfThisTransaction: (key: Key) => boolean
  readonly #rows = new Map<Key, Row>()

  constructor(
    options: DriverOptions,
    table: CarefulTable,
    about: Change | RowVersion,
    keys: ReadonlyMap<Key, readonly (string | null)[]>,
    isOfThisTransaction: (key: Key) => boolean,
  ) {
    this.#options = options
    this.#table = table
    this.#change = 'tag' in about ? about : null
    this.#own = 'tag' in about ? about.version : about
    this.#keys = new Map(keys)
    this.#isOfThisTransaction = isOfThisTransaction
  }

  /** What was read of keys, under their locks, just now. */
  hold(held: ReadonlyMap<Key, HeldKey>): void {
    for (const [key, it] of held) {
      this.held.set(key, it)
      if (it.state.row) this.#rows.set(key, it.state.row)
    }
  }

  /** A row that is known otherwise than by asking. */
  know(row: KeyedRow): void {
    this.#rows.set(row.key, row)
    this.#keys.set(row.key, this.#table.keyValues(row.values))
  }

  async drive<T>(decision: Decision<T>): Promise<T> {
    let step = decision.next()
    while (!step.done) step = decision.next(await this.#answer(step.value))
    return step.value
  }

  keyValues(key: Key): readonly (string | null)[] {
    const values = this.#keys.get(key)
    assert(values, 'the values of every key that is written are known')
    return values
  }

  /** The row under a key: as it arrives, else as it is here. */
  valuesOf(key: Key): Values | null {
    return this.#arriving(key) ?? this.#rows.get(key)?.values ?? null
  }

  versionOf(key: Key): RowVersion | null {
    return this.#arriving(key) ? this.#own : (this.#rows.get(key)?.version ?? null)
  }

  #arriving(key: Key): Values | null {
    const change = this.#change
    if ((change?.tag !== 'insert' && change?.tag !== 'update') || change.key !== key) return null
    return textsOnly(change.values)
  }

  async #answer(question: Question): Promise<Answer> {
    const { ask } = this.#options
    const own = this.#own
    switch (question.ask) {
      case 'key': {
        const held =
          this.held.get(question.key) ?? (await this.#table.hold(ask, this.keyValues(question.key), own))
        this.#requireSame(question.key, held)
        this.hold(new Map([[question.key, held]]))
        return { is: 'key', ...this.#asOneWay(held) }
      }
      case 'colliding': {
        const rows = await this.#table.colliding(ask, question.key, question.values, own)
        for (const row of rows) this.know(row)
        return { is: 'rows', rows }
      }
      case 'base':
        return this.#baseFacts(question)
      case 'fetch':
        return {
          is: 'fetch',
          row: await this.#options.fetch(this.#table, this.#table.keyObject(this.keyValues(question.key))),
        }
      case 'merge':
        return { is: 'merge', values: await this.#merge(question.local, question.arriving) }
      case 'not newer':
        throw new Error('truncates are carried out set by set')
    }
  }

  /** A row that was found by its values may have been written since by a session of the application. */
  #requireSame(key: Key, { state }: HeldKey): void {
    const known = this.#rows.get(key)
    if (!known) return
    const now = state.row
    const isSame =
      now !== null &&
      now.visible === known.visible &&
      now.version?.time === known.version?.time &&
      now.version?.nodeId === known.version?.nodeId
    if (!isSame) throw new KeyChanged()
  }

  /** On a one-way subscription the policy can be that one side always wins: the other one then counts as older than all. */
  #asOneWay({ state, truncated }: HeldKey): Pick<HeldKey, 'state' | 'truncated'> {
    const { oneWay } = this.#table
    if (oneWay === 'apply_remote') {
      return state.row
        ? { state: { row: { ...state.row, version: null }, tombstone: null }, truncated: null }
        : { state: ABSENT, truncated: null }
    }
    if (oneWay === 'keep_local' && state.row?.version?.nodeId !== this.#options.originNodeId && state.row)
      return { state: { row: { ...state.row, version: FOREVER }, tombstone: null }, truncated }
    return { state, truncated }
  }

  async #baseFacts({ key, local }: Question & { ask: 'base' }): Promise<Answer> {
    const held = this.held.get(key)
    const [row] = await this.#options.ask.lookup(
      `select sterna.base_facts($1::integer, ${versionSql(2)})::text`,
      [String(this.#options.originNodeId), ...versionParams(local)],
    )
    const facts = JSON.parse(row![0]!) as {
      hadLocal: boolean
      isAlone: boolean
      receivedUpTo: string | null
    }
    const isGivenUp = held?.givenUp != null && compareVersions(held.givenUp, local) > 0
    return {
      is: 'base',
      hadLocal: facts.hadLocal,
      receivedUpTo: facts.isAlone
        ? null
        : pgTimeOf(facts.receivedUpTo === null ? -(1n << 62n) : BigInt(facts.receivedUpTo)),
      isIncomplete: isGivenUp || (held?.isParked ?? false),
      isOfThisTransaction: this.#isOfThisTransaction(key),
    }
  }

  async #merge(local: Values, arriving: Values): Promise<Values> {
    const { plan, merge } = this.#table
    const names = plan.columns.map(({ name }) => name)
    const types = plan.columns.map(({ parameterOid }) => parameterOid)
    const record = (first: number): string =>
      `row(${names.map((_, i) => `$${first + i}`).join(', ')})::${plan.target}`
    const valuesOf = (values: Values): (string | null)[] => names.map((name) => values[name] ?? null)
    const texts = plan.columns.map(({ name, typeOid }) => textSql(`t.${quoteIdent(name)}`, typeOid))
    const [row] = await this.#options.ask.lookup(
      `select ${texts.join(', ')} from (select (${merge}(${record(1)}, ${record(names.length + 1)})).*) t`,
      [...valuesOf(local), ...valuesOf({ ...local, ...arriving })],
      [...types, ...types],
    )
    return Object.fromEntries(names.map((name, i) => [name, row![i] ?? null]))
  }
}

/** A key is not any more as the decision found it: decide again. */
export class KeyChanged extends Error {
  override name = 'KeyChanged'
}

/** Without values that were not sent. */
export function textsOnly(values: Readonly<Record<string, unknown>>): Values {
  return Object.fromEntries(
    Object.entries(values).filter((entry): entry is [string, string | null] => typeof entry[1] !== 'symbol'),
  )
}

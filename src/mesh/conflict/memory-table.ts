import { assert } from '../../core/assert.ts'
import type { Key } from './change.ts'
import { ABSENT, heldVersion, type KeyedRow, type KeyState } from './key-state.ts'
import type { Answer, BaseAnswer, Decision, FetchAnswer, Question } from './question.ts'
import type { Resolution, Write } from './resolve.ts'
import type { LocalRules } from './rules.ts'
import { collidingConstraints } from './set-aside.ts'
import { mayReplace, type RowVersion } from './version.ts'

/** What a table cannot know by itself. */
export interface Elsewhere {
  readonly base: (question: Question & { ask: 'base' }) => BaseAnswer
  readonly fetch: (question: Question & { ask: 'fetch' }) => FetchAnswer
}

/** One table of one node in memory: answers what decisions ask, and carries their writes out. */
export class MemoryTable {
  readonly #keys = new Map<Key, KeyState>()
  readonly #rules: LocalRules
  truncated: RowVersion | null = null

  constructor(rules: LocalRules) {
    this.#rules = rules
  }

  held(key: Key): KeyState {
    return this.#keys.get(key) ?? ABSENT
  }

  /** All keys of which something is known, sorted. */
  entries(): { readonly key: Key; readonly state: KeyState }[] {
    const entries = [...this.#keys].map(([key, state]) => ({ key, state }))
    return entries.toSorted((a, b) => (a.key < b.key ? -1 : 1))
  }

  /** All rows that are set aside. */
  aside(): KeyedRow[] {
    return this.entries().flatMap(({ key, state: { row } }) => (row && !row.visible ? [{ ...row, key }] : []))
  }

  /** Drives a decision to its end and carries it out. */
  carryOut(decision: Decision<Resolution>, elsewhere: Elsewhere): Resolution {
    let step = decision.next()
    while (!step.done) step = decision.next(this.#answer(step.value, elsewhere))
    this.write(step.value.writes)
    if (step.value.truncated) this.truncated = step.value.truncated
    return step.value
  }

  write(writes: readonly Write[]): void {
    for (const { key, after } of writes) {
      if (after.row || after.tombstone) this.#keys.set(key, after)
      else this.#keys.delete(key)
    }
  }

  #answer(question: Question, elsewhere: Elsewhere): Answer {
    switch (question.ask) {
      case 'key':
        return { is: 'key', state: this.held(question.key), truncated: this.truncated }
      case 'colliding':
        return { is: 'rows', rows: this.#colliding(question) }
      case 'not newer': {
        const keys = this.entries().filter(({ state }) => mayReplace(question.version, heldVersion(state)))
        return { is: 'keys', keys, truncated: this.truncated }
      }
      case 'base':
        return elsewhere.base(question)
      case 'fetch':
        return elsewhere.fetch(question)
      case 'merge':
        assert(this.#rules.merge, 'only a table with a merge function asks for its result')
        return { is: 'merge', values: this.#rules.merge(question.local, question.arriving) }
    }
  }

  #colliding({ key, values }: Question & { ask: 'colliding' }): KeyedRow[] {
    return this.entries().flatMap(({ key: other, state: { row } }) =>
      row && other !== key && collidingConstraints(row.values, values, this.#rules.uniques).length > 0
        ? [{ ...row, key: other }]
        : [],
    )
  }
}

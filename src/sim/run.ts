import { beginCommit, commit, type Transaction } from './application.ts'
import { cleanUp, repair, retry, rewrite } from './housekeeping.ts'
import { judgeTable, judgeVerdicts, show, type Tally } from './judge.ts'
import { SimNode, type Surroundings } from './node.ts'
import type { Plan, Rule, Step } from './plan.ts'
import { rulesOf } from './shape.ts'
import { StoredTable } from './stored-table.ts'
import { WriteLog } from './write-log.ts'

/** How a run ended. */
export interface Verdicts {
  /** What is wrong; empty: nothing. */
  readonly failures: readonly string[]
  readonly tally: Tally
  /** What happened, line by line, if it was asked for. */
  readonly story: readonly string[]
}

/** The line of a story at which faults and new writes end. */
export const HEALING = '-- heals and drains'

const MAX_DRAIN_ROUNDS = 300
/** So long that every clock passes what the fastest one has written. */
const QUIET_ROUNDS = 8

/** Carries a plan out, heals everything, drains, and judges. Deterministic. */
export function runPlan(plan: Plan, off: Rule | null, tellsStory = false): Verdicts {
  const run = new Run(plan, off, tellsStory)
  const tally: Tally = { visible: 0, aside: 0, superseded: 0 }
  try {
    for (const step of plan.steps) run.do(step)
    run.drain()
    return { failures: run.judge(tally), tally, story: run.story }
  } catch (error) {
    // A broken assertion or a unique violation, with the story up to it.
    if (!(error instanceof Error)) throw error
    return { failures: [`${error.name}: ${error.message}`], tally, story: run.story }
  }
}

class Run {
  readonly story: string[] = []
  readonly #plan: Plan
  readonly #off: Rule | null
  readonly #tellsStory: boolean
  readonly #nodes: readonly SimNode[]
  readonly #log = new WriteLog()
  readonly #cut = new Set<string>()
  /** By `from to`: how far the stream has come over the link. */
  readonly #delivered = new Map<string, number>()
  readonly #held = new Map<SimNode, Transaction[]>()
  #now = 1000

  constructor(plan: Plan, off: Rule | null, tellsStory: boolean) {
    this.#plan = plan
    this.#off = off
    this.#tellsStory = tellsStory
    const around: Surroundings = {
      off,
      log: this.#log,
      now: () => this.#now,
      peers: () => this.#nodes,
      reaches: (from, to) => to.isUp && !this.#cut.has(link(to, from)),
      say: (text) => {
        if (tellsStory) this.story.push(text())
      },
    }
    this.#nodes = plan.skews.map((skew, at) => {
      const tables = plan.tables.map((it): [string, StoredTable] => [
        it.name,
        new StoredTable(rulesOf(it), off),
      ])
      return new SimNode(at + 1, new Map(tables), skew, around)
    })
  }

  do(step: Step): void {
    this.#now += step.after
    const node = this.#nodes[step.node]!
    if (step.do === 'restart') node.isUp = true
    if (!node.isUp) return
    switch (step.do) {
      case 'write': {
        const tables = step.statements.map(({ table }) => this.#plan.tables[table]!.name)
        if (tables.some((table) => node.locked.has(table))) return
        const transaction = beginCommit(node, step.statements, step.isSync)
        if (step.isHeld) this.#setHeld(node, [...this.#heldBy(node), transaction])
        else commit(node, this.#plan.tables, transaction)
        return
      }
      case 'commit':
        this.#commitHeld(node)
        return
      case 'flush':
        node.flush()
        return
      case 'heartbeat':
        node.heartbeat(this.#heldBy(node))
        return
      case 'repair':
        repair(node)
        return
      case 'cleanup':
        cleanUp(node)
        return
      case 'rewrite':
        if (this.#plan.isClockUnsteady) rewrite(node)
        return
      case 'crash':
        this.#say(`${node.name} crashes, flushed up to #${node.flushed - 1}`)
        node.crash()
        this.#setHeld(node, [])
        for (const other of this.#nodes) this.#delivered.delete(link(other, node))
        return
      case 'restart':
        return
      case 'retry':
        retry(node, step.fails)
        return
      case 'deliver':
        this.#deliver(this.#nodes[step.from]!, node, step.count)
        return
      case 'apply': {
        const from = this.#nodes[step.from]!
        for (let at = 0; at < step.count; at++) {
          if (!this.#apply(from, node, at === 0 ? step.failsAt : null)) return
        }
        return
      }
      case 'cut':
        this.#cut.add(link(this.#nodes[step.from]!, node))
        return
      case 'heal':
        this.#cut.delete(link(this.#nodes[step.from]!, node))
        return
      case 'set-clock':
        this.#say(`${node.name} sets its clock by ${step.skew - node.skew}`)
        node.skew = step.skew
        return
    }
  }

  /** Heals, and goes on without new writes until nothing changes any more and all that can be forgotten is. */
  drain(): void {
    this.#say(HEALING)
    this.#cut.clear()
    for (const node of this.#nodes) node.isUp = true
    for (const node of this.#nodes) while (this.#heldBy(node).length > 0) this.#commitHeld(node)
    let quiet = 0
    for (let round = 0; quiet < QUIET_ROUNDS; round++) {
      if (round === MAX_DRAIN_ROUNDS) throw new Error('the mesh does not come to rest')
      quiet = this.#drainOnce() ? 0 : quiet + 1
    }
  }

  #drainOnce(): boolean {
    let changed = false
    this.#now += 40
    for (const node of this.#nodes) {
      for (const from of this.#nodes) {
        if (from === node) continue
        from.flush()
        this.#deliver(from, node, Number.POSITIVE_INFINITY)
        const before = node.state.progress.get(from.id) ?? 0
        while (this.#apply(from, node, null));
        // What still waits for the clock counts too: the mesh is not at rest before that.
        changed ||= from.published.slice(before).some(({ heartbeat }) => heartbeat === null)
      }
      while (retry(node, false)) changed = true
      if (this.#plan.isClockUnsteady && rewrite(node)) changed = true
      if (repair(node)) changed = true
    }
    for (const node of this.#nodes) node.heartbeat([])
    for (const node of this.#nodes) if (cleanUp(node) > 0) changed = true
    return changed
  }

  judge(tally: Tally): string[] {
    const failures: string[] = []
    for (const shape of this.#plan.tables) {
      for (const node of this.#nodes) {
        const table = node.table(shape.name)
        const isFirst = node === this.#nodes[0]
        failures.push(...judgeTable(node.name, shape, table, this.#log, isFirst ? tally : null))
        const [mine, first] = [contents(table), contents(this.#nodes[0]!.table(shape.name))]
        if (mine !== first) failures.push(`${node.name} ${shape.name} differs from n1: ${mine} / ${first}`)
        if (this.#off === null)
          failures.push(...leftovers(table).map((it) => `${node.name} ${shape.name} ${it}`))
      }
    }
    for (const node of this.#nodes) {
      if (node.state.parked.length > 0) failures.push(`${node.name} still has parked changes`)
      const { givenUp } = node.state
      if (givenUp.length > 0 && this.#off === null)
        failures.push(`${node.name} still waits for what superseded a change`)
    }
    const published = new Map(this.#nodes.map(({ id, published: entries }) => [id, entries]))
    if (!this.#plan.isClockUnsteady) failures.push(...judgeVerdicts(this.#log, published))
    return failures
  }

  #apply(from: SimNode, to: SimNode, failsAt: number | null): boolean {
    if (from === to) return false
    return to.apply(from, this.#delivered.get(link(from, to)) ?? 0, failsAt, this.#plan.isTransdiscard)
  }

  #deliver(from: SimNode, to: SimNode, count: number): void {
    const name = link(from, to)
    if (from === to || !from.isUp || this.#cut.has(name)) return
    const start = Math.max(this.#delivered.get(name) ?? 0, to.state.progress.get(from.id) ?? 0)
    this.#delivered.set(name, Math.min(from.flushed, start + count))
  }

  #commitHeld(node: SimNode): void {
    const [first, ...rest] = this.#heldBy(node)
    if (!first) return
    this.#setHeld(node, rest)
    commit(node, this.#plan.tables, first)
  }

  #heldBy(node: SimNode): readonly Transaction[] {
    return this.#held.get(node) ?? []
  }

  #setHeld(node: SimNode, transactions: Transaction[]): void {
    this.#held.set(node, transactions)
    const statements = transactions.flatMap((it) => it.statements)
    node.locked = new Set(statements.map(({ table }) => this.#plan.tables[table]!.name))
  }

  #say(text: string): void {
    if (this.#tellsStory) this.story.push(text)
  }
}

function link(from: SimNode, to: SimNode): string {
  return `${from.name} ${to.name}`
}

/** All that users can see of a table, or of its queue for review. */
function contents(table: StoredTable): string {
  return table
    .entries()
    .map(({ key, state: { row, tombstone } }) => {
      if (row) return `${key}${row.visible ? '' : ' (aside)'}: ${show(row.values)}`
      const left = Object.entries(tombstone?.remainder ?? {}).filter(([, amount]) => Number(amount) !== 0)
      return left.length > 0 ? `${key} left: ${show(Object.fromEntries(left))}` : ''
    })
    .filter((it) => it !== '')
    .join('; ')
}

/** What should have been forgotten by now. */
function leftovers(table: StoredTable): string[] {
  return table.entries().flatMap(({ key, state: { row, tombstone } }) => {
    const hasRemainder = Object.values(tombstone?.remainder ?? {}).some((amount) => Number(amount) !== 0)
    if (tombstone && !hasRemainder) return [`${key}: the tombstone is never forgotten`]
    if (!row || !table.rowClock.has(key)) return []
    const isNearAside = table.colliding(key, row.values).some(({ visible }) => !visible)
    return isNearAside ? [] : [`${key}: the entry in row_clock is never forgotten`]
  })
}

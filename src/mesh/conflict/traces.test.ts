import { describe, expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import { captureTruncate, captureWrite, rewriteOf, type LocalWrite } from './local-write.ts'
import type { Change, Key, Values } from './change.ts'
import { isBackdated, mayApply, mayRewrite, noteCommit, NO_COMMITS } from './clock.ts'
import { receiveHeartbeat, type Heartbeats } from './heartbeat.ts'
import { MemoryTable, type Elsewhere } from './memory-table.ts'
import { mustQueue, retriable, settledBy, type ParkedChange } from './parked.ts'
import { completeChange, repairVisibility, resolveChange } from './resolve.ts'
import { mayDropRowClock, mayDropTombstone, type RetentionFacts } from './retention.ts'
import { DEFAULT_RULES, type LocalRules } from './rules.ts'
import type { RowVersion } from './version.ts'

/** One node with one table, and no network: the order of arrival is as the test writes it. */
class Replica {
  readonly table: MemoryTable
  readonly #id: number
  readonly #rules: LocalRules
  readonly #peers = new Map<number, Replica>()

  constructor(id: number, rules: LocalRules) {
    this.#id = id
    this.#rules = rules
    this.table = new MemoryTable(rules)
  }

  meet(peers: readonly Replica[]): void {
    for (const peer of peers) this.#peers.set(peer.#id, peer)
  }

  insert(key: Key, values: Values, at: number): Change[] {
    return this.#write({ tag: 'insert', key, values }, at)
  }

  /** Columns that are not given are left as they are; `t` is TOAST. */
  update(key: Key, given: Values, at: number, newKey = key): Change[] {
    const values = { ...this.table.held(key).row?.values, ...given }
    const unchanged = 't' in given ? [] : 't' in values ? ['t'] : []
    return this.#write({ tag: 'update', oldKey: key, key: newKey, values, unchanged }, at)
  }

  delete(key: Key, at: number): Change[] {
    return this.#write({ tag: 'delete', key }, at)
  }

  truncate(at: number): Change[] {
    const version = this.version(at)
    const { writes, changes } = captureTruncate(this.table.entries(), version, this.#rules)
    this.table.write(writes)
    this.table.truncated = version
    return [...changes]
  }

  receive(...transactions: (readonly Change[])[]): this {
    for (const change of transactions.flat()) {
      this.table.carryOut(resolveChange(change, this.#rules), this.elsewhere())
    }
    return this
  }

  repair(): this {
    const decision = repairVisibility(this.table.aside(), this.#rules)
    this.table.carryOut(decision, this.elsewhere())
    return this
  }

  elsewhere(): Elsewhere {
    return {
      base: () => ({
        is: 'base',
        hadLocal: false,
        receivedUpTo: pgTimeOf(0n),
        isIncomplete: false,
        isOfThisTransaction: false,
      }),
      fetch: ({ nodeId, key }) => {
        const { row } = this.#peers.get(nodeId)!.table.held(key)
        return { is: 'fetch', row }
      },
    }
  }

  version(at: number): RowVersion {
    return { time: pgTimeOf(BigInt(at)), nodeId: this.#id }
  }

  visible(): Record<Key, Values> {
    const rows = this.table
      .entries()
      .flatMap(({ key, state: { row } }) => (row?.visible ? [[key, row.values]] : []))
    return Object.fromEntries(rows) as Record<Key, Values>
  }

  #write(write: LocalWrite, at: number): Change[] {
    const sendsOld = this.#rules.deltas.length > 0
    const held = (key: Key) => this.table.held(key)
    const { writes, changes } = captureWrite(write, held, this.version(at), this.#rules, sendsOld)
    this.table.write(writes)
    return [...changes]
  }
}

function three(rules: LocalRules = DEFAULT_RULES): [Replica, Replica, Replica] {
  const nodes = [1, 2, 3].map((id) => new Replica(id, rules)) as [Replica, Replica, Replica]
  for (const node of nodes) node.meet(nodes)
  return nodes
}

function expectAllToHold(nodes: readonly Replica[], rows: Record<Key, Values>): void {
  for (const node of nodes) expect(node.visible()).toEqual(rows)
  for (const node of nodes) expect(node.table.entries()).toEqual(nodes[0]!.table.entries())
}

const UNIQUE: LocalRules = {
  ...DEFAULT_RULES,
  uniques: [{ name: 'u', columns: ['u'], nullsCollide: false }],
}
const DELTA: LocalRules = { ...DEFAULT_RULES, deltas: ['d'] }

describe('collisions of unique values', () => {
  test('the owner of the newer row never saw a collision: the row that stood back is visible everywhere', () => {
    const [n1, n2, n3] = three(UNIQUE)
    const a = n1.insert('k2', { u: 'Y' }, 10)
    const b = n2.insert('k4', { u: 'Y' }, 10)
    const c = n1.insert('k4', { u: null }, 11)
    n1.receive(b)
    n2.receive(a)
    expect(Object.keys(n2.visible())).toEqual(['k4'])
    n2.receive(c)
    n3.receive(b, a)
    expect(n3.table.aside().map(({ key }) => key)).toEqual(['k2'])
    n3.receive(c)
    expectAllToHold([n1, n2, n3], { k2: { u: 'Y' }, k4: { u: null } })
  })

  test('a value that was given up before it was taken again collides only by order of arrival', () => {
    const [n1, n2, n3] = three(UNIQUE)
    const a = n3.insert('k2', { u: 'Z' }, 50)
    const b = n2.receive(a).update('k2', { u: null }, 90)
    const c = n1.receive(a, b).insert('k3', { u: 'Z' }, 130)
    n3.receive(c)
    expect(Object.keys(n3.visible())).toEqual(['k3'])
    n3.receive(b)
    n2.receive(c)
    expectAllToHold([n1, n2, n3], { k2: { u: null }, k3: { u: 'Z' } })
  })

  test('a local write that gives up a value lets the row return', () => {
    const [n1, n2] = three(UNIQUE)
    const a = n1.insert('k1', { u: 'Y' }, 10)
    const b = n2.insert('k2', { u: 'Y' }, 20)
    n1.receive(b)
    n2.receive(a)
    const c = n1.delete('k2', 30)
    expect(n1.visible()).toEqual({})
    n1.repair()
    n2.receive(c)
    expectAllToHold([n1, n2], { k1: { u: 'Y' } })
  })
})

describe('delta columns', () => {
  test('a row re-created after its delete, without any conflict: also where the delete comes last', () => {
    const [n1, n2, n3] = three(DELTA)
    const a = n1.insert('k1', { d: '9' }, 50)
    const b = n3.receive(a).delete('k1', 90)
    const c = n2.receive(a, b).insert('k1', { d: '2' }, 130)
    n1.receive(c, b)
    n3.receive(c)
    expectAllToHold([n1, n2, n3], { k1: { d: '2' } })
  })

  test('an insert that arrives after the update of its row', () => {
    const [n1, n2, n3] = three(DELTA)
    const a = n1.insert('k1', { d: '100' }, 10)
    const b = n2.receive(a).update('k1', { d: '110' }, 20)
    n3.receive(b)
    expect(n3.visible()).toEqual({ k1: { d: '10' } })
    n3.receive(a)
    n1.receive(b)
    expectAllToHold([n1, n2, n3], { k1: { d: '110' } })
  })

  test('an insert over a remainder starts from what the application wrote, on all nodes', () => {
    const [n1, n2, n3] = three(DELTA)
    const a = n1.insert('k1', { d: '10' }, 10)
    n2.receive(a)
    n3.receive(a)
    const b = n2.update('k1', { d: '13' }, 20)
    const c = n1.delete('k1', 30)
    n1.receive(b)
    expect(n1.table.held('k1').tombstone?.remainder).toEqual({ d: '3' })
    const e = n1.insert('k1', { d: '5' }, 40)
    expect(e.map(({ tag }) => tag)).toEqual(['insert', 'cancel'])
    n2.receive(c, e)
    n3.receive(c, e, b)
    expectAllToHold([n1, n2, n3], { k1: { d: '5' } })
  })
})

describe('TOAST values that were not sent', () => {
  test('come from the origin where the row is missing, or is not the one that was updated', () => {
    const [n1, n2, n3] = three()
    const a = n2.insert('k1', { v: '1', t: '2' }, 50)
    const b = n2.update('k1', { t: '6' }, 90)
    const c = n1.receive(a, b).update('k1', { v: '7' }, 130)
    n3.receive(c, a, b)
    n2.receive(c)
    expectAllToHold([n1, n2, n3], { k1: { v: '7', t: '6' } })
  })

  test('come from the origin although an older row of the same key stands here', () => {
    const [n1, n2, n3] = three()
    const a = n2.insert('k1', { v: '1', t: '2' }, 50)
    n3.receive(a)
    const b = n2.update('k1', { t: '6' }, 90)
    const c = n1.receive(a, b).update('k1', { v: '7' }, 130)
    expect(n3.receive(c).visible()).toEqual({ k1: { v: '7', t: '6' } })
  })

  test('a change that its origin has overwritten since is superseded', () => {
    const [n1, n2] = three()
    const a = n1.insert('k1', { v: '1', t: '2' }, 10)
    const b = n1.update('k1', { v: '2' }, 20)
    const c = n1.update('k1', { v: '3', t: '9' }, 30)
    n2.receive(b)
    expect(n2.visible()).toEqual({})
    n2.receive(a, c)
    expectAllToHold([n1, n2], { k1: { v: '3', t: '9' } })
  })

  test('a key update superseded at its origin still removes the old key', () => {
    const [n1, n2] = three()
    const a = n1.insert('k1', { v: '1', t: '2' }, 10)
    n2.receive(a)
    const b = n1.update('k1', { v: '2' }, 20, 'k2')
    const c = n1.delete('k2', 30)
    n2.receive(b)
    expect(n2.visible()).toEqual({})
    n2.receive(c)
    expect(n2.table.held('k1')).toEqual(n1.table.held('k1'))
  })
})

describe('parked changes', () => {
  const park = (place: number, change: Change): ParkedChange => ({
    table: 't',
    originId: 1,
    place: BigInt(place),
    change,
  })

  test('a delete waits behind the insert that could not be applied', () => {
    const [n1, , n3] = three()
    const [insert] = n1.insert('k1', { v: '1' }, 10) as [Change]
    const [remove] = n1.delete('k1', 11) as [Change]
    const parked = [park(1, insert)]
    expect(mustQueue(parked, 't', 1, remove)).toBe(true)
    expect([mustQueue(parked, 't', 2, remove), mustQueue(parked, 'other', 1, remove)]).toEqual([false, false])
    const both = [park(2, remove), park(1, insert)]
    expect(retriable(both)).toEqual([park(1, insert)])
    n3.receive([insert])
    expect(retriable([park(2, remove)])).toHaveLength(1)
    n3.receive([remove])
    expectAllToHold([n1, n3], {})
  })

  test('a key update holds both keys', () => {
    const [n1] = three()
    n1.insert('k1', { v: '1' }, 10)
    const [move] = n1.update('k1', { v: '1' }, 11, 'k2') as [Change]
    const [late] = n1.insert('k1', { v: '2' }, 12) as [Change]
    expect(mustQueue([park(1, move)], 't', 1, late)).toBe(true)
  })

  test('a truncate of the same transaction settles the parked insert', () => {
    const [n1, , n3] = three()
    const [insert] = n1.insert('k1', { v: '1' }, 10) as [Change]
    const [truncate] = n1.truncate(10) as [Change]
    expect(settledBy([park(1, insert)], 't', 1)).toHaveLength(1)
    expectAllToHold([n1, n3.receive([truncate])], {})
  })

  test('the tombstone stays while an older change is parked', () => {
    const [n1] = three()
    const [insert] = n1.insert('k1', { v: '1' }, 10) as [Change]
    n1.delete('k1', 11)
    const { tombstone } = n1.table.held('k1')
    const facts = { ...everyoneAt(100), parked: [] }
    expect(mayDropTombstone('k1', tombstone!, facts)).toBe(true)
    expect(mayDropTombstone('k1', tombstone!, { ...facts, parked: [park(1, insert)] })).toBe(false)
    const newer = park(1, { ...insert, version: n1.version(12) })
    expect(mayDropTombstone('k1', tombstone!, { ...facts, parked: [newer] })).toBe(true)
  })

  test('is complete when it is parked', () => {
    const [n1, n2] = three()
    n1.insert('k1', { v: '1', t: '2' }, 10)
    const [update] = n1.update('k1', { v: '2' }, 20) as [Change]
    const decision = completeChange(update)
    expect(decision.next().value).toEqual({ ask: 'fetch', key: 'k1', nodeId: 1 })
    const { row } = n1.table.held('k1')
    expect(decision.next({ is: 'fetch', row }).value).toMatchObject({
      change: { values: { v: '2', t: '2' } },
      givenUp: null,
    })
    expect(n2.visible()).toEqual({})
  })
})

describe('clocks', () => {
  const at = (time: number) => pgTimeOf(BigInt(time))

  test('nothing is applied before the own clock is past it', () => {
    expect([mayApply(at(11), at(12)), mayApply(at(12), at(12)), mayApply(at(13), at(12))]).toEqual([
      false,
      false,
      true,
    ])
    // What would become of it at 12: the local update is older than the row that it replaced.
    const [n1, n2] = three()
    const a = n2.insert('k1', { v: '1' }, 12)
    const b = n1.receive(a).update('k1', { v: '2' }, 12)
    n2.receive(b)
    expect(n2.visible()).not.toEqual(n1.visible())
  })

  test('a delete under a clock that stepped back is written again', () => {
    const [n1, n2, n3] = three()
    const a = n3.insert('k1', { v: '1' }, 10)
    n1.receive(a)
    n2.receive(a)
    const seen = noteCommit(NO_COMMITS, n3.version(10), 2)
    expect([isBackdated(seen, at(8)), isBackdated(seen, at(10)), isBackdated(seen, at(11))]).toEqual([
      true,
      true,
      false,
    ])
    const b = n2.delete('k1', 8)
    n1.receive(b)
    n3.receive(b)
    expect(Object.keys(n1.visible())).toEqual(['k1'])
    expect([mayRewrite(seen, at(10)), mayRewrite(seen, at(11))]).toEqual([false, true])
    const c = [rewriteOf('k1', n2.table.held('k1'), n2.version(12))]
    for (const node of [n1, n2, n3]) node.receive(c)
    expectAllToHold([n1, n2, n3], {})
  })
})

test('a row that a late truncate took away only where its clock had stepped back is deleted everywhere', () => {
  const [n1, n2, n3] = three()
  const a = n3.truncate(13)
  const b = n2.insert('k3', { v: '1' }, 15)
  const c = n2.update('k3', { v: '2' }, 10)
  n1.receive(b, c, a)
  n2.receive(a)
  n3.receive(b, c)
  expect([Object.keys(n1.visible()), Object.keys(n2.visible())]).toEqual([['k3'], []])
  const e = [rewriteOf('k3', n2.table.held('k3'), n2.version(16))]
  for (const node of [n1, n2, n3]) node.receive(e)
  expectAllToHold([n1, n2, n3], {})
})

test('a row inserted and truncated in one transaction does not survive elsewhere, one inserted after it does', () => {
  const [n1, n2] = three()
  const a = [...n1.insert('k3', { v: '1' }, 10), ...n1.truncate(10), ...n1.insert('k4', { v: '2' }, 10)]
  n2.receive(a)
  expectAllToHold([n1, n2], { k4: { v: '2' } })
})

/** All three nodes have claimed this time in their own streams, as n2 has received them. */
function everyoneAt(claim: number): RetentionFacts {
  const time = pgTimeOf(BigInt(claim))
  let heartbeats: Heartbeats = new Map()
  for (const nodeId of [1, 3]) {
    const applied = new Map([1, 2, 3].map((origin) => [origin, time]))
    heartbeats = receiveHeartbeat(heartbeats, { nodeId, time, claim: time, applied, seen: applied }, 8)
  }
  return { peers: [1, 3], heartbeats, parked: [], table: 't' }
}

describe('forgetting', () => {
  test('a tombstone stays until each stream is past it', () => {
    const [n1, n2, n3] = three()
    const a = n3.insert('k1', { v: '1' }, 13)
    const b = n1.receive(a).delete('k1', 14)
    n2.receive(b)
    const { tombstone } = n2.table.held('k1')
    expect(mayDropTombstone('k1', tombstone!, everyoneAt(14))).toBe(false)
    const heardOfN1Only = {
      ...everyoneAt(15),
      heartbeats: new Map([...everyoneAt(15).heartbeats].slice(0, 1)),
    }
    expect(mayDropTombstone('k1', tombstone!, heardOfN1Only)).toBe(false)
    expect(mayDropTombstone('k1', tombstone!, everyoneAt(15))).toBe(true)
    expect(n2.receive(a).visible()).toEqual({})
  })

  test('the version of a row stays while a row stands aside because of it', () => {
    const rules = { ...UNIQUE, deltas: ['d'] }
    const [n1, n2] = three(rules)
    const winner = n1.insert('k2', { u: 'Y', d: '1' }, 15)
    const loser = n2.insert('k4', { u: 'Y', d: '1' }, 13)
    n1.receive(loser)
    const entry = { version: n1.version(15), written: n2.version(12) }
    expect(mayDropRowClock(entry, true, everyoneAt(100))).toBe(false)
    expect(mayDropRowClock(entry, false, everyoneAt(100))).toBe(true)
    expect(mayDropRowClock(entry, false, everyoneAt(15))).toBe(false)
    // What became of it otherwise: k2 reads as older than k4.
    const forgotten = { ...n1.table.held('k2').row!, version: entry.written }
    n1.table.write([{ key: 'k2', before: n1.table.held('k2'), after: { row: forgotten, tombstone: null } }])
    expect(Object.keys(n1.repair().visible())).toEqual(['k4'])
    expect(Object.keys(n2.receive(winner).visible())).toEqual(['k2'])
  })
})

test('a merge function is applied to every change, also to an older one of the same origin', () => {
  const rules: LocalRules = { ...DEFAULT_RULES, merge: (a, b) => (Number(a['v']) < Number(b['v']) ? b : a) }
  const [n1, n2, n3] = three(rules)
  const a = n3.insert('k1', { v: '5' }, 5)
  n1.receive(a)
  n2.receive(a)
  const b = n3.update('k1', { v: '12' }, 10)
  const c = n1.update('k1', { v: '34' }, 20)
  const e = n3.receive(c).update('k1', { v: '3' }, 30)
  expect(n3.visible()).toEqual({ k1: { v: '34' } })
  n1.receive(b, e)
  n2.receive(c, b, e)
  expectAllToHold([n1, n2, n3], { k1: { v: '34' } })
})

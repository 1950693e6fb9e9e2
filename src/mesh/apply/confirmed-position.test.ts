import fc from 'fast-check'
import { expect, test } from 'vitest'
import { lsnOf, LSN_ZERO, type Lsn } from '../../core/lsn.ts'
import { ConfirmedPosition } from './confirmed-position.ts'

type Step =
  | { readonly tag: 'apply'; readonly provider: number; readonly wal: number }
  | { readonly tag: 'flush'; readonly part: number }
  | { readonly tag: 'look' }
  /** A look whose answer comes late: things happen in between. */
  | { readonly tag: 'late look'; readonly during: readonly Step[] }

const { step } = fc.letrec<{ step: Step }>((tie) => ({
  step: fc.oneof(
    { maxDepth: 2 },
    fc.record({
      tag: fc.constant('apply' as const),
      provider: fc.integer({ min: 0, max: 9 }),
      wal: fc.integer({ min: 0, max: 9 }),
    }),
    fc.record({ tag: fc.constant('flush' as const), part: fc.double({ min: 0, max: 1, noNaN: true }) }),
    fc.record({ tag: fc.constant('look' as const) }),
    fc.record({ tag: fc.constant('late look' as const), during: fc.array(tie('step'), { maxLength: 5 }) }),
  ),
}))

/** A server: a commit of an applied transaction lies in its WAL, which is flushed up to somewhere. */
class Server {
  insert = 100
  flushed = 100
  /** For each applied provider position, where its commit record ends here. */
  readonly commits: { readonly provider: number; readonly end: number }[] = []

  /** The last provider position of which all is durable here. */
  get durable(): number {
    let durable = 0
    for (const { provider, end } of this.commits) {
      if (end > this.flushed) break
      durable = provider
    }
    return durable
  }
}

function run(steps: readonly Step[], server: Server, position: ConfirmedPosition): void {
  for (const one of steps) {
    if (one.tag === 'apply') {
      server.insert += one.wal
      const provider = Number(position.applied) + one.provider
      server.commits.push({ provider, end: server.insert })
      position.onApplied(lsnOf(BigInt(provider)))
    } else if (one.tag === 'flush') {
      server.flushed += Math.floor((server.insert - server.flushed) * one.part)
    } else {
      const { applied } = position
      if (one.tag === 'late look') run(one.during, server, position)
      look(position, applied, server)
    }
    expect(Number(position.confirmed)).toBeLessThanOrEqual(server.durable)
    expect(position.confirmed).toBeLessThanOrEqual(position.applied)
  }
}

function look(position: ConfirmedPosition, applied: Lsn, server: Server): void {
  const before = position.confirmed
  const wal = { insertLsn: lsnOf(BigInt(server.insert)), flushLsn: lsnOf(BigInt(server.flushed)) }
  const moved = position.onLocalWal(applied, wal)
  expect(moved).toBe(position.confirmed > before)
  expect(position.confirmed).toBeGreaterThanOrEqual(before)
}

test('whatever happens in whatever order, nothing is confirmed that is not flushed; once all is flushed, all is confirmed', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
      const server = new Server()
      const position = new ConfirmedPosition()
      run(steps, server, position)
      look(position, position.applied, server)
      server.flushed = server.insert
      look(position, position.applied, server)
      expect(position.confirmed).toBe(position.applied)
    }),
    { numRuns: 3000 },
  )
})

test('positions never go back', () => {
  const position = new ConfirmedPosition(lsnOf(50n))
  position.onApplied(lsnOf(40n))
  expect([position.applied, position.confirmed]).toEqual([50n, 50n])
  expect(position.onLocalWal(lsnOf(50n), { insertLsn: lsnOf(1n), flushLsn: lsnOf(1n) })).toBe(false)
  expect(new ConfirmedPosition().confirmed).toBe(LSN_ZERO)
})

import { expect, test } from 'vitest'
import { pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import { appliedUpTo, claimOf, receiveHeartbeat, relationOf, type Heartbeats } from './heartbeat.ts'
import { collisionType, recordOf } from './record.ts'
import { DEFAULT_RULES } from './rules.ts'
import type { RowVersion } from './version.ts'

const at = (time: number): PgTime => pgTimeOf(BigInt(time))
const version = (time: number, nodeId: number): RowVersion => ({ time: at(time), nodeId })

/** A heartbeat of n1 that has applied, and seen, n2 up to these times. */
function heard(heartbeats: Heartbeats, time: number, applied: number, seen: number): Heartbeats {
  const heartbeat = {
    nodeId: 1,
    time: at(time),
    claim: at(time),
    applied: new Map([[2, at(applied)]]),
    seen: new Map([[2, at(seen)]]),
  }
  return receiveHeartbeat(heartbeats, heartbeat, 4)
}

test('a writer that had applied the older version is no conflict', () => {
  const heartbeats = heard(new Map(), 20, 15, 16)
  expect(relationOf(version(25, 1), version(14, 2), heartbeats)).toBe('ordered')
  // All before 15 is applied; 15 itself perhaps not.
  expect(relationOf(version(25, 1), version(15, 2), heartbeats)).toBe('unknown')
  // The heartbeat came after the write.
  expect(relationOf(version(20, 1), version(14, 2), heartbeats)).toBe('unknown')
})

test('what had not arrived by the next heartbeat was not known', () => {
  const heartbeats = heard(heard(new Map(), 20, 15, 16), 30, 15, 17)
  expect(relationOf(version(25, 1), version(18, 2), heartbeats)).toBe('concurrent')
  expect(relationOf(version(25, 1), version(17, 2), heartbeats)).toBe('unknown')
})

test('one origin is always in order; equal timestamps of two never', () => {
  expect(relationOf(version(25, 1), version(24, 1), new Map())).toBe('ordered')
  expect(relationOf(version(25, 2), version(25, 1), heard(new Map(), 20, 24, 24))).toBe('concurrent')
})

test('heartbeats: the last few are kept, and a lower claim takes nothing back', () => {
  let heartbeats: Heartbeats = new Map()
  for (const time of [10, 20, 30, 40, 50, 15]) heartbeats = heard(heartbeats, time, time, time)
  expect(heartbeats.get(1)).toHaveLength(4)
  expect(claimOf(heartbeats, 1)).toBe(50n)
  expect(claimOf(heartbeats, 2)).toBeLessThan(0n)
})

test('what is parked is not applied', () => {
  const heartbeats = heard(new Map(), 50, 50, 50)
  const change = { tag: 'delete', version: version(30, 1), key: 'k', old: null } as const
  const parked = [{ table: 't', originId: 1, place: 1n, change }]
  expect(appliedUpTo(heartbeats, [1], []).get(1)).toBe(50n)
  expect(appliedUpTo(heartbeats, [1], parked).get(1)).toBe(30n)
})

test('recorded: what is or may be concurrent, and whatever was dropped or met no row', () => {
  const outcome = { key: 'k', result: 'applied', conflict: 'update_origin_differs', met: null } as const
  expect(recordOf(outcome, 'ordered', DEFAULT_RULES)).toBeNull()
  expect(recordOf(outcome, 'concurrent', DEFAULT_RULES)).toMatchObject({
    concurrent: true,
    isForReview: false,
  })
  expect(recordOf(outcome, 'unknown', DEFAULT_RULES)).toMatchObject({ concurrent: null })
  expect(recordOf({ ...outcome, conflict: null }, 'concurrent', DEFAULT_RULES)).toBeNull()
  const dropped = { ...outcome, conflict: 'update_deleted' } as const
  expect(recordOf(dropped, 'ordered', DEFAULT_RULES)).toMatchObject({ concurrent: false })
  const manual = { ...DEFAULT_RULES, manual: new Set(['update_origin_differs'] as const) }
  expect(recordOf(outcome, 'concurrent', manual)).toMatchObject({ isForReview: true })
})

test('collisions of other unique keys have the names of PostgreSQL 18', () => {
  const one = { key: 'a', inFavourOf: 'b', constraints: ['u'] }
  expect(collisionType('insert', [one])).toBe('insert_exists')
  expect(collisionType('update', [one])).toBe('update_exists')
  expect(collisionType('update', [{ ...one, constraints: ['u', 'w'] }])).toBe('multiple_unique_conflicts')
  expect(collisionType('update', [one, { ...one, key: 'c' }])).toBe('multiple_unique_conflicts')
})

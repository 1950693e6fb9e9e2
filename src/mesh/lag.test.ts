import fc from 'fast-check'
import { expect, test } from 'vitest'
import { lsnOf } from '../core/lsn.ts'
import { lagBytes, lagSeconds, type LagFacts } from './lag.ts'

const NOW = 1_800_000_000_000
const facts = (change: Partial<LagFacts>): LagFacts => ({
  nowMs: NOW,
  lastCommitMs: NOW - 500,
  lastDelayMs: 20,
  providerLsn: lsnOf(1000n),
  appliedLsn: lsnOf(1000n),
  heartbeatIntervalMs: 1000,
  ...change,
})

test('bytes: never negative, null while a side is unknown', () => {
  expect(lagBytes(facts({ providerLsn: lsnOf(1500n) }))).toBe(500)
  expect(lagBytes(facts({ appliedLsn: lsnOf(1500n) }))).toBe(0)
  expect(lagBytes(facts({ providerLsn: null }))).toBeNull()
  expect(lagBytes(facts({ appliedLsn: null }))).toBeNull()
})

test.each<[string, Partial<LagFacts>, number | null]>([
  ['the delay of the last commit, while commits come', {}, 0.02],
  ['a commit dated in the future counts as no delay', { lastDelayMs: -300 }, 0],
  [
    'the heartbeats stay away, and there is WAL to apply',
    { lastCommitMs: NOW - 60_000, providerLsn: lsnOf(2000n) },
    60,
  ],
  [
    'the heartbeats stay away, and the provider cannot be asked',
    { lastCommitMs: NOW - 60_000, providerLsn: null },
    60,
  ],
  ['the heartbeats stay away, but everything is applied', { lastCommitMs: NOW - 60_000 }, 0.02],
  ['one late heartbeat is no lag', { lastCommitMs: NOW - 1900, providerLsn: lsnOf(2000n) }, 0.02],
  ['nothing applied yet, nothing to apply', { lastCommitMs: null, lastDelayMs: null }, 0],
  ['nothing applied yet', { lastCommitMs: null, lastDelayMs: null, providerLsn: lsnOf(2000n) }, null],
  ['nothing known', { lastCommitMs: null, lastDelayMs: null, providerLsn: null }, null],
])('seconds: %s', (_, change, seconds) => {
  expect(lagSeconds(facts(change))).toBe(seconds)
})

test('seconds are never negative', () => {
  const some = fc.option(fc.integer({ min: NOW - 100_000, max: NOW + 100_000 }))
  fc.assert(
    fc.property(
      some,
      fc.option(fc.integer({ min: -5000, max: 5000 })),
      fc.boolean(),
      (lastCommitMs, lastDelayMs, behind) => {
        const seconds = lagSeconds(
          facts({ lastCommitMs, lastDelayMs, providerLsn: lsnOf(behind ? 2000n : 1000n) }),
        )
        if (seconds !== null) expect(seconds).toBeGreaterThanOrEqual(0)
      },
    ),
  )
})

import fc from 'fast-check'
import { expect, test } from 'vitest'
import { Backoff, pause } from './backoff.ts'

/** A backoff whose clock and chance the test sets. */
function setUp(random: () => number = () => 0.5) {
  const clock = { ms: 0 }
  return { clock, backoff: new Backoff(() => clock.ms, random) }
}

test('delays double up to the longest', () => {
  const { backoff } = setUp()
  const delays = Array.from({ length: 10 }, () => backoff.next())
  expect(delays).toEqual([100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000])
})

test('jitter stays within a quarter', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 0.999, noNaN: true }), fc.nat(20), (chance, failures) => {
      const { backoff } = setUp(() => chance)
      for (let i = 0; i < failures; i++) backoff.next()
      const base = Math.min(100 * 2 ** failures, 15_000)
      const delay = backoff.next()
      expect(delay).toBeGreaterThanOrEqual(base * 0.75)
      expect(delay).toBeLessThan(base * 1.25)
    }),
  )
})

test('a long attempt was a success, one that only waited for an answer was not', () => {
  const { backoff, clock } = setUp()
  for (let i = 0; i < 5; i++) backoff.next()
  backoff.attemptStarts()
  // The default connect_timeout.
  clock.ms += 10_050
  expect(backoff.next()).toBe(3200)
  backoff.attemptStarts()
  clock.ms += 61_000
  expect(backoff.next()).toBe(100)
})

test('reset', () => {
  const { backoff } = setUp()
  for (let i = 0; i < 5; i++) backoff.next()
  backoff.reset()
  expect(backoff.next()).toBe(100)
})

test('a pause ends early when it is aborted', async () => {
  const stop = new AbortController()
  const paused = pause(60_000, stop.signal)
  stop.abort()
  await paused
  await pause(60_000, AbortSignal.abort())
})

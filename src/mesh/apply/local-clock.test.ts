import fc from 'fast-check'
import { expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import { LocalClock } from './local-clock.ts'

/** A server's clock and our monotonic one. Each sample takes some time to arrive. */
function setUp(sampleMs = 0) {
  const at = { serverMicros: 1_000_000n, monotonicMs: 0, samples: 0 }
  const pass = (ms: number): void => {
    at.monotonicMs += ms
    at.serverMicros += BigInt(Math.round(ms * 1000))
  }
  const clock = new LocalClock(
    () => {
      at.samples++
      const time = pgTimeOf(at.serverMicros)
      pass(sampleMs)
      return Promise.resolve(time)
    },
    () => at.monotonicMs,
  )
  return { at, pass, clock }
}

test('before the first sample nothing is past', () => {
  expect(setUp().clock.isPast(pgTimeOf(-1n))).toBe(false)
})

test('past means strictly past, and time goes on without asking', async () => {
  const { clock, pass, at } = setUp()
  await clock.refresh()
  const time = pgTimeOf(at.serverMicros)
  expect(clock.isPast(time)).toBe(false)
  pass(0.001)
  expect(clock.isPast(time)).toBe(true)
  expect(at.samples).toBe(1)
})

test('what it calls past is past at the server, however long samples take', async () => {
  const passes = fc.array(fc.tuple(fc.double({ min: 0, max: 50, noNaN: true }), fc.boolean()), {
    maxLength: 20,
  })
  await fc.assert(
    fc.asyncProperty(
      passes,
      fc.integer({ min: 0, max: 30 }),
      fc.bigInt({ min: 900_000n, max: 1_500_000n }),
      async (steps, sampleMs, micros) => {
        const { clock, pass, at } = setUp(sampleMs)
        for (const [ms, refresh] of steps) {
          pass(ms)
          if (refresh) await clock.refresh()
          // Rounding of the passing time to whole microseconds at each step is the test's, not the server's.
          if (clock.isPast(pgTimeOf(micros)))
            expect(at.serverMicros + BigInt(steps.length)).toBeGreaterThan(micros)
        }
      },
    ),
  )
})

test('waits until the server is past, and says by how much the change is ahead', async () => {
  const started = performance.now()
  const clock = new LocalClock(() =>
    Promise.resolve(pgTimeOf(BigInt(Math.floor((performance.now() - started) * 1000)))),
  )
  const ahead: number[] = []
  await clock.waitUntilPast(pgTimeOf(60_000n), new AbortController().signal, (ms) => ahead.push(ms))
  expect(performance.now() - started).toBeGreaterThanOrEqual(60)
  expect(ahead[0]).toBeGreaterThan(30)
  expect(ahead[0]).toBeLessThanOrEqual(60)
})

test('an aborted wait ends', async () => {
  const stop = new AbortController()
  const { clock } = setUp()
  const before = performance.now()
  await clock.waitUntilPast(pgTimeOf(1n << 60n), stop.signal, () => setTimeout(() => stop.abort(), 20))
  expect(performance.now() - before).toBeLessThan(500)
  expect(clock.isPast(pgTimeOf(1n << 60n))).toBe(false)
})

test('a sample that fails is told to who waits', async () => {
  const clock = new LocalClock(() => Promise.reject(new Error('gone')))
  await expect(clock.waitUntilPast(pgTimeOf(0n), new AbortController().signal, () => {})).rejects.toThrow(
    'gone',
  )
})

import { expect, test } from 'vitest'

import { pgTimeOf } from '../core/pg-time.ts'
import { clockAlarms, expectedClock } from './clock-watch.ts'

const previous = { time: pgTimeOf(5_000_000n), askedAtMs: 100, answeredAtMs: 110 }

test('a clock that is slewed, or asked slowly, has not stepped', () => {
  const { atLeast, expected } = expectedClock(previous, 1110)
  // A second after the answer: 10 % and 10 ms slower is still taken for slewing.
  expect(atLeast).toBe(5_890_000n)
  // It may have been read as soon as it was asked.
  expect(expected).toBe(6_010_000n)
})

test('alarms say until when, and name the tables whose truncate is in doubt', () => {
  expect(clockAlarms('n1', null, [])).toEqual([])
  const [truncate, stepped] = clockAlarms('n1', { steppedBackMs: 2000.4, until: '12:00' }, ['public.t'])
  expect(truncate).toMatchObject({ name: 'clock_truncate', subject: 'public.t' })
  expect(stepped).toMatchObject({ name: 'clock_stepped_back', subject: 'n1', severity: 'critical' })
  expect(stepped!.message).toContain('2000 ms')
  expect(stepped!.message).toContain('before 12:00')
})

import fc from 'fast-check'
import { expect, test } from 'vitest'
import { formatPgTime, pgTimeFromUnixMs, pgTimeOf, unixMsOf } from './pg-time.ts'

/** From year 1 to 9999: where the ISO text has four digits. */
const milliseconds = fc.integer({
  min: Date.parse('0001-01-01T00:00:00Z'),
  max: Date.parse('9999-12-31T23:59:59Z'),
})

test('milliseconds come back exactly within a hundred years of now', () => {
  const near = fc.integer({ min: Date.parse('1925-01-01'), max: Date.parse('2125-01-01') })
  fc.assert(
    fc.property(near, (ms) => {
      expect(unixMsOf(pgTimeFromUnixMs(ms))).toBe(ms)
    }),
  )
})

test('microseconds are kept in the text, before and after 2000', () => {
  fc.assert(
    fc.property(milliseconds, fc.integer({ min: 0, max: 999 }), (ms, micros) => {
      const time = pgTimeOf(BigInt(ms - Date.UTC(2000, 0)) * 1000n + BigInt(micros))
      const iso = new Date(ms).toISOString()
      expect(formatPgTime(time)).toBe(`${iso.slice(0, -1)}${String(micros).padStart(3, '0')}Z`)
    }),
  )
})

test('the order of times is the order of their texts', () => {
  const times = milliseconds.map((ms) => pgTimeOf(BigInt(ms - Date.UTC(2000, 0)) * 1000n))
  fc.assert(
    fc.property(times, times, (a, b) => {
      expect(formatPgTime(a) < formatPgTime(b)).toBe(a < b)
    }),
  )
})

test('the epochs', () => {
  expect(pgTimeFromUnixMs(0)).toBe(-946_684_800_000_000n)
  expect(formatPgTime(pgTimeOf(0n))).toBe('2000-01-01T00:00:00.000000Z')
  expect(formatPgTime(pgTimeOf(-1n))).toBe('1999-12-31T23:59:59.999999Z')
  expect(pgTimeFromUnixMs(Date.UTC(2000, 0) + 0.001)).toBe(1n)
})

test('what no calendar has four digits for still prints as PostgreSQL reads it', () => {
  const year = 366n * 86_400n * 1_000_000n
  expect(formatPgTime(pgTimeOf(BigInt(Date.UTC(12_345, 0) - Date.UTC(2000, 0)) * 1000n))).toBe(
    '12345-01-01T00:00:00.000000Z',
  )
  expect(formatPgTime(pgTimeOf(-2100n * year))).toMatch(/^0\d{3}-\d\d-\d\dT.*Z BC$/)
  expect(formatPgTime(pgTimeOf(0x7fff_ffff_ffff_ffffn))).toBe('infinity')
  expect(formatPgTime(pgTimeOf(-0x8000_0000_0000_0000n))).toBe('-infinity')
  expect(() => formatPgTime(pgTimeOf(9_223_371_331_199_999_999n))).not.toThrow()
})

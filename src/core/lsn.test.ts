import fc from 'fast-check'
import { expect, test } from 'vitest'
import { formatLsn, lsnOf, LSN_ZERO, maxLsn, parseLsn } from './lsn.ts'

const lsns = fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }).map(lsnOf)

test('what is printed is parsed as the same position', () => {
  fc.assert(
    fc.property(lsns, (lsn) => {
      expect(parseLsn(formatLsn(lsn))).toBe(lsn)
    }),
  )
})

test('prints as PostgreSQL does', () => {
  expect(formatLsn(LSN_ZERO)).toBe('0/0')
  expect(formatLsn(lsnOf(0x16_b374_d848n))).toBe('16/B374D848')
  expect(formatLsn(lsnOf(0x1_0000_0001n))).toBe('1/1')
  expect(formatLsn(lsnOf(0xffff_ffff_ffff_ffffn))).toBe('FFFFFFFF/FFFFFFFF')
  expect(parseLsn('16/b374d848')).toBe(0x16_b374_d848n)
})

test.each(['', '/', '0', '0/', '/0', '1/2/3', ' 0/0', '0/0\n', 'G/0', '123456789/0', '0/123456789', '-1/0'])(
  'refuses %j',
  (text) => {
    expect(() => parseLsn(text)).toThrow(expect.objectContaining({ code: 'INVALID_VALUE' }))
  },
)

test('the greater one', () => {
  fc.assert(
    fc.property(lsns, lsns, (a, b) => {
      const max = maxLsn(a, b)
      expect(max >= a && max >= b && (max === a || max === b)).toBe(true)
    }),
  )
})

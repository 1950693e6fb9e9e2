import fc from 'fast-check'
import { expect, test } from 'vitest'
import { addDecimals, formatDecimal, negateDecimal, parseDecimal, type Decimal } from './decimal.ts'

const decimal = fc.record({ digits: fc.bigInt(-(10n ** 40n), 10n ** 40n), scale: fc.nat(20) })

const add = (...texts: string[]): string =>
  formatDecimal(
    texts.map(parseDecimal).reduce((sum, it): Decimal => addDecimals(sum, it), { digits: 0n, scale: 0 }),
  )

test.each([
  ['0.1', '0.2', '0.3'],
  ['1.50', '-1.5', '0.00'],
  ['99999999999999999999.99', '0.01', '100000000000000000000.00'],
  ['-0.05', '0.02', '-0.03'],
  ['9223372036854775807', '1', '9223372036854775808'],
  ['.5', '+1.', '1.5'],
])('%s + %s = %s, exactly', (a, b, sum) => expect(add(a, b)).toBe(sum))

test.each(['NaN', 'Infinity', '', '.', '-', '1e3', ' 1', '1,0', '0x1'])('%s is no decimal', (text) => {
  expect(() => parseDecimal(text)).toThrow(/a finite number/)
})

test('what is printed reads back as itself', () => {
  const property = fc.property(decimal, (it) => {
    expect(parseDecimal(formatDecimal(it))).toMatchObject({ digits: it.digits, scale: it.scale })
  })
  fc.assert(property)
})

test('the order of additions cannot be told from the text of the sum', () => {
  fc.assert(
    fc.property(fc.array(decimal, { maxLength: 8 }), fc.infiniteStream(fc.nat()), (terms, order) => {
      const sum = (it: readonly Decimal[]): string => add(...it.map(formatDecimal))
      const keyed = terms.map((term) => ({ term, at: order.next().value as number }))
      expect(sum(keyed.toSorted((a, b) => a.at - b.at).map(({ term }) => term))).toBe(sum(terms))
      const negated = terms.map(negateDecimal)
      expect(parseDecimal(sum([...terms, ...negated])).digits).toBe(0n)
    }),
  )
})

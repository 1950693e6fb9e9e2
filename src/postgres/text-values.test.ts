import fc from 'fast-check'
import { expect, test } from 'vitest'
import { formatParam, parseTextValue, type SqlValue } from './text-values.ts'

const INT8_ARRAY = 1016
const TEXT_ARRAY = 1009

test('what a parameter is written as is read as the same value', () => {
  const int8 = fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n })
  fc.assert(
    fc.property(
      fc.array(fc.option(fc.string())),
      fc.array(fc.option(int8)),
      fc.uint8Array(),
      (texts, ids, bytes) => {
        expect(parseTextValue(formatParam(texts)!, TEXT_ARRAY)).toEqual(texts)
        expect(parseTextValue(formatParam(ids)!, INT8_ARRAY)).toEqual(ids)
        expect(parseTextValue(formatParam(Buffer.from(bytes))!, 17)).toEqual(Buffer.from(bytes))
      },
    ),
  )
})

test('arrays as array_out prints them', () => {
  const quote = (value: string | null): string => {
    if (value === null) return 'NULL'
    const needed = value === '' || /^null$/i.test(value) || /[{}",\\\s]/.test(value)
    return needed ? `"${value.replaceAll(/["\\]/g, '\\$&')}"` : value
  }
  const print = (value: SqlValue): string =>
    Array.isArray(value)
      ? `{${value.map((item) => print(item as SqlValue)).join(',')}}`
      : quote(value as string | null)
  const item = fc.option(
    fc.string({ unit: fc.constantFrom('a', 'NULL', '"', '\\', '{', '}', ',', ' ', '\n', 'é') }),
  )
  const grid = fc.array(fc.array(item, { minLength: 1 }), { minLength: 1 })
  fc.assert(
    fc.property(
      fc.oneof(fc.array(item), grid),
      fc.constantFrom('', '[0:3]=', '[-1:1][2:3]='),
      (value, bounds) => {
        expect(parseTextValue(bounds + print(value), TEXT_ARRAY)).toEqual(value)
      },
    ),
  )
})

test.each<[string, number, SqlValue]>([
  ['t', 16, true],
  ['f', 16, false],
  ['-7', 21, -7],
  ['4294967295', 26, 4_294_967_295],
  ['Infinity', 701, Number.POSITIVE_INFINITY],
  ['1.50', 1700, '1.50'],
  ['[1]', 114, [1]],
  ['abc', 17, 'abc'],
  ['{t,f,NULL}', 1000, [true, false, null]],
])('%s of type %i', (text, oid, value) => {
  expect(parseTextValue(text, oid)).toEqual(value)
})

test('parameters', () => {
  expect([null, undefined, true, 1.5, 7n, 'x', new Date(0)].map(formatParam)).toEqual([
    null,
    null,
    'true',
    '1.5',
    '7',
    'x',
    '1970-01-01T00:00:00.000Z',
  ])
})

import { expect, test } from 'vitest'
import { differences } from './table-hash.ts'

test('equal tables differ in nothing', () => {
  expect(differences({ a: '1 rows, 5', b: '0 rows, 0' }, { a: '1 rows, 5', b: '0 rows, 0' })).toEqual([])
})

test('other content and a table that was not read are differences', () => {
  const found = differences({ a: '2 rows, 5', b: '0 rows, 0' }, { a: '2 rows, 6' })
  expect(found).toEqual([
    'a: 2 rows, 5 at the provider, 2 rows, 6 at the subscriber',
    'b: 0 rows, 0 at the provider, undefined at the subscriber',
  ])
})

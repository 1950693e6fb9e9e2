import fc from 'fast-check'
import { expect, test } from 'vitest'
import { findPassword, type PassFileKey } from './pass-file.ts'

const key: PassFileKey = { host: 'db', port: 5432, database: 'app', user: 'ann' }

const escape = (text: string): string => text.replaceAll(/[\\:]/g, '\\$&')
const line = ({ host, port, database, user }: PassFileKey, password: string): string =>
  [host, String(port), database, user, password].map(escape).join(':')

test.each([
  ['db:5432:app:ann:secret', 'secret'],
  ['*:*:*:*:secret', 'secret'],
  ['db:5433:app:ann:wrong\n*:5432:*:ann:first\n*:*:*:*:second', 'first'],
  ['# db:5432:app:ann:wrong\r\ndb:5432:app:ann:secret\r\n', 'secret'],
  ['db:5432:app:ann:a\\:b\\\\c', 'a:b\\c'],
  ['db:5432:app:ann:a:b', 'a:b'],
  ['db:5432:app:ann:', undefined],
  ['db:5432:app:ann', undefined],
  ['d*:5432:app:ann:secret', undefined],
  ['\\*:5432:app:ann:secret', undefined],
  ['', undefined],
])('%j', (text, password) => {
  expect(findPassword(text, key)).toBe(password)
})

test('any names and any password, found behind lines for others', () => {
  const name = fc.string({ minLength: 1, unit: fc.constantFrom(':', '\\', 'a', ' ', '#', 'é', '@') })
  const keys = fc.record({
    host: name.map((text) => `h${text}`),
    port: fc.nat(65_535),
    database: name,
    user: name,
  })
  fc.assert(
    fc.property(keys, name, (wanted, password) => {
      const others = [
        { ...wanted, user: `${wanted.user}x` },
        { ...wanted, host: 'other' },
      ]
      const text = [...others.map((other) => line(other, 'wrong')), line(wanted, password)].join('\n')
      expect(findPassword(text, wanted)).toBe(password)
    }),
  )
})

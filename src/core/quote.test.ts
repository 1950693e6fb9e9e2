import fc from 'fast-check'
import { expect, test } from 'vitest'
import { quoteIdent, quoteLiteral, quoteQualified } from './quote.ts'

const tricky = fc.string({ unit: fc.constantFrom('"', "'", '\\', 'a', ' ', ';', '$', 'é', '\n') })

/** What PostgreSQL's scanner takes a whole `"..."` for; undefined when it ends early. */
function readIdent(quoted: string): string | undefined {
  const match = /^"((?:[^"]|"")*)"$/.exec(quoted)
  return match?.[1]?.replaceAll('""', '"')
}

test('a quoted identifier is one identifier, with that name', () => {
  fc.assert(
    fc.property(tricky, (name) => {
      expect(readIdent(quoteIdent(name))).toBe(name)
    }),
  )
})

test('both parts of a qualified name are quoted', () => {
  expect(quoteQualified('a.b', 'c"d')).toBe('"a.b"."c""d"')
})

test('a quoted literal is one literal with that value, whatever standard_conforming_strings is', () => {
  fc.assert(
    fc.property(tricky, (text) => {
      const quoted = quoteLiteral(text)
      const escaped = /^ E'((?:[^'\\]|''|\\[^])*)'$/.exec(quoted)
      const plain = /^'((?:[^'\\]|'')*)'$/.exec(quoted)
      const value = escaped
        ? escaped[1]!.replaceAll(/''|\\([^])/g, (_, c: string | undefined) => c ?? "'")
        : plain?.[1]!.replaceAll("''", "'")
      expect(value).toBe(text)
    }),
  )
})

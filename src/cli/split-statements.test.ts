import fc from 'fast-check'
import { describe, expect, it } from 'vitest'

import { splitStatements } from './split-statements.ts'

const texts = (script: string): string[] => splitStatements(script).map((statement) => statement.text)

describe('a semicolon ends a statement', () => {
  it('between statements', () => {
    expect(texts(' select 1 ;\n select 2; ')).toEqual(['select 1', 'select 2'])
    expect(texts('')).toEqual([])
    expect(texts(';; -- nothing\n /* ; */ ;')).toEqual([])
  })

  it.each([
    [`select ';' ; x`, [`select ';'`, 'x']],
    [`select 'a''; b' ; x`, [`select 'a''; b'`, 'x']],
    [`select e'a\\'; b' ; x`, [`select e'a\\'; b'`, 'x']],
    [`select 'a\\' ; x`, [`select 'a\\'`, 'x']],
    [`select "a;""b" ; x`, [`select "a;""b"`, 'x']],
    ['select $$a;b$$ ; x', ['select $$a;b$$', 'x']],
    ['select $t$a; $$ ; $t$ ; x', ['select $t$a; $$ ; $t$', 'x']],
    ['select a$b$c ; x', ['select a$b$c', 'x']],
    ['select $1 ; x', ['select $1', 'x']],
    ['select 1 -- a; b\n ; x', ['select 1 -- a; b', 'x']],
    ['select 1 /* a; /* b; */ c; */ ; x', ['select 1 /* a; /* b; */ c; */', 'x']],
    [
      'create rule r as on insert to t do (select 1; select 2) ; x',
      ['create rule r as on insert to t do (select 1; select 2)', 'x'],
    ],
    [
      'create function f() returns int begin atomic select case when true then 1; end; select 2; end ; x',
      ['create function f() returns int begin atomic select case when true then 1; end; select 2; end', 'x'],
    ],
    [
      'create or replace procedure p() begin atomic select 1; end ; x',
      ['create or replace procedure p() begin atomic select 1; end', 'x'],
    ],
    ['begin; select 1; end; x', ['begin', 'select 1', 'end', 'x']],
    ["select 'open ; x", ["select 'open ; x"]],
    ['?;x', ['?', 'x']],
  ])('%s', (script, expected) => {
    expect(texts(script)).toEqual(expected)
  })
})

it('offsets point at the statements', () => {
  const script = '-- note\n select 1;\n\n  select 2'
  for (const { text, offset } of splitStatements(script))
    expect(script.slice(offset).startsWith(text)).toBe(true)
})

it('statements joined by semicolons come apart again, whatever is in their strings and comments', () => {
  const part = fc.oneof(
    fc.string().map((text) => `'${text.replaceAll("'", "''")}'`),
    fc.string().map((text) => `"${text.replaceAll('"', '""')}"`),
    fc.string().map((text) => `$q$${text.replaceAll('$', '')}$q$`),
    fc.string().map((text) => `/* ${text.replaceAll(/[*/]/g, '')} */ 1`),
    fc.string().map((text) => `(${text.replaceAll(/[^a-z;]/g, ' ')})`),
    fc.constantFrom('a', '1', 'e', '+'),
  )
  const statement = fc.array(part, { minLength: 1, maxLength: 5 }).map((parts) => `select ${parts.join(' ')}`)
  fc.assert(
    fc.property(fc.array(statement, { maxLength: 5 }), (statements) => {
      expect(texts(statements.join(' ; '))).toEqual(statements)
    }),
  )
})

import { describe, expect, it } from 'vitest'

import { ServerError } from '../postgres/server-error.ts'
import { formatJson } from './output.ts'
import { locate } from './sql-session.ts'
import { errorLines, resultLines, sqlDocument, uniqueNames } from './sql.ts'

const plain = (_: string, text: string): string => text
const field = (name: string, typeOid: number): { name: string; typeOid: number; format: number } => ({
  name,
  typeOid,
  format: 0,
})

describe('results for people', () => {
  it('NULL, the text NULL and the empty text differ', () => {
    const lines = resultLines(
      {
        command: 'SELECT 3',
        rowCount: 3,
        fields: [field('n', 23), field('t', 25)],
        rows: [
          ['1', null],
          ['22', 'NULL'],
          [null, ''],
        ],
      },
      plain,
    )
    expect(lines).toEqual(['   n  t', '   1  NULL', "  22  'NULL'", "NULL  ''", '(3 rows)'])
  })

  it('a statement without rows shows its tag', () => {
    expect(resultLines({ command: 'INSERT 0 1', rowCount: 1, fields: null, rows: [] }, plain)).toEqual([
      'INSERT 0 1',
    ])
    expect(resultLines({ command: 'SELECT 1', rowCount: 1, fields: [], rows: [[]] }, plain)).toEqual([
      '(1 row)',
    ])
  })
})

it('an error shows its place in the script', () => {
  const sql = "select 'ä€😀';\nselect  '日本', oops"
  const at = Array.from(sql.slice(0, sql.indexOf('oops'))).length + 1
  const error = new ServerError('h:1/d', {
    severity: 'ERROR',
    sqlstate: '42703',
    message: 'column "oops" does not exist',
    hint: 'Look again.',
  })
  expect(errorLines({ error, place: locate(sql, at) }, plain)).toEqual([
    'ERROR 42703: column "oops" does not exist',
    "  line 2, column 15: select  '日本', oops",
    `${' '.repeat('  line 2, column 15: '.length + 16)}^`,
    '  hint: Look again.',
  ])
  expect(locate('select 1', 1)).toEqual({ line: 1, column: 1, text: 'select 1' })
})

it('JSON has PostgreSQL numbers with all digits, NaN as text, json as it is', () => {
  const document = sqlDocument(
    [
      {
        command: 'SELECT 1',
        rowCount: 1,
        fields: [
          field('a', 20),
          field('b', 1700),
          field('c', 1700),
          field('d', 3802),
          field('e', 16),
          field('a', 25),
        ],
        rows: [['9007199254740993', '1.10', 'NaN', '{"x": 12345678901234567890}', 't', null]],
      },
    ],
    null,
  )
  const [, rows] = /"rows": \[(.*)\]\s*\}\s*\],/s.exec(formatJson(document))!
  expect(rows!.replaceAll(/\s+/g, '')).toBe(
    '{"a":9007199254740993,"b":1.10,"c":"NaN","d":{"x":12345678901234567890},"e":true,"a_2":null}',
  )
})

it('columns of one name get numbers that no other column has', () => {
  expect(uniqueNames(['a', 'a_2', 'a', 'a'])).toEqual(['a', 'a_2', 'a_3', 'a_4'])
})

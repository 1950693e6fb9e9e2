import { describe, expect, it } from 'vitest'

import { keyText, pairColumns, rowDiffLines, rowLines } from './row-diff.ts'

const plain = (_tone: string, text: string): string => text

describe('two rows', () => {
  it('in the order of the table, what differs marked; null, an empty text and none are told apart', () => {
    const local = { b: 'same', a: '1', gone: 'x', empty: '', word: 'NULL', none: null }
    const remote = { b: 'same', a: '2', empty: null, word: null, none: null, unsent: 'y' }
    const pairs = pairColumns(local, remote, ['a', 'b', 'missing', 'empty'])
    expect(rowDiffLines(pairs, ['here (n1)', 'remote (n2)'], plain)).toEqual([
      '   column  here (n1)  remote (n2)',
      '*  a       1          2',
      '   b       same       same',
      "*  empty   ''         NULL",
      '   gone    x          -',
      '   none    NULL       NULL',
      '   unsent  -          y',
      "*  word    'NULL'     NULL",
    ])
  })

  it('one that is not there is no difference', () => {
    expect(pairColumns(null, { a: '1' }, [])).toEqual([
      { column: 'a', local: undefined, remote: '1', isChanged: false },
    ])
    expect(pairColumns(null, null, ['a'])).toEqual([])
  })

  it('control characters are shown, long values cut where they differ', () => {
    const start = 'x'.repeat(100)
    const lines = rowDiffLines(
      pairColumns(
        { t: `${start}left${start}`, 'c\n': '\u001b[31m' },
        { t: `${start}right${start}`, 'c\n': 'b' },
        ['t'],
      ),
      ['l', 'r'],
      plain,
    )
    expect(lines[1]).toBe(
      `*  t       ...${'x'.repeat(10)}left${'x'.repeat(46)}... (204 characters)  ...${'x'.repeat(10)}right${'x'.repeat(45)}... (205 characters)`,
    )
    expect(lines[2]).toContain(String.raw`c\n`)
    expect(lines[2]).toContain(String.raw`\x1b[31m`)
  })
})

it('one row, and a key', () => {
  expect(rowLines({ b: null, a: '1' }, 'arriving', ['a', 'b'], plain)).toEqual([
    'column  arriving',
    'a       1',
    'b       NULL',
  ])
  expect(keyText({ id: '1', region: 'e\tu' })).toBe(String.raw`id = 1, region = e\tu`)
  expect(keyText(null)).toBe('')
})

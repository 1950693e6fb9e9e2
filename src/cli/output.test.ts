import { describe, expect, it } from 'vitest'

import {
  displayWidth,
  formatBytes,
  formatJson,
  formatSeconds,
  formatTable,
  paintFor,
  printable,
} from './output.ts'

describe('table', () => {
  it('aligns by what the terminal shows: colours count nothing, wide characters two', () => {
    const paint = paintFor({ isTTY: true }, {})
    const lines = formatTable(
      [{ title: 'name' }, { title: 'rows', align: 'right' }],
      [
        [paint('red', 'ab'), '1'],
        ['日本語', '1000'],
        ['é\u0301x', '22'],
      ],
    )
    expect(lines.map(displayWidth)).toEqual([12, 12, 12, 12])
    expect(lines[2]).toBe('日本語  1000')
  })

  it('leaves nothing at the ends of lines', () => {
    expect(formatTable([{ title: 'a' }, { title: 'b' }], [['xxxx', '']])).toEqual(['a     b', 'xxxx'])
  })
})

describe('colour', () => {
  it('only on a terminal, and not with NO_COLOR or a dumb terminal', () => {
    expect(paintFor({ isTTY: true }, {})('red', 'x')).not.toBe('x')
    expect(paintFor({ isTTY: true }, { NO_COLOR: '1' })('red', 'x')).toBe('x')
    expect(paintFor({ isTTY: true }, { TERM: 'dumb' })('red', 'x')).toBe('x')
    expect(paintFor({}, {})('red', 'x')).toBe('x')
  })
})

it('shows control characters of stored values instead of sending them', () => {
  expect(printable('a\nb\tc\u001b[31m\u009b')).toBe('a\\nb\\tc\\x1b[31m\\x9b')
  expect(printable('ärger 日本')).toBe('ärger 日本')
})

it('keeps every digit of a bigint in JSON', () => {
  expect(formatJson({ n: 9007199254740993n, gone: undefined })).toBe('{\n  "n": 9007199254740993\n}')
})

it('prints sizes and durations for people', () => {
  expect([0, 1023, 1024, 1536, 10 * 1024 ** 3].map(formatBytes)).toEqual([
    '0 B',
    '1023 B',
    '1.0 kB',
    '1.5 kB',
    '10 GB',
  ])
  expect([0.0351, 1.25, 75, 7500].map(formatSeconds)).toEqual(['35 ms', '1.3 s', '1 min 15 s', '2 h 5 min'])
})

import { expect, test } from 'vitest'
import { assert, AssertionError, unreachable } from './assert.ts'
import { ERROR_CODES } from './error-codes.ts'
import { messageOf, SternaError } from './errors.ts'

test('facts fill message and hint; what is missing is a question mark', () => {
  const error = new SternaError('KEY_DIFFERS', { table: 'a.b', local: ['id', 'x'], node: 'n1' })
  expect(error.message).toBe('table a.b has key (id, x) on n1 and (?) on ?')
  expect(error.hint).toContain('Give a.b the same primary key')
  expect(error.toJSON()).toEqual({ code: 'KEY_DIFFERS', message: error.message, hint: error.hint })
  expect([error.retry, error.exitCode]).toEqual([true, 3])
})

test('a fact is text, not a template or a replacement pattern', () => {
  const value = '{expected} $& $1 {value}'
  expect(new SternaError('INVALID_VALUE', { what: 'x', value, expected: 'y' }).message).toBe(
    `x: "${value}" is not valid; expected y`,
  )
})

test('the cause is kept, and absent when there is none', () => {
  const cause = new Error('why')
  expect(new SternaError('INVALID_VALUE', {}, cause).cause).toBe(cause)
  expect('cause' in new SternaError('INVALID_VALUE')).toBe(false)
})

test('one line for anything that was thrown', () => {
  expect(messageOf(new Error('a'))).toBe('a')
  expect(messageOf(new AggregateError([new Error('first'), new Error('second')]))).toBe('first')
  expect(messageOf(new AggregateError([], 'none'))).toBe('none')
  expect(messageOf('text')).toBe('text')
  expect(messageOf(undefined)).toBe('undefined')
})

test.each(Object.entries(ERROR_CODES))(
  '%s: its hint uses only what its message or the code gives',
  (_, entry) => {
    expect(entry.message).not.toBe('')
    expect(entry.cause).toMatch(/\.$/)
    expect(entry.action).not.toBe('')
  },
)

test('assertions stay on', () => {
  expect(() => assert(false, 'broken')).toThrow(AssertionError)
  expect(() => unreachable('x' as never)).toThrow('unreachable: "x"')
})

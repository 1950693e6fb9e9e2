import { expect, test } from 'vitest'

import { ERROR_CODES, type ErrorEntry } from '../src/core/error-codes.ts'
import { renderErrorPage, sqlErrorsOf } from './error-page.ts'

test('an entry has message, cause, action, retry and exit code', () => {
  const page = renderErrorPage(
    {
      B_CODE: { message: 'b', cause: 'c', action: 'a', retry: false, exitCode: 3 },
      A_CODE: { message: '"{x}" <broke>', cause: 'It_is.', action: 'Do *this*.', retry: true, exitCode: 4 },
    },
    [],
  )
  expect(page).toContain(
    [
      '## A_CODE',
      '',
      '> "{x}" \\<broke\\>',
      '',
      '- **Cause:** It\\_is.',
      '- **Action:** Do \\*this\\*.',
      '- **Retried:** yes',
      '- **Exit code:** 4',
      '',
      '## B_CODE',
    ].join('\n'),
  )
  expect(page).not.toContain('SQLSTATE')
})

test('errors of class ST are found in SQL, with message and hint', () => {
  const text = `
    raise exception 'node % isn''t here; sorry', name using errcode = 'ST002', hint = format('See %s; then retry.', x);
    raise exception using message = 'not listed';
    raise exception 'other' using errcode = '22023';
    raise 'short form' using hint = 'First.', errcode = 'ST001';
    raise exception 'node % isn''t here; sorry', name using errcode = 'ST002', hint = format('See %s; then retry.', y);`
  const errors = sqlErrorsOf([{ path: 'a.sql', text }])
  expect(errors).toEqual([
    { code: 'ST001', message: 'short form', hint: 'First.' },
    { code: 'ST002', message: "node % isn't here; sorry", hint: 'See %s; then retry.' },
  ])
  expect(renderErrorPage({}, errors)).toContain('| ST001 | short form | First. |')
})

test.each(Object.entries(ERROR_CODES as Record<string, ErrorEntry>))('%s has all its parts', (_, entry) => {
  expect(entry.message).toMatch(/[^.]$/)
  expect(entry.cause).not.toBe('')
  expect(entry.action).not.toBe('')
})

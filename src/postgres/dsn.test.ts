import { expect, test } from 'vitest'

import { messageOf } from '../core/errors.ts'
import { parseDsn } from './dsn.ts'

test.each([
  'postgresql://ann:hunter2/rest@db/app',
  'postgresql://ann:hunter2?rest@db/app',
  'postgresql://ann:start@hunter2@db:5432/app',
  'postgresql://ann:start@hunter2/rest@db/app',
  'postgresql://ann:start@hunter2?rest@db/app',
  'postgresql://ann:hunter2%zz@db/app',
  'host=db password=start hunter2',
  "host=db password='hunter2",
])('a password that is not escaped is refused and gets into no message: %s', (dsn) => {
  let message = 'accepted'
  try {
    parseDsn(dsn, {})
  } catch (error) {
    message = messageOf(error)
  }
  expect(message).toMatch(/^connection string: /)
  expect(message).not.toContain('hunter2')
})

test('an escaped password is taken', () => {
  expect(parseDsn('postgresql://ann:a%2Fb%40c%3Fd:e@db:5433/app?sslmode=require', {})).toMatchObject({
    user: 'ann',
    password: 'a/b@c?d:e',
    host: 'db',
    port: 5433,
    database: 'app',
    sslMode: 'require',
  })
})

import { expect, it } from 'vitest'

import { SternaError } from '../core/errors.ts'
import { nodesOf } from './cluster.ts'

it('names, connection strings of both forms, regions', () => {
  expect(
    nodesOf(
      {
        node: ['n1=postgresql://me@db1/app?sslmode=require', 'n2=host=db2 dbname=app'],
        region: ['n2=us-east'],
      },
      {},
    ),
  ).toEqual([
    { name: 'n1', dsn: 'postgresql://me@db1/app?sslmode=require', region: undefined },
    { name: 'n2', dsn: 'host=db2 dbname=app', region: 'us-east' },
  ])
})

it('a password from the environment joins connection strings that have none', () => {
  const node = ['n1=postgresql://me@db1/app?sslmode=require', 'n2=host=db2', 'n3=postgresql://me:own@db3/app']
  expect(nodesOf({ node }, { PGPASSWORD: "a'b c" }).map(({ dsn }) => dsn)).toEqual([
    "postgresql://me@db1/app?sslmode=require&password=a'b%20c",
    "host=db2 password='a\\'b c'",
    'postgresql://me:own@db3/app',
  ])
})

it.each([
  [{ node: ['n1=host=a'] }, 'INVALID_VALUE'],
  [{ node: ['n1=host=a', 'n1=host=b'] }, 'NODE_NAME_TWICE'],
  [{ node: ['n1=host=a', 'N2=host=b'] }, 'INVALID_VALUE'],
  [{ node: ['n1=host=a', 'n2'] }, 'INVALID_VALUE'],
  [{ node: ['n1=host=a', 'n2=host=b'], region: ['n3=eu'] }, 'NODE_UNKNOWN'],
  [{}, 'INVALID_VALUE'],
])('%j is refused with %s', (options, code) => {
  expect(() => nodesOf(options, {})).toThrow(SternaError)
  expect(() => nodesOf(options, {})).toThrow(expect.objectContaining({ code }) as Error)
})

it('a connection string in the wrong place is not repeated', () => {
  expect(() => nodesOf({ node: ['=postgresql://me:secret@db/app', 'n2=host=b'] }, {})).toThrow(
    expect.not.objectContaining({ message: expect.stringContaining('secret') as string }) as Error,
  )
})

import { expect, test } from 'vitest'

import { AssertionError } from '../core/assert.ts'
import { SternaError } from '../core/errors.ts'
import { createLogger, maskPasswords } from './logger.ts'
import type { LogLevel } from './settings.ts'

function capture(level: LogLevel = 'info'): { log: ReturnType<typeof createLogger>; lines: string[] } {
  const lines: string[] = []
  const log = createLogger({ node: 'n1', level, destination: { write: (line) => void lines.push(line) } })
  return { log, lines }
}

test('JSON lines with time, level, node and component', () => {
  const { log, lines } = capture()
  log.child({ component: 'http' }).info({ port: 7101 }, 'listening')
  log.debug('not shown')
  expect(lines).toHaveLength(1)
  expect(JSON.parse(lines[0]!)).toEqual({
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*Z$/),
    level: 'info',
    node: 'n1',
    pid: process.pid,
    component: 'http',
    port: 7101,
    msg: 'listening',
  })
})

test('an operational error has code and hint and no stack; a bug has its stack', () => {
  const { log, lines } = capture()
  const error = new SternaError('AGENT_HTTP_PORT_BUSY', { address: '127.0.0.1:1' }, new Error('EADDRINUSE'))
  log.error({ err: error }, 'failed')
  log.error({ err: new AssertionError('queue is negative') }, 'failed')
  expect(JSON.parse(lines[0]!).err).toEqual({
    code: 'AGENT_HTTP_PORT_BUSY',
    message: "the agent's HTTP address 127.0.0.1:1 is already in use",
    hint: expect.stringContaining('--http'),
    cause: 'EADDRINUSE',
  })
  expect(JSON.parse(lines[1]!).err).toMatchObject({
    name: 'AssertionError',
    stack: expect.stringContaining('logger.test.ts'),
  })
})

test('credentials do not get into the log, by whatever way', () => {
  const { log, lines } = capture()
  log.info({ dsn: 'hunter2', target: { host: 'db', password: 'hunter2' }, httpToken: 'hunter2' }, 'fields')
  log.info({ text: 'postgresql://ann:hunter2@db/app and host=db password=hunter2 user=ann' }, 'text')
  log.info({ err: new Error("bad dsn password = 'hunter2 \\' hunter2' user=ann") }, 'error')
  log.info({ text: 'postgres://db/app?user=ann&password=hunter2&sslmode=require' }, 'query')
  log.info({ text: 'host=db password=a&hunter2\\ hunter2 user=ann' }, 'escaped')
  for (const line of lines) {
    expect(line).not.toContain('hunter2')
    expect(() => JSON.parse(line)).not.toThrow()
  }
  expect(JSON.parse(lines[1]!).text).toBe(
    'postgresql://ann:********@db/app and host=db password=******** user=ann',
  )
  expect(JSON.parse(lines[2]!).err.message).toBe('bad dsn password = ******** user=ann')
  expect(JSON.parse(lines[4]!).text).toBe('host=db password=******** user=ann')
  expect(JSON.parse(lines[3]!).text).toBe('postgres://db/app?user=ann&password=********&sslmode=require')
})

test('masking leaves everything else alone', () => {
  const line = '{"msg":"http://127.0.0.1:7101/x@y and postgresql://db:5432/app","note":"password unknown"}\n'
  expect(maskPasswords(line)).toBe(line)
})

import { execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

const PROGRAM = join(import.meta.dirname, 'programs/fake-agent.ts')
let directory: string

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'sterna-agent-'))
})
afterAll(() => rmSync(directory, { recursive: true }))

interface LogLine {
  readonly level: string
  readonly msg: string
  readonly http?: string
  readonly warning?: string
  readonly err?: { readonly code?: string; readonly message: string; readonly stack?: string }
}

class Agent {
  readonly lines: LogLine[] = []
  readonly ended: Promise<number | string>
  readonly child: ChildProcess
  readonly #waiting = new Set<() => void>()

  constructor(behaviour: string, env: Record<string, string> = {}, args: readonly string[] = []) {
    this.child = spawn(process.execPath, [PROGRAM, behaviour, ...args], {
      stdio: ['ignore', 'inherit', 'pipe'],
      env: {
        ...process.env,
        STERNA_NODE: 'n1',
        STERNA_DSN: 'host=/nowhere',
        STERNA_HTTP: '127.0.0.1:0',
        ...env,
      },
    })
    const notify = (): void => this.#waiting.forEach((check) => check())
    createInterface(this.child.stderr!).on('line', (line) => {
      this.lines.push(JSON.parse(line) as LogLine)
      notify()
    })
    this.ended = once(this.child, 'close').then(([code, signal]) => (code ?? signal) as number | string)
    void this.ended.then(notify)
    onTestFinished(() => void this.child.kill('SIGKILL'))
  }

  /** The first line with this message. */
  said(msg: string): Promise<LogLine> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        const line = this.lines.find((it) => it.msg === msg)
        if (line) resolve(line)
        else if (this.child.exitCode !== null) reject(new Error(`ended without saying "${msg}"`))
      }
      this.#waiting.add(check)
      check()
    })
  }
}

/** What ps shows of a process. */
function commandLineOf(pid: number): string {
  const shown =
    process.platform === 'linux'
      ? readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
      : execFileSync('ps', ['-o', 'args=', '-p', String(pid)], { encoding: 'utf8' })
  return shown.trim()
}

describe('stopping', () => {
  test.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('%s: exit 0 after a clean stop', async (signal) => {
    const agent = new Agent('normal')
    const { http } = await agent.said('agent started')
    expect(await (await fetch(`http://${http}/health`)).json()).toEqual({ status: 'ok' })
    agent.child.kill(signal)
    expect(await agent.ended).toBe(0)
    expect(agent.lines.map((it) => it.msg)).toEqual(['agent started', 'agent stopping', 'agent stopped'])
  })

  test('what does not stop is given up before ten seconds are over', async () => {
    const agent = new Agent('hangs')
    await agent.said('agent started')
    const toldAtMs = Date.now()
    agent.child.kill('SIGTERM')
    expect(await agent.ended).toBe(1)
    expect(Date.now() - toldAtMs).toBeLessThan(10_000)
    expect(agent.lines.at(-1)).toMatchObject({
      level: 'error',
      msg: 'agent did not stop in time and ends as it is',
    })
  })

  test('a second signal ends it at once', async () => {
    const agent = new Agent('hangs')
    await agent.said('agent started')
    agent.child.kill('SIGTERM')
    await agent.said('agent stopping')
    agent.child.kill('SIGINT')
    expect(await agent.ended).toBe(130)
  })
})

describe('failing', () => {
  test.each([
    ['bug', 'queue is negative'],
    ['stray-bug', 'undefined is not a function'],
    ['stray-rejection', 'nobody waits for this'],
    ['ends', 'the service ended without being told to'],
  ])('%s: logged with its stack, exit 70', async (behaviour, message) => {
    const agent = new Agent(behaviour)
    expect(await agent.ended).toBe(70)
    expect(agent.lines.at(-1)).toMatchObject({
      level: 'fatal',
      msg: 'agent crashed on a bug',
      err: { message, stack: expect.stringContaining('fake-agent.ts') },
    })
  })

  test('an error that makes running pointless: its exit code, its hint', async () => {
    const agent = new Agent('pointless')
    expect(await agent.ended).toBe(3)
    expect(agent.lines.at(-1)).toMatchObject({
      level: 'fatal',
      msg: 'agent cannot run',
      err: { code: 'DATABASE_MISSING', hint: expect.stringContaining('create database') },
    })
  })

  test('a busy HTTP port', async () => {
    const first = new Agent('normal')
    const { http } = await first.said('agent started')
    const second = new Agent('normal', { STERNA_HTTP: http! })
    expect(await second.ended).toBe(3)
    expect(second.lines.at(-1)?.err).toMatchObject({ code: 'AGENT_HTTP_PORT_BUSY' })
  })
})

describe('pid file', () => {
  test('is there while the agent runs', async () => {
    const path = join(directory, 'n1.pid')
    const agent = new Agent('normal', { STERNA_PID_FILE: path })
    await agent.said('agent started')
    await expect.poll(() => existsSync(path)).toBe(true)
    expect(readFileSync(path, 'utf8')).toBe(`${agent.child.pid}\n`)
    agent.child.kill('SIGTERM')
    await agent.ended
    expect(existsSync(path)).toBe(false)
  })

  test('a place that cannot be written to is said', async () => {
    const agent = new Agent('normal', { STERNA_PID_FILE: join(directory, 'absent', 'n1.pid') })
    expect(await agent.ended).toBe(3)
    expect(agent.lines.at(-1)?.err).toMatchObject({ code: 'PID_FILE_FAILED' })
  })
})

describe('sterna agent', () => {
  test('hides its command line and warns of a password there', async () => {
    const agent = new Agent('normal', { STERNA_NODE: 'n9' }, [
      '--node',
      'n1',
      '--dsn',
      'postgresql://a:hunter2@db/app',
    ])
    const warning = await agent.said('agent configuration')
    expect(warning).toMatchObject({ level: 'warn', warning: expect.stringContaining('prefer STERNA_DSN') })
    expect(commandLineOf(agent.child.pid!)).toBe('sterna agent n1')
    expect(JSON.stringify(agent.lines)).not.toContain('hunter2')
    agent.child.kill('SIGTERM')
    expect(await agent.ended).toBe(0)
  })
})

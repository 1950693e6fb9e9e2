import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

import { guardGroup } from './guard.ts'

/** An agent as a process of its own. */
export interface TestAgent {
  /** Everything that it has logged so far. */
  readonly log: string
  readonly pid: number | undefined
  /** Its exit code, or the signal that ended it; undefined while it runs. */
  readonly ended: number | string | undefined
  kill9(): Promise<void>
  stop(): Promise<void>
  /** Starts it again after kill9 or stop. */
  start(): Promise<void>
}

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

export interface StartAgentOptions {
  readonly node: string
  readonly dsn: string
  readonly env: Readonly<Record<string, string>>
  /** Where it answers HTTP; not at all when left out. */
  readonly http?: string | undefined
}

/** Starts an agent; it ends with the test process. */
export async function startAgent(options: StartAgentOptions): Promise<TestAgent> {
  const agent = new AgentProcess(options)
  await agent.start()
  return agent
}

class AgentProcess implements TestAgent {
  readonly #options: StartAgentOptions
  #child: ChildProcess | undefined
  #exited: Promise<unknown> = Promise.resolve()
  log = ''

  constructor(options: StartAgentOptions) {
    this.#options = options
  }

  get pid(): number | undefined {
    return this.#child?.pid
  }

  get ended(): number | string | undefined {
    return this.#child?.exitCode ?? this.#child?.signalCode ?? undefined
  }

  async start(): Promise<void> {
    const { node, dsn, env, http = 'off' } = this.#options
    const child = spawn(process.execPath, [MAIN, 'agent', '--node', node, '--http', http], {
      detached: true,
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, STERNA_DSN: dsn, STERNA_LOG_LEVEL: 'debug', ...env },
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.log += text
    })
    await once(child, 'spawn')
    const ended = guardGroup(child.pid!)
    this.#exited = once(child, 'exit').then(ended)
    this.#child = child
  }

  async kill9(): Promise<void> {
    this.#child?.kill('SIGKILL')
    await this.#exited
  }

  async stop(): Promise<void> {
    this.#child?.kill('SIGTERM')
    await this.#exited
  }
}

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, readFile, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import { SternaError } from '../core/errors.ts'
import type { ExitInfo } from '../postgres/server/instance.ts'
import { replaceFile } from './cluster-file.ts'
import { describeExit, type RunningProcess } from './kept-process.ts'
import type { NodePaths } from './layout.ts'
import { identify, isAlive, type ProcessIdentity, signalProcess } from './process-identity.ts'

/** How an agent is run. */
export interface AgentOptions {
  readonly node: string
  /** With the password; handed over in the environment, since a command line can be read by everybody. */
  readonly dsn: string
  readonly httpPort: number
  readonly paths: NodePaths
  /** The program and the arguments before `agent`. */
  readonly sternaCommand: readonly [string, ...string[]]
  /** Until it answers on its HTTP port; 60 s when not given. */
  readonly readyMs?: number
  /** Gives up starting. */
  readonly signal?: AbortSignal
}

const POLL_MS = 50
const STOP_MS = 10_000

/**
 * Starts an agent in a session of its own and resolves when it answers on HTTP.
 * @throws AGENT_START_FAILED
 */
export async function startAgent(options: AgentOptions): Promise<RunningProcess> {
  const [program, ...before] = options.sternaCommand
  const http = `127.0.0.1:${options.httpPort}`
  const log = await open(options.paths.agentLog, 'a', 0o600)
  const logStart = (await log.stat()).size
  const child = spawn(program, [...before, 'agent', '--node', options.node, '--http', http], {
    cwd: options.paths.directory,
    env: { ...process.env, STERNA_DSN: options.dsn },
    stdio: ['ignore', log.fd, log.fd],
    detached: true,
  })
  let ended: ExitInfo | undefined
  const exited = new Promise<ExitInfo>((resolve) => {
    const end = (exit: ExitInfo): void => {
      ended = exit
      resolve(exit)
    }
    child.once('exit', (code, signal) => end({ code, signal }))
    child.once('error', () => end({ code: 127, signal: null }))
  })
  await log.close()
  const identity = child.pid === undefined ? undefined : await identify(child.pid)
  if (identity) await replaceFile(options.paths.agentFile, JSON.stringify(identity), 0o644)

  const stop = async (): Promise<void> => {
    if (!ended && identity) await endProcess(identity, () => ended !== undefined)
    await exited
    await rm(options.paths.agentFile, { force: true })
  }
  const deadline = Date.now() + (options.readyMs ?? 60_000)
  while (!ended && Date.now() < deadline && !options.signal?.aborted) {
    if (await answersHealth(options.httpPort)) return { exited, stop }
    await Promise.race([delay(POLL_MS), exited])
  }
  const said = await lastLine(options.paths.agentLog, logStart)
  const what = ended ? `it ended (${describeExit(ended)})` : `no answer on http://${http}/health in time`
  await stop()
  throw new SternaError('AGENT_START_FAILED', {
    node: options.node,
    reason: said ? `${what}: ${said}` : what,
    log: options.paths.agentLog,
  })
}

/** Ends an agent that a dead supervisor left behind. True when there was one. */
export async function stopLeftoverAgent(paths: NodePaths): Promise<boolean> {
  const identity = await readIdentity(paths.agentFile)
  const there = identity !== undefined && (await isAlive(identity))
  if (there) await endProcess(identity)
  await rm(paths.agentFile, { force: true })
  return there
}

async function readIdentity(file: string): Promise<ProcessIdentity | undefined> {
  try {
    const value = JSON.parse(await readFile(file, 'utf8')) as Partial<ProcessIdentity>
    if (typeof value.pid !== 'number' || typeof value.started !== 'string') return undefined
    return { pid: value.pid, started: value.started }
  } catch {
    return undefined
  }
}

async function endProcess(identity: ProcessIdentity, hasEnded: () => boolean = () => false): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    if (!(await signalProcess(identity, signal))) return
    const deadline = Date.now() + STOP_MS
    while (Date.now() < deadline) {
      if (hasEnded() || !(await isAlive(identity))) return
      await delay(POLL_MS)
    }
  }
}

async function answersHealth(port: number): Promise<boolean> {
  const query = request({ host: '127.0.0.1', port, path: '/health', timeout: 2000 })
  query.on('timeout', () => query.destroy())
  query.end()
  try {
    const [response] = (await once(query, 'response')) as [{ statusCode?: number; resume(): void }]
    response.resume()
    return response.statusCode === 200
  } catch {
    return false
  }
}

async function lastLine(path: string, position: number): Promise<string> {
  const text = await readFile(path).catch(() => Buffer.alloc(0))
  const lines = text.subarray(position).toString('utf8').trim().split('\n')
  return (lines.at(-1) ?? '').slice(0, 500)
}

import { spawn } from 'node:child_process'
import { open, readFile } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

import { SternaError } from '../core/errors.ts'
import { replaceFile } from '../local/cluster-file.ts'
import type { MeshNode } from '../mesh/mesh-node.ts'
import { addressOf, parseDsn } from '../postgres/dsn.ts'
import { sternaCommand } from './sterna-command.ts'

const START_MS = 60_000
const POLL_MS = 100

/** The files of an agent that `sterna cluster create` prepares, and how it is run. Paths are absolute. */
export interface AgentFiles {
  readonly node: string
  readonly region: string | null
  /** The host of the node's server, for a person. */
  readonly host: string
  readonly dsn: string
  readonly configFile: string
  readonly pidFile: string
  readonly logFile: string
  readonly httpAddress: string
  /** To be run on the host of the node, with the configuration file in the working directory. */
  readonly command: string
}

/** Which files the agent of a node gets in the working directory. */
export function agentFiles(cluster: string, node: MeshNode, httpPort: number): AgentFiles {
  const base = resolve(`${cluster}.${node.name}`)
  const configFile = `${base}.agent.json`
  return {
    node: node.name,
    region: node.region ?? null,
    host: parseDsn(node.dsn).host,
    dsn: node.dsn,
    configFile,
    pidFile: `${base}.agent.pid`,
    logFile: `${base}.agent.log`,
    httpAddress: `127.0.0.1:${httpPort}`,
    command: `sterna agent --config ${basename(configFile)}`,
  }
}

/** Writes the configuration files, each readable by its owner only. */
export async function writeAgentFiles(files: readonly AgentFiles[]): Promise<void> {
  for (const { configFile, node, dsn, httpAddress } of files)
    await replaceFile(configFile, `${JSON.stringify({ node, dsn, http: httpAddress }, null, 2)}\n`, 0o600)
}

/**
 * Starts agents in the background, each in a session of its own; those that run already are left alone. Resolves when
 * each answers on its HTTP address.
 * @throws AGENT_START_FAILED
 */
export async function startAgents(
  files: readonly AgentFiles[],
  onProgress: (message: string) => void,
): Promise<void> {
  for (const agent of files) {
    const pid = await runningPid(agent.pidFile)
    if (pid !== null) {
      onProgress(`${agent.node}: its agent runs already (process ${pid})`)
      continue
    }
    onProgress(`${agent.node}: starting its agent at ${addressOf(parseDsn(agent.dsn))}`)
    await startAgent(agent)
  }
}

async function startAgent(agent: AgentFiles): Promise<void> {
  const log = await open(agent.logFile, 'a', 0o600)
  const [program, ...before] = sternaCommand()
  const child = spawn(
    program,
    [...before, 'agent', '--config', agent.configFile, '--pid-file', agent.pidFile],
    { stdio: ['ignore', log.fd, log.fd], detached: true, env: withoutAgentSettings(process.env) },
  )
  await log.close()
  child.unref()
  let ended: string | null = null
  child.once('exit', (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`))
  child.once('error', (error) => (ended = error.message))
  const deadline = Date.now() + START_MS
  while (ended === null && Date.now() < deadline) {
    if (await isHealthy(agent.httpAddress)) return
    await delay(POLL_MS)
  }
  throw new SternaError('AGENT_START_FAILED', {
    node: agent.node,
    reason: ended ?? `no answer on http://${agent.httpAddress}/health in ${START_MS / 1000} s`,
    log: agent.logFile,
  })
}

/** Variables such as STERNA_DSN would win over the configuration file, and are meant for one node. */
function withoutAgentSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith('STERNA_')))
}

async function runningPid(pidFile: string): Promise<number | null> {
  const pid = Number((await readFile(pidFile, 'utf8').catch(() => '')).trim())
  if (!Number.isInteger(pid) || pid <= 0) return null
  try {
    process.kill(pid, 0)
    return pid
  } catch {
    return null
  }
}

async function isHealthy(address: string): Promise<boolean> {
  try {
    const answer = await fetch(`http://${address}/health`, { signal: AbortSignal.timeout(2_000) })
    return answer.ok
  } catch {
    return false
  }
}

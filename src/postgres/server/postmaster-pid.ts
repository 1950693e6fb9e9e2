import { readFile, readlink, realpath } from 'node:fs/promises'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

/** The contents of `postmaster.pid`. Source: PostgreSQL, src/include/utils/pidfile.h. */
export interface PostmasterPid {
  readonly pid: number
  readonly dataDir: string
  /** Null until the server listens. */
  readonly port: number | null
  /** `starting`, `stopping`, `ready` or `standby`; null until the server has written it. */
  readonly status: string | null
}

/** Parses `postmaster.pid`; undefined when it is empty or damaged (it is written line by line). */
export function parsePostmasterPid(text: string): PostmasterPid | undefined {
  const lines = text.split('\n').map((line) => line.trim())
  // A standalone backend writes its pid negated.
  const pid = Math.abs(Number(lines[0]))
  if (!Number.isInteger(pid) || pid <= 1 || !lines[1]) return undefined
  const port = Number(lines[3])
  return { pid, dataDir: lines[1], port: port > 0 ? port : null, status: lines[7] || null }
}

/** Reads `postmaster.pid` of a data directory; undefined when there is none. */
export async function readPostmasterPid(dataDir: string): Promise<PostmasterPid | undefined> {
  const text = await readFile(join(dataDir, 'postmaster.pid'), 'utf8').catch(() => '')
  return parsePostmasterPid(text)
}

/** The server that runs on this data directory now; undefined when none does, also when its old pid is someone else's. */
export async function findPostmaster(dataDir: string): Promise<PostmasterPid | undefined> {
  const found = await readPostmasterPid(dataDir)
  return found && (await isPostmasterOf(found.pid, dataDir)) ? found : undefined
}

/**
 * Whether that process is a server on this data directory: a server's working directory is its data directory.
 * Pids are reused, so a pid alone proves nothing.
 */
export async function isPostmasterOf(pid: number, dataDir: string): Promise<boolean> {
  const real = await realpath(dataDir).catch(() => dataDir)
  if (process.platform === 'linux') {
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => undefined)
    if (cwd !== real) return false
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    return /(^|\/)(postgres|postmaster)$/.test(command.split('\0')[0] ?? '')
  }
  try {
    const { stdout } = await run('ps', ['-o', 'command=', '-p', String(pid)])
    return /postgres/.test(stdout) && (stdout.includes(real) || stdout.includes(dataDir))
  } catch {
    return false
  }
}

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, rm, stat, writeFile, chown, chmod } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { assert } from '../../core/assert.ts'
import { SternaError } from '../../core/errors.ts'
import type { PgBinaries } from './binaries.ts'
import { cleanEnv } from './data-dir.ts'
import { type OsUser, spawnAs } from './os-user.ts'
import { portHolder } from './ports.ts'
import { findPostmaster, readPostmasterPid } from './postmaster-pid.ts'
import { renderSettings } from './settings.ts'
import { classifyStartFailure, type StartFailure } from './start-failure.ts'

/** How a child process ended: one of the two is null. */
export interface ExitInfo {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** One server: where it lives and how it runs. */
export interface InstanceOptions {
  /** For messages: `n1`. */
  readonly name: string
  readonly binaries: PgBinaries
  readonly dataDir: string
  readonly port: number
  /** Standard error of the server is appended here. */
  readonly logFile: string
  readonly user: OsUser | null
  /** All settings; written to `sterna.conf` in the data directory at each start. */
  readonly settings: Readonly<Record<string, string>>
}

/** Time limits of starting, in milliseconds. */
export interface StartLimits {
  /** Until the server is ready, crash recovery included. */
  readonly readyMs?: number
  /** For what a killed server left behind to go away. */
  readonly leftoversMs?: number
  /** Gives up starting: the server is stopped and `start` rejects. */
  readonly signal?: AbortSignal
}

/** Time limits of stopping, in milliseconds. */
export interface StopLimits {
  /** After that long a fast shutdown becomes an immediate one. */
  readonly fastMs?: number
  /** After that long an immediate shutdown becomes a kill. */
  readonly immediateMs?: number
}

const POLL_MS = 20

/**
 * A PostgreSQL server as a child process of its own session, so that a Ctrl-C in the terminal does not reach it.
 * States: stopped, started; `start` and `stop` must not overlap.
 */
export class PgInstance {
  readonly options: InstanceOptions
  #child: ChildProcess | undefined
  #exit: Promise<ExitInfo> | undefined

  constructor(options: InstanceOptions) {
    this.options = options
  }

  /** The server's process id; undefined when this object did not start it or it has ended. */
  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Resolves when the started server has ended, for whatever reason. */
  get exited(): Promise<ExitInfo> {
    assert(this.#exit, `${this.options.name}: exited is asked before start`)
    return this.#exit
  }

  /**
   * Starts the server and resolves when it takes connections. After a kill it waits for what the killed server left.
   * @throws SERVER_START_FAILED, PORT_BUSY
   */
  async start(limits: StartLimits = {}): Promise<void> {
    assert(!this.#child, `${this.options.name}: started twice`)
    await this.#writeSettings()
    const patience = Date.now() + (limits.leftoversMs ?? 30_000)
    for (;;) {
      const failure = await this.#attempt(limits.readyMs ?? 300_000, limits.signal)
      if (!failure) return
      const leftovers = await this.#areLeftovers(failure)
      const isOver = limits.signal?.aborted || Date.now() >= patience
      if (!leftovers || isOver) throw await this.#startError(failure)
      await delay(100)
    }
  }

  /** Stops the server: fast, then immediate, then kill. Does nothing when it does not run. */
  async stop(limits: StopLimits = {}): Promise<void> {
    const child = this.#child
    if (!child) return
    const steps: readonly (readonly [NodeJS.Signals, number])[] = [
      ['SIGINT', limits.fastMs ?? 30_000],
      ['SIGQUIT', limits.immediateMs ?? 10_000],
      ['SIGKILL', 10_000],
    ]
    for (const [signal, waitMs] of steps) {
      child.kill(signal)
      if (await endsWithin(this.exited, waitMs)) return
    }
    throw new SternaError('SERVER_START_FAILED', {
      node: this.options.name,
      reason: `process ${child.pid} does not end, not even when it is killed`,
      log: this.options.logFile,
    })
  }

  /** Kills the server the way a crash would; resolves when the process is gone. For tests. */
  async kill9(): Promise<void> {
    if (!this.#child) return
    this.#child.kill('SIGKILL')
    await this.#exit
  }

  async #attempt(readyMs: number, signal?: AbortSignal): Promise<StartFailure | undefined> {
    const { binaries, dataDir, logFile, user } = this.options
    const log = await open(logFile, 'a', 0o600)
    const logStart = (await log.stat()).size
    let child: ChildProcess
    try {
      child = spawn(join(binaries.binDir, 'postgres'), ['-D', dataDir], {
        ...spawnAs(user),
        cwd: '/',
        env: cleanEnv(),
        stdio: ['ignore', log.fd, log.fd],
        detached: true,
      })
      const [failed] = (await Promise.race([once(child, 'spawn'), once(child, 'error')])) as [Error?]
      if (failed) return { tag: 'other', reason: failed.message }
    } finally {
      await log.close()
    }
    let ended: ExitInfo | undefined
    this.#child = child
    this.#exit = new Promise((resolve) => {
      child.once('exit', (code, killedBy) => {
        ended = { code, signal: killedBy }
        this.#child = undefined
        resolve(ended)
      })
    })
    const deadline = Date.now() + readyMs
    while (!ended) {
      const state = await readPostmasterPid(dataDir)
      if (state && state.pid === child.pid && state.status === 'ready') return undefined
      if (signal?.aborted) {
        await this.stop()
        return { tag: 'other', reason: 'stopped while it was starting' }
      }
      if (Date.now() > deadline) {
        await this.stop({ fastMs: 5_000 })
        return { tag: 'other', reason: `not ready after ${Math.round(readyMs / 1000)} s` }
      }
      await Promise.race([delay(POLL_MS), this.#exit])
    }
    return classifyStartFailure(await readFrom(logFile, logStart))
  }

  /** Whether a failed start will work after a while; makes way where only a stale lock file stands in it. */
  async #areLeftovers(failure: StartFailure): Promise<boolean> {
    if (failure.tag === 'memory-in-use') return true
    if (failure.tag !== 'lock-file') return false
    if (await findPostmaster(this.options.dataDir)) return false
    // The pid in the file was reused by an unrelated process, and the server cannot tell.
    await rm(join(this.options.dataDir, 'postmaster.pid'), { force: true })
    return true
  }

  async #startError(failure: StartFailure): Promise<SternaError> {
    const { name, port, logFile, dataDir } = this.options
    if (failure.tag === 'port-busy') {
      const holder = await portHolder(port)
      return new SternaError('PORT_BUSY', { port, by: holder ? ` by ${holder}` : '' })
    }
    const reasons = {
      'memory-in-use': 'processes of an earlier server on this data directory are still there',
      'lock-file': `another server (pid ${(await findPostmaster(dataDir))?.pid}) already runs on ${dataDir}`,
    }
    const reason = failure.tag === 'other' ? failure.reason : reasons[failure.tag]
    return new SternaError('SERVER_START_FAILED', { node: name, reason, log: logFile })
  }

  async #writeSettings(): Promise<void> {
    const { dataDir, settings, user } = this.options
    const path = join(dataDir, 'sterna.conf')
    await writeFile(path, renderSettings(settings))
    await chmod(path, 0o600)
    if (user) await chown(path, user.uid, user.gid)
  }
}

/** Stops a server that this process did not start: fast, then immediate. True when there was one. */
export async function stopForeignServer(dataDir: string, limits: StopLimits = {}): Promise<boolean> {
  const running = await findPostmaster(dataDir)
  if (!running) return false
  const steps: readonly (readonly [NodeJS.Signals, number])[] = [
    ['SIGINT', limits.fastMs ?? 30_000],
    ['SIGQUIT', limits.immediateMs ?? 10_000],
    ['SIGKILL', 10_000],
  ]
  for (const [signal, waitMs] of steps) {
    try {
      process.kill(running.pid, signal)
    } catch {
      return true
    }
    const deadline = Date.now() + waitMs
    while (Date.now() < deadline) {
      if ((await findPostmaster(dataDir))?.pid !== running.pid) return true
      await delay(POLL_MS)
    }
  }
  return true
}

async function endsWithin(exited: Promise<unknown>, ms: number): Promise<boolean> {
  const timer = new AbortController()
  const timedOut = delay(ms, false, { signal: timer.signal }).catch(() => false)
  try {
    return await Promise.race([exited.then(() => true), timedOut])
  } finally {
    timer.abort()
  }
}

async function readFrom(path: string, position: number): Promise<string> {
  const { size } = await stat(path)
  const file = await open(path, 'r')
  try {
    const length = Math.min(size - position, 64 * 1024)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, size - length)
    return buffer.toString('utf8', 0, bytesRead)
  } finally {
    await file.close()
  }
}

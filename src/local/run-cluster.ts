import { spawn } from 'node:child_process'
import { open } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { SternaError } from '../core/errors.ts'
import { claimError, readClaim, releaseClaim, takeClaim, updateClaim } from './claim.ts'
import { type LocalCluster, readLocalCluster, readPassword } from './cluster-file.ts'
import { clusterPaths } from './layout.ts'
import { LogFollower } from './log-follower.ts'
import { onStopSignal } from './stop-signal.ts'
import { type MeshFunctions, StoppedError, Supervisor } from './supervisor.ts'
import { prepareCluster, requireSame, type UpRequest } from './prepare-cluster.ts'

/** What running a cluster needs from outside. */
export interface RunOptions {
  readonly mesh: MeshFunctions
  /** How this program is started again: the program and the arguments before `agent` or `up`. */
  readonly sternaCommand: readonly [string, ...string[]]
  /** Takes lines for a person. */
  readonly say: (line: string) => void
  /** Settings of the servers on top of the usual ones; for tests. */
  readonly settings?: Readonly<Record<string, string>>
}

/** A cluster that runs, and the process that runs it. */
export interface RunningCluster {
  readonly cluster: LocalCluster
  readonly pid: number
}

const DETACHED_READY_MS = 600_000

/**
 * The cluster that was asked for, when it runs already; null when it does not.
 * @throws CLUSTER_DIFFERS when it runs and is not as asked for
 */
export async function findRunning(request: UpRequest): Promise<RunningCluster | null> {
  const cluster = await readLocalCluster(request.directory)
  const claim = cluster && (await readClaim(request.directory))
  if (!cluster || claim?.state !== 'ready') return null
  requireSame(cluster, request)
  return { cluster, pid: claim.pid }
}

/**
 * Runs the cluster in this process until SIGINT, SIGTERM or SIGHUP. Returns true when it was ready and then stopped,
 * false when the signal came while it was starting. Throws what prepareCluster and Supervisor.start throw.
 */
export async function runForeground(
  request: UpRequest,
  options: RunOptions,
  onReady: (running: RunningCluster) => void,
): Promise<boolean> {
  const { directory } = request
  const { say } = options
  let supervisor: Supervisor | undefined
  const stopping = onStopSignal((signal) => {
    say(`${signal}: stopping agents and servers`)
    void updateClaim(directory, 'stopping').catch(() => {})
    return supervisor?.stop()
  })
  try {
    const prepared = await prepareCluster(request, say)
    if (stopping.received) throw new StoppedError()
    supervisor = new Supervisor({ ...prepared, ...options, password: await readPassword(directory) })
    await supervisor.start()
    if (stopping.received) throw new StoppedError()
    await updateClaim(directory, 'ready')
    onReady({ cluster: (await readLocalCluster(directory)) ?? prepared.cluster, pid: process.pid })
    await stopping.done
    return true
  } catch (error) {
    // A Ctrl-C also reaches programs such as initdb, which then fail.
    if (!stopping.received) throw error
    await stopping.done
    return false
  } finally {
    await supervisor?.stop()
    await releaseClaim(directory)
    stopping.dispose()
  }
}

/** The background half of runDetached: like runForeground, but an error also goes into the claim for the other half. */
export async function runInBackground(directory: string, options: RunOptions): Promise<void> {
  const say = (line: string): void => options.say(`${new Date().toISOString()} ${line}`)
  await takeClaim(directory)
  try {
    await runForeground({ directory, handedOver: true }, { ...options, say }, () => {})
    say('stopped')
  } catch (error) {
    if (error instanceof SternaError) await updateClaim(directory, 'failed', error)
    throw error
  }
}

/**
 * Starts a process in the background that runs the cluster, and resolves when it is ready; null when a signal
 * interrupted that. Everything that can be refused is refused before.
 * @throws SUPERVISOR_FAILED; what runForeground throws
 */
export async function runDetached(request: UpRequest, options: RunOptions): Promise<RunningCluster | null> {
  const { directory } = request
  const { supervisorLog } = clusterPaths(directory)
  const { say, sternaCommand } = options
  try {
    await prepareCluster(request, say)
    const log = await open(supervisorLog, 'a', 0o600)
    const logStart = (await log.stat()).size
    const [program, ...before] = sternaCommand
    const child = spawn(program, [...before, 'up', '--supervise', '--dir', directory], {
      cwd: directory,
      stdio: ['ignore', log.fd, log.fd],
      detached: true,
    })
    await log.close()
    let hasEnded = false
    child.once('exit', () => (hasEnded = true))
    child.once('error', () => (hasEnded = true))
    const stopping = onStopSignal(() => {
      say('stopping it again')
      child.kill('SIGTERM')
      return undefined
    })
    try {
      const progress = new LogFollower(supervisorLog, logStart)
      const deadline = Date.now() + DETACHED_READY_MS
      for (;;) {
        await progress.show(say)
        const claim = await readClaim(directory)
        if (claim?.state === 'ready' && claim.pid === child.pid) break
        if (hasEnded && stopping.received) return null
        if (hasEnded || Date.now() > deadline) throw failure(supervisorLog, hasEnded, claim)
        await delay(100)
      }
    } finally {
      stopping.dispose()
      child.unref()
    }
    const cluster = await readLocalCluster(directory)
    return cluster && child.pid !== undefined ? { cluster, pid: child.pid } : null
  } finally {
    // Does nothing when the child took the claim over, as it should.
    await releaseClaim(directory)
  }
}

function failure(log: string, hasEnded: boolean, claim: Awaited<ReturnType<typeof readClaim>>): SternaError {
  const reported = claim?.state === 'failed' ? claimError(claim) : undefined
  if (hasEnded && reported) return reported
  const reason = hasEnded ? 'ended before the cluster was ready' : 'is not ready yet; it goes on starting'
  return new SternaError('SUPERVISOR_FAILED', { reason, log })
}

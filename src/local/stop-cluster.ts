import { readdir, rm, rmdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { SternaError } from '../core/errors.ts'
import { removePartials } from '../postgres/server/data-dir.ts'
import { busy, readClaim, releaseClaim, takeClaim } from './claim.ts'
import type { LocalCluster, LocalNode } from './cluster-file.ts'
import { ELSEWHERE } from './create-cluster.ts'
import { clusterPaths, nodePaths } from './layout.ts'
import { stopLeftovers } from './leftovers.ts'
import { isAlive, signalProcess } from './process-identity.ts'

const POLL_MS = 50
const STOP_MS = 120_000

/**
 * Stops a local cluster: through its supervisor, or directly when that is gone. True when something ran.
 * @throws SUPERVISOR_FAILED when it does not end in time
 */
export async function stopCluster(cluster: LocalCluster): Promise<boolean> {
  const { directory } = cluster
  const claim = await readClaim(directory)
  if (claim && claim.state !== 'failed') {
    if (claim.pid === process.pid) throw busy(directory, claim)
    await signalProcess(claim, 'SIGTERM')
    const deadline = Date.now() + STOP_MS
    while (await isAlive(claim)) {
      if (Date.now() > deadline) {
        throw new SternaError('SUPERVISOR_FAILED', {
          reason: `(process ${claim.pid}) does not end`,
          log: clusterPaths(directory).supervisorLog,
        })
      }
      await delay(POLL_MS)
    }
  }
  await takeClaim(directory)
  try {
    const stopped = await stopLeftovers(cluster)
    return claim !== null || stopped.length > 0
  } finally {
    await releaseClaim(directory)
  }
}

/**
 * Removes a stopped cluster with all its data: only what belongs to it. The directory itself stays when it has other
 * files.
 * @throws CLUSTER_DIR_UNUSABLE when `cluster.json` names a place that is none of ours
 */
export async function destroyCluster(cluster: LocalCluster): Promise<void> {
  const { directory } = cluster
  for (const node of cluster.nodes) requireOurs(cluster, node)
  for (const node of cluster.nodes) {
    const paths = nodePaths(directory, node.name)
    await rm(node.dataDir, { recursive: true, force: true, maxRetries: 5 })
    await rm(paths.directory, { recursive: true, force: true, maxRetries: 5 })
    if (node.dataDir !== paths.data) await rm(dirname(node.dataDir), { recursive: true, force: true })
  }
  const bases = new Set(cluster.nodes.map((node) => dirname(dirname(node.dataDir))))
  for (const base of bases) {
    await rm(join(base, 'template'), { recursive: true, force: true })
    await removePartials(join(base, 'template'))
    if (base !== directory) await removeIfEmpty(base)
  }
  const paths = clusterPaths(directory)
  // cluster.json last: as long as it is there, this can be repeated.
  for (const file of [paths.passwordFile, paths.supervisorFile, paths.supervisorLog, paths.clusterFile])
    await rm(file, { force: true })
  await removeIfEmpty(directory)
}

/** Data lies in its node's directory, or in a place of this cluster under /var/lib/sterna; nothing else is removed. */
function requireOurs(cluster: LocalCluster, node: LocalNode): void {
  const elsewhere = dirname(dirname(node.dataDir))
  const isElsewhere = dirname(elsewhere) === ELSEWHERE && elsewhere.endsWith(`-${cluster.id.slice(0, 8)}`)
  if (node.dataDir === nodePaths(cluster.directory, node.name).data || isElsewhere) return
  throw new SternaError('CLUSTER_DIR_UNUSABLE', {
    directory: cluster.directory,
    reason: `its cluster.json says that data lies in ${node.dataDir}, which is not a place of Sterna`,
  })
}

async function removeIfEmpty(directory: string): Promise<void> {
  const names = await readdir(directory).catch(() => ['?'])
  if (names.length === 0) await rmdir(directory)
}

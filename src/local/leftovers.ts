import { stopForeignServer } from '../postgres/server/instance.ts'
import { stopLeftoverAgent } from './agent-process.ts'
import type { LocalCluster } from './cluster-file.ts'
import { nodePaths } from './layout.ts'

/**
 * Stops what runs of a cluster without a supervisor, because that was killed: agents, then servers. Each process is
 * checked to be the one it is taken for. Returns the names of what was stopped.
 */
export async function stopLeftovers(cluster: LocalCluster): Promise<string[]> {
  const agents = await Promise.all(
    cluster.nodes.map(async (node) => {
      const stopped = await stopLeftoverAgent(nodePaths(cluster.directory, node.name))
      return stopped ? [`${node.name}: agent`] : []
    }),
  )
  const servers = await Promise.all(
    cluster.nodes.map(async (node) => {
      const stopped = await stopForeignServer(node.dataDir)
      return stopped ? [`${node.name}: server`] : []
    }),
  )
  return [...agents, ...servers].flat()
}

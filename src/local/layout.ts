import { join, resolve } from 'node:path'

/** The files of a local cluster; absolute paths. */
export interface ClusterPaths {
  readonly directory: string
  readonly clusterFile: string
  /** The password of role `sterna`, mode 0600. */
  readonly passwordFile: string
  /** Which process runs the cluster, and in which state it is. */
  readonly supervisorFile: string
  /** What a supervisor in the background says. */
  readonly supervisorLog: string
  /** A data directory to copy while nodes are created. */
  readonly template: string
}

/** The files of one node; absolute paths. */
export interface NodePaths {
  readonly directory: string
  readonly data: string
  readonly serverLog: string
  readonly agentLog: string
  /** Which process is the agent. */
  readonly agentFile: string
}

/** Where things are in a cluster's directory. */
export function clusterPaths(directory: string): ClusterPaths {
  const root = resolve(directory)
  return {
    directory: root,
    clusterFile: join(root, 'cluster.json'),
    passwordFile: join(root, 'password'),
    supervisorFile: join(root, 'supervisor.json'),
    supervisorLog: join(root, 'supervisor.log'),
    template: join(root, 'template'),
  }
}

/** Where things of a node are. */
export function nodePaths(directory: string, node: string): NodePaths {
  const root = join(resolve(directory), node)
  return {
    directory: root,
    data: join(root, 'data'),
    serverLog: join(root, 'server.log'),
    agentLog: join(root, 'agent.log'),
    agentFile: join(root, 'agent.json'),
  }
}

/** The name and ports of node k (from 1): servers count up from `firstPort`, agents from 100 above it. */
export function nodeAddress(firstPort: number, k: number): { name: string; port: number; httpPort: number } {
  return { name: `n${k}`, port: firstPort + k - 1, httpPort: firstPort + 100 + k - 1 }
}

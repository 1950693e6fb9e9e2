import type { Command } from 'commander'
import { Option } from 'commander'

import { SternaError } from '../core/errors.ts'
import { localDsn, readLocalCluster, readPassword } from '../local/cluster-file.ts'
import { connectNode, type MeshNode } from '../mesh/mesh-node.ts'
import { readClusterFile } from './cluster-file.ts'

/** The directory of a local cluster when --dir is not given. */
export const DEFAULT_DIR = '.sterna'

const DISCOVER_TIMEOUT_MS = 5_000

/** What the options of addTargetOptions become. */
export interface TargetOptions {
  readonly dir?: string
  readonly dsn?: string
  readonly cluster?: string
}

/** The nodes that a command talks to. */
export interface ClusterTarget {
  /** Null where only a connection string is known. */
  readonly name: string | null
  readonly nodes: readonly MeshNode[]
}

/** Adds --dir, --cluster and --dsn, by which every command finds its nodes. */
export function addTargetOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--dir <directory>', `local cluster to talk to (default: ${DEFAULT_DIR})`).conflicts([
        'cluster',
        'dsn',
      ]),
    )
    .addOption(
      new Option(
        '--cluster <file>',
        'cluster file, as written by sterna cluster create (or variable STERNA_CLUSTER)',
      ).conflicts('dsn'),
    )
    .addOption(
      new Option(
        '--dsn <dsn>',
        'connection string of one node, which tells where its peers are (or variable STERNA_DSN)',
      ),
    )
}

/**
 * Finds the nodes that the options name: a connection string, a cluster file, or the local cluster. Where no option is
 * given the variables STERNA_DSN and STERNA_CLUSTER count, then the local cluster in the working directory.
 * @throws CLUSTER_NOT_FOUND; CLUSTER_FILE_INVALID; what connecting throws, with --dsn
 */
export async function findCluster(
  options: TargetOptions,
  env: NodeJS.ProcessEnv = process.env,
): Promise<ClusterTarget> {
  const given = options.dir ?? options.cluster ?? options.dsn
  const dsn = options.dsn ?? (given === undefined ? env['STERNA_DSN'] : undefined)
  const cluster = options.cluster ?? (given === undefined ? env['STERNA_CLUSTER'] : undefined)
  if (dsn) return discover(dsn)
  if (cluster) return readClusterFile(cluster)
  return localTarget(options.dir ?? DEFAULT_DIR)
}

/**
 * The node of that name.
 * @throws NODE_UNKNOWN
 */
export function nodeNamed(target: ClusterTarget, name: string): MeshNode {
  const node = target.nodes.find((candidate) => candidate.name === name)
  if (node) return node
  throw new SternaError('NODE_UNKNOWN', {
    node: name,
    nodes: target.nodes.map((candidate) => candidate.name),
  })
}

/** The node named, or the first one where none is. */
export function nodeOrFirst(target: ClusterTarget, name: string | undefined): MeshNode {
  return name === undefined ? target.nodes[0]! : nodeNamed(target, name)
}

async function localTarget(directory: string): Promise<ClusterTarget> {
  const cluster = await readLocalCluster(directory)
  if (!cluster)
    throw new SternaError('CLUSTER_NOT_FOUND', { reason: `there is no local cluster in ${directory}` })
  const password = await readPassword(directory)
  return {
    name: cluster.name,
    nodes: cluster.nodes.map((node) => ({ name: node.name, dsn: localDsn(cluster, node, password) })),
  }
}

/** What a node tells about itself and, to a role that may know, about its providers. */
async function discover(dsn: string): Promise<ClusterTarget> {
  const session = await connectNode({ name: '', dsn }, 'discover')
  const { conn } = session
  try {
    const options = { timeoutMs: DISCOVER_TIMEOUT_MS }
    const present = await conn.row<{ present: boolean }>(
      `select pg_catalog.to_regclass('sterna.nodes') is not null as present`,
      [],
      options,
    )
    const local = present?.present
      ? await conn.row<{ node_name: string; location: string | null; may_see_peers: boolean }>(
          `select node_name::text, location,
             pg_catalog.has_table_privilege('sterna.subscription', 'SELECT') as may_see_peers
           from sterna.nodes where is_local`,
          [],
          options,
        )
      : undefined
    if (!local) return { name: null, nodes: [{ name: session.target.database, dsn }] }
    const self = { name: local.node_name, dsn, region: local.location ?? undefined }
    if (!local.may_see_peers) return { name: null, nodes: [self] }
    const cluster = await conn.row<{ name: string | null }>(
      `select n.info ->> 'cluster' as name from sterna.local_node l join sterna.node n on n.node_id = l.node_id`,
    )
    const { rows } = await conn.query<{ name: string; dsn: string }>(
      `select provider_node_name::text as name, min(provider_dsn) as dsn
       from sterna.subscription where provider_node_name is not null
       group by provider_node_name order by provider_node_name`,
    )
    return { name: cluster?.name ?? null, nodes: [self, ...rows.filter((peer) => peer.name !== self.name)] }
  } finally {
    await conn.close()
  }
}

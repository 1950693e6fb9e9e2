import { SternaError } from '../core/errors.ts'
import {
  checkNodeNames,
  findSameDatabases,
  subscriptionName,
  withNodes,
  type ConnectedNode,
  type MeshNode,
} from './mesh-node.ts'
import { compareSchemas, formatDifference, readTableShapes } from './schema-compare.ts'
import { installSchema } from './schema.ts'

/** The greatest node id: ten bits. */
const MAX_NODE_ID = 1023

export interface CreateMeshOptions {
  /** The cluster's name, for messages and for the nodes' `info`. */
  readonly name: string
  readonly onProgress?: (message: string) => void
}

/** What a database says about itself before anything is changed. Null: it is no node yet. */
export interface Membership {
  readonly nodeName: string
  readonly nodeId: number
  readonly cluster: string | null
  /** The ids of all nodes that it knows of, its own among them. */
  readonly knownIds: readonly number[]
}

/**
 * Makes a full mesh of the given servers: schema `sterna`, one node each (which puts the existing tables into replication
 * sets), and a subscription for every ordered pair. Idempotent: run again it completes what an earlier attempt left undone, adds
 * further nodes, and takes changed connection strings over. It starts no agents; see waitForMesh.
 *
 * Everything that can be refused is checked on all nodes before the first one is changed.
 * @throws NODE_NAME_TWICE; SAME_DATABASE_TWICE; NODE_BELONGS_ELSEWHERE; SCHEMA_DIFFERS; what connecting and SQL throw
 */
export async function createMesh(nodes: readonly MeshNode[], options: CreateMeshOptions): Promise<void> {
  checkNodeNames(nodes)
  const progress = options.onProgress ?? (() => {})
  await withNodes(nodes, 'create', async (connected) => {
    const [same] = await findSameDatabases(connected)
    if (same) throw new SternaError('SAME_DATABASE_TWICE', same)
    const memberships = await Promise.all(connected.map(readMembership))
    const ids = assignNodeIds(connected, memberships, options.name)
    if (memberships.includes(null)) await refuseDifferentSchemas(connected)
    for (const [index, node] of connected.entries()) {
      progress(`${node.name}: schema sterna`)
      await node.conn.exec('set client_min_messages = warning')
      await installSchema(node.conn)
      if (!memberships[index]) await createNode(node, ids[index]!, options.name)
    }
    for (const subscriber of connected)
      for (const provider of connected)
        if (provider !== subscriber) await subscribe(subscriber, provider, progress)
  })
}

/**
 * The id of each node, in the order given: members keep theirs, new nodes take the smallest free ones.
 * @throws NODE_BELONGS_ELSEWHERE where a database is a node under another name or of another cluster
 */
export function assignNodeIds(
  nodes: readonly MeshNode[],
  memberships: readonly (Membership | null)[],
  cluster: string,
): number[] {
  for (const [index, member] of memberships.entries()) {
    const node = nodes[index]!
    if (!member) continue
    if (member.nodeName !== node.name || (member.cluster ?? cluster) !== cluster)
      throw new SternaError('NODE_BELONGS_ELSEWHERE', {
        node: node.name,
        existingNode: member.nodeName,
        existingCluster: member.cluster ?? cluster,
        cluster,
      })
  }
  const taken = new Set(memberships.flatMap((member) => member?.knownIds ?? []))
  let next = 1
  return memberships.map((member) => {
    if (member) return member.nodeId
    while (taken.has(next)) next++
    if (next > MAX_NODE_ID)
      throw new SternaError('INVALID_VALUE', {
        what: 'number of nodes',
        value: nodes.length,
        expected: `at most ${MAX_NODE_ID}`,
      })
    taken.add(next)
    return next
  })
}

/** @throws SCHEMA_DIFFERS */
async function refuseDifferentSchemas(nodes: readonly ConnectedNode[]): Promise<void> {
  const tables = await Promise.all(
    nodes.map(async ({ name, conn }) => ({ node: name, tables: await readTableShapes(conn) })),
  )
  const differences = compareSchemas(tables).map(formatDifference)
  if (differences.length > 0) throw new SternaError('SCHEMA_DIFFERS', { differences })
}

async function readMembership(node: ConnectedNode): Promise<Membership | null> {
  const found = await node.conn.row<{ present: boolean }>(
    `select pg_catalog.to_regclass('sterna.local_node') is not null as present`,
  )
  if (!found?.present) return null
  const row = await node.conn.row<{
    node_id: number
    node_name: string
    cluster: string | null
    known_ids: number[]
  }>(
    `select n.node_id, n.node_name::text, n.info ->> 'cluster' as cluster,
       (select pg_catalog.array_agg(k.node_id) from sterna.node k) as known_ids
     from sterna.local_node l join sterna.node n on n.node_id = l.node_id`,
  )
  if (!row) return null
  return { nodeId: row.node_id, nodeName: row.node_name, cluster: row.cluster, knownIds: row.known_ids }
}

/** Makes the database a node; its existing tables join the replication sets by that. */
async function createNode(node: ConnectedNode, nodeId: number, cluster: string): Promise<void> {
  await node.conn.query(
    'select sterna.node_create(node_name => $1, dsn => $2, location => $3, info => $4::jsonb)',
    [node.name, node.dsn, node.region ?? null, JSON.stringify({ node_id: nodeId, cluster })],
  )
}

async function subscribe(
  subscriber: ConnectedNode,
  provider: ConnectedNode,
  progress: (message: string) => void,
): Promise<void> {
  const name = subscriptionName(subscriber.name, provider.name)
  const existing = await subscriber.conn.row<{ provider_dsn: string }>(
    'select provider_dsn from sterna.subscription where sub_name = $1',
    [name],
  )
  if (!existing) {
    progress(`${subscriber.name}: subscribes to ${provider.name}`)
    await subscriber.conn.query('select sterna.sub_create(subscription_name => $1, provider_dsn => $2)', [
      name,
      provider.dsn,
    ])
  } else if (existing.provider_dsn !== provider.dsn) {
    progress(`${subscriber.name}: new connection string for ${provider.name}`)
    await subscriber.conn.query('update sterna.subscription set provider_dsn = $2 where sub_name = $1', [
      name,
      provider.dsn,
    ])
  }
}

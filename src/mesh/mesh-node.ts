import { randomBytes } from 'node:crypto'

import { SternaError } from '../core/errors.ts'
import { PgConnection } from '../postgres/connection.ts'
import { parseDsn, type ConnectTarget } from '../postgres/dsn.ts'

/** A node as the user names it: where it is, and optionally in which region. */
export interface MeshNode {
  readonly name: string
  readonly dsn: string
  readonly region?: string | undefined
}

/** A node with an open session. */
export interface ConnectedNode extends MeshNode {
  readonly target: ConnectTarget
  readonly conn: PgConnection
}

const NAME_PATTERN = /^[a-z][a-z0-9_-]{0,30}$/

/**
 * Checks the names of a set of nodes: each well-formed, none twice. A node's name ends up in names of slots and
 * subscriptions, hence the narrow alphabet.
 * @throws INVALID_VALUE; NODE_NAME_TWICE
 */
export function checkNodeNames(nodes: readonly MeshNode[]): void {
  const seen = new Set<string>()
  for (const { name } of nodes) {
    if (!NAME_PATTERN.test(name))
      throw new SternaError('INVALID_VALUE', {
        what: 'node name',
        value: name,
        expected: 'a lower-case letter, then up to 30 letters, digits, "_" or "-"',
      })
    if (seen.has(name)) throw new SternaError('NODE_NAME_TWICE', { node: name })
    seen.add(name)
  }
}

/** The name of the subscription by which `subscriber` follows `provider`. */
export function subscriptionName(subscriber: string, provider: string): string {
  return `sub_${subscriber}_${provider}`
}

/**
 * Opens a session on every node, in parallel, runs `work`, and closes them all. When some nodes cannot be reached, the
 * first of their errors is thrown after the others have been closed.
 */
export async function withNodes<T>(
  nodes: readonly MeshNode[],
  purpose: string,
  work: (connected: ConnectedNode[]) => Promise<T>,
): Promise<T> {
  const attempts = await Promise.allSettled(nodes.map((node) => connectNode(node, purpose)))
  const connected = attempts.flatMap((attempt) => (attempt.status === 'fulfilled' ? [attempt.value] : []))
  try {
    for (const attempt of attempts) if (attempt.status === 'rejected') throw attempt.reason
    return await work(connected)
  } finally {
    await Promise.all(connected.map((node) => node.conn.close()))
  }
}

/** Opens a session on one node, within `maxConnectMs` if given. Throws what PgConnection.connect throws. */
export async function connectNode(
  node: MeshNode,
  purpose: string,
  maxConnectMs = Number.POSITIVE_INFINITY,
): Promise<ConnectedNode> {
  const given = parseDsn(node.dsn)
  const target = { ...given, connectTimeoutMs: Math.min(given.connectTimeoutMs, maxConnectMs) }
  const conn = await PgConnection.connect(target, { applicationName: `sterna ${node.name} ${purpose}` })
  return { ...node, target, conn }
}

/**
 * Pairs of nodes that are one and the same database, however their connection strings are spelt. The system identifier
 * does not tell: copies of one data directory share it. A lock that one session holds and the other sees does.
 */
export async function findSameDatabases(
  nodes: readonly ConnectedNode[],
): Promise<{ first: string; second: string }[]> {
  const pairs: { first: string; second: string }[] = []
  for (const [index, first] of nodes.entries()) {
    const rest = nodes.slice(index + 1)
    if (rest.length === 0) break
    const high = randomBytes(4).readInt32BE()
    const low = randomBytes(4).readInt32BE()
    await first.conn.query('select pg_advisory_lock($1::int, $2::int)', [high, low])
    try {
      const answers = await Promise.all(rest.map((node) => seesLock(node, high, low)))
      for (const [at, same] of answers.entries())
        if (same) pairs.push({ first: first.name, second: rest[at]!.name })
    } finally {
      await first.conn.query('select pg_advisory_unlock($1::int, $2::int)', [high, low])
    }
  }
  return pairs
}

async function seesLock(node: ConnectedNode, high: number, low: number): Promise<boolean> {
  const row = await node.conn.row<{ held: boolean }>(
    `select exists (
       select from pg_catalog.pg_locks
       where locktype = 'advisory' and objsubid = 2
         and classid::bigint = ($1::bigint & 4294967295) and objid::bigint = ($2::bigint & 4294967295)
         and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
     ) as held`,
    [high, low],
  )
  return row?.held ?? false
}

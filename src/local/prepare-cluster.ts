import { mkdir } from 'node:fs/promises'
import { resolve } from 'node:path'
import { messageOf, SternaError } from '../core/errors.ts'
import { findBinaries, type PgBinaries } from '../postgres/server/binaries.ts'
import { reachableBinaries } from '../postgres/server/embedded.ts'
import { type OsUser, serverUser } from '../postgres/server/os-user.ts'
import { requirePortsFree } from '../postgres/server/ports.ts'
import { takeClaim } from './claim.ts'
import { type LocalCluster, readLocalCluster, writeLocalCluster } from './cluster-file.ts'
import {
  createData,
  dataMajor,
  dataOwner,
  defineCluster,
  makeDirectory,
  requireRoom,
  requireUsable,
} from './create-cluster.ts'
import { nodeAddress } from './layout.ts'
import { stopLeftovers } from './leftovers.ts'

/** What `sterna up` was asked for; undefined where nothing was said. */
export interface UpRequest {
  readonly directory: string
  readonly nodes?: number | undefined
  readonly port?: number | undefined
  readonly pg?: string | undefined
  /** The parent process created the cluster a moment ago and hands it over. */
  readonly handedOver?: boolean
}

/** A cluster whose data is there, nothing runs, and this process holds the claim. */
export interface PreparedCluster {
  readonly cluster: LocalCluster
  readonly binaries: PgBinaries
  readonly user: OsUser | null
}

const DEFAULTS = { nodes: 3, port: 7001, pg: '18' } as const

/**
 * Makes a cluster ready to be started: takes the claim, stops what a killed supervisor left, creates what is missing.
 * All that can be checked is checked before anything is created.
 * @throws CLUSTER_DIR_UNUSABLE, CLUSTER_DIFFERS, CLUSTER_BUSY, PORT_BUSY, DISK_FULL, PG_BINARIES_MISSING, INITDB_FAILED ...
 */
export async function prepareCluster(
  request: UpRequest,
  say: (line: string) => void,
): Promise<PreparedCluster> {
  const directory = resolve(request.directory)
  const existing = await readLocalCluster(directory)
  try {
    if (!existing) return await create({ ...request, directory }, say)
    requireSame(existing, request)
    return await resume(existing, say, request.handedOver ?? false)
  } catch (error) {
    // The file system said no: full, read-only, another owner.
    if (!(error instanceof Error && 'syscall' in error)) throw error
    throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory, reason: messageOf(error) }, error)
  }
}

/**
 * Checks that nothing else was asked for than what the cluster has.
 * @throws CLUSTER_DIFFERS
 */
export function requireSame(cluster: LocalCluster, request: UpRequest): void {
  const has = {
    nodes: cluster.nodes.length,
    port: cluster.nodes[0]!.port,
    pg: cluster.pg.wanted,
  }
  const { directory } = cluster
  const differs = (existing: string, asked: string): never => {
    throw new SternaError('CLUSTER_DIFFERS', { directory, existing, asked })
  }
  if (request.nodes !== undefined && request.nodes !== has.nodes)
    differs(`${has.nodes} nodes`, `--nodes ${request.nodes}`)
  if (request.port !== undefined && request.port !== has.port)
    differs(`ports from ${has.port}`, `--port ${request.port}`)
  if (request.pg !== undefined && request.pg !== has.pg)
    differs(`PostgreSQL ${cluster.pg.version} (--pg ${has.pg})`, `--pg ${request.pg}`)
}

async function create(
  request: UpRequest & { readonly directory: string },
  say: (line: string) => void,
): Promise<PreparedCluster> {
  const { directory } = request
  const nodeCount = request.nodes ?? DEFAULTS.nodes
  const firstPort = request.port ?? DEFAULTS.port
  const pgWanted = request.pg ?? DEFAULTS.pg
  checkRange('--nodes', nodeCount, 1, 99)
  checkRange('--port', firstPort, 1024, 65_535 - 200)
  await requireUsable(directory)
  await requireRoom(directory, nodeCount)
  const found = await findBinaries(pgWanted)
  const addresses = Array.from({ length: nodeCount }, (_, i) => nodeAddress(firstPort, i + 1))
  await requirePortsFree(addresses.flatMap(({ port, httpPort }) => [port, httpPort]))

  const user = await serverUser(say)
  const binaries = await reachableBinaries(found, user, say)
  await makeDirectory(directory, user)
  await takeClaim(directory)
  const wanted = { directory, nodeCount, firstPort, pgWanted, binaries, user }
  const cluster = await defineCluster(wanted, say)
  await createData(cluster, binaries, user, say)
  return { cluster, binaries, user }
}

async function resume(
  cluster: LocalCluster,
  say: (line: string) => void,
  handedOver: boolean,
): Promise<PreparedCluster> {
  const user = await dataOwner(cluster, await serverUser(say))
  const binaries = await reachableBinaries(await findBinaries(cluster.pg.wanted), user, say)
  const major = await dataMajor(cluster)
  if (major !== null && major !== binaries.major) {
    throw new SternaError('CLUSTER_DIFFERS', {
      directory: cluster.directory,
      existing: `data of PostgreSQL ${major}`,
      asked: `${binaries.binDir} (PostgreSQL ${binaries.version})`,
    })
  }
  await mkdir(cluster.directory, { recursive: true })
  await takeClaim(cluster.directory)
  const stopped = await stopLeftovers(cluster)
  if (stopped.length > 0) say(`an earlier supervisor was killed; stopped what it left: ${stopped.join(', ')}`)
  await requirePortsFree(cluster.nodes.flatMap(({ port, httpPort }) => [port, httpPort]))
  if (cluster.meshCreatedAt === null && !handedOver)
    say('an earlier start did not finish; going on where it stopped')
  await createData(cluster, binaries, user, say)
  const current = { ...cluster, pg: { ...cluster.pg, version: binaries.version, binDir: binaries.binDir } }
  await writeLocalCluster(current)
  return { cluster: current, binaries, user }
}

function checkRange(what: string, value: number, least: number, greatest: number): void {
  if (Number.isInteger(value) && value >= least && value <= greatest) return
  throw new SternaError('INVALID_VALUE', {
    what,
    value,
    expected: `a whole number from ${least} to ${greatest}`,
  })
}

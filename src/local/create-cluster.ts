import { randomBytes, randomUUID } from 'node:crypto'
import { chmod, mkdir, readdir, readFile, rm, stat, statfs, symlink, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { messageOf, SternaError } from '../core/errors.ts'
import type { PgBinaries } from '../postgres/server/binaries.ts'
import { copyDataDir, createDataDir, type DataDirOptions, hasDataDir } from '../postgres/server/data-dir.ts'
import { canEnter, type OsUser } from '../postgres/server/os-user.ts'
import { type LocalCluster, readPassword, writeLocalCluster } from './cluster-file.ts'
import { clusterPaths, nodeAddress, nodePaths } from './layout.ts'

/** What a new local cluster is to be. */
export interface NewCluster {
  readonly directory: string
  readonly nodeCount: number
  readonly firstPort: number
  /** As --pg said it. */
  readonly pgWanted: string
  readonly binaries: PgBinaries
  /** The user that servers run as. */
  readonly user: OsUser | null
}

/** A fresh data directory with its first write-ahead log, and room to begin with. */
const ROOM_PER_NODE_MB = 200

/** Where data goes when the server's user cannot enter the cluster's directory. */
export const ELSEWHERE = '/var/lib/sterna'

/**
 * Checks that a directory can hold a new cluster: it does not exist, is empty, or has only what an interrupted start
 * leaves before `cluster.json` is written.
 * @throws CLUSTER_DIR_UNUSABLE
 */
export async function requireUsable(directory: string): Promise<void> {
  const ours = new Set(['supervisor.json', 'supervisor.log', 'password'])
  try {
    const names = await readdir(directory)
    const foreign = names.filter((name) => !ours.has(name) && !/^(supervisor|cluster)\.json\.\d+$/.test(name))
    if (foreign.length === 0) return
    throw new SternaError('CLUSTER_DIR_UNUSABLE', {
      directory,
      reason: `it has other files (${foreign.slice(0, 3).join(', ')}) and no cluster.json`,
    })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
    if (error instanceof SternaError) throw error
    throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory, reason: messageOf(error) }, error)
  }
}

/**
 * Checks that the file system has room for that many nodes.
 * @throws DISK_FULL
 */
export async function requireRoom(directory: string, nodeCount: number): Promise<void> {
  let existing = directory
  for (;;) {
    const found = await statfs(existing).catch(() => undefined)
    if (found) {
      const free = Math.floor((found.bavail * found.bsize) / 1024 / 1024)
      const needed = ROOM_PER_NODE_MB * nodeCount
      if (free < needed) throw new SternaError('DISK_FULL', { directory: existing, free, needed })
      return
    }
    if (dirname(existing) === existing) return
    existing = dirname(existing)
  }
}

/**
 * Makes the cluster's directory.
 * @throws CLUSTER_DIR_UNUSABLE
 */
export async function makeDirectory(directory: string, user: OsUser | null): Promise<void> {
  try {
    await mkdir(directory, { recursive: true })
    // Root's servers run as another user, who must get through to the data.
    await chmod(directory, user ? 0o711 : 0o700)
  } catch (error) {
    throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory, reason: messageOf(error) }, error)
  }
}

/** Decides where everything goes and writes `cluster.json` and the password; creates no data yet. */
export async function defineCluster(wanted: NewCluster, say: (line: string) => void): Promise<LocalCluster> {
  const { directory, user } = wanted
  const id = randomUUID()
  const base = (await canEnter(user, directory))
    ? directory
    : join(ELSEWHERE, `${basename(directory).replaceAll(/[^\w-]/g, '')}-${id.slice(0, 8)}`)
  if (base !== directory) {
    say(`user "${user?.name}", which servers run as when started by root, cannot enter ${directory}`)
    say(`so the data goes to ${base}`)
  }
  const cluster: LocalCluster = {
    directory,
    id,
    name: 'local',
    createdAt: new Date().toISOString(),
    meshCreatedAt: null,
    role: 'sterna',
    database: 'app',
    pg: { wanted: wanted.pgWanted, version: wanted.binaries.version, binDir: wanted.binaries.binDir },
    nodes: Array.from({ length: wanted.nodeCount }, (_, i) => {
      const address = nodeAddress(wanted.firstPort, i + 1)
      return { ...address, dataDir: nodePaths(base, address.name).data }
    }),
  }
  const { passwordFile } = clusterPaths(directory)
  await rm(passwordFile, { force: true })
  await writeFile(passwordFile, `${randomBytes(18).toString('base64url')}\n`, { mode: 0o600, flag: 'wx' })
  await writeLocalCluster(cluster)
  return cluster
}

/** Creates the data directories that are not there yet; goes on where an interrupted start stopped. */
export async function createData(
  cluster: LocalCluster,
  binaries: PgBinaries,
  user: OsUser | null,
  say: (line: string) => void,
): Promise<void> {
  const missing: LocalCluster['nodes'][number][] = []
  for (const node of cluster.nodes) {
    await makeNodeDirectories(cluster, node, user)
    if (!(await hasDataDir(node.dataDir))) missing.push(node)
  }
  const [first, ...others] = missing
  if (!first) return
  const password = await readPassword(cluster.directory)
  const options: DataDirOptions = { binaries, user, role: cluster.role, password, database: cluster.database }
  say(`creating ${missing.map(({ name }) => name).join(', ')} with PostgreSQL ${binaries.version}`)
  // A template beside the data: the server's user gets there, and the copy stays on one file system.
  const template = join(dirname(dirname(first.dataDir)), 'template')
  await rm(template, { recursive: true, force: true })
  try {
    await createDataDir(template, options)
    await Promise.all([first, ...others].map((node) => copyDataDir(template, node.dataDir, options)))
  } finally {
    await rm(template, { recursive: true, force: true })
  }
}

async function makeNodeDirectories(
  cluster: LocalCluster,
  node: LocalCluster['nodes'][number],
  user: OsUser | null,
): Promise<void> {
  const paths = nodePaths(cluster.directory, node.name)
  await makeDirectory(paths.directory, user)
  if (node.dataDir === paths.data) return
  const parent = dirname(node.dataDir)
  for (const directory of [ELSEWHERE, dirname(parent), parent]) {
    await mkdir(directory, { recursive: true })
    await chmod(directory, directory === ELSEWHERE ? 0o755 : 0o711)
  }
  // So that the documented place leads to the data all the same.
  await symlink(node.dataDir, paths.data).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
}

/**
 * The user that the servers of an existing cluster run as: root's servers belong to the owner of the data.
 * @throws CLUSTER_DIR_UNUSABLE when the data belongs to somebody else than an ordinary user who starts it
 */
export async function dataOwner(cluster: LocalCluster, fallback: OsUser | null): Promise<OsUser | null> {
  const own = process.getuid?.()
  for (const node of cluster.nodes) {
    const found = await stat(node.dataDir).catch(() => undefined)
    if (!found) continue
    if (own === 0) return { name: fallback?.name ?? String(found.uid), uid: found.uid, gid: found.gid }
    if (found.uid !== own) {
      const reason = `its data belongs to another user (uid ${found.uid})`
      throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory: cluster.directory, reason })
    }
  }
  return fallback
}

/** The major version that a data directory was made with; null when there is none. */
export async function dataMajor(cluster: LocalCluster): Promise<number | null> {
  for (const node of cluster.nodes) {
    const text = await readFile(join(node.dataDir, 'PG_VERSION'), 'utf8').catch(() => '')
    if (text) return Number.parseInt(text, 10)
  }
  return null
}

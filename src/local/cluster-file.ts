import { chmod, mkdir, open, readFile, rename, writeFile } from 'node:fs/promises'
import { isAbsolute, join, relative, resolve } from 'node:path'
import { z } from 'zod'
import { messageOf, SternaError } from '../core/errors.ts'
import { formatDsn } from '../postgres/dsn.ts'
import { clusterPaths } from './layout.ts'

const FORMAT = 'sterna-local-cluster'

const fileShape = z.object({
  format: z.literal(FORMAT),
  version: z.literal(1),
  id: z.string().min(8),
  name: z.string(),
  created_at: z.string(),
  mesh_created_at: z.string().nullable(),
  role: z.string(),
  database: z.string(),
  pg: z.object({ wanted: z.string(), version: z.string(), bindir: z.string() }),
  nodes: z
    .array(
      z.object({
        // It is part of paths that are removed.
        name: z.string().regex(/^n\d+$/),
        port: z.int(),
        http_port: z.int(),
        data_dir: z.string(),
        dsn: z.string(),
      }),
    )
    .min(1),
})

/** A node of a local cluster. */
export interface LocalNode {
  readonly name: string
  readonly port: number
  readonly httpPort: number
  /** Absolute. Under the cluster's directory unless the server's user could not enter that. */
  readonly dataDir: string
}

/** A local cluster as `cluster.json` has it; no password is in there. */
export interface LocalCluster {
  /** Absolute path of the directory, `.sterna`. */
  readonly directory: string
  readonly id: string
  readonly name: string
  readonly createdAt: string
  /** Null until the full mesh was made once: an earlier start did not finish. */
  readonly meshCreatedAt: string | null
  readonly role: string
  readonly database: string
  /** `wanted` is what --pg said. */
  readonly pg: { readonly wanted: string; readonly version: string; readonly binDir: string }
  readonly nodes: readonly LocalNode[]
}

/**
 * Reads the local cluster in a directory; null when there is none.
 * @throws CLUSTER_FILE_INVALID, CLUSTER_DIR_UNUSABLE when it cannot be read
 */
export async function readLocalCluster(directory: string): Promise<LocalCluster | null> {
  const { clusterFile } = clusterPaths(directory)
  let text: string
  try {
    text = await readFile(clusterFile, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR') return null
    throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory, reason: messageOf(error) }, error)
  }
  return parseLocalCluster(text, directory)
}

/**
 * Parses the text of `cluster.json`.
 * @throws CLUSTER_FILE_INVALID
 */
export function parseLocalCluster(text: string, directory: string): LocalCluster {
  const { clusterFile: file, directory: root } = clusterPaths(directory)
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (error) {
    throw new SternaError('CLUSTER_FILE_INVALID', { file, reason: messageOf(error) })
  }
  const parsed = fileShape.safeParse(json)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    const reason = `${issue?.path.join('.') || 'it'}: ${issue?.message}`
    throw new SternaError('CLUSTER_FILE_INVALID', { file, reason })
  }
  const { id, name, role, database, pg, nodes } = parsed.data
  return {
    directory: root,
    id,
    name,
    createdAt: parsed.data.created_at,
    meshCreatedAt: parsed.data.mesh_created_at,
    role,
    database,
    pg: { wanted: pg.wanted, version: pg.version, binDir: pg.bindir },
    nodes: nodes.map((node) => ({
      name: node.name,
      port: node.port,
      httpPort: node.http_port,
      dataDir: resolve(root, node.data_dir),
    })),
  }
}

/** The text of `cluster.json`. Paths inside the directory are relative, so that it can be moved. */
export function formatLocalCluster(cluster: LocalCluster): string {
  const file: z.infer<typeof fileShape> = {
    format: FORMAT,
    version: 1,
    id: cluster.id,
    name: cluster.name,
    created_at: cluster.createdAt,
    mesh_created_at: cluster.meshCreatedAt,
    role: cluster.role,
    database: cluster.database,
    pg: { wanted: cluster.pg.wanted, version: cluster.pg.version, bindir: cluster.pg.binDir },
    nodes: cluster.nodes.map((node) => ({
      name: node.name,
      port: node.port,
      http_port: node.httpPort,
      data_dir: portablePath(cluster.directory, node.dataDir),
      dsn: localDsn(cluster, node),
    })),
  }
  return `${JSON.stringify(file, null, 2)}\n`
}

/** Writes `cluster.json`: the old one or the new one is there, whatever happens. */
export async function writeLocalCluster(cluster: LocalCluster): Promise<void> {
  await mkdir(cluster.directory, { recursive: true })
  await replaceFile(clusterPaths(cluster.directory).clusterFile, formatLocalCluster(cluster), 0o644)
}

/** Replaces a file as a whole and durably. */
export async function replaceFile(path: string, text: string, mode: number): Promise<void> {
  const partial = `${path}.${process.pid}`
  await writeFile(partial, text, { mode, flush: true })
  await chmod(partial, mode)
  await rename(partial, path)
  const directory = await open(join(path, '..'), 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

/** The connection string of a node; without a password unless one is given. */
export function localDsn(
  cluster: Pick<LocalCluster, 'role' | 'database'>,
  node: Pick<LocalNode, 'port'>,
  password?: string,
): string {
  return formatDsn({
    host: '127.0.0.1',
    port: node.port,
    user: cluster.role,
    database: cluster.database,
    ...(password === undefined ? {} : { password }),
  })
}

/**
 * Reads the password of a local cluster.
 * @throws CLUSTER_DIR_UNUSABLE
 */
export async function readPassword(directory: string): Promise<string> {
  const { passwordFile } = clusterPaths(directory)
  try {
    return (await readFile(passwordFile, 'utf8')).trim()
  } catch (error) {
    throw new SternaError('CLUSTER_DIR_UNUSABLE', { directory, reason: messageOf(error) }, error)
  }
}

function portablePath(directory: string, path: string): string {
  const inside = relative(directory, path)
  return inside.startsWith('..') || isAbsolute(inside) ? path : inside
}

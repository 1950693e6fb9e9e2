import { readFile, rename, writeFile } from 'node:fs/promises'

import { z } from 'zod'

import { messageOf, SternaError } from '../core/errors.ts'
import type { MeshNode } from '../mesh/mesh-node.ts'

const clusterFileSchema = z.object({
  name: z.string().min(1),
  nodes: z
    .array(z.object({ name: z.string().min(1), dsn: z.string().min(1), region: z.string().optional() }))
    .min(1),
})

/** The contents of a cluster file: which nodes there are and how to reach them. It holds passwords. */
export interface ClusterFile {
  readonly name: string
  readonly nodes: readonly MeshNode[]
}

/**
 * Reads a cluster file.
 * @throws CLUSTER_NOT_FOUND; CLUSTER_FILE_INVALID
 */
export async function readClusterFile(path: string): Promise<ClusterFile> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw new SternaError('CLUSTER_NOT_FOUND', { reason: messageOf(error) }, error)
  }
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (error) {
    throw new SternaError('CLUSTER_FILE_INVALID', { file: path, reason: 'it is not JSON' }, error)
  }
  const parsed = clusterFileSchema.safeParse(json)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  throw new SternaError('CLUSTER_FILE_INVALID', {
    file: path,
    reason: `${issue?.path.join('.') || 'the document'}: ${issue?.message ?? 'not as expected'}`,
  })
}

/** Writes a cluster file that only its owner can read. An existing one is replaced as a whole or not at all. */
export async function writeClusterFile(path: string, cluster: ClusterFile): Promise<void> {
  const draft = `${path}.new-${process.pid}`
  await writeFile(draft, `${JSON.stringify(cluster, null, 2)}\n`, { mode: 0o600 })
  await rename(draft, path)
}

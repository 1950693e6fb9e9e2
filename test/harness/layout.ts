import { SternaError } from '../../src/core/errors.ts'
import { findBinaries, type PgBinaries } from '../../src/postgres/server/binaries.ts'
import type { ServerVersion } from './servers.ts'

/** Which server versions the mesh suite runs on: one per node. */
export interface Layout {
  /** `18`, `system15`, `15,16,17,18`: for names of tests. */
  readonly name: string
  readonly versions: readonly ServerVersion[]
  /** Why it cannot run on this machine; null: it can. */
  readonly missing: string | null
}

/** Nodes of a mesh when one version is given for all. */
const NODE_COUNT = 3
const KNOWN: readonly string[] = ['15', '16', '17', '18', 'system15'] satisfies ServerVersion[]

/**
 * Reads STERNA_TEST_VERSIONS: one version for three nodes, or one per node separated by commas; 18 when it is not set. Says
 * loudly when this machine lacks one of them.
 */
export async function testLayout(): Promise<Layout> {
  const name = process.env['STERNA_TEST_VERSIONS'] || '18'
  const given = name.split(',').map((version) => version.trim())
  for (const version of given)
    if (!KNOWN.includes(version)) throw new Error(`STERNA_TEST_VERSIONS: "${version}" is none of ${KNOWN}`)
  const versions = (
    given.length === 1 ? Array.from({ length: NODE_COUNT }, () => given[0]) : given
  ) as ServerVersion[]
  const missing = await whyMissing([...new Set(versions)])
  if (missing !== null) skipLoudly(`mesh tests on ${name}`, missing)
  return { name, versions, missing }
}

/** A skip that nobody overlooks. */
export function skipLoudly(what: string, reason: string): void {
  const line = '#'.repeat(78)
  console.warn(`\n${line}\n# SKIPPED: ${what}\n# ${reason}\n${line}`)
}

/**
 * Programs that the embedded servers lack, such as pgbench: those of the machine, whatever their version. Undefined, and
 * said loudly, where there are none.
 */
export async function systemProgram(name: string): Promise<string | undefined> {
  const { access, constants, readdir } = await import('node:fs/promises')
  const versions = await readdir('/usr/lib/postgresql').catch(() => [])
  const directories = [
    ...versions
      .toSorted((a, b) => Number(a) - Number(b))
      .map((version) => `/usr/lib/postgresql/${version}/bin`),
    ...(process.env['PATH'] ?? '').split(':'),
  ]
  for (const directory of directories) {
    const path = `${directory}/${name}`
    if (
      await access(path, constants.X_OK).then(
        () => true,
        () => false,
      )
    )
      return path
  }
  skipLoudly(`tests with ${name}`, `there is no ${name} in /usr/lib/postgresql/*/bin nor in PATH`)
  return undefined
}

async function whyMissing(versions: readonly ServerVersion[]): Promise<string | null> {
  for (const version of versions) {
    const found: PgBinaries | SternaError = await findBinaries(version).catch((error: unknown) => {
      if (error instanceof SternaError) return error
      throw error
    })
    if (found instanceof SternaError) return found.message
  }
  return null
}

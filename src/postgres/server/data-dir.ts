import { execFile, spawn } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { appendFile, chown, mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { messageOf, SternaError } from '../../core/errors.ts'
import { quoteIdent } from '../../core/quote.ts'
import type { PgBinaries } from './binaries.ts'
import { type OsUser, spawnAs } from './os-user.ts'
import { assignSystemIdentifier, newSystemIdentifier } from './system-identifier.ts'

const run = promisify(execFile)

/** What a new data directory gets. */
export interface DataDirOptions {
  readonly binaries: PgBinaries
  /** Who owns it; null for the user of this process. */
  readonly user: OsUser | null
  /** The superuser that initdb creates. */
  readonly role: string
  readonly password: string
  /** A database to create beside `postgres`. */
  readonly database: string
}

/**
 * Creates a data directory with initdb; `dataDir` appears complete or not at all. Its parent must exist and the
 * user must be able to enter it.
 * @throws INITDB_FAILED
 */
export async function createDataDir(dataDir: string, options: DataDirOptions): Promise<void> {
  await removePartials(dataDir)
  const partial = partialOf(dataDir)
  const { binaries, user } = options
  const passwordFile = `${partial}.password`
  try {
    await writeFile(passwordFile, `${options.password}\n`, { mode: 0o600, flag: 'wx' })
    await mkdir(partial, { mode: 0o700 })
    if (user) {
      // The parent is root's, so the user could not create anything there: initdb takes an empty directory.
      await chown(passwordFile, user.uid, user.gid)
      await chown(partial, user.uid, user.gid)
    }
    const args = ['-D', partial, '-U', options.role, '--pwfile', passwordFile, '-A', 'scram-sha-256']
    args.push('-E', 'UTF8', ...localeArgs(binaries.major, process.platform), '--no-instructions')
    await run(join(binaries.binDir, 'initdb'), args, { ...spawnAs(user), cwd: '/', env: cleanEnv() })
    await createDatabase(partial, options)
    await appendFile(join(partial, 'postgresql.conf'), "\ninclude_if_exists = 'sterna.conf'\n")
    await rename(partial, dataDir)
  } catch (error) {
    throw new SternaError('INITDB_FAILED', { directory: dataDir, reason: reasonOf(error) }, error)
  } finally {
    await rm(passwordFile, { force: true })
    await rm(partial, { recursive: true, force: true, maxRetries: 5 }).catch(() => {})
  }
}

/**
 * Copies a data directory whose server does not run (and never ran), with a system identifier of its own;
 * `dataDir` appears complete or not at all.
 * @throws INITDB_FAILED
 */
export async function copyDataDir(template: string, dataDir: string, options: DataDirOptions): Promise<void> {
  await removePartials(dataDir)
  const partial = partialOf(dataDir)
  try {
    await run('cp', ['-a', template, partial])
    const now = performance.timeOrigin + performance.now()
    const identifier = newSystemIdentifier(now, randomInt(0x1000))
    if (await assignSystemIdentifier(partial, identifier)) {
      await rename(partial, dataDir)
      return
    }
  } catch (error) {
    throw new SternaError('INITDB_FAILED', { directory: dataDir, reason: reasonOf(error) }, error)
  } finally {
    await rm(partial, { recursive: true, force: true, maxRetries: 5 }).catch(() => {})
  }
  // An unknown layout of the control file: the slow way is always right.
  await createDataDir(dataDir, options)
}

/** Removes what interrupted attempts at creating this data directory left. */
export async function removePartials(dataDir: string): Promise<void> {
  const parent = dirname(dataDir)
  const prefix = `${basename(dataDir)}.partial-`
  for (const name of await readdir(parent).catch(() => [])) {
    if (!name.startsWith(prefix)) continue
    // An orphaned initdb may still be writing there; it fails when its files are gone. What stays is in nobody's way.
    const options = { recursive: true, force: true, maxRetries: 10, retryDelay: 50 }
    await rm(join(parent, name), options).catch(() => {})
  }
}

/** A name of its own for each attempt: an orphan of a killed one must not write into the next one's. */
function partialOf(dataDir: string): string {
  return `${dataDir}.partial-${process.pid}-${randomInt(0x10000).toString(16)}`
}

/** Whether a complete data directory is there. */
export async function hasDataDir(dataDir: string): Promise<boolean> {
  return stat(join(dataDir, 'PG_VERSION')).then(
    () => true,
    () => false,
  )
}

/** All nodes sort alike and independently of the machine: code point order, full Unicode case mapping. */
function localeArgs(major: number, platform: NodeJS.Platform): string[] {
  if (major >= 17) return ['--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8']
  return platform === 'linux' ? ['--locale=C.UTF-8', '--lc-messages=C'] : ['--locale=C']
}

/** In single-user mode, so that no server has to be started for it. */
async function createDatabase(dataDir: string, options: DataDirOptions): Promise<void> {
  const child = spawn(
    join(options.binaries.binDir, 'postgres'),
    ['--single', '-D', dataDir, '-c', 'fsync=off', '-c', 'exit_on_error=on', 'postgres'],
    { ...spawnAs(options.user), cwd: '/', env: cleanEnv(), stdio: ['pipe', 'ignore', 'pipe'] },
  )
  let output = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text))
  child.stdin.on('error', () => {})
  child.stdin.end(`create database ${quoteIdent(options.database)}\n`)
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  if (code !== 0 || /\b(ERROR|FATAL|PANIC):/.test(output)) {
    throw new Error(output.trim().split('\n').at(-1) ?? `postgres --single ended with ${code}`)
  }
}

/** The environment without libpq's and the server's variables, which would change what is meant. */
export function cleanEnv(env: NodeJS.ProcessEnv = process.env): NodeJS.ProcessEnv {
  const kept = Object.entries(env).filter(
    ([name]) => !/^(PG[A-Z]+|LC_[A-Z]+|LANG|LANGUAGE|STERNA_\w+)$/.test(name),
  )
  return { ...Object.fromEntries(kept), LC_ALL: 'C' }
}

function reasonOf(error: unknown): string {
  const stderr = (error as { stderr?: string }).stderr?.trim()
  if (!stderr) return messageOf(error)
  const lines = stderr.split('\n').filter((line) => /error|fatal|could not|no space/i.test(line))
  return (lines.length > 0 ? lines : stderr.split('\n').slice(-2)).join('; ')
}

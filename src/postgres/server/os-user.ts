import { execFile } from 'node:child_process'
import { access, constants, readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { messageOf, SternaError } from '../../core/errors.ts'

const run = promisify(execFile)

/** An operating system user under which a server runs. */
export interface OsUser {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/**
 * The user that servers must run as: null when this process is an ordinary user (servers then run as that user).
 * PostgreSQL refuses to run as root, so for root it is `postgres`, else `sterna`, which is created when needed.
 * @throws SERVER_USER_MISSING
 */
export async function serverUser(say: (line: string) => void = () => {}): Promise<OsUser | null> {
  if (process.getuid?.() !== 0) return null
  const found = (await lookUp('postgres')) ?? (await lookUp('sterna'))
  if (found) return found
  say('PostgreSQL refuses to run as root, and there is no user "postgres": creating the system user "sterna"')
  const reasons: string[] = []
  for (const [command, ...args] of CREATE_USER) {
    try {
      await run(command, args)
    } catch (error) {
      reasons.push(`${command}: ${messageOf(error).split('\n')[0]}`)
      continue
    }
    const created = await lookUp('sterna')
    if (created) return created
  }
  throw new SternaError('SERVER_USER_MISSING', { reason: reasons.join('; ') })
}

/** useradd is everywhere but on Alpine, which has busybox adduser. */
const CREATE_USER: readonly (readonly [string, ...string[]])[] = [
  ['useradd', '--system', '--user-group', '--no-create-home', '--home-dir', '/var/lib/sterna', 'sterna'],
  ['adduser', '-S', '-D', '-H', '-h', '/var/lib/sterna', 'sterna'],
]

async function lookUp(name: string): Promise<OsUser | undefined> {
  const passwd = await readFile('/etc/passwd', 'utf8').catch(() => '')
  const found = findInPasswd(passwd, name)
  if (found) return found
  // Users may live elsewhere than in the file (LDAP, macOS directory service).
  try {
    const [uid, gid] = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])])
    return { name, uid: Number(uid.stdout), gid: Number(gid.stdout) }
  } catch {
    return undefined
  }
}

/** Finds a user in the text of /etc/passwd. */
export function findInPasswd(passwd: string, name: string): OsUser | undefined {
  for (const line of passwd.split('\n')) {
    const fields = line.split(':')
    if (fields[0] === name && /^\d+$/.test(fields[2] ?? '') && /^\d+$/.test(fields[3] ?? '')) {
      return { name, uid: Number(fields[2]), gid: Number(fields[3]) }
    }
  }
  return undefined
}

/** The part of spawn's options that makes a child run as `user`; empty for null. */
export function spawnAs(user: OsUser | null): { uid?: number; gid?: number } {
  return user ? { uid: user.uid, gid: user.gid } : {}
}

/** Whether `user` can enter this existing directory: asked of the kernel, because ACLs count too. */
export async function canEnter(user: OsUser | null, directory: string): Promise<boolean> {
  if (!user) {
    return access(directory, constants.X_OK).then(
      () => true,
      () => false,
    )
  }
  try {
    await run('/bin/sh', ['-c', 'cd -- "$1"', 'sh', directory], { ...spawnAs(user), cwd: '/' })
    return true
  } catch {
    return false
  }
}

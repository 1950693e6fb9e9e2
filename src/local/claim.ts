import { readFile, rm, writeFile } from 'node:fs/promises'
import { z } from 'zod'
import { assert } from '../core/assert.ts'
import { SternaError } from '../core/errors.ts'
import { ERROR_CODES, type ErrorCode } from '../core/error-codes.ts'
import { replaceFile } from './cluster-file.ts'
import { clusterPaths } from './layout.ts'
import { identify, isAlive, type ProcessIdentity } from './process-identity.ts'

const claimShape = z.object({
  pid: z.int(),
  started: z.string(),
  state: z.enum(['starting', 'ready', 'stopping', 'failed']),
  error: z.object({ code: z.string(), facts: z.record(z.string(), z.unknown()) }).optional(),
})

/** Who runs the cluster of a directory: the contents of `supervisor.json`. */
export type Claim = z.infer<typeof claimShape>

/** Reads who runs the cluster; null when nobody does. The claim of a process that died counts only when it `failed`. */
export async function readClaim(directory: string): Promise<Claim | null> {
  const claim = await readAnyClaim(directory)
  if (!claim) return null
  return claim.state === 'failed' || (await isAlive(claim)) ? claim : null
}

/**
 * Makes this process the one that works on the cluster. Takes over from its parent process, and from dead ones.
 * @throws CLUSTER_BUSY
 */
export async function takeClaim(directory: string): Promise<void> {
  const { supervisorFile } = clusterPaths(directory)
  const own = await ownIdentity()
  const text = JSON.stringify({ ...own, state: 'starting' })
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      await writeFile(supervisorFile, text, { flag: 'wx', mode: 0o644 })
      return
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    }
    const holder = await readAnyClaim(directory)
    const isOurs = holder?.pid === process.pid || holder?.pid === process.ppid
    if (holder && isOurs && (await isAlive(holder))) {
      await replaceFile(supervisorFile, text, 0o644)
      return
    }
    if (holder && (await isAlive(holder))) throw busy(directory, holder)
    await rm(supervisorFile, { force: true })
  }
  const holder = await readAnyClaim(directory)
  throw busy(directory, holder ?? { ...own, state: 'starting' })
}

/** Changes the state of the claim that this process holds. */
export async function updateClaim(
  directory: string,
  state: Claim['state'],
  error?: SternaError,
): Promise<void> {
  const claim: Claim = {
    ...(await ownIdentity()),
    state,
    ...(error ? { error: { code: error.code, facts: { ...error.facts } } } : {}),
  }
  const text = JSON.stringify(claim, (_, value: unknown) =>
    typeof value === 'bigint' ? String(value) : value,
  )
  await replaceFile(clusterPaths(directory).supervisorFile, text, 0o644)
}

/** Gives the claim back; does nothing when this process does not hold it. */
export async function releaseClaim(directory: string): Promise<void> {
  const claim = await readAnyClaim(directory)
  if (claim?.pid === process.pid) await rm(clusterPaths(directory).supervisorFile, { force: true })
}

/** The error that a failed supervisor left in its claim. */
export function claimError(claim: Claim): SternaError | undefined {
  if (!claim.error || !(claim.error.code in ERROR_CODES)) return undefined
  return new SternaError(claim.error.code as ErrorCode, claim.error.facts as SternaError['facts'])
}

/** The error for a command that finds somebody else at work. */
export function busy(directory: string, claim: Claim): SternaError {
  const states = { starting: 'being started', ready: 'run', stopping: 'being stopped', failed: 'run' }
  return new SternaError('CLUSTER_BUSY', { directory, state: states[claim.state], pid: claim.pid })
}

async function readAnyClaim(directory: string): Promise<Claim | undefined> {
  const text = await readFile(clusterPaths(directory).supervisorFile, 'utf8').catch(() => '')
  try {
    return claimShape.parse(JSON.parse(text))
  } catch {
    return undefined
  }
}

async function ownIdentity(): Promise<ProcessIdentity> {
  const own = await identify(process.pid)
  assert(own, 'this process cannot see itself')
  return own
}

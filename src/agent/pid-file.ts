import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'

import { messageOf, SternaError } from '../core/errors.ts'

/**
 * Writes this process's id, whole or not at all. An earlier file is replaced: it is information, not a lock (the lock is
 * in the database).
 * @throws PID_FILE_FAILED
 */
export function writePidFile(path: string): void {
  const draft = `${path}.${process.pid}`
  try {
    writeFileSync(draft, `${process.pid}\n`)
    renameSync(draft, path)
  } catch (error) {
    rmSync(draft, { force: true })
    throw new SternaError('PID_FILE_FAILED', { path, reason: messageOf(error) }, error)
  }
}

/** Removes the file if it still names this process; a successor may have written its own. */
export function removePidFile(path: string): void {
  try {
    if (readFileSync(path, 'utf8').trim() === String(process.pid)) rmSync(path)
  } catch {
    // Gone already, or not ours to remove.
  }
}

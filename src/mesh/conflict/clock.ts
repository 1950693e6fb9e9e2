import type { PgTime } from '../../core/pg-time.ts'
import type { RowVersion } from './version.ts'

/**
 * Whether a remote transaction may be applied: the subscribing server's own clock is past its timestamp. At an equal reading
 * a local write that follows could get a version that is older than what it replaces.
 */
export function mayApply(clock: PgTime, commit: PgTime): boolean {
  return clock > commit
}

/** The newest versions that a node has committed: local ones, and applied ones. */
export interface CommitClock {
  readonly local: PgTime | null
  readonly remote: PgTime | null
}

/** No commit yet. */
export const NO_COMMITS: CommitClock = { local: null, remote: null }

/** Takes note of a commit in the server's own WAL. */
export function noteCommit(clock: CommitClock, commit: RowVersion, nodeId: number): CommitClock {
  const later = (known: PgTime | null): PgTime =>
    known === null || commit.time > known ? commit.time : known
  return commit.nodeId === nodeId
    ? { ...clock, local: later(clock.local) }
    : { ...clock, remote: later(clock.remote) }
}

/**
 * Whether a local commit may be older than what it replaced: the clock had stepped back. The keys that it wrote are to be
 * written again once `mayRewrite`.
 */
export function isBackdated(clock: CommitClock, commit: PgTime): boolean {
  return (clock.local !== null && commit < clock.local) || (clock.remote !== null && commit <= clock.remote)
}

/** Whether the clock has passed everything seen, so that what is written now is newer than it. */
export function mayRewrite(clock: CommitClock, now: PgTime): boolean {
  return (clock.local === null || now > clock.local) && (clock.remote === null || now > clock.remote)
}

import type { PgTime } from '../../core/pg-time.ts'

/** Who wrote a row last: the commit timestamp at its origin, and the origin's node id. */
export interface RowVersion {
  readonly time: PgTime
  readonly nodeId: number
}

/** Orders versions by timestamp, then node id: the same on every node. Negative: `a` is older. */
export function compareVersions(a: RowVersion, b: RowVersion): number {
  if (a.time !== b.time) return a.time < b.time ? -1 : 1
  return a.nodeId - b.nodeId
}

/**
 * Whether a change may replace what is here. `local` is the version of the row; null: there is no row, or its timestamp
 * is unknown (older than track_commit_timestamp), which counts as older than everything. Equal versions are one
 * transaction touching a row twice, or a repeat: the later in the stream applies.
 * The SQL form of this rule is `sterna.version_not_greater`.
 */
export function mayReplace(change: RowVersion, local: RowVersion | null): boolean {
  return local === null || compareVersions(local, change) <= 0
}

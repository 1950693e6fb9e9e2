import type { Outcome, Result } from './apply-change.ts'
import type { Relation } from './heartbeat.ts'
import type { ConflictType, TableRules } from './rules.ts'
import type { Collision } from './set-aside.ts'

/** What goes into the conflict history of a change. */
export interface ConflictRecord {
  readonly type: ConflictType
  readonly result: Result
  /** Null: not known (yet). False: the writer of the newer version knew the older one. */
  readonly concurrent: boolean | null
  /** Policy `manual`: queued for review besides. */
  readonly isForReview: boolean
}

/**
 * What of an outcome is recorded. A mere change of writer is none; what did not take effect, or met no row where one should
 * have been, always is. `relation`: between the change and the version it met; null when it met none.
 */
export function recordOf(
  outcome: Outcome,
  relation: Relation | null,
  { manual }: TableRules,
): ConflictRecord | null {
  const { conflict, result } = outcome
  if (conflict === null) return null
  const isMissing = conflict.endsWith('_missing')
  const isDropped = conflict.endsWith('_deleted')
  if (relation === 'ordered' && !isMissing && !isDropped) return null
  const concurrent = relation === null || relation === 'unknown' ? null : relation === 'concurrent'
  const isForReview = manual.has(conflict) && relation !== 'ordered'
  return { type: conflict, result, concurrent, isForReview }
}

/** The name of a collision in other unique keys than the primary one, as PostgreSQL 18 gives it. */
export function collisionType(
  operation: 'insert' | 'update',
  collisions: readonly Collision[],
): ConflictType {
  const constraints = new Set(collisions.flatMap((it) => it.constraints))
  if (constraints.size > 1 || collisions.length > 1) return 'multiple_unique_conflicts'
  return operation === 'insert' ? 'insert_exists' : 'update_exists'
}

import type { Values } from './change.ts'

/**
 * What a change can meet. PostgreSQL 18's names where it has one; `insert_deleted` (an insert that is older than the delete
 * of its key) is ours.
 * Source: PostgreSQL docs, "Logical Replication: Conflicts".
 */
export type ConflictType =
  | 'insert_exists'
  | 'insert_deleted'
  | 'update_origin_differs'
  | 'update_exists'
  | 'update_missing'
  | 'update_deleted'
  | 'delete_origin_differs'
  | 'delete_missing'
  | 'multiple_unique_conflicts'

/** A unique constraint or index besides the key. */
export interface UniqueConstraint {
  readonly name: string
  readonly columns: readonly string[]
  /** UNIQUE NULLS NOT DISTINCT: two nulls collide. */
  readonly nullsCollide: boolean
}

/**
 * A user's merge of two rows. Converges only if it is commutative, associative and idempotent, the table is never deleted
 * from, and local updates go through it too. Must leave key columns and delta columns alone.
 */
export type MergeRows = (a: Values, b: Values) => Values

/** How conflicts of one table are decided: the same on every node. */
export interface TableRules {
  readonly uniques: readonly UniqueConstraint[]
  /** Names of the columns whose values are sums of contributions. */
  readonly deltas: readonly string[]
  /** Null: the newer version wins the whole row. `ask`: the function runs elsewhere, the decision asks for its result. */
  readonly merge: MergeRows | 'ask' | null
  /** Types with policy `manual`: the newer version wins, and the conflict is queued for review. */
  readonly manual: ReadonlySet<ConflictType>
}

/** Rules of which the merge function is at hand. */
export type LocalRules = TableRules & { readonly merge: MergeRows | null }

/** last_update_wins, no constraint besides the key, no delta column. */
export const DEFAULT_RULES: LocalRules = { uniques: [], deltas: [], merge: null, manual: new Set() }

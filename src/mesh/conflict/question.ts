import type { PgTime } from '../../core/pg-time.ts'
import type { Key, Values } from './change.ts'
import type { KeyedRow, KeyState } from './key-state.ts'
import type { RowVersion } from './version.ts'

/**
 * What a decision asks while it runs: a generator yields these, and its driver answers out of SQL or out of memory. All
 * answers describe the state before the decision, read under the lock of the key (a later statement than the one that locks).
 */
export type Question =
  /** The row (in the table or aside) or tombstone of one key: KeyAnswer. */
  | { readonly ask: 'key'; readonly key: Key }
  /** Rows under other keys, visible or aside, that share a unique value with this row: RowsAnswer. */
  | { readonly ask: 'colliding'; readonly key: Key; readonly values: Values }
  /** Keys whose row or tombstone is not newer than this version, rows aside included: KeysAnswer. */
  | { readonly ask: 'not newer'; readonly version: RowVersion }
  /** What the origin of the change had seen when it made it: BaseAnswer. */
  | { readonly ask: 'base'; readonly key: Key; readonly version: RowVersion; readonly local: RowVersion }
  /**
   * The row as its origin has it now, in its table or aside, read after the origin has flushed what it read: FetchAnswer.
   * Without the flush a crash there could lose the newer row for which this change is given up.
   */
  | { readonly ask: 'fetch'; readonly key: Key; readonly nodeId: number }
  /** The row that the table's merge function makes of the row here and the one that arrives: MergeAnswer. */
  | { readonly ask: 'merge'; readonly local: Values; readonly arriving: Values }

export interface KeyAnswer {
  readonly is: 'key'
  readonly state: KeyState
  readonly truncated: RowVersion | null
}

export interface RowsAnswer {
  readonly is: 'rows'
  readonly rows: readonly KeyedRow[]
}

export interface KeysAnswer {
  readonly is: 'keys'
  readonly keys: readonly { readonly key: Key; readonly state: KeyState }[]
  readonly truncated: RowVersion | null
}

/** Facts for `isProvenBase`. */
export interface BaseAnswer {
  readonly is: 'base'
  /** The origin had applied the local row's version, by the last heartbeat before the change in its own stream. */
  readonly hadLocal: boolean
  /** All changes of every third node that are older than this have been received here; null: there is no third node. */
  readonly receivedUpTo: PgTime | null
  /** A change to this key is parked here, or one newer than the row was given up as superseded, whoever made it. */
  readonly isIncomplete: boolean
  /** The transaction that is being applied wrote the local row, and none of its values was fetched. */
  readonly isOfThisTransaction: boolean
}

export interface FetchAnswer {
  readonly is: 'fetch'
  /** Null: the origin has no such row any more. */
  readonly row: { readonly values: Values; readonly version: RowVersion | null } | null
}

export interface MergeAnswer {
  readonly is: 'merge'
  readonly values: Values
}

export type Answer = KeyAnswer | RowsAnswer | KeysAnswer | BaseAnswer | FetchAnswer | MergeAnswer

/** A decision that asks while it runs. */
export type Decision<T> = Generator<Question, T, Answer>

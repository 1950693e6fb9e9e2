import type { RowVersion } from './version.ts'

/** The key of a row as canonical text, the same on every node; unique within its table. */
export type Key = string

/** A column's value as text; null is SQL's null. */
export type Value = string | null

/** A whole row by column name, key columns included. */
export type Values = Readonly<Record<string, Value>>

/** Stands for a TOAST value that an update did not touch, and that its origin therefore did not send. */
export const UNCHANGED: unique symbol = Symbol('unchanged TOAST value')

/** A row as it arrives: some values may not have been sent. */
export type SentValues = Readonly<Record<string, Value | typeof UNCHANGED>>

/** Exact decimal numbers by delta column. A column that is missing counts as zero. */
export type Amounts = Readonly<Record<string, string>>

/** A row that came into being at its origin. */
export interface InsertChange {
  readonly tag: 'insert'
  readonly version: RowVersion
  readonly key: Key
  readonly values: Values
}

/** A row that was replaced at its origin, perhaps under another key. */
export interface UpdateChange {
  readonly tag: 'update'
  readonly version: RowVersion
  /** The key that the row had. Equal to `key` unless the update changed it. */
  readonly oldKey: Key
  readonly key: Key
  readonly values: SentValues
  /** The whole old row, with REPLICA IDENTITY FULL (hence always for tables with delta columns); else null. */
  readonly old: Values | null
}

/** A row that went away at its origin. */
export interface DeleteChange {
  readonly tag: 'delete'
  readonly version: RowVersion
  readonly key: Key
  /** As in UpdateChange. */
  readonly old: Values | null
}

/**
 * Takes amounts away again that an insert brought back without showing them to the application: a remainder, or the
 * sums of a row set aside. Travels behind that insert, in its transaction.
 */
export interface CancelChange {
  readonly tag: 'cancel'
  readonly version: RowVersion
  readonly key: Key
  readonly amounts: Amounts
}

/** All rows of the table went away at its origin. */
export interface TruncateChange {
  readonly tag: 'truncate'
  readonly version: RowVersion
}

/** One change to one table, as its origin made it. */
export type Change = InsertChange | UpdateChange | DeleteChange | CancelChange | TruncateChange

/** Every change but truncate: it names its rows. */
export type RowChange = Exclude<Change, TruncateChange>

/** The keys that a change touches; null: all keys of the table. */
export function keysOf(change: Change): readonly Key[] | null {
  switch (change.tag) {
    case 'insert':
    case 'delete':
    case 'cancel':
      return [change.key]
    case 'update':
      return change.oldKey === change.key ? [change.key] : [change.oldKey, change.key]
    case 'truncate':
      return null
  }
}

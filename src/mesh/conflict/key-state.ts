import type { Amounts, Key, Values } from './change.ts'
import { compareVersions, type RowVersion } from './version.ts'

/** A row that a node holds, be it in its table or set aside. */
export interface Row {
  readonly values: Values
  /** Null: its timestamp is unknown, which counts as older than everything. */
  readonly version: RowVersion | null
  /** Whether it stands in the table; false: set aside, because a newer row has one of its unique values. */
  readonly visible: boolean
}

/** What is left of a row that was deleted. */
export interface Tombstone {
  readonly version: RowVersion
  /** Contributions to delta columns that the deleting node had not seen. */
  readonly remainder: Amounts
}

/** All that a node knows of one key. A row takes the place of the tombstone of its key, and the other way round. */
export type KeyState =
  | { readonly row: Row; readonly tombstone: null }
  | { readonly row: null; readonly tombstone: Tombstone | null }

/** A key of which nothing is known. */
export const ABSENT: KeyState = { row: null, tombstone: null }

/** A row with its key. */
export interface KeyedRow extends Row {
  readonly key: Key
}

/** The version of what is held: row or tombstone. Null: nothing, or a row of unknown age. */
export function heldVersion({ row, tombstone }: KeyState): RowVersion | null {
  return row ? row.version : (tombstone?.version ?? null)
}

/** Orders rows by version, unknown versions first, then by key: total, and the same on every node. Negative: `a` is older. */
export function compareRows(a: KeyedRow, b: KeyedRow): number {
  const byVersion = compareKnown(a.version, b.version)
  if (byVersion !== 0 || a.key === b.key) return byVersion
  return a.key < b.key ? -1 : 1
}

function compareKnown(a: RowVersion | null, b: RowVersion | null): number {
  if (a === null || b === null) return (a === null ? 0 : 1) - (b === null ? 0 : 1)
  return compareVersions(a, b)
}

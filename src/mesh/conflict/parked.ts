import { keysOf, type Change, type Key } from './change.ts'
import { compareVersions, type RowVersion } from './version.ts'

/** A change that could not be applied, or that waits behind one. Complete: its origin is not asked again. */
export interface ParkedChange {
  readonly table: string
  /** The node whose stream brought it. */
  readonly originId: number
  /** Its place in that stream: greater is later. */
  readonly place: bigint
  readonly change: Change
}

/**
 * Whether a change must wait behind a parked one of its own origin: they touch a key in common. Applied at once, it would be
 * undone by the retry if both have one version, as two changes of one transaction do.
 */
export function mustQueue(
  parked: readonly ParkedChange[],
  table: string,
  originId: number,
  change: Change,
): boolean {
  return parked.some((it) => isOf(it, table, originId) && shareKey(it.change, change))
}

/** The parked changes that a truncate of their own origin makes void; those of other origins lose by version at their retry. */
export function settledBy(parked: readonly ParkedChange[], table: string, originId: number): ParkedChange[] {
  return parked.filter((it) => isOf(it, table, originId))
}

/** The parked changes that may be retried now: those behind no other, earliest first. */
export function retriable(parked: readonly ParkedChange[]): ParkedChange[] {
  const inOrder = parked.toSorted((a, b) => (a.place < b.place ? -1 : a.place > b.place ? 1 : 0))
  return inOrder.filter((it, at) => !mustQueue(inOrder.slice(0, at), it.table, it.originId, it.change))
}

/** Whether an older change to this table is parked, to this key if one is given; its retry still needs what is known now. */
export function isOlderParked(
  parked: readonly ParkedChange[],
  table: string,
  version: RowVersion,
  key: Key | null,
): boolean {
  return parked.some(
    (it) =>
      it.table === table &&
      compareVersions(it.change.version, version) <= 0 &&
      (key === null || (keysOf(it.change)?.includes(key) ?? true)),
  )
}

function isOf(parked: ParkedChange, table: string, originId: number): boolean {
  return parked.table === table && parked.originId === originId
}

function shareKey(a: Change, b: Change): boolean {
  const keysOfB = keysOf(b)
  return keysOf(a)?.some((key) => keysOfB?.includes(key) ?? true) ?? true
}

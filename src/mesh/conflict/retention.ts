import type { Key } from './change.ts'
import { areZero } from './deltas.ts'
import { claimOf, hadApplied, type Heartbeats } from './heartbeat.ts'
import type { Tombstone } from './key-state.ts'
import { isOlderParked, type ParkedChange } from './parked.ts'
import { compareVersions, type RowVersion } from './version.ts'

/** A version that a row's `xmin` cannot express. */
export interface RowClockEntry {
  /** The version that the row has. */
  readonly version: RowVersion
  /** The version that its `xmin` would give it. */
  readonly written: RowVersion
}

/** What decides when a node may forget. */
export interface RetentionFacts {
  /** Every other node of the mesh, reachable or not. */
  readonly peers: readonly number[]
  /** As received in each peer's own stream. What is heard by another way can overtake changes that are still in it. */
  readonly heartbeats: Heartbeats
  readonly parked: readonly ParkedChange[]
  readonly table: string
}

/** Whether no change that this tombstone would beat can come any more, and nothing is left of the row. */
export function mayDropTombstone(key: Key, tombstone: Tombstone, facts: RetentionFacts): boolean {
  return (
    areZero(tombstone.remainder) &&
    arePast(tombstone.version, facts) &&
    !isOlderParked(facts.parked, facts.table, tombstone.version, key)
  )
}

/**
 * Whether a row may from now on pass for the version of its `xmin`: nothing between the two versions can arrive, no peer will
 * ask for the row by its version, and no row that it has to be compared with is set aside.
 */
export function mayDropRowClock(entry: RowClockEntry, isNearAside: boolean, facts: RetentionFacts): boolean {
  const { version, written } = entry
  const greater = compareVersions(version, written) < 0 ? written : version
  return (
    !isNearAside &&
    arePast(greater, facts) &&
    facts.peers.every(
      (peer) => peer === version.nodeId || hadApplied(facts.heartbeats.get(peer)?.at(-1), version),
    ) &&
    !isOlderParked(facts.parked, facts.table, greater, null)
  )
}

/**
 * Whether it need not be remembered any more that a change was given up: what superseded it has arrived, or nothing is held
 * that it could be compared with, and nothing that old can come.
 */
export function mayForgetGivenUp(
  key: Key,
  version: RowVersion,
  held: RowVersion | null,
  facts: RetentionFacts,
): boolean {
  if (held !== null) return compareVersions(held, version) >= 0
  return arePast(version, facts) && !isOlderParked(facts.parked, facts.table, version, key)
}

/** Whether each peer's stream has shown that it commits nothing so old any more; equal timestamps are told apart by node. */
function arePast({ time }: RowVersion, { peers, heartbeats }: RetentionFacts): boolean {
  return peers.every((peer) => claimOf(heartbeats, peer) > time)
}

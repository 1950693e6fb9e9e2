import { pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import type { ParkedChange } from './parked.ts'
import type { RowVersion } from './version.ts'

/** What a node says of itself, as a row in its own stream: it holds for everything that stands before it there. */
export interface Heartbeat {
  readonly nodeId: number
  /** Commit timestamp of the heartbeat. */
  readonly time: PgTime
  /**
   * The node commits nothing older than this any more: read from its clock, and sent after every transaction that ran then
   * has ended, because commits are not in the order of their timestamps.
   */
  readonly claim: PgTime
  /** By origin: everything older than this is applied there. */
  readonly applied: ReadonlyMap<number, PgTime>
  /** By origin: the greatest commit timestamp that has arrived there. */
  readonly seen: ReadonlyMap<number, PgTime>
}

/** Heartbeats by node, oldest first, as they arrived in each node's own stream. */
export type Heartbeats = ReadonlyMap<number, readonly Heartbeat[]>

const LONG_AGO = pgTimeOf(-(1n << 63n))

/** Adds a heartbeat, and forgets the oldest of that node beyond `kept`. */
export function receiveHeartbeat(heartbeats: Heartbeats, heartbeat: Heartbeat, kept: number): Heartbeats {
  const earlier = heartbeats.get(heartbeat.nodeId) ?? []
  return new Map(heartbeats).set(heartbeat.nodeId, [...earlier, heartbeat].slice(-kept))
}

/** The greatest claim of a node. A clock that stepped back makes lower ones, which take nothing back. */
export function claimOf(heartbeats: Heartbeats, nodeId: number): PgTime {
  return (heartbeats.get(nodeId) ?? []).reduce((max, { claim }) => (claim > max ? claim : max), LONG_AGO)
}

/** What the next heartbeat of this node may say of each origin: a change that is parked here is not applied. */
export function appliedUpTo(
  heartbeats: Heartbeats,
  origins: readonly number[],
  parked: readonly ParkedChange[],
): Map<number, PgTime> {
  const result = new Map(origins.map((nodeId) => [nodeId, claimOf(heartbeats, nodeId)]))
  for (const { originId, change } of parked) {
    const upTo = result.get(originId)
    if (upTo !== undefined && change.version.time < upTo) result.set(originId, change.version.time)
  }
  return result
}

/** Whether a node had applied a version by this heartbeat of it. */
export function hadApplied(heartbeat: Heartbeat | undefined, version: RowVersion): boolean {
  return heartbeat !== undefined && (heartbeat.applied.get(version.nodeId) ?? LONG_AGO) > version.time
}

/** How two changes to one row stand to each other; `unknown`: heartbeats are too far apart to tell. */
export type Relation = 'ordered' | 'concurrent' | 'unknown'

/**
 * Whether the writer of the newer version knew the older one. By that a conflict is recorded or not; who wins is a matter
 * of the versions alone. Heartbeats of the newer one's node enclose it: what it had applied before, what had arrived
 * there by the next one. With only the earlier one at hand, `unknown` may become `concurrent` later.
 */
export function relationOf(newer: RowVersion, older: RowVersion, heartbeats: Heartbeats): Relation {
  if (newer.nodeId === older.nodeId) return 'ordered'
  // A node applies nothing whose timestamp its own clock has not passed.
  if (newer.time === older.time) return 'concurrent'
  const history = heartbeats.get(newer.nodeId) ?? []
  if (
    hadApplied(
      history.findLast(({ time }) => time < newer.time),
      older,
    )
  )
    return 'ordered'
  const next = history.find(({ time }) => time > newer.time)
  if (next && (next.seen.get(older.nodeId) ?? LONG_AGO) < older.time) return 'concurrent'
  return 'unknown'
}

import type { Lsn } from '../core/lsn.ts'

/** What is known about a subscription's progress at one moment; times in milliseconds since the Unix epoch. */
export interface LagFacts {
  readonly nowMs: number
  /** Commit time at the origin of the last transaction applied. */
  readonly lastCommitMs: number | null
  /** How long after its commit that transaction was applied. */
  readonly lastDelayMs: number | null
  readonly providerLsn: Lsn | null
  readonly appliedLsn: Lsn | null
  readonly heartbeatIntervalMs: number
}

/** Bytes of WAL between the provider's position and what is applied; null while either is unknown. */
export function lagBytes({ providerLsn, appliedLsn }: LagFacts): number | null {
  if (providerLsn === null || appliedLsn === null) return null
  return providerLsn > appliedLsn ? Number(providerLsn - appliedLsn) : 0
}

/**
 * Seconds by which this node is behind. Heartbeats make a commit at least each interval, so a last commit older than two
 * intervals means delay, unless everything the provider has written is applied.
 */
export function lagSeconds(facts: LagFacts): number | null {
  const { nowMs, lastCommitMs, lastDelayMs, heartbeatIntervalMs } = facts
  if (lastCommitMs === null || lastDelayMs === null) return lagBytes(facts) === 0 ? 0 : null
  const sinceMs = nowMs - lastCommitMs
  if (sinceMs > 2 * heartbeatIntervalMs && lagBytes(facts) !== 0) return sinceMs / 1000
  return Math.max(lastDelayMs, 0) / 1000
}

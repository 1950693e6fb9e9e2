import type { Lsn } from '../core/lsn.ts'

/** `catching_up`: connected, but behind; `down`: not applying because of the error shown. */
export type SubscriptionStatus = 'initializing' | 'replicating' | 'catching_up' | 'down' | 'disabled'

/** What a subscription last failed with. */
export interface ReportedError {
  /** A code of the error registry, or the SQLSTATE of the server. */
  readonly code: string
  readonly message: string
  readonly hint: string
  /** Milliseconds since the Unix epoch. */
  readonly atMs: number
}

/** One subscription as its agent sees it now. Null: not known yet. */
export interface SubscriptionReport {
  readonly name: string
  readonly status: SubscriptionStatus
  readonly providerName: string | null
  readonly slotName: string | null
  readonly replicationSets: readonly string[]
  readonly receivedLsn: Lsn | null
  readonly appliedLsn: Lsn | null
  /** Durable here and confirmed to the provider, which may recycle the WAL before it. */
  readonly confirmedLsn: Lsn | null
  /** The provider's current WAL position. */
  readonly providerLsn: Lsn | null
  readonly lagBytes: number | null
  readonly lagSeconds: number | null
  /** WAL that the slot holds at the provider. */
  readonly retainedWalBytes: number | null
  readonly transactions: number
  readonly changes: number
  /** Met since the agent started, by PostgreSQL's conflict type. */
  readonly conflicts: Readonly<Record<string, number>>
  /** Changes of the provider that could not be applied and wait. */
  readonly exceptions: number
  readonly lastError: ReportedError | null
  /** Milliseconds since the Unix epoch of the next attempt. */
  readonly retryAtMs: number | null
}

/** A condition that somebody must act on. */
export interface Alarm {
  /** Stable name, such as `slot_retains_wal`. */
  readonly name: string
  readonly subject: string
  readonly message: string
  readonly action: string
  readonly severity: 'warning' | 'critical'
}

/** A node as its agent sees it. */
export interface NodeReport {
  readonly nodeId: number | null
  readonly nodeName: string
  readonly region: string | null
  readonly sternaVersion: string
  readonly serverVersion: string | null
  /** Server clock minus agent clock. */
  readonly clockOffsetMs: number | null
  /** False while the agent has no connection to its own server. */
  readonly connected: boolean
  readonly startedAtMs: number
  readonly subscriptions: readonly SubscriptionReport[]
  /** Conflicts that wait for a person to look at them; null: not known yet. */
  readonly openReviews: number | null
  /** Rows that stand back for a newer one with a unique value of theirs; null: not known yet. */
  readonly rowsAside: number | null
  readonly alarms: readonly Alarm[]
  readonly lastError: ReportedError | null
}

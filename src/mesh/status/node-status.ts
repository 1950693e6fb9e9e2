import type { SternaError } from '../../core/errors.ts'
import { sqlstateOf } from '../../postgres/server-error.ts'
import type { ClockOffset } from '../doctor/clock.ts'
import type { SubscriptionStatus } from '../report.ts'

/** One node as its database tells it. Most is null while the node cannot be reached. */
export interface NodeStatus {
  readonly name: string
  readonly address: string
  /** Why nothing is known about it; null when it answered. */
  readonly error: SternaError | null
  readonly nodeId: number | null
  readonly region: string | null
  readonly serverVersion: string | null
  /** The server's clock against that of this machine. */
  readonly clock: ClockOffset | null
  readonly agent: AgentStatus | null
  readonly subscriptions: readonly SubscriptionRow[]
  readonly slots: readonly SlotStatus[]
  readonly sequences: readonly SequenceStatus[]
  readonly tables: readonly TableStatus[]
  readonly cleanups: readonly CleanupStatus[]
  /** Null: not known, or the role may not read it. */
  readonly queues: QueueStatus | null
}

/** What the agent last wrote about itself. */
export interface AgentStatus {
  /** Whether it wrote within the last seconds. */
  readonly alive: boolean
  readonly version: string | null
  readonly pid: number | null
  readonly host: string | null
  readonly httpAddress: string | null
  readonly silentSeconds: number | null
}

/** One subscription of a node. LSNs as text. */
export interface SubscriptionRow {
  readonly name: string
  readonly status: SubscriptionStatus
  readonly provider: string | null
  readonly slotName: string | null
  readonly replicationSets: readonly string[]
  readonly lagBytes: number | null
  readonly lagSeconds: number | null
  readonly receivedLsn: string | null
  readonly appliedLsn: string | null
  readonly transactions: number
  readonly changes: number
  readonly conflicts: Readonly<Record<string, number>>
  readonly exceptions: number
  readonly lastError: {
    readonly code: string | null
    readonly message: string
    readonly hint: string | null
  } | null
}

/** What waits on a node because of conflicts. */
export interface QueueStatus {
  /** Conflicts for a person to look at. */
  readonly openReviews: number
  /** Rows that stand back for a newer one with a unique value of theirs. */
  readonly rowsAside: number
}

/** A logical slot in the node's database: somebody follows this node, or did. */
export interface SlotStatus {
  readonly name: string
  readonly active: boolean
  readonly walStatus: string | null
  readonly retainedBytes: number | null
  /** Whether it has the name of a slot of Sterna. */
  readonly ours: boolean
}

/** A sequence that somebody should look at. */
export interface SequenceStatus {
  readonly name: string
  /** The column that it feeds; null where it feeds none. */
  readonly ownedBy: string | null
  readonly usedPercent: number | null
  /** What will go wrong. */
  readonly warning: string
}

/** A table that does not replicate, or not as a whole. */
export interface TableStatus {
  readonly name: string
  /** `no`, `insert only` or `partly`. */
  readonly replicates: string
  readonly reason: string | null
  /** Unlogged, or taken out of the sets by hand. */
  readonly deliberate: boolean
}

/** A slot at a provider that waits to be dropped. */
export interface CleanupStatus {
  readonly slotName: string | null
  readonly provider: string | null
  readonly waitingSeconds: number
  readonly lastError: string | null
}

/** Whether a node is not there for now: no connection, or a server that is starting up or shutting down. */
export function isAway({ error }: NodeStatus): boolean {
  return error !== null && (error.exitCode === 4 || /^(57P0|08)/.test(sqlstateOf(error) ?? ''))
}

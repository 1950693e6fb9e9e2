import type { PgTime } from '../core/pg-time.ts'
import type { Change, Key } from '../mesh/conflict/change.ts'
import { NO_COMMITS, type CommitClock } from '../mesh/conflict/clock.ts'
import type { Heartbeat, Heartbeats } from '../mesh/conflict/heartbeat.ts'
import type { ParkedChange } from '../mesh/conflict/parked.ts'
import type { RowVersion } from '../mesh/conflict/version.ts'
import type { StoredTable } from './stored-table.ts'

/** A transaction as peers receive it. */
export interface Published {
  readonly time: PgTime
  readonly changes: readonly { readonly table: string; readonly change: Change }[]
  readonly heartbeat: Heartbeat | null
  /** For the judge: how many transactions of each origin had arrived at the writer. */
  readonly progress: ReadonlyMap<number, number>
}

/** A parked change, and until when its cause lasts. */
export interface Parked extends ParkedChange {
  readonly fails: boolean
}

/** Everything in a node's database: what a crash takes back to the last flush. */
export interface NodeState {
  readonly tables: ReadonlyMap<string, StoredTable>
  readonly progress: Map<number, number>
  readonly seen: Map<number, PgTime>
  heartbeats: Heartbeats
  parked: readonly Parked[]
  commits: CommitClock
  /** Changes given up as superseded at their origin: rows older than them are no base for values that are not sent. */
  givenUp: readonly { readonly table: string; readonly key: Key; readonly version: RowVersion }[]
  /** Keys written while the clock had stepped back. */
  toRewrite: readonly { readonly table: string; readonly key: Key }[]
  nextXid: number
  /** Transactions of its own that peers receive. */
  published: number
}

/** The state of a node on which nothing has happened. */
export function newState(tables: ReadonlyMap<string, StoredTable>): NodeState {
  return {
    tables,
    progress: new Map(),
    seen: new Map(),
    heartbeats: new Map(),
    parked: [],
    commits: NO_COMMITS,
    givenUp: [],
    toRewrite: [],
    nextXid: 1,
    published: 0,
  }
}

/** A copy that later changes do not reach. */
export function copyState(state: NodeState): NodeState {
  return {
    ...state,
    tables: new Map([...state.tables].map(([name, table]) => [name, table.copy()])),
    progress: new Map(state.progress),
    seen: new Map(state.seen),
  }
}

import type { Key } from '../mesh/conflict/change.ts'

/** The rules that can be switched off, to see that the simulation notices. */
export const RULES = [
  'tombstones',
  'clock-wait',
  'tie-break',
  'set-aside',
  'delta-remainder',
  'delta-cancel',
  'parked-order',
  'row-clock',
  'in-stream-cleanup',
  'heartbeat-wait',
  'rewrite',
  'toast-proof',
  'toast-flush',
  'given-up',
] as const

export type Rule = (typeof RULES)[number]

/** What a table has besides its key and the column `v`. */
export interface TableShape {
  readonly name: string
  /** Columns `u`, or `u` and `w`, each unique. */
  readonly uniques: 0 | 1 | 2
  /** Column `t`, which an update may leave out. */
  readonly toast: boolean
  /** Delta column `d`. */
  readonly delta: boolean
  /** A merge function instead of newest wins; no deletes then. */
  readonly merge: boolean
  /** REPLICA IDENTITY FULL; always so with `delta` or `merge`. */
  readonly full: boolean
}

/** A statement of an application; done only if SQL would do it then. */
export interface PlannedStatement {
  readonly table: number
  readonly kind: 'insert' | 'update' | 'delete' | 'move' | 'truncate'
  readonly key: Key
  readonly newKey: Key
  /** Distinct in each statement: `v`, and `t` where that is set. */
  readonly mark: number
  readonly u: string | null
  readonly w: string | null
  /** Hundredths: the value on insert, what is added on update. */
  readonly cents: number
  /** Columns that an update sets besides `v`. */
  readonly sets: readonly ('t' | 'u' | 'w' | 'd')[]
}

/** One thing that happens, at one node. Skipped where it cannot happen then, so that any part of a plan is a plan. */
export type Step = { readonly node: number; readonly after: number } & (
  | {
      readonly do: 'write'
      readonly statements: readonly PlannedStatement[]
      /** Flushed before anything else happens; otherwise a crash can take it back. */
      readonly isSync: boolean
      /** Has its timestamp and its locks now, and commits at a later `commit`. */
      readonly isHeld: boolean
    }
  | { readonly do: 'commit' | 'flush' | 'heartbeat' | 'repair' | 'cleanup' | 'rewrite' | 'crash' | 'restart' }
  | { readonly do: 'retry'; readonly fails: boolean }
  | { readonly do: 'deliver'; readonly from: number; readonly count: number }
  | {
      readonly do: 'apply'
      readonly from: number
      readonly count: number
      /** Which change of the transaction fails here, if any. */
      readonly failsAt: number | null
    }
  | { readonly do: 'cut' | 'heal'; readonly from: number }
  | { readonly do: 'set-clock'; readonly skew: number }
)

/** Everything that a run does before it heals. */
export interface Plan {
  readonly seed: number
  readonly nodes: number
  readonly tables: readonly TableShape[]
  /** How far each node's clock is from true time, at first. */
  readonly skews: readonly number[]
  /** Clocks may step back; keys written then are written again. */
  readonly isClockUnsteady: boolean
  /** A failing change takes its whole transaction with it. */
  readonly isTransdiscard: boolean
  readonly steps: readonly Step[]
}

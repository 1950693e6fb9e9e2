import type { Lsn } from '../src/core/lsn.ts'

/** The parts whose CPU time is counted apart. */
export const ROLES = ['subscriber', 'provider', 'agent'] as const
export type Role = (typeof ROLES)[number]

/** Process ids that work for a side now, by role. */
export type Processes = Readonly<Record<Role, readonly number[]>>

/** One way of replicating from the bench's provider: Sterna, or PostgreSQL's own. */
export interface Side {
  readonly name: 'ours' | 'native'
  /** Connection string of the subscriber's database. */
  readonly dsn: string
  /** The slot at the provider. */
  readonly slot: string
  /** Does everything that comes before changes can flow; what it costs is not measured. */
  prepare(): Promise<void>
  /** Lets changes flow, from where they stopped. */
  start(): Promise<void>
  /** Stops the flow; resolves when the slot is free and nothing of the side runs. */
  stop(): Promise<void>
  /** Everything of this side that runs on the three kinds of places now. */
  processes(): Promise<Processes>
  /** Whether everything up to a position of the provider is applied, and the subscriber's clock at that moment. */
  progress(lsn: Lsn): Promise<Progress>
  /** What keeps changes from flowing, as a sentence; undefined when nothing does. */
  trouble(): Promise<string | undefined>
  close(): Promise<void>
}

/** One look at a subscriber. */
export interface Progress {
  readonly passed: boolean
  readonly serverMs: number
}

import type { Key, Values } from '../mesh/conflict/change.ts'

/** One thing that a statement did to one key, or a truncate to all, as its application saw it. */
export interface LoggedWrite {
  readonly node: number
  /** Which transaction of that node's stream. */
  readonly place: number
  readonly time: number
  readonly table: string
  /** Null: every key. */
  readonly key: Key | null
  /** Without delta columns. Null: removed. Undefined: only cents. */
  readonly values: Values | null | undefined
  /** Contribution to the delta column, in hundredths. */
  readonly cents: number
  readonly text: string
}

/** A verdict on two versions: whether the writer of the newer one knew the older one. */
export interface Verdict {
  readonly newer: { readonly node: number; readonly time: number }
  readonly older: { readonly node: number; readonly time: number }
  readonly isConcurrent: boolean
}

/** All writes of a run that were not lost in a crash, kept outside of the nodes; in the order of each node. */
export class WriteLog {
  #writes: LoggedWrite[] = []
  readonly verdicts: Verdict[] = []

  get writes(): readonly LoggedWrite[] {
    return this.#writes
  }

  add(writes: readonly LoggedWrite[]): void {
    this.#writes.push(...writes)
  }

  /** A crash: the node's transactions from this place on were not flushed, and nobody has seen them. */
  lose(node: number, fromPlace: number): void {
    this.#writes = this.#writes.filter((write) => write.node !== node || write.place < fromPlace)
  }
}

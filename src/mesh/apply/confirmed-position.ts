import { LSN_ZERO, maxLsn, type Lsn } from '../../core/lsn.ts'

/** Where the local server's WAL is: written so far, and durable so far. */
export interface LocalWal {
  readonly insertLsn: Lsn
  readonly flushLsn: Lsn
}

/**
 * Which provider position may be confirmed. Apply commits without waiting for the disk, so a position counts as confirmed
 * only when the local WAL written up to the moment it was applied has been flushed: a slot confirmed further than what
 * is durable here loses data in a crash.
 */
export class ConfirmedPosition {
  #applied: Lsn
  #confirmed: Lsn
  readonly #waiting: { readonly applied: Lsn; readonly localLsn: Lsn }[] = []

  constructor(start: Lsn = LSN_ZERO) {
    this.#applied = start
    this.#confirmed = start
  }

  /** Everything up to here is committed locally, though perhaps not yet durable. */
  get applied(): Lsn {
    return this.#applied
  }

  get confirmed(): Lsn {
    return this.#confirmed
  }

  onApplied(lsn: Lsn): void {
    this.#applied = maxLsn(this.#applied, lsn)
  }

  /**
   * Takes a look at the local WAL. `applied` must have been read before that look was taken.
   * @returns whether the confirmed position moved
   */
  onLocalWal(applied: Lsn, wal: LocalWal): boolean {
    if (applied > (this.#waiting.at(-1)?.applied ?? this.#confirmed))
      this.#waiting.push({ applied, localLsn: wal.insertLsn })
    const before = this.#confirmed
    while (this.#waiting.length > 0 && this.#waiting[0]!.localLsn <= wal.flushLsn)
      this.#confirmed = this.#waiting.shift()!.applied
    return this.#confirmed > before
  }
}

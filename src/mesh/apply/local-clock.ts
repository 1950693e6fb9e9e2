import { pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import { pause } from '../backoff.ts'

/** Reads the server's `clock_timestamp()` now. */
export type ClockSample = () => Promise<PgTime>

const LONGEST_NAP_MS = 1000

/**
 * What the subscribing server's clock shows at least, without asking it each time: its last sample plus the monotonic
 * time since that sample arrived. A change is applied only when that clock is strictly past the change's timestamp:
 * otherwise a later local write could get a smaller timestamp than what it replaces. The estimate only saves questions:
 * the statement that opens each transaction checks the real clock.
 */
export class LocalClock {
  readonly #sample: ClockSample
  readonly #monotonicMs: () => number
  #base: { readonly time: PgTime; readonly atMs: number } | undefined

  constructor(sample: ClockSample, monotonicMs: () => number = () => performance.now()) {
    this.#sample = sample
    this.#monotonicMs = monotonicMs
  }

  /** Whether the server's clock is certainly past `time`. */
  isPast(time: PgTime): boolean {
    return this.#base !== undefined && time < this.#atLeast(this.#base)
  }

  /** Resolves once the server's clock is past `time`. `onAhead` is told by how many milliseconds the change is ahead. */
  async waitUntilPast(time: PgTime, signal: AbortSignal, onAhead: (aheadMs: number) => void): Promise<void> {
    while (!signal.aborted) {
      await this.refresh()
      if (this.isPast(time)) return
      const aheadMs = Number(time - this.#atLeast(this.#base!)) / 1000
      if (aheadMs > 0) onAhead(aheadMs)
      await pause(Math.min(Math.max(aheadMs, 0.2), LONGEST_NAP_MS), signal)
    }
  }

  /** By how many milliseconds `time` is ahead of the server's clock; negative when that is past it. */
  aheadMs(time: PgTime): number {
    return this.#base === undefined ? 0 : Number(time - this.#atLeast(this.#base)) / 1000
  }

  /** Takes a new sample. */
  async refresh(): Promise<PgTime> {
    const time = await this.#sample()
    this.#base = { time, atMs: this.#monotonicMs() }
    return time
  }

  #atLeast(base: { readonly time: PgTime; readonly atMs: number }): PgTime {
    return pgTimeOf(base.time + BigInt(Math.floor((this.#monotonicMs() - base.atMs) * 1000)))
  }
}

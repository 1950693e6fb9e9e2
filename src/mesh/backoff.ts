import { setTimeout as sleep } from 'node:timers/promises'

const FIRST_MS = 100
const LONGEST_MS = 15_000
/**
 * An attempt that lasted this long was a success: the next failure starts from the first delay again. Longer than it takes
 * to give up on a server that does not answer.
 */
const HEALTHY_MS = 60_000

/** Delays between attempts: doubling, with jitter so that many agents do not come back at the same moment. */
export class Backoff {
  readonly #nowMs: () => number
  readonly #random: () => number
  #delayMs = FIRST_MS
  #startedAtMs: number

  constructor(nowMs: () => number = () => performance.now(), random: () => number = Math.random) {
    this.#nowMs = nowMs
    this.#random = random
    this.#startedAtMs = nowMs()
  }

  attemptStarts(): void {
    this.#startedAtMs = this.#nowMs()
  }

  /** Something has succeeded: the next failure starts from the first delay again. */
  reset(): void {
    this.#delayMs = FIRST_MS
  }

  /** The next delay in milliseconds. */
  next(): number {
    if (this.#nowMs() - this.#startedAtMs > HEALTHY_MS) this.#delayMs = FIRST_MS
    const delay = this.#delayMs * (0.75 + this.#random() / 2)
    this.#delayMs = Math.min(this.#delayMs * 2, LONGEST_MS)
    return delay
  }
}

/** Waits; resolves early when the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => {})
}

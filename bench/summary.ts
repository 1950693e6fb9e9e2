import type { CpuSeconds } from './cpu.ts'
import type { Drain } from './drain.ts'

/** Several measurements of one thing. */
export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

/** One side's result for a row of work. */
export interface SideResult {
  readonly seconds: Spread
  /** Transactions or rows per second, of the median round. */
  readonly rate: number
  /** Medians, in seconds; `total` is the median of the rounds' sums. */
  readonly cpuSeconds: CpuSeconds & { readonly total: number }
  /** The greatest of all rounds; null where there is no agent. */
  readonly peakAgentBytes: number | null
}

/** What is reported for one row of work; also the form of `--json`. */
export interface WorkResult {
  readonly work: string
  readonly title: string
  readonly amount: number
  readonly unit: string
  readonly rounds: number
  readonly ours: SideResult
  readonly native: SideResult
  /** Rate of ours by rate of native: above 1 we are faster. */
  readonly ratio: number
  /** CPU time of ours by that of native, all processes: below 1 we are cheaper. */
  readonly cpuRatio: number
}

/** Median (of an even number: the mean of the two in the middle), least and greatest of at least one value. */
export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b)
  const half = sorted.length / 2
  const median = (sorted[Math.ceil(half) - 1]! + sorted[Math.floor(half)]!) / 2
  return { median, min: sorted[0]!, max: sorted.at(-1)! }
}

/** Medians over the rounds of one side. */
export function summarize(drains: readonly Drain[], amount: number): SideResult {
  const median = (value: (drain: Drain) => number): number => spread(drains.map(value)).median
  const seconds = spread(drains.map((drain) => drain.seconds))
  const peak = Math.max(...drains.map((drain) => drain.peakAgentBytes))
  return {
    seconds,
    rate: amount / seconds.median,
    cpuSeconds: {
      subscriber: median(({ cpu }) => cpu.subscriber),
      provider: median(({ cpu }) => cpu.provider),
      agent: median(({ cpu }) => cpu.agent),
      total: median(({ cpu }) => cpu.subscriber + cpu.provider + cpu.agent),
    },
    peakAgentBytes: peak > 0 ? peak : null,
  }
}

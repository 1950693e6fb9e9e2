import { setTimeout as delay } from 'node:timers/promises'
import { messageOf } from '../core/errors.ts'
import type { ExitInfo } from '../postgres/server/instance.ts'

/** A process that was started and is ready for use. */
export interface RunningProcess {
  /** Resolves when it has ended. */
  readonly exited: Promise<ExitInfo>
  /** Ends it; resolves when it has ended. */
  stop(): Promise<void>
}

/** What to keep running. */
export interface KeptProcessOptions {
  /** For messages: `n1: server`. */
  readonly name: string
  /**
   * Starts it once; resolves when it is ready, rejects when that failed and nothing of it is left. The signal says that
   * it is not wanted any more.
   */
  readonly start: (signal: AbortSignal) => Promise<RunningProcess>
  readonly say: (line: string) => void
}

const LONGEST_DELAY_MS = 15_000
/** A process that lived that long was healthy: the next restart is quick again. */
const HEALTHY_AFTER_MS = 30_000

/** How long to wait before the next start after so many failures in a row (from 1). */
export function restartDelayMs(failures: number): number {
  return Math.min(250 * 2 ** (failures - 1), LONGEST_DELAY_MS)
}

/** A process that is started again whenever it ends, for ever, until `stop`. */
export class KeptProcess {
  readonly #options: KeptProcessOptions
  readonly #stopping = new AbortController()
  #first: Promise<RunningProcess> | undefined
  #running: RunningProcess | undefined
  #loop: Promise<void> | undefined

  constructor(options: KeptProcessOptions) {
    this.#options = options
  }

  /** Starts it for the first time. Rejects when that fails; only after a success it is kept running. */
  async start(): Promise<void> {
    this.#first = this.#options.start(this.#stopping.signal)
    this.#running = await this.#first
    this.#loop = this.#keep(this.#running)
  }

  /** Ends it and does not start it again; also in the middle of its first start. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    await this.#first?.then(
      (running) => running.stop(),
      () => {},
    )
    await this.#running?.stop()
    await this.#loop
  }

  async #keep(first: RunningProcess): Promise<void> {
    const { name, say } = this.#options
    const { signal } = this.#stopping
    let running: RunningProcess | undefined = first
    let failures = 0
    while (!signal.aborted) {
      let what: string
      if (running) {
        const startedAt = performance.now()
        what = `ended (${describeExit(await running.exited)})`
        if (performance.now() - startedAt >= HEALTHY_AFTER_MS) failures = 0
      } else {
        try {
          running = await this.#options.start(signal)
          this.#running = running
          say(`${name} runs again`)
          // A stop that came in the meantime did not see this process.
          if (signal.aborted) await running.stop()
          continue
        } catch (error) {
          what = `did not start: ${messageOf(error)}`
        }
      }
      running = undefined
      if (signal.aborted) return
      failures++
      const waitMs = restartDelayMs(failures)
      say(`${name} ${what}; starting it again in ${waitMs / 1000} s`)
      await delay(waitMs, undefined, { signal }).catch(() => {})
    }
  }
}

/** How a process ended, for a person. */
export function describeExit(exit: ExitInfo): string {
  return exit.signal === null ? `exit code ${exit.code}` : `signal ${exit.signal}`
}

import type { NodeReport } from '../mesh/report.ts'

/** A part that the agent runs: works until told to stop, and can say at any time how it stands. */
export interface Service {
  /**
   * Works until `signal` aborts, then resolves after a clean stop. Retries by itself; rejects only where running on is
   * pointless, such as NODE_NAME_MISMATCH, or on a bug.
   */
  run(signal: AbortSignal): Promise<void>
  /** How the node stands now. Cheap, never throws. */
  report(): NodeReport
}

/** `block`: no node can be made of it; `warn`: works, but something will go wrong; `info`: good to know. */
export type Severity = 'block' | 'warn' | 'info'

/** One thing that the doctor found. */
export interface Finding {
  readonly severity: Severity
  /** Stable name of the check, such as `wal_level`. */
  readonly check: string
  /** The node or server it was found on; null where it concerns several. */
  readonly server: string | null
  /** The object on it, such as a table; null where the server as a whole is meant. */
  readonly object: string | null
  readonly what: string
  /** The exact command that fixes it; null where there is nothing to do or no single command. */
  readonly fix: string | null
}

/** The findings in the order in which they matter; within one severity the order stays. */
export function sortFindings(findings: readonly Finding[]): Finding[] {
  const rank: Readonly<Record<Severity, number>> = { block: 0, warn: 1, info: 2 }
  return findings.toSorted((a, b) => rank[a.severity] - rank[b.severity])
}

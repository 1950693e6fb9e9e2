import { UNCHANGED, type SentValues, type Values } from './change.ts'
import type { BaseAnswer, FetchAnswer } from './question.ts'
import { compareVersions, type RowVersion } from './version.ts'

/** Whether every value was sent. */
export function isComplete(values: SentValues): values is Values {
  return !Object.values(values).includes(UNCHANGED)
}

/** Fills what was not sent from a row that has it. */
export function fillFrom(values: SentValues, base: Values): SentValues {
  const filled: Record<string, SentValues[string]> = {}
  for (const [column, value] of Object.entries(values)) {
    filled[column] = value === UNCHANGED ? (base[column] ?? null) : value
  }
  return filled
}

/**
 * Whether the local row is certainly the row that the origin updated, so that values which the origin did not send may be
 * taken from it. Either the same transaction wrote it, here too; or the origin had applied it, and this node has all that the
 * origin could have seen besides: an origin applies nothing from its own future, so that is older than the change. A row of
 * the same version that was fetched may already be what the transaction makes of it later on.
 */
export function isProvenBase(change: RowVersion, local: RowVersion, facts: BaseAnswer): boolean {
  if (compareVersions(change, local) === 0) return facts.isOfThisTransaction
  if (facts.isIncomplete) return false
  if (local.nodeId !== change.nodeId && !facts.hadLocal) return false
  return facts.receivedUpTo === null || facts.receivedUpTo >= change.time
}

/**
 * The row of a change as its origin had it; null: the origin has overwritten, moved or deleted it since, so the change is
 * superseded, and what replaced it is on its way.
 */
export function fillFromOrigin(values: SentValues, change: RowVersion, { row }: FetchAnswer): Values | null {
  if (row?.version == null || compareVersions(row.version, change) !== 0) return null
  return fillFrom(values, row.values) as Values
}

import type { TableShape } from '../schema-compare.ts'
import type { ClockOffset } from './clock.ts'
import type { Finding } from './finding.ts'
import type { ServerFacts } from './server-facts.ts'

/** What was found out about one server. Null where it did not come so far. */
export interface ExaminedServer {
  readonly name: string
  readonly address: string | null
  readonly facts: ServerFacts | null
  readonly shapes: readonly TableShape[] | null
  /** Number of rows by table, counted up to a bound; null for a server that is a node already. */
  readonly rowCounts: ReadonlyMap<string, number> | null
  readonly clock: ClockOffset | null
  readonly findings: readonly Finding[]
}

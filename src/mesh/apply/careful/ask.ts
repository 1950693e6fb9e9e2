/** A parameter: as text, null, or the bytes of the type's binary form. */
export type Param = string | null | Buffer

/** Runs statements in the open transaction, in the order of the calls; each costs a round trip if it is waited for. */
export interface Ask {
  /** The rows, as text. `types`: OIDs of the parameters, where the statement does not tell them. */
  lookup(sql: string, params: readonly Param[], types?: readonly number[]): Promise<(string | null)[][]>
  /** Runs a statement of which nothing is needed: it is not waited for. A failure ends the session. */
  send(sql: string, params: readonly Param[], types?: readonly number[]): void
}

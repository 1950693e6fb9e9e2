import { ServerError } from '../../src/postgres/server-error.ts'

/** What a server said when it refused a statement. */
export interface Failure {
  readonly sqlstate: string
  readonly message: string
  readonly detail: string | undefined
  readonly hint: string | undefined
}

/** The failure of a statement that must fail. Throws when it succeeds or ends by anything else than the server's error. */
export async function failureOf(statement: Promise<unknown>): Promise<Failure> {
  try {
    await statement
  } catch (error) {
    if (!(error instanceof ServerError)) throw error
    const { sqlstate, message, detail, hint } = error.fields
    return { sqlstate, message, detail, hint }
  }
  throw new Error('the statement succeeded')
}

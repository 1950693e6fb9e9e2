/** A broken invariant: a bug in Sterna, never an operational condition. The process should crash on it. */
export class AssertionError extends Error {
  override name = 'AssertionError'
}

/** Throws AssertionError unless `condition` holds. Stays on in production. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionError(message)
}

/** For the default branch of an exhaustive switch: a compile error when a case is missing. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${JSON.stringify(value)}`)
}

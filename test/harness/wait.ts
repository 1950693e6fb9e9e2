import { setTimeout as delay } from 'node:timers/promises'

/** Polls until a condition holds; rejects with its name after the time limit, with the last error if it threw. */
export async function waitUntil(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 30_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs
  let lastError: unknown
  for (;;) {
    try {
      if (await condition()) return
      lastError = undefined
    } catch (error) {
      lastError = error
    }
    if (performance.now() > deadline) {
      throw new Error(
        `not within ${timeoutMs} ms: ${what}`,
        lastError === undefined ? {} : { cause: lastError },
      )
    }
    await delay(20)
  }
}

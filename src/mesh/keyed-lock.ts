/** Runs what concerns one key one after another; what concerns other keys goes on beside it. */
export class KeyedLock {
  readonly #last = new Map<string, Promise<unknown>>()

  /** Waits for its turn, runs `work`, and gives its result. A failure is that of its caller alone. */
  hold<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(key) ?? Promise.resolve()
    const result = before.then(work, work)
    const last: Promise<unknown> = result
      .catch(() => undefined)
      .finally(() => {
        if (this.#last.get(key) === last) this.#last.delete(key)
      })
    this.#last.set(key, last)
    return result
  }
}

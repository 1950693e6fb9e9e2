/** Work that goes on beside the heartbeat, which must not wait for it: begun again only when it has ended. */
export class Beside {
  readonly #onError: (error: unknown) => void
  #isRunning = false

  constructor(onError: (error: unknown) => void) {
    this.#onError = onError
  }

  run(work: () => Promise<void>): void {
    if (this.#isRunning) return
    this.#isRunning = true
    void work()
      .catch(this.#onError)
      .finally(() => {
        this.#isRunning = false
      })
  }
}

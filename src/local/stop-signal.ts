/** The wish to end, as the system tells it. */
export interface StopSignal {
  readonly received: boolean
  /** Resolves when the signal came and `stop` has finished. */
  readonly done: Promise<void>
  /** Listens no more. */
  dispose(): void
}

/** Calls `stop` at the first signal that asks to end; later ones are harmless. */
export function onStopSignal(stop: (signal: NodeJS.Signals) => Promise<void> | undefined): StopSignal {
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  const { promise: done, resolve: finish, reject } = Promise.withResolvers<void>()
  done.catch(() => {})
  let received = false
  const onSignal = (signal: NodeJS.Signals): void => {
    if (received) return
    received = true
    Promise.resolve(stop(signal)).then(finish, reject)
  }
  for (const signal of signals) process.on(signal, onSignal)
  return {
    get received() {
      return received
    },
    done,
    dispose() {
      for (const signal of signals) process.off(signal, onSignal)
    },
  }
}

import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'

/** A TCP relay with faults: what a bad network does between two programs. */
export interface Relay {
  /** The port on 127.0.0.1 to connect to instead of the target's. */
  readonly port: number
  /** How many connections are open now. */
  readonly connectionCount: number
  /** From now on each piece of data arrives that much later, in both directions and in order. */
  setDelay(ms: number): void
  /** From now on what comes from the target passes through `change`, piece by piece; undefined: as it is. */
  tamper(change: ((chunk: Buffer) => Buffer) | undefined): void
  /** Drops every connection with a reset and refuses new ones. */
  cut(): void
  /** Keeps and accepts connections, but forwards nothing any more: a cable that was pulled. */
  blackhole(): void
  /** Keeps and accepts connections, and keeps what they send: it goes on, all of it and in order, with `release`. */
  hold(): void
  release(): void
  /** Back to forwarding. Connections that existed during a blackhole are dropped: they lost data. */
  heal(): void
  close(): Promise<void>
}

type Mode = 'forward' | 'cut' | 'blackhole'

/** Starts a relay to `to`. */
export async function startRelay(options: {
  readonly to: { readonly host: string; readonly port: number }
}): Promise<Relay> {
  let mode: Mode = 'forward'
  let delayMs = 0
  let change: ((chunk: Buffer) => Buffer) | undefined
  /** What waits for `release`; undefined: nothing is held. */
  let held: (() => void)[] | undefined
  const open = new Set<Socket>()

  const dropAll = (): void => {
    for (const socket of open) socket.resetAndDestroy()
  }
  const keep = (socket: Socket): void => {
    open.add(socket)
    socket.setNoDelay(true)
    socket.on('error', () => {})
    socket.on('close', () => open.delete(socket))
  }
  const pump = (from: Socket, to: Socket, fromTarget: boolean): void => {
    // Each piece leaves at its own time and in order; `end` queues like data.
    let lastDue = 0
    let waiting = 0
    const later = (action: () => void): void => {
      if (held) return void held.push(() => later(action))
      const due = Math.max(lastDue, performance.now() + delayMs)
      lastDue = due
      const waitMs = due - performance.now()
      if (waitMs <= 0 && waiting === 0) return action()
      waiting++
      setTimeout(() => {
        waiting--
        action()
      }, waitMs)
    }
    from.on('data', (chunk: Buffer) => {
      later(() => {
        if (mode !== 'forward' || to.destroyed) return
        if (!to.write(fromTarget && change ? change(chunk) : chunk)) from.pause()
      })
    })
    to.on('drain', () => from.resume())
    from.on('end', () => later(() => mode === 'forward' && to.end()))
    from.on('close', () => {
      if (mode === 'forward' && !from.readableEnded) to.destroy()
    })
  }

  const server = createServer({ allowHalfOpen: true }, (client) => {
    keep(client)
    if (mode === 'cut') return void client.resetAndDestroy()
    if (mode === 'blackhole') return void client.resume()
    const target = connect({ ...options.to, allowHalfOpen: true })
    keep(target)
    target.on('error', () => client.resetAndDestroy())
    pump(client, target, false)
    pump(target, client, true)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo

  return {
    port,
    get connectionCount() {
      return Math.ceil(open.size / 2)
    },
    setDelay(ms) {
      delayMs = ms
    },
    tamper(by) {
      change = by
    },
    cut() {
      mode = 'cut'
      dropAll()
    },
    blackhole() {
      mode = 'blackhole'
    },
    hold() {
      held ??= []
    },
    release() {
      const actions = held ?? []
      held = undefined
      for (const action of actions) action()
    },
    heal() {
      if (mode === 'blackhole') dropAll()
      mode = 'forward'
    },
    async close() {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      dropAll()
      await closed
    },
  }
}

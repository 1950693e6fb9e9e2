import { setTimeout as delay } from 'node:timers/promises'
import type { Lsn } from '../src/core/lsn.ts'
import type { PgConnection } from '../src/postgres/connection.ts'
import { CpuMeter, type CpuSeconds } from './cpu.ts'
import type { Side } from './side.ts'

const POLL_MS = 10
/** How often processes are looked up and their CPU time is read. */
const LOOK_INTERVAL_MS = 250
const TIMEOUT_MS = 900_000

/** What it took to apply a backlog. */
export interface Drain {
  /** From the start of the connection over which the changes come until all of them are applied. */
  readonly seconds: number
  readonly cpu: CpuSeconds
  /** The greatest resident size of the agent's process; 0 where there is none. */
  readonly peakAgentBytes: number
}

/**
 * Lets a stopped side apply everything up to `target` and stops it again. Both ends of the time are read from the
 * servers' clock; what comes before the stream's connection (the agent's start, the launcher's nap) does not count.
 */
export async function measureDrain(provider: PgConnection, side: Side, target: Lsn): Promise<Drain> {
  await side.prepare()
  try {
    const meter = await CpuMeter.start(await side.processes())
    await side.start()
    let flowing: number | undefined
    let lookedAtMs = 0
    const deadline = Date.now() + TIMEOUT_MS
    for (;;) {
      const { passed, serverMs } = await side.progress(target)
      if (passed || Date.now() - lookedAtMs > LOOK_INTERVAL_MS) {
        lookedAtMs = Date.now()
        await meter.look(await side.processes())
        flowing ??= await flowStart(provider, side.slot)
        const trouble = passed ? undefined : await side.trouble()
        if (trouble !== undefined) throw new Error(trouble)
      }
      if (passed) {
        if (flowing === undefined) throw new Error(`${side.name}: the slot was never active`)
        const seconds = (serverMs - flowing) / 1000
        return { seconds, cpu: meter.total(), peakAgentBytes: meter.peakAgentBytes }
      }
      if (Date.now() > deadline) throw new Error(`${side.name}: not applied within ${TIMEOUT_MS / 1000} s`)
      await delay(POLL_MS)
    }
  } finally {
    await side.stop()
  }
}

/** When the connection that streams from a slot was made; undefined while nothing does. */
async function flowStart(provider: PgConnection, slot: string): Promise<number | undefined> {
  const row = await provider.row<{ started_ms: number }>(
    `select (extract(epoch from a.backend_start) * 1000)::float8 as started_ms
       from pg_replication_slots s join pg_stat_activity a on a.pid = s.active_pid where s.slot_name = $1`,
    [slot],
  )
  return row?.started_ms
}

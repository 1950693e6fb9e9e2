import type { PgConnection } from '../../postgres/connection.ts'
import type { Finding } from './finding.ts'

/** A server's clock against that of this machine. */
export interface ClockOffset {
  readonly server: string
  /** Positive: the server's clock is ahead. */
  readonly offsetMs: number
  /** The offset is right to within this. */
  readonly uncertaintyMs: number
}

/** Clocks that differ by more than this are reported. */
const MAX_OFFSET_MS = 500
const SAMPLES = 5

/** Measures by round trips; the shortest one counts, as its answer was least delayed. */
export async function measureClock(conn: PgConnection, server: string): Promise<ClockOffset> {
  let best: ClockOffset = { server, offsetMs: 0, uncertaintyMs: Number.POSITIVE_INFINITY }
  for (let i = 0; i < SAMPLES; i++) {
    const sent = performance.timeOrigin + performance.now()
    const row = await conn.row<{ micros: bigint }>(
      'select (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::bigint as micros',
    )
    const received = performance.timeOrigin + performance.now()
    const uncertaintyMs = (received - sent) / 2
    if (uncertaintyMs < best.uncertaintyMs)
      best = { server, offsetMs: Number(row?.micros ?? 0n) / 1000 - (sent + received) / 2, uncertaintyMs }
  }
  return best
}

/** Pairs of servers whose clocks differ, and a server alone against this machine. */
export function checkClocks(offsets: readonly ClockOffset[]): Finding[] {
  const here: ClockOffset = { server: 'this machine', offsetMs: 0, uncertaintyMs: 0 }
  const pairs = offsets.flatMap((a, at) => [here, ...offsets.slice(at + 1)].map((b) => [a, b] as const))
  return pairs.flatMap(([a, b]) => {
    const differenceMs = Math.abs(a.offsetMs - b.offsetMs)
    if (differenceMs - a.uncertaintyMs - b.uncertaintyMs <= MAX_OFFSET_MS) return []
    const [ahead, behind] = a.offsetMs > b.offsetMs ? [a, b] : [b, a]
    return [
      {
        severity: b === here ? ('info' as const) : ('warn' as const),
        check: 'clocks',
        server: b === here ? a.server : null,
        object: null,
        what: `the clock of ${ahead.server} is ${Math.round(differenceMs)} ms ahead of ${behind.server}: its writes win against later ones, and are applied late elsewhere`,
        fix: `chronyc makestep  # on the host whose clock is wrong; keep chronyd or ntpd running`,
      },
    ]
  })
}

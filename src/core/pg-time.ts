declare const pgTimeBrand: unique symbol

/** A point in time as PostgreSQL's wire has it: microseconds since 2000-01-01 00:00 UTC, signed 64 bit. */
export type PgTime = bigint & { readonly [pgTimeBrand]: true }

const EPOCH_2000_MS = 946_684_800_000

/** Brands a raw wire value. */
export function pgTimeOf(micros: bigint): PgTime {
  return micros as PgTime
}

/** Converts from milliseconds since the Unix epoch; a fraction is kept to the microsecond. */
export function pgTimeFromUnixMs(unixMs: number): PgTime {
  return BigInt(Math.round((unixMs - EPOCH_2000_MS) * 1000)) as PgTime
}

/** Milliseconds since the Unix epoch, with the microseconds as a fraction. */
export function unixMsOf(time: PgTime): number {
  return Number(time) / 1000 + EPOCH_2000_MS
}

/** ISO 8601 in UTC with microseconds: `2026-11-21T03:00:00.123456Z`. PostgreSQL parses it as timestamptz. */
export function formatPgTime(time: PgTime): string {
  const micros = ((time % 1_000_000n) + 1_000_000n) % 1_000_000n
  const seconds = (time - micros) / 1_000_000n
  const whole = new Date(Number(seconds) * 1000 + EPOCH_2000_MS).toISOString().slice(0, 19)
  return `${whole}.${micros.toString().padStart(6, '0')}Z`
}

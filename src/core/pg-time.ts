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

const INFINITY = (1n << 63n) - 1n
const MINUS_INFINITY = -(1n << 63n)
/** 400 Gregorian years: the calendar repeats. */
const ERA_SECONDS = 146_097n * 86_400n

/**
 * ISO 8601 in UTC with microseconds: `2026-11-21T03:00:00.123456Z`, in the form that PostgreSQL parses as timestamptz also
 * outside of the years 1 to 9999 (`0044-03-15T00:00:00.000000Z BC`, `infinity`).
 */
export function formatPgTime(time: PgTime): string {
  if (time === INFINITY) return 'infinity'
  if (time === MINUS_INFINITY) return '-infinity'
  const micros = ((time % 1_000_000n) + 1_000_000n) % 1_000_000n
  const seconds = (time - micros) / 1_000_000n
  // Within the era of 2000 to 2399, which Date can do; PostgreSQL's calendar goes further than Date's.
  const inEra = ((seconds % ERA_SECONDS) + ERA_SECONDS) % ERA_SECONDS
  const date = new Date(Number(inEra) * 1000 + EPOCH_2000_MS)
  const year = date.getUTCFullYear() + 400 * Number((seconds - inEra) / ERA_SECONDS)
  const yearText = String(year > 0 ? year : 1 - year).padStart(4, '0')
  const rest = date.toISOString().slice(4, 19)
  return `${yearText}${rest}.${micros.toString().padStart(6, '0')}Z${year > 0 ? '' : ' BC'}`
}

import { SternaError } from './errors.ts'

declare const lsnBrand: unique symbol

/** A position in a server's write-ahead log: unsigned 64 bit. Comparable with `<` and `>`. */
export type Lsn = bigint & { readonly [lsnBrand]: true }

/** The invalid LSN `0/0`: "no position yet". */
export const LSN_ZERO = 0n as Lsn

/** Brands a raw unsigned 64 bit value, as it comes off the wire. */
export function lsnOf(raw: bigint): Lsn {
  return raw as Lsn
}

/**
 * Parses `X/Y` (two hexadecimal halves).
 * @throws INVALID_VALUE
 */
export function parseLsn(text: string): Lsn {
  const match = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/.exec(text)
  if (!match)
    throw new SternaError('INVALID_VALUE', {
      what: 'LSN',
      value: text,
      expected: 'two hexadecimal numbers, such as 0/16B3748',
    })
  return ((BigInt(`0x${match[1]}`) << 32n) | BigInt(`0x${match[2]}`)) as Lsn
}

/** Prints an LSN as PostgreSQL does: `16/B374D848`. */
export function formatLsn(lsn: Lsn): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffffffffn).toString(16).toUpperCase()}`
}

/** The greater of two positions. */
export function maxLsn(a: Lsn, b: Lsn): Lsn {
  return a > b ? a : b
}

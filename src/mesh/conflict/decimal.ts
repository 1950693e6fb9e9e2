import { SternaError } from '../../core/errors.ts'

/** An exact decimal number: `digits` / 10^`scale`. */
export interface Decimal {
  readonly digits: bigint
  /** Digits after the point, >= 0. */
  readonly scale: number
}

const FORM = /^([+-]?)(\d*)(?:\.(\d*))?$/

/**
 * Reads what PostgreSQL prints for integer and numeric. NaN and infinity are no decimals: adding them cannot be undone.
 * @throws INVALID_VALUE
 */
export function parseDecimal(text: string): Decimal {
  const [, sign = '', whole = '', fraction = ''] = FORM.exec(text) ?? []
  if (whole === '' && fraction === '') {
    throw new SternaError('INVALID_VALUE', { what: 'delta column', value: text, expected: 'a finite number' })
  }
  const digits = BigInt(whole + fraction)
  return { digits: sign === '-' ? -digits : digits, scale: fraction.length }
}

/** Prints as PostgreSQL does, with all digits of the scale: `-0.50`. */
export function formatDecimal({ digits, scale }: Decimal): string {
  const text = (digits < 0n ? -digits : digits).toString().padStart(scale + 1, '0')
  const point = text.length - scale
  return `${digits < 0n ? '-' : ''}${text.slice(0, point)}${scale > 0 ? `.${text.slice(point)}` : ''}`
}

/** The exact sum, with the greater of both scales. */
export function addDecimals(a: Decimal, b: Decimal): Decimal {
  const scale = Math.max(a.scale, b.scale)
  return { digits: digitsAt(a, scale) + digitsAt(b, scale), scale }
}

/** The same number with its sign changed. */
export function negateDecimal({ digits, scale }: Decimal): Decimal {
  return { digits: -digits, scale }
}

function digitsAt({ digits, scale }: Decimal, wanted: number): bigint {
  return digits * 10n ** BigInt(wanted - scale)
}

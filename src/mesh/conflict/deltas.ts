import type { Amounts, Values } from './change.ts'
import { addDecimals, formatDecimal, negateDecimal, parseDecimal } from './decimal.ts'
import type { KeyState } from './key-state.ts'

/** The sums that a key holds: of its row, or the remainder that its delete left. */
export function sumsOf({ row, tombstone }: KeyState, deltas: readonly string[]): Amounts {
  return row ? amountsIn(row.values, deltas) : (tombstone?.remainder ?? {})
}

/** The values of the delta columns of a row. */
export function amountsIn(values: Values, deltas: readonly string[]): Amounts {
  return Object.fromEntries(deltas.map((column) => [column, values[column] ?? '0']))
}

/** Adds column by column, exactly; the order of additions cannot be told from the result. @throws INVALID_VALUE */
export function addAmounts(a: Amounts, b: Amounts): Amounts {
  const sum: Record<string, string> = { ...a }
  for (const [column, amount] of Object.entries(b)) {
    sum[column] = formatDecimal(addDecimals(parseDecimal(a[column] ?? '0'), parseDecimal(amount)))
  }
  return sum
}

/** Each amount with its sign changed. @throws INVALID_VALUE */
export function negateAmounts(amounts: Amounts): Amounts {
  return Object.fromEntries(
    Object.entries(amounts).map(([column, amount]) => [
      column,
      formatDecimal(negateDecimal(parseDecimal(amount))),
    ]),
  )
}

/** Whether nothing is left over. */
export function areZero(amounts: Amounts): boolean {
  return Object.values(amounts).every((amount) => parseDecimal(amount).digits === 0n)
}

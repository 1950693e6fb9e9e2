import type { Value, Values } from '../mesh/conflict/change.ts'
import type { LocalRules } from '../mesh/conflict/rules.ts'
import type { TableShape } from './plan.ts'

/** The rules by which a table of this shape is decided. */
export function rulesOf({ uniques, delta, merge }: TableShape): LocalRules {
  return {
    uniques: ['u', 'w'].slice(0, uniques).map((name) => ({ name, columns: [name], nullsCollide: false })),
    deltas: delta ? ['d'] : [],
    merge: merge ? mergeRows : null,
    manual: new Set(),
  }
}

/** The merge function of simulated tables: column by column, the greater value. */
export function mergeRows(a: Values, b: Values): Values {
  return Object.fromEntries(
    Object.keys(a).map((column) => [column, greater(a[column] ?? null, b[column] ?? null)]),
  )
}

function greater(a: Value, b: Value): Value {
  if (a === null || b === null) return a ?? b
  return a.length === b.length ? (a > b ? a : b) : a.length > b.length ? a : b
}

/** Hundredths as the text of a numeric(12,2). */
export function centsToText(cents: number): string {
  const text = String(Math.abs(cents)).padStart(3, '0')
  return `${cents < 0 ? '-' : ''}${text.slice(0, -2)}.${text.slice(-2)}`
}

/** The hundredths of a numeric(12,2). */
export function textToCents(text: Value | undefined): number {
  return Math.round(Number(text ?? 0) * 100)
}

/** A row without its delta column. */
export function withoutSum(values: Values): Values {
  return Object.fromEntries(Object.entries(values).filter(([column]) => column !== 'd'))
}

import { formatTable, printable, type Paint } from './output.ts'

/** A row as Sterna keeps it: column to the text of its value, null for NULL. Null: there was none. */
export type RowTexts = Readonly<Record<string, string | null>> | null

/** One column of two rows side by side. */
export interface ColumnPair {
  readonly column: string
  /** Undefined: the row is not there, or has no such column. */
  readonly local: string | null | undefined
  readonly remote: string | null | undefined
  readonly isChanged: boolean
}

/** Cells are cut at this length; `--json` has the whole value. */
const MAX_CELL_LENGTH = 60

/**
 * Two rows column by column, in the order of `order`; columns that it does not name come last, by name. A column that one of
 * two rows lacks (a value that was not sent) is no change.
 */
export function pairColumns(local: RowTexts, remote: RowTexts, order: readonly string[]): ColumnPair[] {
  const present = new Set([...Object.keys(local ?? {}), ...Object.keys(remote ?? {})])
  const known = order.filter((column) => present.has(column))
  const others = [...present].filter((column) => !order.includes(column)).toSorted()
  return [...known, ...others].map((column) => {
    const left = local?.[column]
    const right = remote?.[column]
    const isChanged = left !== undefined && right !== undefined && left !== right
    return { column, local: left, remote: right, isChanged }
  })
}

/** The rows as a table for people: columns that differ are marked. `titles`: whose rows they are. */
export function rowDiffLines(
  pairs: readonly ColumnPair[],
  titles: readonly [string, string],
  paint: Paint,
): string[] {
  return formatTable(
    [{ title: '' }, { title: 'column' }, { title: titles[0] }, { title: titles[1] }],
    pairs.map(({ column, local, remote, isChanged }) => {
      const [left, right] = cutTogether(local, remote)
      const tone = (text: string): string => (isChanged ? paint('yellow', text) : text)
      return [isChanged ? paint('yellow', '*') : '', printable(column), tone(left), tone(right)]
    }),
    paint,
  )
}

/** One row as a table for people. */
export function rowLines(row: RowTexts, title: string, order: readonly string[], paint: Paint): string[] {
  return formatTable(
    [{ title: 'column' }, { title }],
    pairColumns(row, null, order).map(({ column, local }) => [
      printable(column),
      cutTogether(local, null)[0],
    ]),
    paint,
  )
}

/** A key in a line: `id = 1, region = eu`. */
export function keyText(key: RowTexts): string {
  return Object.entries(key ?? {})
    .map(([column, value]) => `${printable(column)} = ${cell(value)}`)
    .join(', ')
}

/** Long values show the part in which they begin to differ. */
function cutTogether(local: string | null | undefined, remote: string | null | undefined): [string, string] {
  const differAt = firstDifference(local ?? '', remote ?? '')
  const from = differAt > MAX_CELL_LENGTH / 2 ? differAt - 10 : 0
  return [cut(local, from), cut(remote, from)]
}

function cut(value: string | null | undefined, from: number): string {
  if (value == null || value.length <= MAX_CELL_LENGTH) return cell(value)
  const part = value.slice(from, from + MAX_CELL_LENGTH)
  const before = from > 0 ? '...' : ''
  const after = from + MAX_CELL_LENGTH < value.length ? '...' : ''
  return `${before}${printable(part)}${after} (${value.length} characters)`
}

/** NULL, '' and the text NULL are told apart, as `sterna sql` does. */
function cell(value: string | null | undefined): string {
  if (value === undefined) return '-'
  if (value === null) return 'NULL'
  return value === '' || value === 'NULL' || value === '-' ? `'${value}'` : printable(value)
}

function firstDifference(a: string, b: string): number {
  const shorter = Math.min(a.length, b.length)
  for (let at = 0; at < shorter; at++) if (a[at] !== b[at]) return at
  return a.length === b.length ? 0 : shorter
}

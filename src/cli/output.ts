import { stripVTControlCharacters, styleText } from 'node:util'

/** How a piece of text looks on a terminal that has colours. */
export type Tone = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan'

/** Colours text, or leaves it as it is. */
export type Paint = (tone: Tone, text: string) => string

/** A column of a printed table. */
export interface Column {
  readonly title: string
  readonly align?: 'left' | 'right'
}

/** Paint for a stream: colours only on a terminal, and not where NO_COLOR is set. */
export function paintFor(
  stream: { readonly isTTY?: boolean | undefined },
  env: NodeJS.ProcessEnv = process.env,
): Paint {
  const coloured = stream.isTTY === true && !env['NO_COLOR'] && env['TERM'] !== 'dumb'
  return coloured ? (tone, text) => styleText(tone, text, { validateStream: false }) : (_, text) => text
}

/** Writes lines to standard output. */
export function print(...lines: readonly string[]): void {
  process.stdout.write(lines.map((line) => `${line}\n`).join(''))
}

/** Writes lines to standard error: progress, notices, warnings. */
export function note(...lines: readonly string[]): void {
  process.stderr.write(lines.map((line) => `${line}\n`).join(''))
}

/** Writes the one document of `--json`. A bigint becomes a number with all its digits, undefined is left out. */
export function printJson(value: unknown): void {
  print(formatJson(value))
}

/** The text of printJson. */
export function formatJson(value: unknown): string {
  return JSON.stringify(
    value,
    (_, item: unknown) => (typeof item === 'bigint' ? rawJson(item.toString()) : item),
    2,
  )
}

/** A number in JSON with exactly these digits, beyond the precision of a JavaScript number. */
export function rawJson(digits: string): unknown {
  return (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(digits)
}

/**
 * Aligns rows under their titles, two spaces between columns, nothing at the ends of lines. Cells may hold colours and
 * wide characters; the width counted is the one on the terminal.
 */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  paint: Paint = (_, text) => text,
): string[] {
  const widths = columns.map((column, at) =>
    Math.max(displayWidth(column.title), ...rows.map((row) => displayWidth(row[at] ?? ''))),
  )
  const line = (cells: readonly string[]): string =>
    columns
      .map((column, at) => {
        const cell = cells[at] ?? ''
        const padding = ' '.repeat(widths[at]! - displayWidth(cell))
        return column.align === 'right' ? padding + cell : cell + padding
      })
      .join('  ')
      .trimEnd()
  return [line(columns.map((column) => paint('dim', column.title))), ...rows.map(line)]
}

/** Columns that a text takes on a terminal: colours none, East Asian wide characters and emoji two, marks none. */
export function displayWidth(text: string): number {
  const plain = text.includes('\u001b') ? stripVTControlCharacters(text) : text
  if (/^[\x20-\x7e]*$/.test(plain)) return plain.length
  let width = 0
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: 'grapheme' }).segment(plain))
    width += /^\p{Emoji_Presentation}|\ufe0f/u.test(segment) || isWide(segment.codePointAt(0)!) ? 2 : 1
  return width
}

/** Source: Unicode Standard Annex 11, the blocks whose characters are East Asian Wide or Fullwidth. */
function isWide(codePoint: number): boolean {
  return (
    (codePoint >= 0x1100 && codePoint <= 0x115f) ||
    (codePoint >= 0x2e80 && codePoint <= 0xa4cf && codePoint !== 0x303f) ||
    (codePoint >= 0xac00 && codePoint <= 0xd7a3) ||
    (codePoint >= 0xf900 && codePoint <= 0xfaff) ||
    (codePoint >= 0xfe30 && codePoint <= 0xfe6f) ||
    (codePoint >= 0xff00 && codePoint <= 0xff60) ||
    (codePoint >= 0xffe0 && codePoint <= 0xffe6) ||
    (codePoint >= 0x20000 && codePoint <= 0x3fffd)
  )
}

/**
 * Text that came from a server, safe for one line of a terminal: control characters are shown as escapes, so that a
 * stored value can neither break the layout nor send the terminal commands.
 */
export function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f]/g, (character) => {
    const named = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }[character]
    return named ?? `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`
  })
}

/** Bytes for a person: `0 B`, `12 kB`, `1.5 GB`. Powers of 1024, as PostgreSQL counts. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
  let value = Math.abs(bytes)
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  const digits = unit === 0 || value >= 10 ? value.toFixed(0) : value.toFixed(1)
  return `${bytes < 0 ? '-' : ''}${digits} ${units[unit]}`
}

/** A duration for a person: `35 ms`, `1.2 s`, `3 min 20 s`, `2 h 5 min`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`
}

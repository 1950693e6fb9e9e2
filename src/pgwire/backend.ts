/** Type bytes of the messages that a server sends. */
export const BACKEND = {
  authentication: 0x52,
  backendKeyData: 0x4b,
  bindComplete: 0x32,
  closeComplete: 0x33,
  commandComplete: 0x43,
  copyBothResponse: 0x57,
  copyData: 0x64,
  copyDone: 0x63,
  copyInResponse: 0x47,
  copyOutResponse: 0x48,
  dataRow: 0x44,
  emptyQueryResponse: 0x49,
  error: 0x45,
  negotiateProtocolVersion: 0x76,
  noData: 0x6e,
  notice: 0x4e,
  notification: 0x41,
  parameterDescription: 0x74,
  parameterStatus: 0x53,
  parseComplete: 0x31,
  portalSuspended: 0x73,
  readyForQuery: 0x5a,
  rowDescription: 0x54,
} as const

/** A column of a result. `format` 0 is text, 1 binary. */
export interface Field {
  readonly name: string
  readonly typeOid: number
  readonly format: number
}

/** The fields of an ErrorResponse or NoticeResponse by PostgreSQL's one-letter codes, named. */
export interface ServerMessage {
  readonly severity: string
  readonly sqlstate: string
  readonly message: string
  readonly detail?: string
  readonly hint?: string
  readonly context?: string
  /** Where in the statement, counted in characters from 1. */
  readonly position?: string
  readonly schema?: string
  readonly table?: string
  readonly column?: string
  readonly constraint?: string
}

/** Index of the zero byte at or after `from`. */
export function cstringEnd(buffer: Buffer, from: number): number {
  const end = buffer.indexOf(0, from)
  return end < 0 ? buffer.length : end
}

/** What is cut off is taken as far as it goes. */
export function parseServerMessage(buffer: Buffer, start: number, end: number): ServerMessage {
  const fields: Record<string, string> = {}
  let at = start
  while (at < end && buffer[at] !== 0) {
    const key = String.fromCharCode(buffer[at]!)
    const stop = Math.min(cstringEnd(buffer, at + 1), end)
    fields[key] = buffer.toString('utf8', at + 1, stop)
    at = stop + 1
  }
  const optional: Record<string, string> = {}
  const names = {
    D: 'detail',
    H: 'hint',
    W: 'context',
    P: 'position',
    s: 'schema',
    t: 'table',
    c: 'column',
    n: 'constraint',
  }
  for (const [key, name] of Object.entries(names)) if (fields[key] !== undefined) optional[name] = fields[key]
  return {
    severity: fields['V'] ?? fields['S'] ?? 'ERROR',
    sqlstate: fields['C'] ?? 'XX000',
    message: fields['M'] ?? '',
    ...optional,
  }
}

/** @throws RangeError when the message is shorter than its fields */
export function parseRowDescription(buffer: Buffer, start: number, end: number): Field[] {
  const count = buffer.readUInt16BE(start)
  const fields: Field[] = []
  let at = start + 2
  for (let i = 0; i < count; i++) {
    const stop = cstringEnd(buffer, at)
    const name = buffer.toString('utf8', at, stop)
    fields.push({ name, typeOid: buffer.readUInt32BE(stop + 7), format: buffer.readInt16BE(stop + 17) })
    at = stop + 19
  }
  within(at, end)
  return fields
}

/**
 * The values of a DataRow as text; null where SQL NULL.
 * @throws RangeError when the message is shorter than its values
 */
export function parseDataRow(buffer: Buffer, start: number, end: number): (string | null)[] {
  const count = buffer.readUInt16BE(start)
  const values: (string | null)[] = new Array(count)
  let at = start + 2
  for (let i = 0; i < count; i++) {
    const length = buffer.readInt32BE(at)
    at += 4
    if (length < 0) values[i] = null
    else {
      values[i] = buffer.toString('utf8', at, within(at + length, end))
      at += length
    }
  }
  within(at, end)
  return values
}

function within(at: number, end: number): number {
  if (at > end) throw new RangeError('the message ends before its fields')
  return at
}

/** The row count at the end of a command tag (`UPDATE 3`, `INSERT 0 1`); 0 where it has none. */
export function rowCountOfTag(tag: string): number {
  const match = /(\d+)$/.exec(tag)
  return match ? Number(match[1]) : 0
}

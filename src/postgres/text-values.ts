/** What a column of an ordinary query becomes: int8 as bigint, json parsed, arrays of the common types as arrays. */
export type SqlValue =
  string | number | bigint | boolean | null | Buffer | SqlValue[] | { [key: string]: unknown } | unknown[]

const OID = {
  bool: 16,
  bytea: 17,
  int8: 20,
  int2: 21,
  int4: 23,
  oid: 26,
  json: 114,
  float4: 700,
  float8: 701,
  jsonb: 3802,
} as const

const ELEMENT_OF: Readonly<Record<number, number>> = {
  1000: 16,
  1005: 21,
  1007: 23,
  1016: 20,
  1028: 26,
  1003: 25,
  1009: 25,
  1015: 25,
  2211: 25,
}

/** Parses a value's text form by its type OID; types without a natural JavaScript value stay text. */
export function parseTextValue(text: string, typeOid: number): SqlValue {
  switch (typeOid) {
    case OID.bool:
      return text === 't'
    case OID.int8:
      return BigInt(text)
    case OID.int2:
    case OID.int4:
    case OID.oid:
    case OID.float4:
    case OID.float8:
      return Number(text)
    case OID.json:
    case OID.jsonb:
      return JSON.parse(text) as SqlValue
    case OID.bytea:
      return text.startsWith('\\x') ? Buffer.from(text.slice(2), 'hex') : text
    default: {
      const element = ELEMENT_OF[typeOid]
      return element === undefined ? text : parseArray(text, element)
    }
  }
}

/** Parses an array's text form; one of several dimensions becomes arrays of arrays. Lower bounds are dropped. */
function parseArray(text: string, elementOid: number): SqlValue[] {
  const root: SqlValue[] = []
  const open: SqlValue[][] = [root]
  const pattern = /"((?:[^"\\]|\\[^])*)"|([^,{}"]+)|([{}])/g
  for (const match of text.slice(text.indexOf('{')).matchAll(pattern)) {
    const [, quoted, plain, brace] = match
    const array = open.at(-1)
    if (!array) break
    if (brace === '{') {
      const inner: SqlValue[] = []
      array.push(inner)
      open.push(inner)
    } else if (brace === '}') open.pop()
    else if (quoted !== undefined) array.push(parseTextValue(quoted.replaceAll(/\\([^])/g, '$1'), elementOid))
    else array.push(plain === 'NULL' ? null : parseTextValue(plain!, elementOid))
  }
  return root[0] as SqlValue[]
}

/** What a statement takes as a parameter. Arrays become PostgreSQL array literals. */
export type SqlParam =
  | string
  | number
  | bigint
  | boolean
  | null
  | undefined
  | Buffer
  | Date
  | readonly (string | number | bigint | null)[]

/** The text form of a parameter. */
export function formatParam(value: SqlParam): string | null {
  if (value === null || value === undefined) return null
  if (typeof value === 'string') return value
  if (Buffer.isBuffer(value)) return `\\x${value.toString('hex')}`
  if (value instanceof Date) return value.toISOString()
  if (Array.isArray(value)) {
    const items = (value as readonly (string | number | bigint | null)[]).map((item) =>
      item === null ? 'NULL' : `"${String(item).replaceAll(/(["\\])/g, '\\$1')}"`,
    )
    return `{${items.join(',')}}`
  }
  return String(value)
}

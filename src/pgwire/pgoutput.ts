import { lsnOf, type Lsn } from '../core/lsn.ts'
import { pgTimeOf, type PgTime } from '../core/pg-time.ts'
import { cstringEnd } from './backend.ts'

/** Type bytes of pgoutput's messages. Source: PostgreSQL docs, "Logical Replication Message Formats". */
export const PGOUTPUT = {
  begin: 0x42,
  commit: 0x43,
  delete: 0x44,
  insert: 0x49,
  message: 0x4d,
  origin: 0x4f,
  relation: 0x52,
  truncate: 0x54,
  type: 0x59,
  update: 0x55,
} as const

/** How a column stands in a tuple. */
export const COLUMN_KIND = { null: 0x6e, unchanged: 0x75, text: 0x74, binary: 0x62 } as const

/** Marks what tuple follows in an update or delete. */
export const TUPLE = { key: 0x4b, old: 0x4f, new: 0x4e } as const

export interface BeginMessage {
  /** LSN of the commit record: what identifies the transaction in its origin's WAL. */
  readonly finalLsn: Lsn
  readonly commitTime: PgTime
  readonly xid: number
}

export function parseBegin(buffer: Buffer, at: number): BeginMessage {
  return {
    finalLsn: lsnOf(buffer.readBigUInt64BE(at)),
    commitTime: pgTimeOf(buffer.readBigInt64BE(at + 8)),
    xid: buffer.readUInt32BE(at + 16),
  }
}

export interface CommitMessage {
  readonly commitLsn: Lsn
  /** Position just after the commit record: what may be confirmed once the transaction is durable. */
  readonly endLsn: Lsn
  readonly commitTime: PgTime
}

export function parseCommit(buffer: Buffer, at: number): CommitMessage {
  return {
    commitLsn: lsnOf(buffer.readBigUInt64BE(at + 1)),
    endLsn: lsnOf(buffer.readBigUInt64BE(at + 9)),
    commitTime: pgTimeOf(buffer.readBigInt64BE(at + 17)),
  }
}

/** The transaction was applied at the provider from elsewhere: its LSN there, and the provider's name for that origin. */
export interface OriginMessage {
  readonly originLsn: Lsn
  readonly originName: string
}

export function parseOrigin(buffer: Buffer, at: number): OriginMessage {
  const end = cstringEnd(buffer, at + 8)
  return { originLsn: lsnOf(buffer.readBigUInt64BE(at)), originName: buffer.toString('utf8', at + 8, end) }
}

export interface RemoteColumn {
  readonly name: string
  readonly isKey: boolean
  readonly typeOid: number
}

/** A table as the provider describes it. `replicaIdentity`: `d` default, `n` nothing, `f` full, `i` index. */
export interface RemoteRelation {
  readonly id: number
  readonly schema: string
  readonly name: string
  readonly replicaIdentity: string
  readonly columns: readonly RemoteColumn[]
}

export function parseRelation(buffer: Buffer, start: number): RemoteRelation {
  const id = buffer.readUInt32BE(start)
  const schemaEnd = cstringEnd(buffer, start + 4)
  const nameEnd = cstringEnd(buffer, schemaEnd + 1)
  const count = buffer.readUInt16BE(nameEnd + 2)
  const columns: RemoteColumn[] = []
  let at = nameEnd + 4
  for (let i = 0; i < count; i++) {
    const end = cstringEnd(buffer, at + 1)
    columns.push({
      isKey: (buffer[at]! & 1) === 1,
      name: buffer.toString('utf8', at + 1, end),
      typeOid: buffer.readUInt32BE(end + 1),
    })
    at = end + 9
  }
  return {
    id,
    schema: buffer.toString('utf8', start + 4, schemaEnd) || 'pg_catalog',
    name: buffer.toString('utf8', schemaEnd + 1, nameEnd),
    replicaIdentity: String.fromCharCode(buffer[nameEnd + 1]!),
    columns,
  }
}

export interface TruncateMessage {
  readonly relationIds: readonly number[]
  readonly restartIdentity: boolean
}

export function parseTruncate(buffer: Buffer, at: number): TruncateMessage {
  const count = buffer.readInt32BE(at)
  const relationIds: number[] = []
  for (let i = 0; i < count; i++) relationIds.push(buffer.readUInt32BE(at + 5 + i * 4))
  return { relationIds, restartIdentity: (buffer[at + 4]! & 2) === 2 }
}

const MAX_COLUMNS = 1664

/**
 * Where the columns of one tuple lie in a message. One instance is filled again and again: no allocation per row.
 * For column i: `kinds[i]` is a COLUMN_KIND, and its bytes are `[starts[i], starts[i] + lengths[i])`.
 */
export class TupleLayout {
  count = 0
  readonly kinds = new Uint8Array(MAX_COLUMNS)
  readonly starts = new Int32Array(MAX_COLUMNS)
  readonly lengths = new Int32Array(MAX_COLUMNS)
  /** Whether any column is an unchanged TOAST value, which the stream does not carry. */
  hasUnchanged = false

  /**
   * Reads the tuple at `at`; returns the position behind it.
   * @throws RangeError when the bytes are not a whole tuple: taken as they are, they would become values of the row
   */
  read(buffer: Buffer, at: number): number {
    const count = buffer.readUInt16BE(at)
    if (count > MAX_COLUMNS) throw new RangeError('a tuple has more columns than a table can have')
    this.count = count
    this.hasUnchanged = false
    let pos = at + 2
    for (let i = 0; i < count; i++) {
      const kind = buffer[pos++]!
      this.kinds[i] = kind
      if (kind === COLUMN_KIND.binary || kind === COLUMN_KIND.text) {
        const length = buffer.readInt32BE(pos)
        this.starts[i] = pos + 4
        this.lengths[i] = length
        pos += 4 + length
        if (length < 0 || pos > buffer.length) throw new RangeError('a value is longer than its message')
      } else {
        this.lengths[i] = -1
        if (kind === COLUMN_KIND.unchanged) this.hasUnchanged = true
        else if (kind !== COLUMN_KIND.null) throw new RangeError('a column is of an unknown kind')
      }
    }
    return pos
  }

  /** Whether column `i` has the same bytes as column `i` of `other`; both layouts lie in `buffer`. */
  sameValue(i: number, other: TupleLayout, buffer: Buffer): boolean {
    const length = this.lengths[i]!
    if (length !== other.lengths[i]! || this.kinds[i] !== other.kinds[i]) return false
    if (length <= 0) return true
    const start = this.starts[i]!
    const otherStart = other.starts[i]!
    return buffer.compare(buffer, otherStart, otherStart + length, start, start + length) === 0
  }
}

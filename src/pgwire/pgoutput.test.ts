import fc from 'fast-check'
import { expect, test } from 'vitest'
import { MessageWriter } from './message-writer.ts'
import {
  COLUMN_KIND,
  parseBegin,
  parseCommit,
  parseOrigin,
  parseRelation,
  parseTruncate,
  TupleLayout,
} from './pgoutput.ts'

const uint32 = fc.integer({ min: 0, max: 0xffff_ffff })
const uint64 = fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn })
const int64 = fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n })
const names = fc.string({ minLength: 1, maxLength: 20 }).map((text) => text.replaceAll('\0', 'x'))
const signed = (value: bigint): bigint => BigInt.asIntN(64, value)

function bytesOf(write: (w: MessageWriter) => void): Buffer {
  const w = new MessageWriter()
  w.byte(0xaa)
  write(w)
  return w.take()
}

test('begin and commit', () => {
  fc.assert(
    fc.property(uint64, uint64, int64, uint32, (lsn, end, time, xid) => {
      const begin = bytesOf((w) =>
        w
          .int64(signed(lsn))
          .int64(time)
          .int32(xid | 0),
      )
      expect(parseBegin(begin, 1)).toEqual({ finalLsn: lsn, commitTime: time, xid })
      const commit = bytesOf((w) => w.byte(0).int64(signed(lsn)).int64(signed(end)).int64(time))
      expect(parseCommit(commit, 1)).toEqual({ commitLsn: lsn, endLsn: end, commitTime: time })
    }),
  )
})

test('origin', () => {
  fc.assert(
    fc.property(uint64, names, (lsn, name) => {
      const bytes = bytesOf((w) => w.int64(signed(lsn)).cstring(name))
      expect(parseOrigin(bytes, 1)).toEqual({ originLsn: lsn, originName: name })
    }),
  )
})

test('relation', () => {
  const columns = fc.array(fc.record({ isKey: fc.boolean(), name: names, typeOid: uint32 }), {
    maxLength: 20,
  })
  fc.assert(
    fc.property(
      uint32,
      names,
      names,
      fc.constantFrom('d', 'n', 'f', 'i'),
      columns,
      (id, schema, name, identity, sent) => {
        const bytes = bytesOf((w) => {
          w.int32(id | 0)
            .cstring(schema)
            .cstring(name)
            .byte(identity.charCodeAt(0))
            .int16(sent.length)
          for (const column of sent) {
            w.byte(column.isKey ? 1 : 0)
              .cstring(column.name)
              .int32(column.typeOid | 0)
              .int32(-1)
          }
        })
        expect(parseRelation(bytes, 1)).toEqual({
          id,
          schema,
          name,
          replicaIdentity: identity,
          columns: sent,
        })
      },
    ),
  )
})

test('an empty schema is pg_catalog', () => {
  const bytes = bytesOf((w) => w.int32(1).cstring('').cstring('t').byte(0x64).int16(0))
  expect(parseRelation(bytes, 1).schema).toBe('pg_catalog')
})

test('truncate', () => {
  fc.assert(
    fc.property(fc.array(uint32, { maxLength: 20 }), fc.boolean(), fc.boolean(), (ids, cascade, restart) => {
      const bytes = bytesOf((w) => {
        w.int32(ids.length).byte((cascade ? 1 : 0) | (restart ? 2 : 0))
        for (const id of ids) w.int32(id | 0)
      })
      expect(parseTruncate(bytes, 1)).toEqual({ relationIds: ids, restartIdentity: restart })
    }),
  )
})

type Column = { readonly kind: keyof typeof COLUMN_KIND; readonly bytes: Buffer }
const columnsOfTuple = fc.array(
  fc.record({
    kind: fc.constantFrom<Column['kind']>('null', 'unchanged', 'text', 'binary'),
    bytes: fc.uint8Array({ maxLength: 12 }).map((bytes) => Buffer.from(bytes)),
  }),
  { maxLength: 30 },
)

function writeTuple(w: MessageWriter, columns: readonly Column[]): void {
  w.int16(columns.length)
  for (const { kind, bytes } of columns) {
    w.byte(COLUMN_KIND[kind])
    if (kind === 'text' || kind === 'binary') w.int32(bytes.length).bytes(bytes)
  }
}

test('a tuple lies where its layout says, also when the layout was used before', () => {
  const layout = new TupleLayout()
  fc.assert(
    fc.property(columnsOfTuple, (columns) => {
      const bytes = bytesOf((w) => {
        writeTuple(w, columns)
        w.byte(0xbb)
      })
      expect(layout.read(bytes, 1)).toBe(bytes.length - 1)
      expect(layout.count).toBe(columns.length)
      expect(layout.hasUnchanged).toBe(columns.some(({ kind }) => kind === 'unchanged'))
      for (const [i, { kind, bytes: value }] of columns.entries()) {
        expect(layout.kinds[i]).toBe(COLUMN_KIND[kind])
        if (kind === 'null' || kind === 'unchanged') expect(layout.lengths[i]).toBe(-1)
        else {
          const start = layout.starts[i]!
          expect(bytes.subarray(start, start + layout.lengths[i]!)).toEqual(value)
        }
      }
    }),
  )
})

test('values of two tuples are the same exactly when kind and bytes are', () => {
  const [a, b] = [new TupleLayout(), new TupleLayout()]
  fc.assert(
    fc.property(columnsOfTuple, columnsOfTuple, fc.boolean(), (left, other, equal) => {
      const right = equal ? left : other
      const bytes = bytesOf((w) => {
        writeTuple(w, left)
        writeTuple(w, right)
      })
      b.read(bytes, a.read(bytes, 1))
      for (let i = 0; i < Math.min(left.length, right.length); i++) {
        const [x, y] = [left[i]!, right[i]!]
        const absent = x.kind === 'null' || x.kind === 'unchanged'
        expect(a.sameValue(i, b, bytes)).toBe(x.kind === y.kind && (absent || x.bytes.equals(y.bytes)))
      }
    }),
  )
})

test('a tuple that is cut off anywhere is refused', () => {
  const layout = new TupleLayout()
  fc.assert(
    fc.property(columnsOfTuple, fc.nat(), (columns, seed) => {
      const bytes = bytesOf((w) => writeTuple(w, columns))
      const cut = 1 + (seed % (bytes.length - 1))
      expect(() => layout.read(bytes.subarray(0, cut), 1)).toThrow(RangeError)
    }),
  )
})

test.each([
  ['an unknown kind of column', [0, 1, 0x7a]],
  ['a negative length', [0, 1, 0x74, 255, 255, 255, 250, 1, 2]],
  ['a length beyond the message', [0, 1, 0x62, 0, 0, 0, 9, 1, 2]],
  ['more columns than a table can have', [0xff, 0xff, ...new Array<number>(65_535).fill(0x6e)]],
])('a tuple with %s is refused', (_, bytes) => {
  expect(() => new TupleLayout().read(Buffer.from(bytes), 0)).toThrow(RangeError)
})

test('whatever the bytes are: a result or a RangeError', () => {
  const layout = new TupleLayout()
  const parsers = [
    parseBegin,
    parseCommit,
    parseOrigin,
    parseRelation,
    parseTruncate,
    layout.read.bind(layout),
  ]
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 80 }), (bytes) => {
      for (const parse of parsers) {
        try {
          parse(Buffer.from(bytes), 0)
        } catch (error) {
          expect(error).toBeInstanceOf(RangeError)
        }
      }
    }),
    { numRuns: 2000 },
  )
})

import fc from 'fast-check'
import { expect, test } from 'vitest'
import { FrameReader } from './frame-reader.ts'

interface Frame {
  readonly type: number
  readonly body: Buffer
}

const frames = fc.array(
  fc.record({
    type: fc.integer({ min: 1, max: 255 }),
    body: fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
  }),
  { maxLength: 12 },
)

function encode({ type, body }: Frame): Buffer {
  const header = Buffer.alloc(5)
  header[0] = type
  header.writeInt32BE(body.length + 4, 1)
  return Buffer.concat([header, body])
}

function readAll(chunks: Iterable<Buffer>, maxBodyBytes?: number): Frame[] {
  const out: Frame[] = []
  const reader = new FrameReader(
    'here',
    (type, buffer, start, end) => out.push({ type, body: Buffer.from(buffer.subarray(start, end)) }),
    maxBodyBytes,
  )
  for (const chunk of chunks) {
    // A copy that is spoilt afterwards: the reader must not hold on to the caller's bytes.
    const copy = Buffer.from(chunk)
    reader.push(copy)
    copy.fill(0xee)
  }
  return out
}

test('the same messages however the bytes are cut', () => {
  fc.assert(
    fc.property(frames, fc.infiniteStream(fc.integer({ min: 1, max: 20 })), (sent, sizes) => {
      const bytes = Buffer.concat(sent.map(encode))
      const chunks: Buffer[] = []
      for (let at = 0; at < bytes.length;) {
        const size = sizes.next().value as number
        chunks.push(bytes.subarray(at, at + size))
        at += size
      }
      expect(readAll(chunks)).toEqual(sent)
    }),
    { numRuns: 300 },
  )
})

test('byte by byte, and all at once', () => {
  fc.assert(
    fc.property(frames, (sent) => {
      const bytes = Buffer.concat(sent.map(encode))
      expect(readAll(Array.from(bytes, (byte) => Buffer.of(byte)))).toEqual(sent)
      expect(readAll([bytes])).toEqual(sent)
    }),
  )
})

test('a body of many megabytes in small pieces takes linear time', () => {
  const big = { type: 0x44, body: Buffer.alloc(64 * 1024 * 1024, 7) }
  const bytes = Buffer.concat([encode({ type: 1, body: Buffer.alloc(0) }), encode(big)])
  const chunks: Buffer[] = []
  for (let at = 0; at < bytes.length; at += 16_384) chunks.push(bytes.subarray(at, at + 16_384))
  const before = performance.now()
  const read = readAll(chunks)
  expect(read.map(({ type, body }) => [type, body.length])).toEqual([
    [1, 0],
    [0x44, big.body.length],
  ])
  expect(read[1]!.body.equals(big.body)).toBe(true)
  expect(performance.now() - before).toBeLessThan(5000)
})

test.each([
  ['zero', [0, 0, 0, 0]],
  ['less than itself', [0, 0, 0, 3]],
  ['negative', [255, 255, 255, 255]],
  ['the smallest integer', [128, 0, 0, 0]],
  ['2 GB', [127, 255, 255, 255]],
  ['more than PostgreSQL ever sends', [64, 0, 0, 16]],
])('a length of %s is refused, also byte by byte', (_, length) => {
  const bytes = Buffer.from([0x52, ...length, 1, 2, 3])
  const refusal = expect.objectContaining({ code: 'PROTOCOL_VIOLATION' })
  expect(() => readAll([bytes])).toThrow(refusal)
  expect(() => readAll(Array.from(bytes, (byte) => Buffer.of(byte)))).toThrow(refusal)
})

test('the limit of the handshake', () => {
  const body = Buffer.alloc(100)
  expect(readAll([encode({ type: 1, body })], 100)).toHaveLength(1)
  expect(() => readAll([encode({ type: 1, body: Buffer.alloc(101) })], 100)).toThrow('claims 105 bytes')
})

test('a long message of a type that is always short means that the stream is out of step', () => {
  const ready = Buffer.from([0x5a, 0, 1, 0, 0])
  expect(() => readAll([ready])).toThrow('claims 65536 bytes')
})

test('how a long message begins is shown once, before the rest of it is there, and can be refused', () => {
  const message = encode({ type: 0x64, body: Buffer.alloc(40_000, 7) })
  const heads: number[] = []
  const reader = new FrameReader('here', () => {})
  reader.checkLong = (type, head) => heads.push(type, head.length, head[0]!)
  for (const byte of message.subarray(0, 100)) reader.push(Buffer.of(byte))
  expect(heads).toEqual([0x64, 26, 7])
  reader.push(message.subarray(100))
  reader.push(encode({ type: 0x64, body: Buffer.alloc(40, 8) }))
  expect(heads).toHaveLength(3)
  reader.checkLong = () => {
    throw new Error('refused')
  }
  expect(() => reader.push(message.subarray(0, 1000))).toThrow('refused')
})

import fc from 'fast-check'
import { expect, test } from 'vitest'
import { FrameReader } from './frame-reader.ts'
import { writeBindText, writeParse, writeStartup } from './frontend.ts'
import { MessageWriter } from './message-writer.ts'

test('messages of any size, written back to back into a small buffer, are read as they were written', () => {
  const texts = fc.array(fc.string({ maxLength: 300 }), { maxLength: 20 })
  fc.assert(
    fc.property(texts, fc.integer({ min: 1, max: 64 }), (sent, initial) => {
      const w = new MessageWriter(initial)
      for (const text of sent) w.begin(0x51).textValue(text).end()
      const read: string[] = []
      new FrameReader('here', (_, buffer, start, end) =>
        read.push(buffer.toString('utf8', start + 4, end)),
      ).push(w.take())
      expect(read).toEqual(sent.map((text) => Buffer.from(text).toString()))
    }),
  )
})

test('what was taken is not touched by what is written later', () => {
  const w = new MessageWriter(4)
  const first = w.begin(1).int32(7).end().take()
  const copy = Buffer.from(first)
  w.begin(2).int32(-1).end()
  expect(first).toEqual(copy)
})

test('numbers in network order', () => {
  const w = new MessageWriter(1)
  w.int16(-2).int16(0xffff).int32(-2).int64(-2n).byte(300)
  expect(w.take().toString('hex')).toBe('fffefffffffffffefffffffffffffffe2c')
})

test('the golden bytes of a start-up, a Parse and a Bind', () => {
  const w = new MessageWriter(1)
  writeStartup(w, { user: 'a' })
  expect(w.take().toString('latin1')).toBe('\0\0\0\x10\0\x03\0\0user\0a\0\0')
  writeParse(w, 's', 'q', [23])
  expect(w.take().toString('latin1')).toBe('P\0\0\0\x0es\0q\0\0\x01\0\0\0\x17')
  writeBindText(w, 's', [null, 'x'])
  expect(w.take().toString('latin1')).toBe('B\0\0\0\x16\0s\0\0\0\0\x02\xff\xff\xff\xff\0\0\0\x01x\0\0')
})

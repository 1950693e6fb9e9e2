import fc from 'fast-check'
import { expect, test } from 'vitest'
import { parseDataRow, parseRowDescription, parseServerMessage, rowCountOfTag } from './backend.ts'
import { MessageWriter } from './message-writer.ts'

const names = fc.string({ maxLength: 20 }).map((text) => text.replaceAll('\0', ''))

/** The bytes of what `write` writes, between other bytes, as in a buffer with several messages. */
function embed(write: (w: MessageWriter) => void): { buffer: Buffer; start: number; end: number } {
  const w = new MessageWriter()
  write(w)
  const body = w.take()
  return {
    buffer: Buffer.concat([Buffer.from('xx'), body, Buffer.from('yyyy')]),
    start: 2,
    end: 2 + body.length,
  }
}

test('rows come back as they were sent', () => {
  fc.assert(
    fc.property(fc.array(fc.option(fc.string())), (values) => {
      const { buffer, start, end } = embed((w) => {
        w.int16(values.length)
        for (const value of values) w.textValue(value)
      })
      expect(parseDataRow(buffer, start, end)).toEqual(values)
    }),
  )
})

test('columns come back as they were sent', () => {
  const fields = fc.array(
    fc.record({
      name: names,
      typeOid: fc.integer({ min: 0, max: 0xffff_ffff }),
      format: fc.constantFrom(0, 1),
    }),
  )
  fc.assert(
    fc.property(fields, (sent) => {
      const { buffer, start, end } = embed((w) => {
        w.int16(sent.length)
        for (const { name, typeOid, format } of sent)
          w.cstring(name)
            .int32(1)
            .int16(2)
            .int32(typeOid | 0)
            .int16(-1)
            .int32(-1)
            .int16(format)
      })
      expect(parseRowDescription(buffer, start, end)).toEqual(sent)
    }),
  )
})

test('the fields of an error', () => {
  const letters = {
    S: 'FEHLER',
    V: 'ERROR',
    C: '23505',
    M: 'm',
    D: 'd',
    H: 'h',
    W: 'w',
    P: '7',
    s: 's',
    t: 't',
    c: 'c',
    n: 'n',
    R: 'r',
  }
  const { buffer, start, end } = embed((w) => {
    for (const [letter, text] of Object.entries(letters)) w.byte(letter.charCodeAt(0)).cstring(text)
    w.byte(0)
  })
  expect(parseServerMessage(buffer, start, end)).toEqual({
    severity: 'ERROR',
    sqlstate: '23505',
    message: 'm',
    detail: 'd',
    hint: 'h',
    context: 'w',
    position: '7',
    schema: 's',
    table: 't',
    column: 'c',
    constraint: 'n',
  })
})

test('an error without fields, or cut off, is still an error and does not read what follows', () => {
  const empty = embed((w) => w.byte(0))
  expect(parseServerMessage(empty.buffer, empty.start, empty.end)).toEqual({
    severity: 'ERROR',
    sqlstate: 'XX000',
    message: '',
  })
  const cut = embed((w) => w.byte(0x4d).bytes(Buffer.from('half')))
  expect(parseServerMessage(cut.buffer, cut.start, cut.end).message).toBe('half')
})

test('whatever the bytes are: a result within the message, or a RangeError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 60 }), (bytes) => {
      for (const parse of [parseDataRow, parseRowDescription, parseServerMessage]) {
        try {
          parse(Buffer.from(bytes), 0, bytes.length)
        } catch (error) {
          expect(error).toBeInstanceOf(RangeError)
        }
      }
    }),
    { numRuns: 2000 },
  )
})

test('a row that claims more than its message has is refused, not filled from the next message', () => {
  const { buffer, start, end } = embed((w) => w.int16(1).int32(3).bytes(Buffer.from('ab')))
  expect(() => parseDataRow(buffer, start, end)).toThrow(RangeError)
  const two = embed((w) => w.int16(2).textValue('a'))
  expect(() => parseDataRow(two.buffer, two.start, two.end)).toThrow(RangeError)
})

test('row counts of command tags', () => {
  expect(['INSERT 0 5', 'UPDATE 3', 'SELECT 0', 'CREATE TABLE', ''].map(rowCountOfTag)).toEqual([
    5, 3, 0, 0, 0,
  ])
})

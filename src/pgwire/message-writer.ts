const INITIAL_BYTES = 64 * 1024

/**
 * Builds protocol messages back to back in one growing buffer, so that many leave in one write.
 * Use: `begin(type)`, the body's fields, `end()`; then `take()`.
 */
export class MessageWriter {
  buffer: Buffer
  at = 0
  #lengthAt = 0

  constructor(initialBytes = INITIAL_BYTES) {
    this.buffer = Buffer.allocUnsafe(initialBytes)
  }

  /** Starts a message; type 0 is for start-up messages, which have no type byte. */
  begin(type: number): this {
    this.reserve(5)
    if (type !== 0) this.buffer[this.at++] = type
    this.#lengthAt = this.at
    this.at += 4
    return this
  }

  /** Closes the message by filling in its length. */
  end(): this {
    this.buffer.writeInt32BE(this.at - this.#lengthAt, this.#lengthAt)
    return this
  }

  byte(value: number): this {
    this.reserve(1)
    this.buffer[this.at++] = value
    return this
  }

  int16(value: number): this {
    this.reserve(2)
    this.buffer[this.at++] = (value >>> 8) & 0xff
    this.buffer[this.at++] = value & 0xff
    return this
  }

  int32(value: number): this {
    this.reserve(4)
    this.at = this.buffer.writeInt32BE(value, this.at)
    return this
  }

  int64(value: bigint): this {
    this.reserve(8)
    this.at = this.buffer.writeBigInt64BE(value, this.at)
    return this
  }

  /** A zero-terminated string. */
  cstring(text: string): this {
    const bytes = Buffer.byteLength(text)
    this.reserve(bytes + 1)
    this.at += this.buffer.write(text, this.at)
    this.buffer[this.at++] = 0
    return this
  }

  /** Raw bytes `source[start, end)`. */
  bytes(source: Buffer, start = 0, end = source.length): this {
    this.reserve(end - start)
    this.at += source.copy(this.buffer, this.at, start, end)
    return this
  }

  /** A Bind parameter: int32 length and the text's bytes; null is length -1. */
  textValue(text: string | null): this {
    if (text === null) return this.int32(-1)
    const bytes = Buffer.byteLength(text)
    this.int32(bytes)
    this.reserve(bytes)
    this.at += this.buffer.write(text, this.at)
    return this
  }

  /** Makes room for `count` more bytes; callers that write into `buffer` themselves call it first. */
  reserve(count: number): void {
    if (this.at + count <= this.buffer.length) return
    const grown = Buffer.allocUnsafe(Math.max(this.buffer.length * 2, this.at + count))
    this.buffer.copy(grown, 0, 0, this.at)
    this.buffer = grown
  }

  /** Hands out what was written and starts afresh; the bytes belong to the caller from then on. */
  take(): Buffer {
    const taken = this.buffer.subarray(0, this.at)
    this.buffer = Buffer.allocUnsafe(INITIAL_BYTES)
    this.at = 0
    return taken
  }
}

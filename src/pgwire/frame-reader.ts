import { SternaError } from '../core/errors.ts'

/**
 * Receives one backend message: its type byte and the bytes of its body, `buffer[start, end)`.
 * The buffer is only valid during the call; copy what must outlive it.
 */
export type FrameHandler = (type: number, buffer: Buffer, start: number, end: number) => void

const HEADER_BYTES = 5
/** No server sends more: it is the largest piece of memory that PostgreSQL allocates for one. */
export const MAX_BODY_BYTES = 0x3fff_ffff
/**
 * Messages of all other types are short; a longer one means that the stream is out of step.
 * Source: libpq, fe-protocol3.c, VALID_LONG_MESSAGE_TYPE.
 */
const LONG_TYPES: ReadonlySet<number> = new Set(Buffer.from('TDdVENA'))
const MAX_SHORT_BODY_BYTES = 30_000
/** So much of a long message is looked at before the rest is waited for. */
const LONG_HEAD_BYTES = 26

/**
 * Splits a byte stream into protocol messages (type byte, int32 length, body). A message that lies whole in one chunk is
 * handed out without a copy; one that spans chunks is gathered in one allocation of its final size, so that a value of
 * many megabytes costs linear time.
 * Source: PostgreSQL docs, "Message Formats".
 */
export class FrameReader {
  /** Largest body accepted. Small during the handshake, where anything large is not PostgreSQL. */
  maxBodyBytes: number
  /**
   * Told how a message of more than 30,000 bytes begins; throws to refuse it. A damaged length would swallow what follows
   * for hours and look like a slow message.
   */
  checkLong: ((type: number, head: Buffer) => void) | undefined
  readonly #address: string
  #handler: FrameHandler
  #partial: Buffer | undefined
  #filled = 0
  #isUncheckedLong = false
  readonly #header = Buffer.alloc(HEADER_BYTES)
  #headerFilled = 0

  constructor(address: string, handler: FrameHandler, maxBodyBytes = MAX_BODY_BYTES) {
    this.#address = address
    this.#handler = handler
    this.maxBodyBytes = maxBodyBytes
  }

  setHandler(handler: FrameHandler): void {
    this.#handler = handler
  }

  /**
   * Consumes a chunk and calls the handler for each message that it completes.
   * @throws PROTOCOL_VIOLATION when a length cannot be right; what `checkLong` throws
   */
  push(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#partial) {
        const take = Math.min(this.#partial.length - this.#filled, chunk.length - at)
        chunk.copy(this.#partial, this.#filled, at, at + take)
        this.#filled += take
        at += take
        if (this.#isUncheckedLong) this.#checkLong(this.#partial)
        if (this.#filled === this.#partial.length) {
          const whole = this.#partial
          this.#partial = undefined
          this.#handler(whole[0]!, whole, HEADER_BYTES, whole.length)
        }
        continue
      }
      if (this.#headerFilled > 0 || chunk.length - at < HEADER_BYTES) {
        const take = Math.min(HEADER_BYTES - this.#headerFilled, chunk.length - at)
        chunk.copy(this.#header, this.#headerFilled, at, at + take)
        this.#headerFilled += take
        at += take
        if (this.#headerFilled < HEADER_BYTES) return
        this.#headerFilled = 0
        const body = this.#bodyLength(this.#header, 0)
        if (body === 0) this.#handler(this.#header[0]!, this.#header, HEADER_BYTES, HEADER_BYTES)
        else this.#gather(this.#header, 0, HEADER_BYTES, body)
        continue
      }
      const body = this.#bodyLength(chunk, at)
      const end = at + HEADER_BYTES + body
      if (end <= chunk.length) {
        this.#handler(chunk[at]!, chunk, at + HEADER_BYTES, end)
        at = end
      } else {
        this.#gather(chunk, at, chunk.length, body)
        return
      }
    }
  }

  #gather(source: Buffer, from: number, to: number, body: number): void {
    this.#partial = Buffer.allocUnsafe(HEADER_BYTES + body)
    this.#filled = source.copy(this.#partial, 0, from, to)
    this.#isUncheckedLong = body > MAX_SHORT_BODY_BYTES
    if (this.#isUncheckedLong) this.#checkLong(this.#partial)
  }

  #checkLong(message: Buffer): void {
    if (this.#filled < HEADER_BYTES + LONG_HEAD_BYTES) return
    this.#isUncheckedLong = false
    this.checkLong?.(message[0]!, message.subarray(HEADER_BYTES, HEADER_BYTES + LONG_HEAD_BYTES))
  }

  #bodyLength(buffer: Buffer, at: number): number {
    const length = buffer.readInt32BE(at + 1)
    const limit = LONG_TYPES.has(buffer[at]!)
      ? this.maxBodyBytes
      : Math.min(this.maxBodyBytes, MAX_SHORT_BODY_BYTES)
    if (length < 4 || length - 4 > limit) {
      throw new SternaError('PROTOCOL_VIOLATION', {
        address: this.#address,
        reason: `a message of type 0x${buffer[at]!.toString(16)} claims ${length} bytes`,
      })
    }
    return length - 4
  }
}

import { open, stat } from 'node:fs/promises'

/** Follows what is added to a log file. */
export class LogFollower {
  readonly #path: string
  #position: number

  constructor(path: string, position: number) {
    this.#path = path
    this.#position = position
  }

  /** Hands on the complete lines that came since the last call, without their times. */
  async show(say: (line: string) => void): Promise<void> {
    const { size } = await stat(this.#path)
    if (size <= this.#position) return
    const file = await open(this.#path, 'r')
    try {
      const { buffer, bytesRead } = await file.read(
        Buffer.alloc(size - this.#position),
        0,
        undefined,
        this.#position,
      )
      const complete = buffer.subarray(0, bytesRead).lastIndexOf(0x0a) + 1
      this.#position += complete
      const lines = buffer.toString('utf8', 0, complete).split('\n').slice(0, -1)
      for (const line of lines) say(line.replace(/^\d{4}-\d\d-\d\dT\S+Z /, ''))
    } finally {
      await file.close()
    }
  }
}

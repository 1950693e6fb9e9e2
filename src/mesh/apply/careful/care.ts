import type { Ask } from './ask.ts'
import type { CarefulTable } from './careful-table.ts'

/**
 * Which tables need care, as a session knows it. Others may add to them at any time: each transaction's last statement
 * refuses to commit under another epoch than this one.
 */
export class Care {
  readonly #ask: Ask
  readonly #tables: Set<number>
  epoch: bigint

  constructor(ask: Ask, epoch: bigint, tables: Iterable<number>) {
    this.#ask = ask
    this.epoch = epoch
    this.#tables = new Set(tables)
  }

  /** `guardOid`: the table at the top of a partition tree. */
  includes(guardOid: number | null): boolean {
    return guardOid !== null && this.#tables.has(guardOid)
  }

  get isEmpty(): boolean {
    return this.#tables.size === 0
  }

  /** Puts a table on the list, in the open transaction. @throws CareChanged */
  async mark(table: Pick<CarefulTable, 'guardOid'>): Promise<void> {
    if (this.#tables.has(table.guardOid)) return
    const [row] = await this.#ask.lookup('select sterna.careful_mark($1::oid)', [String(table.guardOid)])
    const epoch = row?.[0]
    // On the list without our knowing, or others were faster: this transaction may have written without care.
    if (epoch == null || BigInt(epoch) !== this.epoch + 1n) throw new CareChanged()
    this.epoch++
    this.#tables.add(table.guardOid)
  }
}

/** Other tables need care than the session knows: open it again. */
export class CareChanged extends Error {
  override name = 'CareChanged'
}

import { COLUMN_KIND, type TupleLayout } from '../../../pgwire/pgoutput.ts'
import { UNCHANGED, type Key, type SentValues, type Values } from '../../conflict/change.ts'
import type { RowVersion } from '../../conflict/version.ts'
import type { TablePlan } from '../table-plan.ts'
import type { Ask, Param } from './ask.ts'
import type { Incoming } from './careful-lane.ts'
import { MONEY_OID, type CarefulTable, type HeldKey } from './careful-table.ts'

/** A change as the stream brings it. `old`: null where none was sent; whole with REPLICA IDENTITY FULL, else only its key. */
export interface StreamedChange {
  readonly tag: 'insert' | 'update' | 'delete'
  readonly row: TupleLayout | null
  readonly old: TupleLayout | null
  readonly isOldWhole: boolean
  readonly buffer: Buffer
}

/**
 * Reads a change of the stream as texts, and what is here of the keys that it touches, under their locks: all in one round
 * trip. The layouts may be used again once this has returned its promise.
 */
export async function incomingOf(
  ask: Ask,
  table: CarefulTable,
  streamed: StreamedChange,
  version: RowVersion,
): Promise<Incoming> {
  const row = streamed.row && rawOf(streamed.row, streamed.buffer)
  const old = streamed.old && rawOf(streamed.old, streamed.buffer)
  const isSameKey =
    row !== null &&
    old !== null &&
    table.plan.keyPositions.every(
      (at) => row[at]!.kind === old[at]!.kind && row[at]!.bytes.equals(old[at]!.bytes),
    )
  const hold = async (tuple: readonly Raw[] | null): Promise<HeldKey | null> =>
    tuple === null || table.isKeyless
      ? null
      : table.hold(
          ask,
          table.plan.keyPositions.map((at) => paramOf(tuple[at]!)),
          version,
        )
  const [texts, heldNew, heldOld] = await Promise.all([
    textsOf(ask, table.plan, [row, old]),
    hold(row),
    hold(isSameKey ? null : old),
  ])
  const [values, oldValues] = texts as [SentValues | null, SentValues | null]
  const held = new Map<Key, HeldKey>()
  const keys = new Map<Key, readonly (string | null)[]>()
  const keyOf = (it: HeldKey | null, of: SentValues): Key => {
    if (!it) return '0'
    held.set(it.key, it)
    keys.set(it.key, table.keyValues(of as Values))
    return it.key
  }
  const whole = streamed.isOldWhole ? (oldValues as Values) : null
  switch (streamed.tag) {
    case 'insert': {
      const key = keyOf(heldNew, values!)
      return { table, change: { tag: 'insert', version, key, values: values as Values }, keys, held }
    }
    case 'delete': {
      const key = keyOf(heldOld, oldValues!)
      return { table, change: { tag: 'delete', version, key, old: whole }, keys, held }
    }
    case 'update': {
      const key = keyOf(heldNew, values!)
      const oldKey = heldOld ? keyOf(heldOld, oldValues!) : key
      return {
        table,
        change: { tag: 'update', version, oldKey, key, values: values!, old: whole },
        keys,
        held,
      }
    }
  }
}

function paramOf({ kind, bytes }: Raw): Param {
  if (kind === COLUMN_KIND.null) return null
  return kind === COLUMN_KIND.binary ? bytes : bytes.toString()
}

type Raw = { readonly kind: number; readonly bytes: Buffer }

function rawOf(layout: TupleLayout, buffer: Buffer): Raw[] {
  return Array.from({ length: layout.count }, (_, i) => {
    const length = layout.lengths[i]!
    const bytes = length < 0 ? Buffer.alloc(0) : buffer.subarray(layout.starts[i], layout.starts[i]! + length)
    return { kind: layout.kinds[i]!, bytes: Buffer.from(bytes) }
  })
}

/** Binary values are turned into texts by the server, all of a change at once. */
async function textsOf(
  ask: Ask,
  plan: TablePlan,
  tuples: readonly (readonly Raw[] | null)[],
): Promise<(SentValues | null)[]> {
  const params: Param[] = []
  const types: number[] = []
  const expressions: string[] = []
  const convert = (raw: Raw, position: number): number => {
    const type = plan.typeOids[position]!
    params.push(raw.kind === COLUMN_KIND.binary ? raw.bytes : raw.bytes.toString())
    types.push(type)
    const value = `$${params.length}`
    expressions.push(`format('%s', ${type === MONEY_OID ? `${value}::numeric` : value})`)
    return params.length - 1
  }
  const read = tuples.map((tuple) =>
    tuple?.map((raw, position) => {
      switch (raw.kind) {
        case COLUMN_KIND.null:
          return null
        case COLUMN_KIND.unchanged:
          return UNCHANGED
        case COLUMN_KIND.text:
          return plan.typeOids[position] === MONEY_OID ? convert(raw, position) : raw.bytes.toString()
        default:
          return convert(raw, position)
      }
    }),
  )
  const [converted] =
    params.length === 0 ? [[]] : await ask.lookup(`select ${expressions.join(', ')}`, params, types)
  return read.map((tuple) =>
    tuple
      ? (Object.fromEntries(
          tuple.map((value, i) => [
            plan.remote.columns[i]!.name,
            typeof value === 'number' ? converted![value]! : value,
          ]),
        ) as SentValues)
      : null,
  )
}

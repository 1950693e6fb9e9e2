import { COLUMN_KIND, type TupleLayout } from '../../../pgwire/pgoutput.ts'
import { UNCHANGED, type Change, type Key, type SentValues, type Values } from '../../conflict/change.ts'
import type { RowVersion } from '../../conflict/version.ts'
import type { TablePlan } from '../table-plan.ts'
import type { Ask, Param } from './ask.ts'
import type { Incoming } from './careful-lane.ts'
import type { CarefulTable } from './careful-table.ts'

/** Its text has a currency symbol; the sums of apply are numbers. */
const MONEY_OID = 790

/** A change as the stream brings it. `old`: null where none was sent; whole with REPLICA IDENTITY FULL, else only its key. */
export interface StreamedChange {
  readonly tag: 'insert' | 'update' | 'delete'
  readonly row: TupleLayout | null
  readonly old: TupleLayout | null
  readonly isOldWhole: boolean
  readonly buffer: Buffer
}

/** Reads a change of the stream as texts, and finds the keys that it touches. */
export async function incomingOf(
  ask: Ask,
  table: CarefulTable,
  streamed: StreamedChange,
  version: RowVersion,
): Promise<Incoming> {
  const { plan } = table
  // Copied before the first wait: the layouts are used again.
  const [row, old] = await textsOf(
    ask,
    plan,
    [streamed.row, streamed.old].map((layout) => layout && rawOf(layout, streamed.buffer)),
  )
  const whole = streamed.isOldWhole ? (old as Values) : null
  const keys = new Map<Key, readonly (string | null)[]>()
  const add = async (values: SentValues): Promise<Key> => {
    const keyValues = table.keyValues(values as Values)
    const key = await table.hashOf(ask, keyValues)
    keys.set(key, keyValues)
    return key
  }
  return { table, change: await changeOf(), keys }

  async function changeOf(): Promise<Change> {
    if (streamed.tag === 'insert')
      return { tag: 'insert', version, key: await add(row!), values: row as Values }
    if (streamed.tag === 'delete') return { tag: 'delete', version, key: await add(old!), old: whole }
    const key = await add(row!)
    const oldKey = old ? await add(old) : key
    return { tag: 'update', version, oldKey, key, values: row!, old: whole }
  }
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

import type { Amounts, Change, Values } from '../../conflict/change.ts'
import type { RowVersion } from '../../conflict/version.ts'
import type { Ask } from './ask.ts'
import type { Incoming } from './careful-lane.ts'
import type { CarefulTable } from './careful-table.ts'

/** A replicated table of Sterna: what no change of the table itself says. */
export const ROW_MESSAGE = 'sterna.row_message'

/** A row of it: `amounts` of the key `key` of a table are taken off its sums, or the row with them is deleted. */
export interface RowMessage {
  readonly schema: string
  readonly table: string
  readonly operation: 'cancel' | 'delete'
  readonly key: Values
  readonly amounts: Amounts
}

/** Reads a row of the table as texts. */
export function messageOf(values: Values): RowMessage {
  return {
    schema: values['schema_name']!,
    table: values['table_name']!,
    operation: values['operation'] as RowMessage['operation'],
    key: JSON.parse(values['key']!) as Values,
    amounts: JSON.parse(values['amounts']!) as Amounts,
  }
}

/** The message as a change of its table. */
export async function incomingOfMessage(
  ask: Ask,
  table: CarefulTable,
  { operation, key: keyTexts, amounts }: RowMessage,
  version: RowVersion,
): Promise<Incoming> {
  const keyValues = table.keyValues(keyTexts)
  const key = await table.hashOf(ask, keyValues)
  const change: Change =
    operation === 'cancel'
      ? { tag: 'cancel', version, key, amounts }
      : { tag: 'delete', version, key, old: { ...keyTexts, ...amounts } }
  return { table, change, keys: new Map([[key, keyValues]]) }
}

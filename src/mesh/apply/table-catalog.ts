import type { RemoteRelation } from '../../pgwire/pgoutput.ts'
import type { Ask } from './careful/ask.ts'
import { CarefulTable } from './careful/careful-table.ts'
import { newTable, type Table } from './fast-lane.ts'
import {
  planTable,
  type FlowNodes,
  type LocalTable,
  type TablePlan,
  type TypeDifference,
} from './table-plan.ts'

/** Thrown when the stream is binary and a table needs text: start the stream again in text. */
export class TextTransferNeeded extends Error {
  override name = 'TextTransferNeeded'
}

/** What a session knows of tables: those that the stream has described, by its numbers, and how each is written here. */
export class TableCatalog {
  readonly #ask: Ask
  readonly #nodes: FlowNodes
  readonly #binary: boolean
  readonly #tables = new Map<number, Table>()
  readonly #careful = new Map<string, CarefulTable>()

  constructor(ask: Ask, nodes: FlowNodes, binary: boolean) {
    this.#ask = ask
    this.#nodes = nodes
    this.#binary = binary
  }

  add(remote: RemoteRelation): void {
    this.#tables.set(remote.id, newTable(remote))
    this.#careful.delete(nameOf(remote))
  }

  find(id: number): Table | undefined {
    return this.#tables.get(id)
  }

  /** After DDL: what is known of local tables may be wrong. */
  forget(): void {
    for (const [id, { remote }] of this.#tables) this.#tables.set(id, newTable(remote))
    this.#careful.clear()
  }

  /**
   * Reads the local table's description inside the open transaction, which may have created the table just now.
   * @throws TABLE_MISSING, COLUMN_MISSING, KEY_DIFFERS, CODE_REFUSED; TextTransferNeeded
   */
  async plan(table: Table): Promise<TablePlan> {
    if (table.plan) return table.plan
    const { schema, name, columns } = table.remote
    const local = await this.#describe(
      schema,
      name,
      columns.map((column) => column.name),
    )
    const plan = planTable(table.remote, local, this.#nodes)
    if (plan.needsText && this.#binary) throw new TextTransferNeeded()
    table.typeDifferences = await this.#inWords(plan.typeDifferences)
    table.plan = plan
    return plan
  }

  /** A table of which changes are decided one by one. */
  async careful(plan: TablePlan): Promise<CarefulTable> {
    const name = nameOf(plan.remote)
    let table = this.#careful.get(name)
    if (!table) this.#careful.set(name, (table = await CarefulTable.load(this.#ask, plan)))
    return table
  }

  /** The same by name, whether the stream has described it or not. @throws TABLE_MISSING, CODE_REFUSED */
  async carefulByName(schema: string, name: string): Promise<CarefulTable> {
    for (const table of this.#tables.values()) {
      if (table.plan && nameOf(table.remote) === nameOf({ schema, name })) return this.careful(table.plan)
    }
    const known = this.#careful.get(nameOf({ schema, name }))
    if (known) return known
    const local = await this.#describe(schema, name, [])
    return this.careful(planTable(relationOf(schema, name, local), local, this.#nodes))
  }

  async #describe(schema: string, name: string, written: readonly string[]): Promise<LocalTable | null> {
    const list = `{${written.map((column) => `"${column.replaceAll(/["\\]/g, '\\$&')}"`).join(',')}}`
    const [row] = await this.#ask.lookup('select sterna.describe_table($1, $2, $3)', [
      schema,
      name,
      written.length === 0 ? null : list,
    ])
    const text = row?.[0]
    return text == null ? null : (JSON.parse(text) as LocalTable)
  }

  async #inWords(differences: readonly TypeDifference[]): Promise<string[]> {
    const { local, provider } = this.#nodes
    const out: string[] = []
    for (const { column, localOid, remoteOid } of differences) {
      const [row] = await this.#ask.lookup(
        'select pg_catalog.format_type($1::oid, null), pg_catalog.format_type($2::oid, null)',
        [String(localOid), String(remoteOid)],
      )
      out.push(`${column} is ${row?.[0]} on ${local} and ${row?.[1]} on ${provider}`)
    }
    return out
  }
}

function nameOf({ schema, name }: { readonly schema: string; readonly name: string }): string {
  return `${schema}\0${name}`
}

/** A local table as if it were the remote one. */
function relationOf(schema: string, name: string, local: LocalTable | null): RemoteRelation {
  const columns = (local?.columns ?? []).filter(({ generated }) => !generated)
  return {
    id: 0,
    schema,
    name,
    replicaIdentity: 'd',
    columns: columns.map((column) => ({
      name: column.name,
      typeOid: column.typeOid,
      typeModifier: -1,
      isKey: local?.key?.includes(column.name) ?? false,
    })),
  }
}

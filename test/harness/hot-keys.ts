import { setTimeout as delay } from 'node:timers/promises'

import { PgConnection, type Row } from '../../src/postgres/connection.ts'
import { ServerError } from '../../src/postgres/server-error.ts'
import { seeded } from './crashes.ts'
import type { MeshTestNode } from './mesh.ts'
import { define, type Story } from './story.ts'

/** Few keys that all nodes write: each table has one kind of difficulty. */
export const HOT_TABLES = ['hot_unique', 'hot_sum', 'hot_plain', 'hot_toast'] as const
export type HotTable = (typeof HOT_TABLES)[number]

export const HOT_SCHEMA = `
  create table hot_unique (k int primary key, v text not null, u text unique);
  create table hot_sum (k int primary key, v text not null, n bigint not null);
  create table hot_plain (k int primary key, v text not null);
  create table hot_toast (k int primary key, v text not null, t text);
  alter table hot_toast alter column t set storage external;`

const KEYS: Readonly<Record<HotTable, number>> = { hot_unique: 8, hot_sum: 6, hot_plain: 6, hot_toast: 4 }
/** Keys of hot_sum from 1 on that are never deleted or changed. */
const SAFE_SUMS = 3
const VALUES = ['a', 'b', 'c', 'd', 'e'] as const

/** What one committed statement did to one key. */
export interface Written {
  readonly nodeId: number
  /** Commit timestamp, in microseconds. */
  readonly time: bigint
  /** Place among the effects of all transactions of its client: of one transaction the last counts. */
  readonly place: number
  readonly table: HotTable
  readonly key: number
  readonly operation: 'insert' | 'update' | 'delete' | 'move'
  /** The row from then on, as its node had it; null: none. `t` as its digest. */
  readonly row: Readonly<Record<string, string | null>> | null
  /** What was added to a sum. */
  readonly added: bigint
}

/** A time during which no node received anything, and after which nobody wrote before all had arrived. In microseconds. */
export interface Silence {
  readonly from: bigint
  readonly to: bigint
}

/** All that the clients know of what they did. */
export interface HotRecord {
  readonly written: Written[]
  readonly silences: Silence[]
  readonly nodeIds: ReadonlyMap<string, number>
  /** Transactions that the server refused. */
  failed: number
}

export interface HotOptions {
  readonly seed: number
  readonly rounds: number
  /** How long each round writes while links fail at random. */
  readonly roundMs: number
}

/** Runs it; afterwards all links are up and everything has arrived. */
export async function runHotKeys(story: Story, options: HotOptions): Promise<HotRecord> {
  const { nodes, mesh } = story
  await define(nodes, `select sterna.delta_add('hot_sum', 'n')`)
  const ids = await Promise.all(
    nodes.map((node) => node.query<{ id: number }>('select node_id as id from sterna.local_node')),
  )
  const record: HotRecord = {
    written: [],
    silences: [],
    nodeIds: new Map(nodes.map(({ name }, i) => [name, ids[i]![0]!.id])),
    failed: 0,
  }
  const first = new Client(nodes[0]!, record, () => 0)
  await first.open()
  for (let key = 1; key <= SAFE_SUMS; key++)
    await first.transact(['hot_sum'], () => insert('hot_sum', key, 'first', null, '0'))
  await first.close()
  await mesh.settle()

  const random = seeded(options.seed)
  const pairs = nodes.flatMap((a, i) => nodes.slice(i + 1).map((b) => [a, b] as const))
  const links = pairs.map(([a, b]) => [mesh.link(a.name, b.name), mesh.link(b.name, a.name)] as const)
  for (let round = 1; round <= options.rounds; round++) {
    let writing = true
    const clients = nodes.flatMap((node, i) =>
      [1, 2].map(
        (number) => new Client(node, record, seeded(options.seed * 1000 + round * 100 + i * 10 + number)),
      ),
    )
    const load = clients.map((client) => client.run(() => writing))
    const end = performance.now() + options.roundMs
    while (performance.now() < end) {
      const cut = links[Math.floor(random() * links.length)]!
      // Sometimes one direction only.
      const directions = random() < 0.3 ? [cut[random() < 0.5 ? 0 : 1]] : cut
      for (const link of directions) link.cut()
      await delay(100 + random() * 500)
      for (const link of directions) link.heal()
      await delay(random() * 300)
    }
    for (const link of links.flat()) link.cut()
    const from = BigInt(Date.now()) * 1000n + 1000n
    await delay(600)
    writing = false
    await Promise.all(load)
    await story.beat()
    record.silences.push({ from, to: BigInt(Date.now()) * 1000n })
    for (const link of links.flat()) link.heal()
    await mesh.settle(120_000)
  }
  return record
}

type Statement = {
  readonly sql: string
  readonly operation: Written['operation']
  readonly key: number
  readonly added: bigint
}

function insert(table: HotTable, key: number, v: string, u: string | null, n: string, t = 'null'): Statement {
  const more = {
    hot_unique: [', u', `, ${u === null ? 'null' : `'${u}'`}`],
    hot_sum: [', n', `, ${n}`],
    hot_plain: ['', ''],
    hot_toast: [', t', `, ${t}`],
  }[table] as [string, string]
  return {
    sql: `insert into ${table} (k, v${more[0]}) values (${key}, '${v}'${more[1]})`,
    operation: 'insert',
    key,
    added: table === 'hot_sum' ? BigInt(n) : 0n,
  }
}

const RETURNING: Readonly<Record<HotTable, string>> = {
  hot_unique: 'k, v, u',
  hot_sum: 'k, v, n',
  hot_plain: 'k, v',
  hot_toast: 'k, v, md5(t) as t',
}

class Client {
  readonly #node: MeshTestNode
  readonly #record: HotRecord
  readonly #random: () => number
  #session: PgConnection | undefined

  constructor(node: MeshTestNode, record: HotRecord, random: () => number) {
    this.#node = node
    this.#record = record
    this.#random = random
  }

  async open(): Promise<void> {
    this.#session = await PgConnection.connect(this.#node.dsn, { applicationName: 'test client' })
    await this.#session.exec(`set deadlock_timeout = '100ms'`)
  }

  async close(): Promise<void> {
    await this.#session?.close()
  }

  async run(isWriting: () => boolean): Promise<void> {
    await this.open()
    while (isWriting()) {
      const tables = Array.from({ length: this.#random() < 0.25 ? 2 : 1 }, () => this.#pick(HOT_TABLES))
      await this.transact(tables, (table) => this.#statement(table))
      await delay(2 + this.#random() * 10)
    }
    await this.close()
  }

  /** One statement on each of these tables, in one transaction; records what was committed. */
  async transact(tables: readonly HotTable[], statement: (table: HotTable) => Statement): Promise<void> {
    const session = this.#session!
    const effects: Omit<Written, 'time' | 'nodeId' | 'place'>[] = []
    try {
      await session.exec('begin')
      for (const table of tables) {
        const { sql, operation, key, added } = statement(table)
        const { rows } = await session.query(`${sql} returning ${RETURNING[table]}`)
        const [row] = rows
        if (!row) continue
        if (operation === 'move' || operation === 'delete')
          effects.push({
            table,
            key,
            operation: operation === 'move' ? 'move' : 'delete',
            row: null,
            added: -BigInt((row['n'] as bigint | undefined) ?? 0n),
          })
        if (operation !== 'delete') {
          const { n, ...others } = row
          const brought = operation === 'move' ? BigInt((n as bigint | undefined) ?? 0n) : added
          effects.push({ table, key: Number(row['k']), operation, row: textsOf(others), added: brought })
        }
      }
      const { rows } = await session.query<{ xid: string }>(
        'select pg_current_xact_id_if_assigned()::xid::text as xid',
      )
      await session.exec('commit')
      if (effects.length === 0) return
      const done = await session.query<{ time: bigint }>(
        `select (extract(epoch from pg_xact_commit_timestamp($1::xid)) * 1000000)::bigint as time`,
        [rows[0]!.xid],
      )
      const nodeId = this.#record.nodeIds.get(this.#node.name)!
      for (const effect of effects)
        this.#record.written.push({
          ...effect,
          nodeId,
          time: done.rows[0]!.time,
          place: this.#record.written.length,
        })
    } catch (error) {
      // A key or a value that is taken, a deadlock with another client or with apply.
      if (!(error instanceof ServerError) || !/^(23505|40P01)$/.test(error.fields.sqlstate)) throw error
      await session.exec('rollback')
      this.#record.failed++
    }
  }

  #statement(table: HotTable): Statement {
    const key = 1 + Math.floor(this.#random() * KEYS[table])
    const v = `${this.#node.name}-${Math.floor(this.#random() * 1e12).toString(36)}`
    const u = this.#random() < 0.2 ? null : this.#pick(VALUES)
    const n = Math.floor(this.#random() * 201) - 100
    const t = `(select string_agg(md5('${v}' || i), '') from generate_series(1, ${640 + Math.floor(this.#random() * 2560)}) i)`
    const isSafe = table === 'hot_sum' && key <= SAFE_SUMS
    const dice = isSafe ? 0.5 : this.#random()
    if (dice < 0.2) return insert(table, key, v, u, String(n), t)
    if (dice < 0.3)
      return { sql: `delete from ${table} where k = ${key}`, operation: 'delete', key, added: 0n }
    if (dice < 0.38) {
      const first = table === 'hot_sum' ? SAFE_SUMS : 0
      const target = 1 + first + Math.floor(this.#random() * (KEYS[table] - first))
      if (target !== key)
        return {
          sql: `update ${table} set k = ${target}, v = '${v}' where k = ${key}`,
          operation: 'move',
          key,
          added: 0n,
        }
    }
    const more = {
      hot_unique: this.#random() < 0.5 ? `, u = ${u === null ? 'null' : `'${u}'`}` : '',
      hot_sum: `, n = n + ${n}`,
      hot_plain: '',
      hot_toast: this.#random() < 0.2 ? `, t = ${t}` : '',
    }[table]
    return {
      sql: `update ${table} set v = '${v}'${more} where k = ${key}`,
      operation: 'update',
      key,
      added: table === 'hot_sum' ? BigInt(n) : 0n,
    }
  }

  #pick<T>(values: readonly T[]): T {
    return values[Math.floor(this.#random() * values.length)]!
  }
}

function textsOf(row: Row): Record<string, string | null> {
  return Object.fromEntries(
    Object.entries(row).map(([name, value]) => [
      name,
      typeof value === 'string' || value === null ? value : String(value as number),
    ]),
  )
}

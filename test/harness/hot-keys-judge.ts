import { expect } from 'vitest'

import { HOT_TABLES, type HotRecord, type HotTable, type Written } from './hot-keys.ts'
import type { MeshTestNode } from './mesh.ts'
import { agreed, expectConverged } from './story.ts'

interface Sum {
  readonly k: number
  readonly n: bigint
}

/** An entry of a node's conflict history, versions as `microseconds/node id`. */
interface Entry {
  readonly node: string
  readonly type: string
  readonly table: HotTable
  readonly key: number
  readonly local: string | null
  readonly remote: string
  readonly local_v: string | null
  readonly remote_v: string | null
  readonly resolution: string
  readonly concurrent: boolean | null
}

/**
 * Judges by what the clients know, and by nothing of the product: every key has the newest row that was written to it, or none;
 * of rows with one unique value the newest is visible; sums are exact; the history names writes that there were, and
 * has every one that lost to a write that it did not know.
 */
export async function judgeHotKeys(nodes: readonly MeshTestNode[], record: HotRecord): Promise<string> {
  await agreed(async () => {
    const isLeft = ({ n }: Sum): boolean => n !== 0n
    for (const node of nodes)
      expect((await sumsOf(node)).filter(isLeft), `sums on ${node.name}`).toEqual(
        (await expectedSums(node, record.written)).filter(isLeft),
      )
    await expectSameRows(nodes)
    await expectConverged(nodes)
  }, 30_000)
  for (const node of nodes)
    expect(await node.query('select * from sterna.exception'), `parked on ${node.name}`).toEqual([])
  const last = newestByKey(record.written)
  await agreed(async () => {
    for (const table of HOT_TABLES)
      expect(await rowsOf(nodes[0]!, table), `rows of ${table}`).toEqual(expectedRows(table, last))
  }, 10_000)

  const entries = (await Promise.all(nodes.map(historyOf))).flat()
  expectKnown(entries, record.written)
  const losers = expectLosers(entries, record)
  const types = [...new Set(entries.map(({ type }) => type))].toSorted()
  return `${record.written.length} writes, ${record.failed} transactions refused, ${entries.length} entries in the history (${types.join(', ')}), ${losers} losers proved`
}

/** As `expectConverged`, so that a difference can be read. */
async function expectSameRows(nodes: readonly MeshTestNode[]): Promise<void> {
  const columns = {
    hot_unique: 'k, v, u',
    hot_sum: 'k, v, n',
    hot_plain: 'k, v',
    hot_toast: 'k, v, md5(t) as t',
  }
  for (const table of HOT_TABLES) {
    const [first, ...others] = await Promise.all(
      nodes.map((node) => node.query(`select ${columns[table]} from ${table} order by k`)),
    )
    for (const [i, rows] of others.entries())
      expect(rows, `${table} of ${nodes[i + 1]!.name} and of ${nodes[0]!.name}`).toEqual(first)
  }
}

const idOf = ({ time, nodeId }: Written): string => `${time}/${nodeId}`

function isNewer(a: Written, b: Written): boolean {
  if (a.time !== b.time) return a.time > b.time
  return a.nodeId === b.nodeId ? a.place > b.place : a.nodeId > b.nodeId
}

function newestByKey(written: readonly Written[]): Map<string, Written> {
  const newest = new Map<string, Written>()
  for (const write of written) {
    const name = `${write.table} ${write.key}`
    const known = newest.get(name)
    if (!known || isNewer(write, known)) newest.set(name, write)
  }
  return newest
}

/** The newest row of each key; of those that share a unique value, newest first, only what no visible row stands in the way of. */
function expectedRows(table: HotTable, newest: ReadonlyMap<string, Written>): unknown[] {
  const rows = [...newest.values()].filter((write) => write.table === table && write.row !== null)
  const taken = new Set<string>()
  const visible: Written[] = []
  for (const write of rows.toSorted((a, b) => (isNewer(a, b) ? -1 : 1))) {
    const value = write.row!['u']
    if (value != null && taken.has(value)) continue
    if (value != null) taken.add(value)
    visible.push(write)
  }
  return visible.toSorted((a, b) => a.key - b.key).map(({ row }) => row)
}

async function rowsOf(node: MeshTestNode, table: HotTable): Promise<unknown[]> {
  const columns = { hot_unique: ', u', hot_sum: '', hot_plain: '', hot_toast: ', md5(t) as t' }[table]
  return node.query(`select k::text, v${columns} from ${table} order by ${table}.k`)
}

/**
 * What was added to each sum, by what the clients saw. Of a delete that is what the deleter saw; and an insert takes off
 * again what was left over of the row before, which its client cannot see: that is asked of the node.
 */
async function expectedSums(node: MeshTestNode, written: readonly Written[]): Promise<Sum[]> {
  const sums = new Map<number, bigint>()
  const add = (key: number, amount: bigint): void => void sums.set(key, (sums.get(key) ?? 0n) + amount)
  for (const { table, key, added } of written) if (table === 'hot_sum') add(key, added)
  const cancelled = await node.query<Sum>(
    `select (key ->> 'k')::int as k, sum(-(amounts ->> 'n')::bigint)::bigint as n from sterna.row_message
      where table_name = 'hot_sum' and operation = 'cancel' group by 1`,
  )
  for (const { k, n } of cancelled) add(k, n)
  return [...sums].toSorted(([a], [b]) => a - b).map(([k, n]) => ({ k, n }))
}

/** What a node holds of each sum: in the row, or left over. */
function sumsOf(node: MeshTestNode): Promise<Sum[]> {
  return node.query<Sum>(
    `select k, sum(n)::bigint as n
       from (select k, n from hot_sum
             union all
             select (key ->> 0)::int, (remainder ->> 'n')::bigint from sterna.tombstone
              where table_oid = 'hot_sum'::regclass and remainder is not null) held
      group by k order by k`,
  )
}

async function historyOf(node: MeshTestNode): Promise<Entry[]> {
  const version = (column: string): string =>
    `((extract(epoch from (h.${column}).at) * 1000000)::bigint || '/' || (h.${column}).node_id)`
  const rows = await node.query<Omit<Entry, 'node'>>(
    `select conflict_type as type, table_oid::regclass::text as table, (key ->> 'k')::int as key, resolution, concurrent,
            ${version('local_version')} as local, ${version('remote_version')} as remote,
            local_row ->> 'v' as local_v, remote_row ->> 'v' as remote_v
       from sterna.conflict_history h where table_name ~ 'hot_'`,
  )
  return rows.map((row) => Object.assign(row, { node: node.name }))
}

/** Versions and values of the history are those of writes that there were. */
function expectKnown(entries: readonly Entry[], written: readonly Written[]): void {
  const versions = new Set(
    written.flatMap((write) => [
      `${write.table} ${idOf(write)}`,
      `${write.table} ${write.key} ${idOf(write)}`,
    ]),
  )
  const values = new Set(written.flatMap(({ table, row }) => (row ? [`${table} ${row['v']}`] : [])))
  const unknown = entries.filter((entry) => {
    const { table, key, local, remote, local_v: localValue, remote_v: remoteValue } = entry
    // Two rows with one unique value are of different keys.
    const of = entry.resolution === 'set_aside' ? table : `${table} ${key}`
    const isKnown = versions.has(`${of} ${remote}`) && (local === null || versions.has(`${of} ${local}`))
    const hasKnownValues =
      (localValue === null || values.has(`${table} ${localValue}`)) &&
      (remoteValue === null || values.has(`${table} ${remoteValue}`))
    return !isKnown || !hasKnownValues
  })
  expect(
    unknown.slice(0, 5),
    `${unknown.length} of ${entries.length} entries name what nobody wrote`,
  ).toEqual([])
}

/**
 * While no node received anything, the newest write to a key knew none of the other nodes' writes to it, and each of those met it on its
 * node. @returns how many there were
 */
function expectLosers(entries: readonly Entry[], { written, silences, nodeIds }: HotRecord): number {
  const names = new Map([...nodeIds].map(([name, id]) => [id, name]))
  const recorded = new Set(
    entries
      .filter(({ concurrent }) => concurrent !== false)
      .flatMap(({ node, table, key, local, remote }) => [
        `${node} ${table} ${key} ${local} ${remote}`,
        `${node} ${table} ${key} ${remote} ${local}`,
      ]),
  )
  const values = new Set(
    entries.flatMap(({ table, local_v: l, remote_v: r }) => [`${table} ${l}`, `${table} ${r}`]),
  )
  const missing: unknown[] = []
  let count = 0
  for (const { from, to } of silences) {
    const inside = written.filter(({ time }) => time > from && time < to)
    const winners = newestByKey(inside)
    for (const write of inside) {
      const winner = winners.get(`${write.table} ${write.key}`)!
      const isUpdated = write.operation === 'update' || write.operation === 'insert'
      if (write.nodeId === winner.nodeId || !isUpdated || isOverwritten(write, inside)) continue
      count++
      const pair = `${names.get(winner.nodeId)} ${write.table} ${write.key} ${idOf(winner)} ${idOf(write)}`
      if (!recorded.has(pair)) missing.push({ pair, winner: winner.operation, loser: write.operation })
      else if (!values.has(`${write.table} ${write.row!['v']}`))
        missing.push({ pair, value: write.row!['v'] })
    }
  }
  expect(missing.slice(0, 5), `${missing.length} of ${count} losers are not in the history`).toEqual([])
  return count
}

/** A later statement of its own transaction wrote the key again: one version, of which the last counts. */
function isOverwritten(write: Written, all: readonly Written[]): boolean {
  return all.some(
    (it) =>
      it !== write &&
      it.table === write.table &&
      it.key === write.key &&
      idOf(it) === idOf(write) &&
      it.place > write.place,
  )
}

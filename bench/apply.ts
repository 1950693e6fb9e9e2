import type { ServerVersion } from '../test/harness/servers.ts'
import type { PgConnection } from '../src/postgres/connection.ts'
import { Bed } from './bed.ts'
import { measureDrain, type Drain } from './drain.ts'
import { Native } from './native.ts'
import { Ours } from './ours.ts'
import type { Side } from './side.ts'
import { summarize, type WorkResult } from './summary.ts'
import { differences, hashTables } from './table-hash.ts'
import type { Work } from './work.ts'

/** What to measure. */
export interface ApplyOptions {
  readonly version: ServerVersion
  readonly rounds: number
  readonly works: readonly Work[]
  /** Where CPU profiles of the agent go; undefined: none are taken. */
  readonly profileDirectory?: string | undefined
  readonly onProgress: (message: string) => void
}

/**
 * How fast a backlog is applied, by us and by PostgreSQL. In each round the provider makes one backlog while both
 * subscribers are stopped; then one drains it and after that the other, in turns which is first.
 * @throws Error when a subscriber ends with other data than the provider
 */
export async function benchApply(
  options: ApplyOptions,
): Promise<{ serverVersion: string; results: WorkResult[] }> {
  const { works, onProgress } = options
  onProgress('starting two servers and filling the tables')
  const bed = await Bed.open({
    version: options.version,
    tables: works.flatMap((work) => work.tables),
    schema: works.map((work) => work.schema).join(';\n'),
  })
  const sides: Side[] = []
  try {
    // Native first: what it creates must not be captured as DDL of ours.
    const native = await Native.create(bed)
    sides.push(native)
    const ours = await Ours.create(bed, options)
    sides.push(ours)
    const results: WorkResult[] = []
    for (const work of works) results.push(await benchWork(bed, work, { ours, native }, options))
    return { serverVersion: bed.serverVersion, results }
  } finally {
    for (const side of sides) await side.close().catch(() => {})
    await bed.close()
  }
}

interface Sides {
  readonly ours: Side
  readonly native: Side
}

async function benchWork(bed: Bed, work: Work, sides: Sides, options: ApplyOptions): Promise<WorkResult> {
  const { rounds, onProgress } = options
  const drains: Record<Side['name'], Drain[]> = { ours: [], native: [] }
  const connections = {
    ours: await bed.connect(sides.ours.dsn),
    native: await bed.connect(sides.native.dsn),
  }
  for (let round = 1; round <= rounds; round++) {
    for (const connection of [bed.provider, ...Object.values(connections)]) await connection.exec(work.reset)
    await bed.forget([sides.ours, sides.native])
    onProgress(`${work.id}, round ${round} of ${rounds}: making ${work.amount} ${work.unit}`)
    await work.generate(bed)
    const target = await bed.mark()
    const order = round % 2 === 1 ? (['ours', 'native'] as const) : (['native', 'ours'] as const)
    for (const name of order) {
      await settle(bed, work, connections[name])
      const drain = await measureDrain(bed.provider, sides[name], target)
      onProgress(`${work.id}, round ${round} of ${rounds}: ${name} ${drain.seconds.toFixed(2)} s`)
      drains[name].push(drain)
    }
    await verify(bed, connections, `${work.id}, round ${round}`)
  }
  for (const connection of Object.values(connections)) await connection.close()
  const ours = summarize(drains.ours, work.amount)
  const native = summarize(drains.native, work.amount)
  const { id, title, amount, unit } = work
  const ratio = ours.rate / native.rate
  const cpuRatio = ours.cpuSeconds.total / native.cpuSeconds.total
  return { work: id, title, amount, unit, rounds, ours, native, ratio, cpuRatio }
}

/** Makes both servers start a drain from the same state: nothing left to write, the touched rows in the cache. */
async function settle(bed: Bed, work: Work, subscriber: PgConnection): Promise<void> {
  await bed.provider.exec('checkpoint')
  await subscriber.exec(work.warm)
  await subscriber.exec('checkpoint')
}

async function verify(
  bed: Bed,
  connections: Record<Side['name'], PgConnection>,
  when: string,
): Promise<void> {
  const expected = await hashTables(bed.provider, bed.tables)
  for (const name of ['ours', 'native'] as const) {
    const wrong = differences(expected, await hashTables(connections[name], bed.tables))
    if (wrong.length > 0) throw new Error(`${when}: ${name} has other data\n${wrong.join('\n')}`)
  }
}

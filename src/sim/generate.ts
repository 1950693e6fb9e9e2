import type { Plan, PlannedStatement, Step, TableShape } from './plan.ts'
import { Random } from './random.ts'

const KEYS = ['k1', 'k2', 'k3', 'k4']
const UNIQUE_VALUES = ['X', 'Y', 'Z', null]

/** Draws a plan; each seed has its own mixture, so that rare things are common in some. */
export function generatePlan(seed: number, nodes: number): Plan {
  const random = new Random(seed)
  const tables = Array.from({ length: 1 + random.below(3) }, (_, at) => drawTable(random, at))
  const isClockUnsteady = random.chance(0.2)
  const faults = random.chance(0.5) ? 1 : 0
  const parking = random.chance(0.5) ? random.pick([0.2, 0.6]) : 0
  const sync = random.pick([1, 0.7, 0.2])
  const holds = random.chance(0.4) ? 0.3 : 0
  const weights: Record<Step['do'], number> = {
    write: 20 + random.below(20),
    commit: holds > 0 ? 14 : 0,
    flush: 4,
    heartbeat: 2 + random.below(12),
    repair: 1 + random.below(8),
    cleanup: 1 + random.below(12),
    rewrite: isClockUnsteady ? 6 : 0,
    crash: faults * random.below(8),
    restart: faults * 6,
    retry: parking > 0 ? 2 + random.below(8) : 0,
    deliver: 30 + random.below(30),
    apply: 40 + random.below(40),
    cut: faults * random.below(5),
    heal: faults * 4,
    'set-clock': isClockUnsteady ? 3 + random.below(10) : 0,
  }
  const kinds = {
    insert: 4,
    update: 4 + random.below(5),
    delete: 1 + random.below(4),
    move: random.below(3),
    truncate: random.chance(0.4) ? 0.6 : 0,
  }
  const keys = KEYS.slice(0, 2 + random.below(3))
  const spread = random.pick([0, 3, 40, 200])
  let mark = 0
  const drawStatement = (table: number): PlannedStatement => ({
    table,
    kind: random.weighted(kinds),
    key: random.pick(keys),
    newKey: random.pick(keys),
    mark: ++mark,
    u: random.pick(UNIQUE_VALUES),
    w: random.pick(UNIQUE_VALUES),
    cents: random.below(2000) - 600,
    sets: (['t', 'u', 'w', 'd'] as const).filter(() => random.chance(0.4)),
  })
  const others = (node: number): number => (node + 1 + random.below(nodes - 1)) % nodes
  const drawStep = (): Step => {
    const node = random.below(nodes)
    const after = random.below(3)
    const name = random.weighted(weights)
    switch (name) {
      case 'write': {
        const table = random.below(tables.length)
        const first = drawStatement(table)
        const rest = Array.from({ length: random.pick([0, 0, 0, 1, 2]) }, () => {
          const next = drawStatement(random.chance(0.8) ? table : random.below(tables.length))
          return random.chance(0.4) ? { ...next, key: first.key } : next
        })
        const statements = [first, ...rest]
        return {
          do: name,
          node,
          after,
          statements,
          isSync: random.chance(sync),
          isHeld: random.chance(holds),
        }
      }
      case 'retry':
        return { do: name, node, after, fails: random.chance(0.3) }
      case 'deliver':
        return { do: name, node, after, from: others(node), count: 1 + random.below(4) }
      case 'apply': {
        const failsAt = random.chance(parking) ? random.below(2) : null
        return { do: name, node, after, from: others(node), count: 1 + random.below(3), failsAt }
      }
      case 'cut':
      case 'heal':
        return { do: name, node, after, from: others(node) }
      case 'set-clock':
        return { do: name, node, after, skew: random.below(240) }
      default:
        return { do: name, node, after }
    }
  }
  const skews = Array.from({ length: nodes }, () => random.below(spread + 1))
  const isTransdiscard = random.chance(0.2)
  const steps = Array.from({ length: 50 + random.below(random.pick([150, 300, 700])) }, drawStep)
  return { seed, nodes, tables, skews, isClockUnsteady, isTransdiscard, steps }
}

function drawTable(random: Random, at: number): TableShape {
  const delta = random.chance(0.4)
  const merge = random.chance(0.15)
  const uniques = random.pick([0, 0, 1, 2] as const)
  const full = delta || merge || random.chance(0.2)
  return { name: `t${at + 1}`, uniques, toast: random.chance(0.4), delta, merge, full }
}

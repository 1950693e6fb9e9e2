/** `npm run sim -- --seed N --nodes 3..5 [--seeds COUNT] [--off RULE]`: exits with 1 when a seed fails. */
import { parseArgs } from 'node:util'
import { generatePlan } from './generate.ts'
import { RULES, type Rule } from './plan.ts'
import { tellFailure } from './report.ts'
import { runPlan } from './run.ts'

const USAGE = `npm run sim -- [--seed N] [--seeds COUNT] [--nodes N | --nodes MIN..MAX] [--off RULE]
rules: ${RULES.join(', ')}`

/** Stories are long: the first few tell enough. */
const MAX_STORIES = 3

function main(args: readonly string[]): number {
  const options = parseOptions(args)
  if (typeof options === 'string') {
    process.stderr.write(`${options}\n${USAGE}\n`)
    return 2
  }
  const { seed: first, seeds, min, max, off } = options
  const failed: number[] = []
  const start = performance.now()
  for (let seed = first; seed < first + seeds; seed++) {
    const nodes = min + (seed % (max - min + 1))
    if (runPlan(generatePlan(seed, nodes), off).failures.length === 0) continue
    failed.push(seed)
    if (failed.length <= MAX_STORIES) process.stdout.write(`${tellFailure(seed, nodes, off).join('\n')}\n\n`)
  }
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  const of = `${seeds} seed${seeds === 1 ? '' : 's'} from ${first} on, ${min}..${max} nodes`
  const result =
    failed.length === 0 ? 'all clean' : `${failed.length} failed: ${failed.slice(0, 20).join(' ')}`
  process.stdout.write(`${of}${off === null ? '' : `, without ${off}`}: ${result} (${seconds} s)\n`)
  return failed.length === 0 ? 0 : 1
}

interface Options {
  readonly seed: number
  readonly seeds: number
  readonly min: number
  readonly max: number
  readonly off: Rule | null
}

/** Text: what is wrong with the arguments. */
function parseOptions(args: readonly string[]): Options | string {
  const names = {
    seed: { type: 'string' },
    seeds: { type: 'string' },
    nodes: { type: 'string' },
    off: { type: 'string' },
  }
  let values: Partial<Record<'seed' | 'seeds' | 'nodes' | 'off', string>>
  try {
    values = parseArgs({ args: [...args], options: names as Record<string, { type: 'string' }> }).values
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
  const { seed = '1', seeds = '1', nodes = '3..5', off } = values
  const range = /^([2-9])(?:\.\.([2-9]))?$/.exec(nodes)
  if (!/^\d{1,9}$/.test(seed) || !/^[1-9]\d{0,8}$/.test(seeds)) return 'seeds are whole numbers'
  if (!range) return '--nodes is a number from 2 to 9, or two as in 3..5'
  const rule = RULES.find((it) => it === off)
  if (off !== undefined && rule === undefined) return `there is no rule "${off}"`
  const [min, max] = [Number(range[1]), Number(range[2] ?? range[1])]
  if (min > max) return '--nodes: the smaller number comes first'
  return { seed: Number(seed), seeds: Number(seeds), min, max, off: rule ?? null }
}

process.exitCode = main(process.argv.slice(2))

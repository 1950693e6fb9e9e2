import { generatePlan } from './generate.ts'
import type { Plan, Rule } from './plan.ts'
import { HEALING, runPlan } from './run.ts'
import { shrinkPlan } from './shrink.ts'

/** What failed, as the shortest story that could be found, line by line. */
export function tellFailure(seed: number, nodes: number, off: Rule | null): string[] {
  const plan = shrinkPlan(generatePlan(seed, nodes), (it) => runPlan(it, off).failures.length > 0)
  const { story, failures } = runPlan(plan, off, true)
  return [
    ...describePlan(plan, off),
    ...shorten(story).map((line) => `  ${line}`),
    ...failures.map((it) => `! ${it}`),
  ]
}

function describePlan(plan: Plan, off: Rule | null): string[] {
  const tables = plan.tables.map(({ name, uniques, toast, delta, merge, full }) => {
    const parts = [
      ...['u unique', 'w unique'].slice(0, uniques),
      toast ? 't TOAST' : '',
      delta ? 'd delta' : '',
      merge ? 'merge function' : '',
      full ? 'whole old rows' : '',
    ]
    return `  ${name}: ${['key', 'v', ...parts.filter((part) => part !== '')].join(', ')}`
  })
  const clocks = plan.skews.map((skew, at) => `n${at + 1} +${skew}`).join(', ')
  const without = off === null ? '' : `, without ${off}`
  return [
    `seed ${plan.seed}, ${plan.nodes} nodes, ${plan.steps.length} steps${without}; clocks ${clocks}`,
    ...tables,
  ]
}

/** Without the heartbeats that follow when everything is healed: they tell nothing new. */
function shorten(story: readonly string[]): string[] {
  const healed = story.indexOf(HEALING)
  return story.filter((line, at) => at <= healed || healed < 0 || !line.includes(' heartbeat '))
}

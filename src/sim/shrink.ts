import type { Plan } from './plan.ts'

/** Enough for any plan; a bound on the loop. */
const MAX_RUNS = 3000

/** A plan with fewer steps that still fails: takes away ever smaller pieces as long as `fails` holds. */
export function shrinkPlan(plan: Plan, fails: (plan: Plan) => boolean): Plan {
  let smallest = plan
  let runs = 0
  const tryPlan = (candidate: Plan): boolean => {
    if (runs >= MAX_RUNS || !fails(candidate)) return false
    smallest = candidate
    return true
  }
  for (let size = Math.ceil(plan.steps.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    let found = true
    while (found && runs < MAX_RUNS) {
      found = false
      for (let at = 0; at < smallest.steps.length;) {
        runs += 1
        const steps = smallest.steps.toSpliced(at, size)
        if (tryPlan({ ...smallest, steps })) found = true
        else at += size
      }
      if (size > 1) break
    }
  }
  for (const [at, step] of smallest.steps.entries()) {
    if (step.do !== 'write') continue
    for (let statement = step.statements.length - 1; statement >= 0; statement--) {
      const current = smallest.steps[at]!
      if (current.do !== 'write' || current.statements.length === 1) break
      runs += 1
      const fewer = { ...current, statements: current.statements.toSpliced(statement, 1) }
      tryPlan({ ...smallest, steps: smallest.steps.with(at, fewer) })
    }
  }
  return smallest
}

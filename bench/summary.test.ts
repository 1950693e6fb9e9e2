import { expect, test } from 'vitest'
import type { Drain } from './drain.ts'
import { spread, summarize } from './summary.ts'

test('the median of an odd number of values is the one in the middle, of an even number the mean of two', () => {
  expect(spread([9, 1, 2])).toEqual({ median: 2, min: 1, max: 9 })
  expect(spread([10, 1, 2, 4])).toEqual({ median: 3, min: 1, max: 10 })
  expect(spread([5])).toEqual({ median: 5, min: 5, max: 5 })
})

test('a side is summarized by medians, and by the greatest peak', () => {
  const drain = (seconds: number, agent: number, peakAgentBytes: number): Drain => ({
    seconds,
    cpu: { subscriber: 2, provider: 1, agent },
    peakAgentBytes,
  })
  const result = summarize([drain(4, 1, 100), drain(2, 3, 300), drain(8, 2, 200)], 1000)
  expect(result.rate).toBe(250)
  expect(result.cpuSeconds).toEqual({ subscriber: 2, provider: 1, agent: 2, total: 5 })
  expect(result.peakAgentBytes).toBe(300)
})

test('a side without an agent has no peak', () => {
  const drain = { seconds: 1, cpu: { subscriber: 1, provider: 1, agent: 0 }, peakAgentBytes: 0 }
  expect(summarize([drain], 1).peakAgentBytes).toBeNull()
})

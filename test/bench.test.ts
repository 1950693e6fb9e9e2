import { expect, test } from 'vitest'
import { benchApply } from '../bench/apply.ts'
import { renderRecord } from '../bench/results-file.ts'
import { bulkWork, tpcbWork } from '../bench/work.ts'

test('the apply bench measures both sides and finds the same data on both', async () => {
  const { serverVersion, results } = await benchApply({
    version: '18',
    rounds: 1,
    works: [tpcbWork(100, 1), bulkWork(500)],
    onProgress: () => {},
  })
  expect(results.map(({ work, amount }) => [work, amount])).toEqual([
    ['tpcb', 100],
    ['bulk', 700],
  ])
  for (const { ours, native, ratio } of results) {
    expect(ours.seconds.median).toBeGreaterThan(0)
    expect(native.seconds.median).toBeGreaterThan(0)
    expect(native.peakAgentBytes).toBeNull()
    expect(ours.peakAgentBytes).toBeGreaterThan(10e6)
    expect(ratio).toBeCloseTo(native.seconds.median / ours.seconds.median)
  }
  const record = {
    command: 'bench apply',
    date: new Date(0),
    postgres: serverVersion,
    load: 'a test',
    results,
  }
  expect(renderRecord(record, '2 cores')).toContain('## 1970-01-01 · `bench apply`\n\nPostgreSQL 18')
}, 120_000)

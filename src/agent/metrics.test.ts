import { expect, test } from 'vitest'

import { nodeReport, subscriptionReport } from '../../test/harness/fake-service.ts'
import { createMetrics } from './metrics.ts'

/** The samples of our own metrics. */
function samplesOf(text: string): string[] {
  return text.split('\n').filter((line) => line.startsWith('sterna_'))
}

test('every number of the report, with the node and the subscription as labels', async () => {
  const text = await createMetrics('n1').render(nodeReport())
  expect(samplesOf(text)).toEqual([
    'sterna_agent_info{version="0.1.0",server_version="18.1",node="n1"} 1',
    'sterna_agent_server_up{node="n1"} 1',
    'sterna_agent_ready{node="n1"} 1',
    'sterna_agent_clock_offset_seconds{node="n1"} -0.0125',
    'sterna_mesh_alarms{severity="warning",node="n1"} 0',
    'sterna_mesh_alarms{severity="critical",node="n1"} 0',
    'sterna_mesh_subscription_up{subscription="sub_n1_n2",node="n1"} 1',
    'sterna_mesh_subscription_lag_bytes{subscription="sub_n1_n2",node="n1"} 8',
    'sterna_mesh_subscription_lag_seconds{subscription="sub_n1_n2",node="n1"} 0.25',
    'sterna_mesh_slot_retained_bytes{subscription="sub_n1_n2",node="n1"} 4096',
    'sterna_mesh_exceptions{subscription="sub_n1_n2",node="n1"} 1',
    'sterna_mesh_open_reviews{node="n1"} 3',
    'sterna_mesh_rows_aside{node="n1"} 2',
    'sterna_mesh_transactions_total{subscription="sub_n1_n2",node="n1"} 7',
    'sterna_mesh_changes_total{subscription="sub_n1_n2",node="n1"} 70',
    'sterna_mesh_conflicts_total{subscription="sub_n1_n2",type="update_missing",node="n1"} 2',
  ])
  expect(text).toContain('process_cpu_seconds_total')
  expect(text).toContain('nodejs_eventloop_lag_seconds')
})

test('a second scrape has the new totals, not their sum, and nothing of a dropped subscription', async () => {
  const metrics = createMetrics('n1')
  await metrics.render(
    nodeReport({ subscriptions: [subscriptionReport(), subscriptionReport({ name: 'sub_old' })] }),
  )
  const text = await metrics.render(nodeReport({ subscriptions: [subscriptionReport({ transactions: 9 })] }))
  expect(text).toContain('sterna_mesh_transactions_total{subscription="sub_n1_n2",node="n1"} 9\n')
  expect(text).not.toContain('sub_old')
})

test('what is not known has no sample, and a disabled subscription is neither up nor down', async () => {
  const text = await createMetrics('n1').render(
    nodeReport({
      connected: false,
      serverVersion: null,
      clockOffsetMs: null,
      openReviews: null,
      rowsAside: null,
      subscriptions: [
        subscriptionReport({ status: 'disabled', lagBytes: null, lagSeconds: null, retainedWalBytes: null }),
      ],
    }),
  )
  const samples = samplesOf(text).join('\n')
  expect(samples).not.toMatch(/clock_offset|lag_|retained|subscription_up|reviews|aside/)
  expect(samples).toContain('sterna_agent_server_up{node="n1"} 0')
  expect(samples).toContain('sterna_agent_ready{node="n1"} 0')
})

test('conflict types that there are not share one label', async () => {
  const conflicts = { insert_exists: 1, update_deleted: 4, made_up_1: 2, made_up_2: 3 }
  const text = await createMetrics('n1').render(
    nodeReport({ subscriptions: [subscriptionReport({ conflicts })] }),
  )
  expect(samplesOf(text).filter((line) => line.includes('conflicts_total'))).toEqual([
    'sterna_mesh_conflicts_total{subscription="sub_n1_n2",type="insert_exists",node="n1"} 1',
    'sterna_mesh_conflicts_total{subscription="sub_n1_n2",type="update_deleted",node="n1"} 4',
    'sterna_mesh_conflicts_total{subscription="sub_n1_n2",type="other",node="n1"} 5',
  ])
})

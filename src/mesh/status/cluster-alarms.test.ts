import { describe, expect, it } from 'vitest'

import { SternaError } from '../../core/errors.ts'
import { clusterAlarms } from './cluster-alarms.ts'
import type { NodeStatus, SlotStatus, SubscriptionRow } from './node-status.ts'

const GB = 1024 ** 3

function node(name: string, over: Partial<NodeStatus> = {}): NodeStatus {
  return {
    name,
    address: `${name}:5432/app`,
    error: null,
    nodeId: 1,
    region: null,
    serverVersion: '18.4',
    clock: { server: name, offsetMs: 0, uncertaintyMs: 1 },
    agent: { alive: true, version: '0.1.0', pid: 1, host: null, httpAddress: null, silentSeconds: 0.5 },
    subscriptions: [],
    slots: [],
    sequences: [],
    tables: [],
    cleanups: [],
    queues: { openReviews: 0, rowsAside: 0 },
    ...over,
  }
}

function subscription(over: Partial<SubscriptionRow> = {}): SubscriptionRow {
  return {
    name: 'sub_n2_n1',
    status: 'replicating',
    provider: 'n1',
    slotName: 'sterna_app_sub_n2_n1',
    replicationSets: ['default'],
    lagBytes: 0,
    lagSeconds: 0,
    receivedLsn: null,
    appliedLsn: null,
    transactions: 0,
    changes: 0,
    conflicts: {},
    exceptions: 0,
    lastError: null,
    ...over,
  }
}

function slot(over: Partial<SlotStatus> = {}): SlotStatus {
  return {
    name: 'sterna_app_sub_n2_n1',
    active: true,
    walStatus: 'reserved',
    retainedBytes: 0,
    ours: true,
    ...over,
  }
}

/** `severity name subject` of each alarm. */
function alarms(...nodes: NodeStatus[]): string[] {
  return clusterAlarms(nodes).map(({ severity, name, subject }) => `${severity} ${name} ${subject}`)
}

it('a mesh that is well has no alarms', () => {
  expect(alarms(node('n1', { slots: [slot()] }), node('n2', { subscriptions: [subscription()] }))).toEqual([])
})

describe('agents and subscriptions', () => {
  it('a dead agent is one alarm, not one for each of its subscriptions', () => {
    const agent = { alive: false, version: null, pid: null, host: null, httpAddress: null, silentSeconds: 60 }
    const down = subscription({
      status: 'down',
      lastError: { code: 'AGENT_NOT_RUNNING', message: 'x', hint: null },
    })
    expect(alarms(node('n1', { agent, subscriptions: [down, down] }))).toEqual(['critical agent_down n1'])
  })

  it('down, failing before the first contact, disabled, exceptions', () => {
    const lastError = { code: 'AUTH_FAILED', message: 'refused', hint: 'Correct it.' }
    const subscriptions = [
      subscription({ name: 'a', status: 'down', lastError }),
      subscription({ name: 'b', status: 'initializing', lastError }),
      subscription({ name: 'c', status: 'initializing' }),
      subscription({ name: 'd', status: 'disabled' }),
      subscription({ name: 'e', exceptions: 2 }),
      subscription({ name: 'f', status: 'catching_up' }),
    ]
    expect(alarms(node('n2', { subscriptions }))).toEqual([
      'critical subscription_down n2 a',
      'critical subscription_down n2 b',
      'warning subscription_disabled n2 d',
      'warning exceptions n2 e',
    ])
  })

  it('what waits for a person, with the command that shows it', () => {
    const subscriptions = [subscription({ exceptions: 1 }), subscription({ name: 'b', exceptions: 2 })]
    const queues = { openReviews: 1, rowsAside: 4 }
    const found = clusterAlarms([node('n2', { subscriptions, queues }), node('n3', { queues: null })])
    expect(found.map(({ message, action }) => `${message} -> ${action.split(' shows')[0]}`)).toEqual([
      '1 change of n1 could not be applied on n2: the rows differ there -> sterna exceptions list --on n2',
      '2 changes of n1 could not be applied on n2: the rows differ there -> sterna exceptions list --on n2',
      '1 conflict waits for somebody to look at it -> sterna conflicts list --open --on n2',
    ])
  })

  it('an unreachable node is critical, with the reason', () => {
    const error = new SternaError('SERVER_UNREACHABLE', { address: 'n2:5432/app', reason: 'refused' })
    const [alarm] = clusterAlarms([node('n1'), node('n2', { error, agent: null, clock: null })])
    expect(alarm).toMatchObject({ name: 'node_unreachable', severity: 'critical', message: error.message })
  })
})

describe('slots', () => {
  const follower = node('n2', { subscriptions: [subscription()] })

  it.each([
    [slot({ retainedBytes: GB }), []],
    [slot({ retainedBytes: GB + 1 }), ['warning slot_retains_wal n1 sterna_app_sub_n2_n1']],
    [slot({ retainedBytes: 11 * GB }), ['critical slot_retains_wal n1 sterna_app_sub_n2_n1']],
    [slot({ walStatus: 'unreserved' }), ['critical slot_retains_wal n1 sterna_app_sub_n2_n1']],
    [slot({ walStatus: 'lost', retainedBytes: null }), ['critical slot_lost n1 sterna_app_sub_n2_n1']],
  ])('%j', (held, expected) => {
    expect(alarms(node('n1', { slots: [held] }), follower)).toEqual(expected)
  })

  it('one that no subscription uses is told, but only when every node could be asked', () => {
    const n1 = node('n1', { slots: [slot({ name: 'sterna_app_old', active: false })] })
    const unused = 'warning slot_unused n1 sterna_app_old'
    expect(alarms(n1, follower)).toEqual([unused])
    expect(alarms(n1)).toEqual([])
    const error = new SternaError('SERVER_UNREACHABLE', { address: 'n3', reason: 'refused' })
    expect(alarms(n1, follower, node('n3', { error }))).not.toContain(unused)
    expect(alarms(n1, node('n2', { subscriptions: [subscription({ slotName: null })] }))).toEqual([])
    const cleanups = [{ slotName: 'sterna_app_old', provider: 'n1', waitingSeconds: 1, lastError: null }]
    expect(alarms(n1, node('n2', { cleanups }))).toEqual([])
  })

  it('one of somebody else is told only for the WAL that it holds', () => {
    const foreign = slot({ name: 'debezium', active: false, ours: false })
    expect(alarms(node('n1', { slots: [foreign] }), follower)).toEqual([])
  })

  it('a clean-up that does not come to an end', () => {
    const cleanup = { slotName: 's', provider: 'n1', lastError: 'refused' }
    const cleanups = [
      { ...cleanup, waitingSeconds: 59 },
      { ...cleanup, waitingSeconds: 61 },
    ]
    expect(alarms(node('n2', { cleanups }))).toEqual(['warning slot_cleanup_pending n2 s'])
  })
})

it('clocks: pairs that differ by more than 500 ms, what the measurement leaves open aside', () => {
  const clock = (server: string, offsetMs: number, uncertaintyMs = 1): NodeStatus['clock'] => ({
    server,
    offsetMs,
    uncertaintyMs,
  })
  const at = (n1: number, n2: number, uncertaintyMs?: number): string[] =>
    alarms(
      node('n1', { clock: clock('n1', n1, uncertaintyMs) }),
      node('n2', { clock: clock('n2', n2, uncertaintyMs) }),
    )
  expect(at(0, 490)).toEqual([])
  expect(at(-300, 300)).toEqual(['warning clock_offset clocks'])
  expect(at(-300, 300, 100)).toEqual([])
  // This machine's own clock is nobody's business.
  expect(at(60_000, 60_000)).toEqual([])
})

it('tables left out by accident are told, those left out on purpose are not', () => {
  const table = {
    name: 'public.t',
    replicates: 'no',
    reason: 'it is in no replication set',
    deliberate: false,
  }
  const tables = [
    table,
    { ...table, name: 'public.u', deliberate: true },
    { ...table, name: 'public.v', replicates: 'insert only' },
  ]
  const [alarm, ...rest] = clusterAlarms([node('n1', { tables })])
  expect(rest).toEqual([])
  expect(alarm).toMatchObject({
    name: 'tables_not_replicated',
    message: expect.stringContaining('public.t') as string,
  })
  expect(alarm!.message).not.toMatch(/public\.[uv]/)
})

it('sequences with a warning', () => {
  const sequence = { name: 'public.s', ownedBy: 'public.t.id', usedPercent: 60, warning: 'it runs out' }
  expect(alarms(node('n1', { sequences: [sequence, { ...sequence, usedPercent: 90 }] }))).toEqual([
    'critical sequence n1 public.s',
    'warning sequence n1 public.s',
  ])
})

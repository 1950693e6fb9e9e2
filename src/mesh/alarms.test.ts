import { expect, test } from 'vitest'
import { alarmsOf, type AlarmFacts } from './alarms.ts'
import type { ReportedError, SubscriptionReport } from './report.ts'

const GB = 1024 ** 3
const error: ReportedError = { code: 'APPLY_FAILED', message: 'it failed', hint: 'mend it', atMs: 0 }

function facts(
  subscription: Partial<SubscriptionReport> = {},
  {
    walStatus = 'reserved' as string | null,
    clockAheadMs = 0,
    ...change
  }: Partial<AlarmFacts> & { walStatus?: string | null; clockAheadMs?: number } = {},
): AlarmFacts {
  const report = {
    name: 'from_n2',
    status: 'replicating',
    providerName: 'n2',
    slotName: 'slot',
    retainedWalBytes: 0,
    exceptions: 0,
    lastError: null,
    ...subscription,
  }
  return {
    node: 'n1',
    connected: true,
    lastError: null,
    maxClockSkewMs: 500,
    slotWalWarningBytes: GB,
    subscriptions: [{ report: report as SubscriptionReport, clockAheadMs, walStatus }],
    openReviews: 0,
    ...change,
  }
}

const briefly = (of: AlarmFacts): string[] =>
  alarmsOf(of).map(({ name, subject, severity }) => `${severity} ${name} of ${subject}`)

test('none when all is well', () => {
  expect(alarmsOf(facts())).toEqual([])
  expect(alarmsOf(facts({ status: 'catching_up', lastError: error }))).toEqual([])
  expect(alarmsOf(facts({ status: 'disabled' }))).toEqual([])
})

test('the own server cannot be used', () => {
  expect(briefly(facts({}, { connected: false }))).toEqual(['critical server_unusable of n1'])
  expect(alarmsOf(facts({}, { connected: false, lastError: error }))[0]).toMatchObject({
    message: 'it failed',
    action: 'mend it',
  })
})

test('a subscription that is down, with what to do', () => {
  const [alarm] = alarmsOf(facts({ status: 'down', lastError: error }))
  expect(alarm).toMatchObject({
    name: 'subscription_down',
    message: 'it failed',
    action: 'mend it',
    severity: 'critical',
  })
})

test('clocks that differ by more than is allowed', () => {
  expect(briefly(facts({}, { clockAheadMs: 500 }))).toEqual([])
  expect(briefly(facts({}, { clockAheadMs: 501 }))).toEqual(['warning clock_skew of from_n2'])
})

test.each<[number, string | null, string[]]>([
  [GB, 'reserved', []],
  [GB + 1, 'reserved', ['warning slot_retains_wal of from_n2']],
  [2 * GB, 'extended', ['warning slot_retains_wal of from_n2']],
  [2 * GB, null, ['warning slot_retains_wal of from_n2']],
  [10 * GB + 1, 'extended', ['critical slot_retains_wal of from_n2']],
  [0, 'extended', []],
  [0, 'unreserved', ['critical slot_retains_wal of from_n2']],
  [0, 'lost', ['critical slot_retains_wal of from_n2']],
  [0, null, []],
])('%i bytes kept, slot %s', (retainedWalBytes, walStatus, expected) => {
  const of = facts({ retainedWalBytes }, { walStatus })
  expect(briefly(of)).toEqual(expected)
  expect(JSON.stringify(alarmsOf(of))).not.toContain('null')
})

test('a lost slot does not say that it will catch up', () => {
  expect(alarmsOf(facts({}, { walStatus: 'lost' }))[0]!.action).toContain('create it again')
})

test('what waits for a person', () => {
  expect(briefly(facts({ exceptions: 2 }, { openReviews: 3 }))).toEqual([
    'warning reviews of n1',
    'warning exceptions of from_n2',
  ])
  const [reviews, exceptions] = alarmsOf(facts({ exceptions: 2 }, { openReviews: 3 }))
  expect(reviews).toMatchObject({ message: '3 conflicts wait for somebody to look at them' })
  expect(exceptions!.message).toBe('2 changes of n2 could not be applied on n1: the rows differ there')
})

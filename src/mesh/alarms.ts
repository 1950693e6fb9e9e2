import type { Alarm, ReportedError, SubscriptionReport } from './report.ts'

/** A slot that keeps so many times more WAL than what gives a warning is critical. */
const CRITICAL_FACTOR = 10

/** What alarms are decided from. */
export interface AlarmFacts {
  readonly node: string
  readonly connected: boolean
  readonly lastError: ReportedError | null
  readonly maxClockSkewMs: number
  readonly slotWalWarningBytes: number
  readonly subscriptions: readonly {
    readonly report: SubscriptionReport
    readonly clockAheadMs: number
    readonly walStatus: string | null
  }[]
  readonly openReviews: number
}

/** The conditions that somebody must act on, as an agent sees them. */
export function alarmsOf(facts: AlarmFacts): Alarm[] {
  const alarms: Alarm[] = []
  if (!facts.connected) {
    alarms.push({
      name: 'server_unusable',
      subject: facts.node,
      message: facts.lastError?.message ?? 'not connected to the own server yet',
      action: facts.lastError?.hint ?? 'Wait, or look at the server log.',
      severity: 'critical',
    })
  }
  if (facts.openReviews > 0) alarms.push(reviewAlarm(facts.node, facts.openReviews))
  for (const { report, clockAheadMs, walStatus } of facts.subscriptions) {
    if (report.status === 'down' && report.lastError) {
      alarms.push({
        name: 'subscription_down',
        subject: report.name,
        message: report.lastError.message,
        action: report.lastError.hint,
        severity: 'critical',
      })
    }
    if (clockAheadMs > facts.maxClockSkewMs) {
      alarms.push({
        name: 'clock_skew',
        subject: report.name,
        message: `changes of ${report.providerName} are dated ${Math.round(clockAheadMs)} ms ahead of this server's clock; they wait for it`,
        action: `Set the clocks of ${report.providerName} and ${facts.node} right (NTP). Nothing is lost meanwhile, changes only arrive late.`,
        severity: 'warning',
      })
    }
    if (report.exceptions > 0)
      alarms.push(exceptionAlarm(facts.node, report.name, report.providerName, report.exceptions))
    const retained = report.retainedWalBytes ?? 0
    if (walStatus === 'lost') {
      alarms.push({
        name: 'slot_retains_wal',
        subject: report.name,
        message: `slot ${report.slotName} is lost: ${report.providerName} has removed WAL that it still needed`,
        action:
          'The changes in between are gone. Drop the subscription, bring the data to the same state, and create it again; raise max_slot_wal_keep_size at the provider.',
        severity: 'critical',
      })
    } else if (retained > facts.slotWalWarningBytes || walStatus === 'unreserved') {
      // "extended" only says that more than max_wal_size is kept, which is as little as the warning itself.
      const critical = retained > facts.slotWalWarningBytes * CRITICAL_FACTOR || walStatus === 'unreserved'
      alarms.push({
        name: 'slot_retains_wal',
        subject: report.name,
        message: `slot ${report.slotName} makes ${report.providerName} keep ${(retained / 1024 ** 3).toFixed(1)} GB of WAL (${walStatus ?? 'state unknown'})`,
        action: 'Let the subscription catch up, or drop it before the disk of the provider is full.',
        severity: critical ? 'critical' : 'warning',
      })
    }
  }
  return alarms
}

/** Changes that could not be applied and wait. */
export function exceptionAlarm(node: string, subject: string, provider: string | null, count: number): Alarm {
  const changes = count === 1 ? '1 change' : `${count} changes`
  return {
    name: 'exceptions',
    subject,
    message: `${changes} of ${provider ?? 'the provider'} could not be applied on ${node}: the rows differ there`,
    action: `sterna exceptions list --on ${node} shows them with their reasons. Remove the cause; then: sterna exceptions retry --all --on ${node}`,
    severity: 'warning',
  }
}

/** Conflicts that wait for a person. */
export function reviewAlarm(node: string, count: number): Alarm {
  return {
    name: 'reviews',
    subject: node,
    message: `${count === 1 ? '1 conflict waits' : `${count} conflicts wait`} for somebody to look at ${count === 1 ? 'it' : 'them'}`,
    action: `sterna conflicts list --open --on ${node} shows what; settle each with: sterna conflicts resolve ID --on ${node}`,
    severity: 'warning',
  }
}

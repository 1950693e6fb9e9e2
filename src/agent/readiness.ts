import type { NodeReport } from '../mesh/report.ts'

/** One thing that keeps a node from being ready. */
export interface Reason {
  /** The node, a subscription, or the subject of an alarm. */
  readonly subject: string
  readonly reason: string
}

/**
 * What keeps the node from being ready, empty when it is: it has its own server, every subscription that is not disabled
 * is replicating or catching up, and there is no critical alarm. One reason per subject.
 */
export function notReadyReasons(report: NodeReport): Reason[] {
  const reasons: Reason[] = []
  if (!report.connected) {
    const why = report.lastError === null ? '' : `: ${report.lastError.message}`
    reasons.push({ subject: report.nodeName, reason: `not connected to its own server${why}` })
  }
  for (const { name, status, lastError } of report.subscriptions) {
    if (status !== 'initializing' && status !== 'down') continue
    const why = lastError === null ? '' : `: ${lastError.message}`
    reasons.push({ subject: name, reason: `subscription is ${status}${why}` })
  }
  for (const { severity, subject, message } of report.alarms) {
    // An alarm about what is listed already would only say it twice.
    if (severity !== 'critical' || reasons.some((it) => it.subject === subject)) continue
    reasons.push({ subject, reason: message })
  }
  return reasons
}

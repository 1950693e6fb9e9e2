import { once } from 'node:events'

import type { Service } from '../../src/agent/service.ts'
import { parseLsn } from '../../src/core/lsn.ts'
import type { NodeReport, SubscriptionReport } from '../../src/mesh/report.ts'

/** A service that does nothing but keep the contract of Service: it runs until told to stop. */
export class FakeService implements Service {
  current: NodeReport

  constructor(report: NodeReport = nodeReport()) {
    this.current = report
  }

  async run(signal: AbortSignal): Promise<void> {
    if (!signal.aborted) await once(signal, 'abort')
  }

  report(): NodeReport {
    return this.current
  }
}

/** A report of a node in good health, with changes. */
export function nodeReport(changes: Partial<NodeReport> = {}): NodeReport {
  return {
    nodeId: 1,
    nodeName: 'n1',
    region: 'eu-west',
    sternaVersion: '0.1.0',
    serverVersion: '18.1',
    clockOffsetMs: -12.5,
    connected: true,
    startedAtMs: Date.UTC(2026, 10, 21, 3),
    subscriptions: [subscriptionReport()],
    openReviews: 3,
    rowsAside: 2,
    alarms: [],
    lastError: null,
    ...changes,
  }
}

/** A report of a replicating subscription, with changes. */
export function subscriptionReport(changes: Partial<SubscriptionReport> = {}): SubscriptionReport {
  return {
    name: 'sub_n1_n2',
    status: 'replicating',
    providerName: 'n2',
    slotName: 'sterna_app_sub_n1_n2',
    replicationSets: ['default', 'ddl_sql'],
    receivedLsn: parseLsn('1/16B3748'),
    appliedLsn: parseLsn('1/16B3740'),
    confirmedLsn: parseLsn('1/16B3000'),
    providerLsn: parseLsn('FFFFFFFF/FFFFFFFF'),
    lagBytes: 8,
    lagSeconds: 0.25,
    retainedWalBytes: 4096,
    transactions: 7,
    changes: 70,
    conflicts: { update_missing: 2 },
    exceptions: 1,
    lastError: null,
    retryAtMs: null,
    ...changes,
  }
}

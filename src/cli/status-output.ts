import type { SternaError } from '../core/errors.ts'
import type { Alarm } from '../mesh/report.ts'
import { isAway, type NodeStatus, type SubscriptionRow } from '../mesh/status/node-status.ts'
import { formatOffset } from './doctor.ts'
import { formatBytes, formatSeconds, formatTable, printable, type Paint, type Tone } from './output.ts'

/** Everything that `sterna status` shows. */
export interface ClusterStatus {
  /** Null where only a connection string is known. */
  readonly name: string | null
  readonly at: Date
  readonly nodes: readonly NodeStatus[]
  readonly alarms: readonly Alarm[]
  readonly ok: boolean
}

/** The status as a person reads it. */
export function statusLines(status: ClusterStatus, paint: Paint): string[] {
  return [
    headline(status, paint),
    '',
    ...nodeTable(status.nodes, paint),
    '',
    ...subscriptionTable(status.nodes, paint),
    ...alarmLines(status.alarms, paint),
    ...noteLines(status.nodes, paint),
  ]
}

function headline({ name, nodes, alarms, ok }: ClusterStatus, paint: Paint): string {
  const reached = nodes.filter((node) => !node.error).length
  const subscriptions = nodes.flatMap((node) => node.subscriptions)
  const replicating = subscriptions.filter(({ status }) => status === 'replicating').length
  const parts = [
    `${reached} of ${nodes.length} nodes answer`,
    `${replicating} of ${subscriptions.length} subscriptions replicate`,
    `${alarms.length} alarm${alarms.length === 1 ? '' : 's'}`,
  ]
  const mark = ok ? paint('green', 'ok') : paint('red', 'not ok')
  return `${paint('bold', printable(name ?? 'cluster'))}: ${mark}; ${parts.join(', ')}`
}

function nodeTable(nodes: readonly NodeStatus[], paint: Paint): string[] {
  return formatTable(
    [
      { title: 'node' },
      { title: 'id', align: 'right' },
      { title: 'region' },
      { title: 'address' },
      { title: 'PostgreSQL' },
      { title: 'agent' },
      { title: 'clock', align: 'right' },
      { title: 'to review', align: 'right' },
      { title: 'aside', align: 'right' },
    ],
    nodes.map((node) => [
      node.name,
      node.nodeId === null ? '-' : String(node.nodeId),
      printable(node.region ?? '-'),
      node.address,
      node.error ? paint('red', problemOf(node, node.error)) : printable(shortVersion(node.serverVersion)),
      agentCell(node, paint),
      node.clock === null ? '-' : formatOffset(node.clock.offsetMs),
      String(node.queues?.openReviews ?? '-'),
      String(node.queues?.rowsAside ?? '-'),
    ]),
    paint,
  )
}

function problemOf(node: NodeStatus, { code }: SternaError): string {
  return isAway(node) ? 'unreachable' : code.toLowerCase().replaceAll('_', ' ')
}

/** `18.4 (Debian 18.4-1)` is `18.4` to a reader of the table. */
function shortVersion(version: string | null): string {
  return version?.split(' ')[0] ?? '-'
}

function agentCell({ agent }: NodeStatus, paint: Paint): string {
  if (!agent) return '-'
  if (agent.alive) return `${paint('green', 'alive')} ${printable(agent.version ?? '')}`.trimEnd()
  return paint('red', 'down')
}

const TONES: Readonly<Record<SubscriptionRow['status'], Tone>> = {
  replicating: 'green',
  catching_up: 'yellow',
  initializing: 'yellow',
  disabled: 'yellow',
  down: 'red',
}

function subscriptionTable(nodes: readonly NodeStatus[], paint: Paint): string[] {
  const rows = nodes.flatMap((node) => node.subscriptions.map((subscription) => ({ node, subscription })))
  if (rows.length === 0) return []
  const table = formatTable(
    [
      { title: 'node' },
      { title: 'follows' },
      { title: 'subscription' },
      { title: 'status' },
      { title: 'lag', align: 'right' },
      { title: '', align: 'right' },
      { title: 'received', align: 'right' },
      { title: 'applied', align: 'right' },
      { title: 'conflicts', align: 'right' },
      { title: 'exceptions', align: 'right' },
    ],
    rows.map(({ node, subscription }) => [
      node.name,
      printable(subscription.provider ?? '?'),
      printable(subscription.name),
      paint(TONES[subscription.status], subscription.status),
      subscription.lagBytes === null ? '-' : formatBytes(subscription.lagBytes),
      subscription.lagSeconds === null ? '-' : formatSeconds(subscription.lagSeconds),
      subscription.receivedLsn ?? '-',
      subscription.appliedLsn ?? '-',
      String(conflictCount(subscription)),
      String(subscription.exceptions),
    ]),
    paint,
  )
  const errors = rows.flatMap(({ node, subscription: { name, lastError, status } }) =>
    lastError && status !== 'down' && lastError.code !== 'AGENT_NOT_RUNNING'
      ? [`${node.name} ${printable(name)}: ${lastError.code ?? 'error'}: ${printable(lastError.message)}`]
      : [],
  )
  return [
    ...table,
    '',
    ...(errors.length > 0 ? [paint('bold', 'last errors'), ...errors.map((line) => `  ${line}`), ''] : []),
  ]
}

function conflictCount({ conflicts }: SubscriptionRow): number {
  return Object.values(conflicts).reduce((sum, count) => sum + count, 0)
}

function alarmLines(alarms: readonly Alarm[], paint: Paint): string[] {
  if (alarms.length === 0) return []
  const lines = alarms.flatMap((alarm) => [
    `  ${alarm.severity === 'critical' ? paint('red', 'CRITICAL') : paint('yellow', 'warning ')}  ${paint('bold', printable(alarm.subject))}: ${printable(alarm.message)}`,
    `            ${paint('dim', 'do:')} ${printable(alarm.action)}`,
  ])
  return [paint('bold', 'alarms'), ...lines, '']
}

/** Tables that replicate less than one might think, without that being an alarm. */
function noteLines(nodes: readonly NodeStatus[], paint: Paint): string[] {
  const nodesBy = new Map<string, string[]>()
  for (const note of nodes.flatMap(tableNotes))
    nodesBy.set(note.text, [...(nodesBy.get(note.text) ?? []), note.node])
  if (nodesBy.size === 0) return []
  const lines = [...nodesBy].map(([text, on]) => `  ${printable(text)} (${on.join(', ')})`)
  return [paint('bold', 'tables'), ...lines, '']
}

function tableNotes(node: NodeStatus): { node: string; text: string }[] {
  return node.tables
    .filter((table) => table.replicates !== 'no' || table.deliberate)
    .map(({ name, replicates, reason }) => ({
      node: node.name,
      text: `${name} replicates ${replicates === 'no' ? 'nothing' : replicates}${reason ? `: ${reason}` : ''}`,
    }))
}

/** The document of `sterna status --json`. */
export function statusDocument({ name, at, nodes, alarms, ok }: ClusterStatus): unknown {
  return {
    cluster: name,
    ok,
    at: at.toISOString(),
    nodes: nodes.map((node) => ({
      name: node.name,
      node_id: node.nodeId,
      region: node.region,
      address: node.address,
      reachable: node.error === null,
      error: node.error,
      server_version: node.serverVersion,
      clock_offset_ms: node.clock && Math.round(node.clock.offsetMs * 1000) / 1000,
      agent: node.agent && {
        alive: node.agent.alive,
        version: node.agent.version,
        pid: node.agent.pid,
        host: node.agent.host,
        http_address: node.agent.httpAddress,
        silent_seconds: node.agent.silentSeconds,
      },
      subscriptions: node.subscriptions.map((subscription) => ({
        name: subscription.name,
        status: subscription.status,
        provider_node: subscription.provider,
        slot_name: subscription.slotName,
        replication_sets: subscription.replicationSets,
        lag_bytes: subscription.lagBytes,
        lag_seconds: subscription.lagSeconds,
        received_lsn: subscription.receivedLsn,
        applied_lsn: subscription.appliedLsn,
        transactions: subscription.transactions,
        changes: subscription.changes,
        conflicts: subscription.conflicts,
        exceptions: subscription.exceptions,
        last_error: subscription.lastError,
      })),
      open_reviews: node.queues && node.queues.openReviews,
      rows_aside: node.queues && node.queues.rowsAside,
      slots: node.slots.map((slot) => ({
        slot_name: slot.name,
        active: slot.active,
        wal_status: slot.walStatus,
        retained_wal_bytes: slot.retainedBytes,
      })),
      tables: node.tables.map(({ name: table, replicates, reason }) => ({ table, replicates, reason })),
    })),
    alarms,
  }
}

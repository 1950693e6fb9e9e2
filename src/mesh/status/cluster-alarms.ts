import { ServerError } from '../../postgres/server-error.ts'
import { exceptionAlarm, reviewAlarm } from '../alarms.ts'
import { checkClocks } from '../doctor/clock.ts'
import { listed } from '../doctor/server-checks.ts'
import type { Alarm } from '../report.ts'
import { isAway, type NodeStatus, type SlotStatus, type SubscriptionRow } from './node-status.ts'

const RETAINED_WARNING_BYTES = 1024 ** 3
const RETAINED_CRITICAL_BYTES = 10 * 1024 ** 3
const CLEANUP_OVERDUE_SECONDS = 60
const SEQUENCE_CRITICAL_PERCENT = 90

/** What somebody must act on, of all nodes together; the critical ones first. */
export function clusterAlarms(nodes: readonly NodeStatus[]): Alarm[] {
  const alarms = [
    ...nodes.flatMap((node) => (node.error ? unreachable(node) : nodeAlarms(node))),
    ...nodes.flatMap((node) => node.slots.flatMap((slot) => slotAlarms(node, slot, nodes))),
    ...clockAlarms(nodes),
  ]
  const rank = { critical: 0, warning: 1 }
  return alarms.toSorted((a, b) => rank[a.severity] - rank[b.severity])
}

function unreachable(node: NodeStatus): Alarm[] {
  const { name, error } = node
  const isAnswering = error instanceof ServerError && isAway(node)
  return [
    {
      name: 'node_unreachable',
      subject: name,
      message: error!.message,
      action: isAnswering ? 'Wait: the server is starting up or shutting down.' : error!.hint,
      severity: 'critical',
    },
  ]
}

function nodeAlarms(node: NodeStatus): Alarm[] {
  return [
    ...agentAlarms(node),
    ...node.subscriptions.flatMap((subscription) => subscriptionAlarms(node, subscription)),
    ...((node.queues?.openReviews ?? 0) > 0 ? [reviewAlarm(node.name, node.queues!.openReviews)] : []),
    ...sequenceAlarms(node),
    ...tableAlarms(node),
    ...cleanupAlarms(node),
  ]
}

function agentAlarms({ name, agent }: NodeStatus): Alarm[] {
  if (agent?.alive) return []
  const since =
    agent?.silentSeconds == null ? 'has not run yet' : `is silent for ${Math.round(agent.silentSeconds)} s`
  return [
    {
      name: 'agent_down',
      subject: name,
      message: `the agent of ${name} ${since}: nothing that other nodes write arrives there`,
      action: `Start it: sterna agent --node ${name} (a local cluster: sterna up). Its log says why it ended.`,
      severity: 'critical',
    },
  ]
}

function subscriptionAlarms(node: NodeStatus, subscription: SubscriptionRow): Alarm[] {
  const { name, status, lastError, exceptions, provider } = subscription
  const subject = `${node.name} ${name}`
  const alarms: Alarm[] = []
  if (status === 'disabled')
    alarms.push({
      name: 'subscription_disabled',
      subject,
      message:
        lastError?.message ??
        `${node.name} does not follow ${provider ?? 'its provider'}, which keeps WAL for it meanwhile`,
      action: lastError?.hint ?? `sterna sub enable ${name} --on ${node.name}, or drop it.`,
      severity: lastError ? 'critical' : 'warning',
    })
  // Without an agent everything is down; that is one alarm and not one for each subscription.
  else if (node.agent?.alive && (status === 'down' || (status === 'initializing' && lastError)))
    alarms.push({
      name: 'subscription_down',
      subject,
      message: lastError ? lastError.message : 'it does not replicate, and gave no reason yet',
      action: lastError?.hint ?? `See the log of the agent of ${node.name}.`,
      severity: 'critical',
    })
  if (exceptions > 0) alarms.push(exceptionAlarm(node.name, subject, provider, exceptions))
  return alarms
}

function sequenceAlarms(node: NodeStatus): Alarm[] {
  return node.sequences.map(({ name, ownedBy, usedPercent, warning }) => ({
    name: 'sequence',
    subject: `${node.name} ${name}`,
    message: ownedBy === null ? warning : `${warning} (it feeds ${ownedBy})`,
    action: 'See sterna.sequences; a bigint column and sequence have room for all nodes.',
    severity: (usedPercent ?? 0) >= SEQUENCE_CRITICAL_PERCENT ? 'critical' : 'warning',
  }))
}

function tableAlarms(node: NodeStatus): Alarm[] {
  const left = node.tables.filter((table) => table.replicates === 'no' && !table.deliberate)
  if (left.length === 0) return []
  return [
    {
      name: 'tables_not_replicated',
      subject: node.name,
      message: `not replicated: ${listed(left.map((table) => `${table.name} (${table.reason ?? 'no reason'})`))}`,
      action: `sterna repset add-table default TABLE --on ${node.name}, or remove-table to say that it is meant so.`,
      severity: 'warning',
    },
  ]
}

function cleanupAlarms(node: NodeStatus): Alarm[] {
  return node.cleanups
    .filter((cleanup) => cleanup.waitingSeconds > CLEANUP_OVERDUE_SECONDS)
    .map(({ slotName, provider, waitingSeconds, lastError }) => ({
      name: 'slot_cleanup_pending',
      subject: `${node.name} ${slotName ?? ''}`.trim(),
      message: `slot ${slotName} of a dropped subscription is still at ${provider ?? 'its provider'} after ${Math.round(waitingSeconds)} s${lastError ? `: ${lastError}` : ''}`,
      action: `Bring the provider back, or there: select pg_drop_replication_slot('${slotName}');`,
      severity: 'warning',
    }))
}

function slotAlarms(node: NodeStatus, slot: SlotStatus, nodes: readonly NodeStatus[]): Alarm[] {
  const subject = `${node.name} ${slot.name}`
  const retained = slot.retainedBytes ?? 0
  if (slot.walStatus === 'lost')
    return [
      {
        name: 'slot_lost',
        subject,
        message: `the WAL that slot ${slot.name} needs is gone: its subscriber misses changes for good`,
        action: 'Drop the subscription, bring the data of its node up to date by hand, and create it again.',
        severity: 'critical',
      },
    ]
  const alarms: Alarm[] = []
  if (retained > RETAINED_WARNING_BYTES || slot.walStatus === 'unreserved')
    alarms.push({
      name: 'slot_retains_wal',
      subject,
      message: `slot ${slot.name} makes ${node.name} keep ${(retained / 1024 ** 3).toFixed(1)} GB of WAL${slot.walStatus === 'unreserved' ? ', which may be removed at the next checkpoint' : ''}`,
      action: 'Bring its subscriber back, or drop the subscription before the disk is full.',
      severity:
        retained > RETAINED_CRITICAL_BYTES || slot.walStatus === 'unreserved' ? 'critical' : 'warning',
    })
  if (slot.ours && !slot.active && isUnused(slot, node, nodes))
    alarms.push({
      name: 'slot_unused',
      subject,
      message: `no subscription uses slot ${slot.name}, and it holds WAL for ever`,
      action: `On ${node.name}: select pg_drop_replication_slot('${slot.name}');`,
      severity: 'warning',
    })
  return alarms
}

/** True only when every node was asked, and each agent has been in contact with its providers. */
function isUnused(slot: SlotStatus, provider: NodeStatus, nodes: readonly NodeStatus[]): boolean {
  const others = nodes.filter((node) => node !== provider)
  if (others.length === 0 || others.some((node) => node.error)) return false
  const isKnown = (node: NodeStatus): boolean =>
    node.subscriptions.every((subscription) => subscription.slotName !== null)
  const isUsed = (node: NodeStatus): boolean =>
    node.subscriptions.some((subscription) => subscription.slotName === slot.name) ||
    node.cleanups.some((cleanup) => cleanup.slotName === slot.name)
  return others.every(isKnown) && !others.some(isUsed)
}

function clockAlarms(nodes: readonly NodeStatus[]): Alarm[] {
  return checkClocks(nodes.flatMap((node) => node.clock ?? []))
    .filter((finding) => finding.severity === 'warn')
    .map((finding) => ({
      name: 'clock_offset',
      subject: 'clocks',
      message: finding.what,
      action: 'Set the clocks right, and keep them so with NTP.',
      severity: 'warning',
    }))
}

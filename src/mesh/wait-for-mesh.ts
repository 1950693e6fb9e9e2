import { setTimeout as delay } from 'node:timers/promises'

import { messageOf, SternaError } from '../core/errors.ts'
import { PgConnection } from '../postgres/connection.ts'
import { subscriptionName, type MeshNode } from './mesh-node.ts'

const POLL_MS = 200
const QUERY_TIMEOUT_MS = 5_000

export interface WaitForMeshOptions {
  readonly timeoutMs: number
  /** Called whenever the number of subscriptions that replicate changes, with a line for a person. */
  readonly onProgress?: (message: string) => void
}

interface SubscriptionRow {
  readonly subscription_name: string
  readonly status: string
}

/**
 * Waits until the subscription of every ordered pair of nodes is `replicating`.
 * @throws MESH_NOT_READY after `timeoutMs`; it names the subscriptions that are not there, with their state
 */
export async function waitForMesh(nodes: readonly MeshNode[], options: WaitForMeshOptions): Promise<void> {
  const deadline = Date.now() + options.timeoutMs
  const total = nodes.length * (nodes.length - 1)
  let reported = -1
  while (true) {
    const missing = (await Promise.all(nodes.map((node) => notReplicating(node, nodes)))).flat()
    const ready = total - missing.length
    if (ready !== reported) options.onProgress?.(`${ready} of ${total} subscriptions replicate`)
    reported = ready
    if (missing.length === 0) return
    if (Date.now() >= deadline)
      throw new SternaError('MESH_NOT_READY', {
        seconds: Math.round(options.timeoutMs / 1000),
        missing: missing.map(({ subscription, state }) => `${subscription} (${state})`),
      })
    await delay(POLL_MS)
  }
}

async function notReplicating(
  node: MeshNode,
  all: readonly MeshNode[],
): Promise<{ subscription: string; state: string }[]> {
  const expected = all
    .filter(({ name }) => name !== node.name)
    .map(({ name }) => subscriptionName(node.name, name))
  try {
    const states = await readStates(node)
    return expected
      .map((subscription) => ({ subscription, state: states.get(subscription) ?? 'missing' }))
      .filter(({ state }) => state !== 'replicating')
  } catch (error) {
    const state = messageOf(error)
    return expected.map((subscription) => ({ subscription, state }))
  }
}

async function readStates(node: MeshNode): Promise<Map<string, string>> {
  const conn = await PgConnection.connect(node.dsn, { applicationName: `sterna ${node.name} wait` })
  try {
    const { rows } = await conn.query<SubscriptionRow>(
      'select subscription_name, status from sterna.sub_show_status()',
      [],
      { timeoutMs: QUERY_TIMEOUT_MS },
    )
    return new Map(rows.map((row) => [row.subscription_name, row.status]))
  } finally {
    await conn.close()
  }
}

import { assert } from '../core/assert.ts'
import type { Change, Values } from '../mesh/conflict/change.ts'
import { mayRewrite } from '../mesh/conflict/clock.ts'
import type { Heartbeat, Heartbeats } from '../mesh/conflict/heartbeat.ts'
import { heldVersion } from '../mesh/conflict/key-state.ts'
import { rewriteOf } from '../mesh/conflict/local-write.ts'
import { retriable, settledBy } from '../mesh/conflict/parked.ts'
import { repairVisibility, resolveChange } from '../mesh/conflict/resolve.ts'
import {
  mayDropRowClock,
  mayDropTombstone,
  mayForgetGivenUp,
  type RetentionFacts,
} from '../mesh/conflict/retention.ts'
import { asksOrigin, type SimNode } from './node.ts'
import type { Parked } from './node-state.ts'
import { withoutSum } from './shape.ts'
import { describeChange } from './story.ts'

/** Retries the first parked change of each queue. The retry runs under the repair origin. False: none went in. */
export function retry(node: SimNode, fails: boolean): boolean {
  const heads = retriable(node.state.parked) as Parked[]
  const next = heads.find((it) => !node.locked.has(it.table))
  if (!next || (fails && next.fails)) return false
  const from = node.around.peers().find(({ id }) => id === next.originId)!
  if (asksOrigin(next.change) && !node.around.reaches(node, from)) return false
  node.around.say(() => `${node.name} retries ${describeChange(next.table, next.change)}`)
  node.state.parked = node.state.parked.filter((it) => it !== next)
  if (next.change.tag === 'truncate') {
    assert(
      settledBy(node.state.parked, next.table, next.originId).every((it) => it.place > next.place),
      'order',
    )
  }
  const decision = resolveChange(next.change, node.table(next.table).rules)
  node.carryOut(next.table, decision, from, next.change, node.stamp(node.version(node.clock())))
  return true
}

/** Brings back rows set aside that nothing stands in the way of any more. True: something changed. */
export function repair(node: SimNode): boolean {
  let changed = false
  for (const [name, table] of node.state.tables) {
    if (node.locked.has(name) || table.aside().length === 0) continue
    const decision = repairVisibility(table.aside(), table.rules)
    const { writes } = node.carryOut(name, decision, node, null, node.stamp(node.version(node.clock())))
    changed ||= writes.length > 0
  }
  return changed
}

/** Forgets tombstones and entries of row_clock that have served. */
export function cleanUp(node: SimNode): number {
  const peers = node.around.peers().filter((it) => it !== node)
  const factsOf = (table: string): RetentionFacts => ({
    peers: peers.map(({ id }) => id),
    heartbeats,
    parked: node.state.parked,
    table,
  })
  const heartbeats = node.around.off === 'in-stream-cleanup' ? feedbackOf(peers) : node.state.heartbeats
  let forgotten = 0
  for (const [name, table] of node.state.tables) {
    if (node.locked.has(name)) continue
    const facts = factsOf(name)
    forgotten += table.forget(
      (key, tombstone) => mayDropTombstone(key, tombstone, facts),
      (version, written, isNearAside) => mayDropRowClock({ version, written }, isNearAside, facts),
    )
  }
  const kept = node.state.givenUp.filter(({ table, key, version }) => {
    const held = heldVersion(node.table(table).held(key))
    return !mayForgetGivenUp(key, version, held, factsOf(table))
  })
  forgotten += node.state.givenUp.length - kept.length
  node.state.givenUp = kept
  return forgotten
}

/** Writes the keys again that were written while the clock had stepped back. False: not now, or none. */
export function rewrite(node: SimNode): boolean {
  const { toRewrite, commits } = node.state
  const time = node.clock()
  if (toRewrite.length === 0 || !mayRewrite(commits, time)) return false
  if (toRewrite.some(({ table }) => node.locked.has(table))) return false
  const version = node.version(time)
  const stamp = node.stamp(version)
  const changes: { table: string; change: Change }[] = []
  for (const { table, key } of toRewrite) {
    const change = rewriteOf(key, node.table(table).held(key), version)
    node.carryOut(table, resolveChange(change, node.table(table).rules), node, change, stamp)
    changes.push({ table, change })
    node.around.say(() => `${node.name} writes again: ${describeChange(table, change)}`)
    const values = change.tag === 'update' ? withoutSum(change.values as Values) : null
    const text = describeChange(table, change)
    const place = node.published.length
    node.around.log.add([{ node: node.id, place, time: Number(time), table, key, values, cents: 0, text }])
  }
  node.state.toRewrite = []
  node.publish(time, changes)
  return true
}

/** What peers have reached by now, as replication feedback would tell it: ahead of what is still in their streams. */
function feedbackOf(peers: readonly SimNode[]): Heartbeats {
  return new Map(
    peers.map((peer): [number, Heartbeat[]] => {
      const time = peer.clock()
      const { seen } = peer.state
      return [peer.id, [{ nodeId: peer.id, time, claim: time, applied: seen, seen }]]
    }),
  )
}

/** What this node knows of a definition that it has not carried out yet. See 013_policies.sql. */
export interface OpenDefinition {
  /** This node is one of those that have to agree. */
  readonly isMember: boolean
  /** It was declared here, so this node decides. */
  readonly isCoordinator: boolean
  /** Since it was declared, by this server's clock. */
  readonly ageMs: number
  /** The steps that this node has taken. */
  readonly seen: boolean
  readonly closed: boolean
  readonly ready: boolean
  /** The steps that all have taken, as far as it has arrived here. */
  readonly allSeen: boolean
  readonly allClosed: boolean
  readonly allReady: boolean
  readonly outcome: 'active' | 'refused' | null
  /** Names of the nodes that have not taken the next step. */
  readonly missing: readonly string[]
}

/** How far this agent is with it. */
export interface FenceAttempt {
  /** Since this agent first saw the definition. */
  readonly seenMs: number
  /** Since this agent's session shut the gate, and has held it ever since; null: it has not. */
  readonly heldMs: number | null
  /** Why the gate could not be shut the last time. */
  readonly obstacle: string | null
}

export type FenceStep =
  | { readonly tag: 'wait' | 'see' | 'close' | 'ready' | 'settle' }
  | { readonly tag: 'refuse'; readonly reason: string }
  /** For all nodes. `reason`: why it is refused; null: it is in force. */
  | { readonly tag: 'decide'; readonly reason: string | null }

/** All nodes must have shut their gates within this. */
export const FENCE_LIMIT_MS = 30_000
/** Local writers wait no longer than this. */
export const GATE_LIMIT_MS = 10_000

const INTERRUPTED = 'the agent was interrupted while local writers waited'

/** The next step of this node. */
export function fenceStep(definition: OpenDefinition, attempt: FenceAttempt): FenceStep {
  const { outcome, isMember, isCoordinator, ageMs, missing } = definition
  if (outcome !== null) return { tag: 'settle' }
  if (!isMember) return { tag: 'wait' }
  if (definition.closed) {
    if (definition.ready && !isCoordinator) return { tag: 'wait' }
    const { heldMs } = attempt
    const refusal = definition.ready ? 'decide' : 'refuse'
    if (heldMs === null) return { tag: refusal, reason: INTERRUPTED }
    if (definition.allReady) return { tag: 'decide', reason: null }
    if (definition.allClosed && !definition.ready) return { tag: 'ready' }
    return heldMs > GATE_LIMIT_MS ? { tag: refusal, reason: silent(missing, GATE_LIMIT_MS) } : { tag: 'wait' }
  }
  if (attempt.seenMs > FENCE_LIMIT_MS || (isCoordinator && ageMs > FENCE_LIMIT_MS)) {
    return { tag: 'refuse', reason: attempt.obstacle ?? silent(missing, FENCE_LIMIT_MS) }
  }
  if (!definition.seen) return { tag: 'see' }
  return { tag: definition.allSeen ? 'close' : 'wait' }
}

function silent(nodes: readonly string[], limitMs: number): string {
  return `no answer from ${nodes.join(', ')} within ${limitMs / 1000} s`
}

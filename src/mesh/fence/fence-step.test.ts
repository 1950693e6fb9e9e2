import { describe, expect, test } from 'vitest'

import {
  FENCE_LIMIT_MS,
  fenceStep,
  GATE_LIMIT_MS,
  type FenceAttempt,
  type OpenDefinition,
} from './fence-step.ts'

const NEW: OpenDefinition = {
  isMember: true,
  isCoordinator: false,
  ageMs: 0,
  seen: false,
  closed: false,
  ready: false,
  allSeen: false,
  allClosed: false,
  allReady: false,
  outcome: null,
  missing: ['n1', 'n3'],
}
const SEEN = { ...NEW, seen: true, allSeen: true }
const CLOSED = { ...SEEN, closed: true }
const READY = { ...CLOSED, allClosed: true, ready: true }
const FRESH: FenceAttempt = { seenMs: 0, heldMs: null, obstacle: null }
const LATE = { ...FRESH, seenMs: FENCE_LIMIT_MS + 1 }

describe('the steps of a node through the fence', () => {
  test('it says that it is there, and shuts its gate when all are', () => {
    expect(fenceStep(NEW, FRESH)).toEqual({ tag: 'see' })
    expect(fenceStep({ ...NEW, seen: true }, FRESH)).toEqual({ tag: 'wait' })
    expect(fenceStep(SEEN, FRESH)).toEqual({ tag: 'close' })
  })

  test('it is ready when all have shut theirs, and it has held its own', () => {
    expect(fenceStep(CLOSED, { ...FRESH, heldMs: 5 })).toEqual({ tag: 'wait' })
    expect(fenceStep({ ...CLOSED, allClosed: true }, { ...FRESH, heldMs: 5 })).toEqual({ tag: 'ready' })
    expect(fenceStep({ ...CLOSED, allClosed: true }, FRESH)).toMatchObject({
      tag: 'refuse',
      reason: expect.stringContaining('interrupted'),
    })
  })

  test('ready, it waits for the decision however long that takes; whoever began decides, with a shut gate', () => {
    expect(fenceStep({ ...READY, ageMs: 1e9 }, { ...LATE, seenMs: 1e9 })).toEqual({ tag: 'wait' })
    const coordinator = { ...READY, isCoordinator: true }
    const held = { ...FRESH, heldMs: 5 }
    expect(fenceStep(coordinator, held)).toEqual({ tag: 'wait' })
    expect(fenceStep({ ...coordinator, allReady: true }, held)).toEqual({ tag: 'decide', reason: null })
    expect(fenceStep(coordinator, { ...FRESH, heldMs: GATE_LIMIT_MS + 1 })).toEqual({
      tag: 'decide',
      reason: 'no answer from n1, n3 within 10 s',
    })
    expect(fenceStep({ ...coordinator, allReady: true }, FRESH)).toMatchObject({
      tag: 'decide',
      reason: expect.stringContaining('interrupted'),
    })
  })

  test('writers do not wait for ever', () => {
    expect(fenceStep(CLOSED, { ...FRESH, heldMs: GATE_LIMIT_MS + 1 })).toEqual({
      tag: 'refuse',
      reason: 'no answer from n1, n3 within 10 s',
    })
    expect(fenceStep(NEW, LATE)).toMatchObject({ tag: 'refuse' })
    expect(fenceStep(SEEN, { ...LATE, obstacle: 'in use' })).toEqual({ tag: 'refuse', reason: 'in use' })
    expect(fenceStep({ ...SEEN, isCoordinator: true, ageMs: FENCE_LIMIT_MS + 1 }, FRESH)).toMatchObject({
      tag: 'refuse',
    })
  })

  test('what has been decided is carried out, by those who had no part in it too', () => {
    for (const outcome of ['active', 'refused'] as const) {
      expect(fenceStep({ ...NEW, outcome }, FRESH)).toEqual({ tag: 'settle' })
      expect(fenceStep({ ...NEW, isMember: false, outcome }, LATE)).toEqual({ tag: 'settle' })
    }
    expect(fenceStep({ ...NEW, isMember: false }, LATE)).toEqual({ tag: 'wait' })
  })
})

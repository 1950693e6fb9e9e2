import { setTimeout as sleep } from 'node:timers/promises'

import { expect, test } from 'vitest'

import { KeyedLock } from './keyed-lock.ts'

test('one after another for a key, side by side for different keys, and a failure stops nobody', async () => {
  const lock = new KeyedLock()
  const seen: string[] = []
  const work = (name: string, ms: number) => async (): Promise<string> => {
    seen.push(`${name} begins`)
    await sleep(ms)
    seen.push(`${name} ends`)
    if (name === 'a1') throw new Error('a1 failed')
    return name
  }
  const a1 = lock.hold('a', work('a1', 20))
  const a2 = lock.hold('a', work('a2', 0))
  const b = lock.hold('b', work('b', 0))
  await expect(a1).rejects.toThrow('a1 failed')
  expect(await a2).toBe('a2')
  expect(await b).toBe('b')
  expect(seen).toEqual(['a1 begins', 'b begins', 'b ends', 'a1 ends', 'a2 begins', 'a2 ends'])
})

import { describe, expect, test } from 'vitest'

import type { Service } from '../../src/agent/service.ts'

/** What every Service must do; run it against the fake and the real ones alike. */
export function serviceContract(name: string, make: () => Service | Promise<Service>): void {
  describe(`${name} keeps the contract of Service`, () => {
    test('runs until it is told to stop, and can be asked before, meanwhile and after', async () => {
      const service = await make()
      const stop = new AbortController()
      expect(service.report().nodeName).not.toBe('')
      let ended = false
      const running = service.run(stop.signal).then(() => (ended = true))
      await new Promise((resolve) => setImmediate(resolve))
      expect(ended).toBe(false)
      expect(Array.isArray(service.report().subscriptions)).toBe(true)
      stop.abort()
      await running
      expect(service.report().nodeName).not.toBe('')
    })

    test('told to stop before it began, it ends at once', async () => {
      const service = await make()
      await expect(service.run(AbortSignal.abort())).resolves.toBeUndefined()
    })
  })
}

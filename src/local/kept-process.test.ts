import { expect, test } from 'vitest'
import type { ExitInfo } from '../postgres/server/instance.ts'
import { KeptProcess, type RunningProcess } from './kept-process.ts'

/** A process without a process: ends when it is told to. */
class FakeProcess implements RunningProcess {
  readonly #end = Promise.withResolvers<ExitInfo>()
  stops = 0
  get exited(): Promise<ExitInfo> {
    return this.#end.promise
  }
  die(): void {
    this.#end.resolve({ code: null, signal: 'SIGKILL' })
  }
  async stop(): Promise<void> {
    this.stops++
    this.#end.resolve({ code: 0, signal: null })
  }
}

function setUp(results: readonly (FakeProcess | Error)[]) {
  const said: string[] = []
  const starts = Array.from(results, () => Promise.withResolvers<void>())
  let count = 0
  const kept = new KeptProcess({
    name: 'n1: server',
    say: (line) => said.push(line),
    start: async () => {
      const result = results[count]
      starts[count++]?.resolve()
      if (!(result instanceof FakeProcess)) throw result ?? new Error('started too often')
      return result
    },
  })
  return { kept, said, started: (n: number) => starts[n - 1]!.promise }
}

test('what dies is started again, also when that fails at first', async () => {
  const [first, second] = [new FakeProcess(), new FakeProcess()]
  const { kept, said, started } = setUp([first, new Error('no room'), second])
  await kept.start()
  first.die()
  await started(3)
  await kept.stop()
  expect(second.stops).toBeGreaterThan(0)
  expect(said).toEqual([
    'n1: server ended (signal SIGKILL); starting it again in 0.25 s',
    'n1: server did not start: no room; starting it again in 0.5 s',
    'n1: server runs again',
  ])
})

test('after a stop nothing is started', async () => {
  const first = new FakeProcess()
  const { kept, said } = setUp([first])
  await kept.start()
  await kept.stop()
  expect(first.stops).toBeGreaterThan(0)
  expect(said).toEqual([])
})

test('a stop during the wait before a restart ends at once', async () => {
  const first = new FakeProcess()
  const { kept } = setUp([first, new Error('never'), new Error('never'), new Error('never')])
  await kept.start()
  first.die()
  await first.exited
  const before = performance.now()
  await kept.stop()
  expect(performance.now() - before).toBeLessThan(200)
})

test('a first start that fails is told to the caller', async () => {
  const { kept } = setUp([new Error('no room')])
  await expect(kept.start()).rejects.toThrow('no room')
  await kept.stop()
})

test('a stop during the first start stops what was started', async () => {
  const process = new FakeProcess()
  const gate = Promise.withResolvers<RunningProcess>()
  const kept = new KeptProcess({ name: 'x', say: () => {}, start: () => gate.promise })
  const starting = kept.start()
  const stopping = kept.stop()
  gate.resolve(process)
  await Promise.all([starting, stopping])
  expect(process.stops).toBeGreaterThan(0)
})

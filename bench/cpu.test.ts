import { expect, test } from 'vitest'
import { CpuMeter, parseCpuSeconds, parsePeakBytes } from './cpu.ts'

test('CPU time is user plus system time of the process, whatever its name', () => {
  const line = '42 (a ) S 1) S 1 42 42 0 -1 4194560 500 0 3 0 250 50 7 7 20 0 11 0 100 0 0'
  expect(parseCpuSeconds(line)).toBe(3)
})

test('the peak is VmHWM in bytes, 0 for a process that has ended', () => {
  expect(parsePeakBytes('Name:\tnode\nVmHWM:\t    1000 kB\nVmRSS:\t 5 kB\n')).toBe(1_024_000)
  expect(parsePeakBytes('')).toBe(0)
})

test('a process that ran before counts from the start of the meter on', async () => {
  const self = { subscriber: [], provider: [], agent: [process.pid] }
  const meter = await CpuMeter.start(self)
  const before = process.cpuUsage()
  const used = (): number => {
    const { user, system } = process.cpuUsage(before)
    return (user + system) / 1e6
  }
  while (used() < 0.2);
  await meter.look(self)
  expect(meter.total().agent).toBeGreaterThan(0.1)
  expect(meter.total().agent).toBeLessThan(used() + 0.1)
  expect(meter.peakAgentBytes).toBeGreaterThan(1e6)
})

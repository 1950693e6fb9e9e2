import { access } from 'node:fs/promises'

import { skipLoudly } from './layout.ts'

/**
 * The environment that gives a server another clock, `shift` away from the true one, such as `+2s`. The only sound way: a
 * transaction that carries a timestamp carries an origin too. Undefined, and said loudly, where libfaketime is missing.
 */
export const fakeTime = await findFakeTime()

async function findFakeTime(): Promise<((shift: string) => Record<string, string>) | undefined> {
  for (const triplet of ['x86_64-linux-gnu', 'aarch64-linux-gnu']) {
    const path = `/usr/lib/${triplet}/faketime/libfaketimeMT.so.1`
    const found = await access(path).then(
      () => true,
      () => false,
    )
    if (found)
      return (shift) => ({
        LD_PRELOAD: path,
        FAKETIME: shift,
        DONT_FAKE_MONOTONIC: '1',
        FAKETIME_DONT_RESET: '1',
      })
  }
  const remedy = 'libfaketime is not installed (Debian: apt-get install libfaketime)'
  skipLoudly('tests with a clock that is wrong', remedy)
  return undefined
}

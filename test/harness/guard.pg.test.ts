import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { isPostmasterOf } from '../../src/postgres/server/postmaster-pid.ts'
import { startCommand } from './command.ts'
import { waitUntil } from './wait.ts'

test('servers end and directories go with a test process that is killed', async () => {
  const command = startCommand([fileURLToPath(new URL('orphan.ts', import.meta.url))])
  await command.sees('dataDir')
  const { dataDir, pid } = JSON.parse(command.stdout) as { dataDir: string; pid: number }
  expect(await isPostmasterOf(pid, dataDir)).toBe(true)
  expect(await isPostmasterOf(process.pid, dataDir)).toBe(false)
  command.child.kill('SIGKILL')
  await waitUntil('the server ends', async () => !(await isPostmasterOf(pid, dataDir)))
  await waitUntil('the directory goes', () => !existsSync(dataDir))
})

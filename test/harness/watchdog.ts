/**
 * Ends what a test process leaves behind. It reads lines from the test process: `server <data directory>`,
 * `group <process group id>`, `dir <directory>`; when its standard input ends, because the test process has ended in
 * whatever way, it kills those servers and groups and removes those directories.
 */
import { rm } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { stopForeignServer } from '../../src/postgres/server/instance.ts'

const servers: string[] = []
const groups = new Set<number>()
const directories: string[] = []

for await (const line of createInterface({ input: process.stdin })) {
  const [kind, rest] = [line.slice(0, line.indexOf(' ')), line.slice(line.indexOf(' ') + 1)]
  if (kind === 'server') servers.push(rest)
  if (kind === 'group') groups.add(Number(rest))
  if (kind === 'ended') groups.delete(Number(rest))
  if (kind === 'dir') directories.push(rest)
}
for (const group of groups) {
  try {
    process.kill(-group, 'SIGKILL')
  } catch {
    // It has ended.
  }
}
await Promise.allSettled(
  servers.map((dataDir) => stopForeignServer(dataDir, { fastMs: 0, immediateMs: 2000 })),
)
for (const directory of directories) {
  await rm(directory, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 })
}

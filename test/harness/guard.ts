import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

let watchdog: ChildProcess | undefined

function tell(line: string): void {
  watchdog ??= startWatchdog()
  watchdog.stdin?.write(`${line}\n`)
}

function startWatchdog(): ChildProcess {
  const child = spawn(process.execPath, [fileURLToPath(new URL('watchdog.ts', import.meta.url))], {
    // Its own session: what kills the test's process group must not kill it. Only our end of the pipe holds it.
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
    cwd: '/',
  })
  child.unref()
  ;(child.stdin as unknown as { unref(): void }).unref()
  child.stdin?.on('error', () => {})
  return child
}

/** The server on this data directory is killed when this test process ends, however it ends. */
export function guardServer(dataDir: string): void {
  tell(`server ${dataDir}`)
}

/**
 * This process group (a child spawned with `detached: true`) is killed when this test process ends, however it ends.
 * The returned function says that it has ended by itself, since ids are reused.
 */
export function guardGroup(pid: number): () => void {
  tell(`group ${pid}`)
  return () => tell(`ended ${pid}`)
}

/** This directory is removed when this test process ends, however it ends. */
export function guardDirectory(directory: string): void {
  tell(`dir ${directory}`)
}

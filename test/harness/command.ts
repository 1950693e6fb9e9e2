import { type ChildProcess, spawn } from 'node:child_process'
import { guardGroup } from './guard.ts'
import { waitUntil } from './wait.ts'

/** A program that a test started. */
export interface RunningCommand {
  readonly pid: number
  readonly child: ChildProcess
  /** What it has written so far. */
  readonly stdout: string
  readonly stderr: string
  /** Resolves when it has ended, with the exit code; a signal counts as 128 and more. */
  readonly exitCode: Promise<number>
  /** Resolves when this text stands in the output, of either kind; rejects when the program ends without it. */
  sees(text: string, timeoutMs?: number): Promise<void>
}

/**
 * Starts a program with this Node in a process group of its own, which is killed when the test process ends. Programs
 * that it starts in other sessions are not: stop them in the test.
 */
export function startCommand(
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {},
): RunningCommand {
  const child = spawn(process.execPath, args, {
    cwd: options.cwd,
    env: { ...process.env, NODE_OPTIONS: '', ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  })
  const ended = guardGroup(child.pid!)
  const output = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output.stderr += text))
  let isOver = false
  const exitCode = new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => {
      isOver = true
      ended()
      resolve(code ?? (signal === 'SIGKILL' ? 137 : 128))
    })
  })
  return {
    pid: child.pid!,
    child,
    get stdout() {
      return output.stdout
    },
    get stderr() {
      return output.stderr
    },
    exitCode,
    async sees(text, timeoutMs = 60_000) {
      const isThere = (): boolean => output.stdout.includes(text) || output.stderr.includes(text)
      await waitUntil(`output "${text}"`, () => isThere() || isOver, timeoutMs)
      if (!isThere()) throw new Error(`ended without "${text}":\n${output.stdout}\n${output.stderr}`)
    },
  }
}

/** Runs a program to its end. */
export async function runCommand(
  args: readonly string[],
  options: Parameters<typeof startCommand>[1] = {},
): Promise<{ code: number; stdout: string; stderr: string }> {
  const command = startCommand(args, options)
  const code = await command.exitCode
  return { code, stdout: command.stdout, stderr: command.stderr }
}

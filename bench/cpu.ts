import { readFile } from 'node:fs/promises'
import { ROLES, type Processes, type Role } from './side.ts'

/** Ticks per second of the times in /proc: fixed in Linux's interface. Source: proc(5), sysconf(3). */
const USER_HZ = 100

/** CPU seconds by role. */
export type CpuSeconds = Record<Role, number>

/**
 * CPU seconds, user and system, that all threads of a process have used; from the text of `/proc/<pid>/stat`.
 * The command in parentheses may itself hold spaces and parentheses.
 */
export function parseCpuSeconds(stat: string): number {
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / USER_HZ
}

/** The greatest resident size that a process has had, in bytes; from the text of `/proc/<pid>/status`. */
export function parsePeakBytes(status: string): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024
}

/**
 * CPU time of a changing set of processes. Those that run when it is created count from then on, later ones from their
 * birth; of one that ends the last look counts, so look often.
 */
export class CpuMeter {
  readonly #before = new Map<number, number>()
  readonly #seen = new Map<number, { readonly role: Role; readonly seconds: number }>()
  peakAgentBytes = 0

  /** Begins to count; `running` are the processes that run already. */
  static async start(running: Processes): Promise<CpuMeter> {
    const meter = new CpuMeter()
    await meter.look(running)
    for (const [pid, { seconds }] of meter.#seen) meter.#before.set(pid, seconds)
    return meter
  }

  /** Reads the times of these processes and of all that were seen before. */
  async look(processes: Processes): Promise<void> {
    const roles = new Map<number, Role>([...this.#seen].map(([pid, { role }]) => [pid, role]))
    for (const role of ROLES) for (const pid of processes[role]) roles.set(pid, role)
    await Promise.all(
      [...roles].map(async ([pid, role]) => {
        const stat = await readProc(pid, 'stat')
        if (stat !== undefined) this.#seen.set(pid, { role, seconds: parseCpuSeconds(stat) })
        if (role !== 'agent') return
        const peak = parsePeakBytes((await readProc(pid, 'status')) ?? '')
        this.peakAgentBytes = Math.max(this.peakAgentBytes, peak)
      }),
    )
  }

  /** What has been used between the start and the last look. */
  total(): CpuSeconds {
    const total: CpuSeconds = { subscriber: 0, provider: 0, agent: 0 }
    for (const [pid, { role, seconds }] of this.#seen) total[role] += seconds - (this.#before.get(pid) ?? 0)
    return total
  }
}

async function readProc(pid: number, file: 'stat' | 'status'): Promise<string | undefined> {
  try {
    return await readFile(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return undefined
  }
}

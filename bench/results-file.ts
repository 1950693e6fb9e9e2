import { appendFile } from 'node:fs/promises'
import { cpus, release, totalmem, type } from 'node:os'
import { renderTable } from './table.ts'
import type { WorkResult } from './summary.ts'

const FILE = new URL('RESULTS.md', import.meta.url)

/** A run of a bench with all that one needs to judge it. */
export interface RunRecord {
  /** As typed: `npm run bench -- apply --rounds 3`. */
  readonly command: string
  readonly date: Date
  readonly postgres: string
  /** What made the load. */
  readonly load: string
  readonly results: readonly WorkResult[]
  /** Remarks of whoever ran it. */
  readonly note?: string | undefined
}

/** The machine that this runs on, for people: cores, memory, system, Node. */
export function describeMachine(): string {
  const cores = cpus()
  const memory = Math.round(totalmem() / 2 ** 30)
  const model = cores[0]?.model.trim() || 'unknown processor'
  return `${cores.length} cores (${model}), ${memory} GiB, ${type()} ${release()}, Node ${process.versions.node}`
}

/** Adds a run to the end of RESULTS.md. */
export async function appendRecord(record: RunRecord): Promise<void> {
  await appendFile(FILE, renderRecord(record, describeMachine()))
}

/** The section of RESULTS.md for a run. */
export function renderRecord(record: RunRecord, machine: string): string {
  const day = record.date.toISOString().slice(0, 10)
  const lines = [
    '',
    `## ${day} · \`${record.command}\``,
    '',
    `PostgreSQL ${record.postgres} on both sides; ${machine}; load by ${record.load}; rounds: ${record.results[0]?.rounds ?? 0}.`,
    '',
    renderTable(record.results),
    ...(record.note ? ['', record.note] : []),
    '',
  ]
  return lines.join('\n')
}

import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { Command, InvalidArgumentError, Option } from 'commander'
import type { ServerVersion } from '../test/harness/servers.ts'
import { benchApply } from './apply.ts'
import { benchOverhead } from './overhead.ts'
import { appendRecord, describeMachine } from './results-file.ts'
import type { WorkResult } from './summary.ts'
import { renderTable } from './table.ts'
import { findPgbench } from './tpcb.ts'
import { bulkWork, tpcbWork } from './work.ts'

const PROFILES = fileURLToPath(new URL('profiles/', import.meta.url))
const WORKS = ['tpcb', 'bulk'] as const

interface ApplyFlags extends Flags {
  readonly transactions: number
  readonly scale: number
  readonly rows: number
  readonly work?: (typeof WORKS)[number]
  readonly cpuProf: boolean
}

function count(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('It is a whole number from 1 on.')
  return Number(text)
}

interface Flags {
  readonly rounds: number
  readonly version: ServerVersion
  readonly json: boolean
  readonly record: boolean
  readonly note?: string
}

async function apply(flags: ApplyFlags): Promise<void> {
  if (flags.cpuProf) await mkdir(PROFILES, { recursive: true })
  const works = [tpcbWork(flags.transactions, flags.scale), bulkWork(flags.rows)]
  const { serverVersion, results } = await benchApply({
    version: flags.version,
    rounds: flags.rounds,
    works: works.filter(({ id }) => flags.work === undefined || id === flags.work),
    profileDirectory: flags.cpuProf ? PROFILES : undefined,
    onProgress: (message) => console.error(message),
  })
  const load = (await findPgbench()) === undefined ? "the bench's own driver" : 'pgbench'
  if (flags.cpuProf) console.error(`CPU profiles of the agent, one for each drain: ${PROFILES}`)
  await report('apply', flags, serverVersion, load, results)
}

async function overhead(flags: Flags & { readonly rows: number }): Promise<void> {
  const { serverVersion, results } = await benchOverhead({
    version: flags.version,
    rounds: flags.rounds,
    rows: flags.rows,
    onProgress: (message) => console.error(message),
  })
  await report('overhead', flags, serverVersion, 'one session in the server', results)
}

async function report(
  bench: string,
  flags: Flags,
  serverVersion: string,
  load: string,
  results: readonly WorkResult[],
): Promise<void> {
  if (flags.json) {
    const head = { bench, postgres: serverVersion, machine: describeMachine(), load }
    console.log(JSON.stringify({ ...head, rows: results }, null, 2))
  } else {
    console.log(
      `PostgreSQL ${serverVersion}; ${describeMachine()}; load by ${load}; rounds: ${flags.rounds}\n`,
    )
    console.log(renderTable(results))
  }
  if (!flags.record) return
  const command = `npm run bench -- ${process.argv.slice(2).filter(isRecorded).join(' ')}`
  await appendRecord({ command, date: new Date(), postgres: serverVersion, load, results, note: flags.note })
}

/** Whether an argument says something about what was measured. */
function isRecorded(argument: string, index: number, all: readonly string[]): boolean {
  return (
    !['--record', '--json', '--note'].includes(argument) &&
    all[index - 1] !== '--note' &&
    !argument.startsWith('--note=')
  )
}

function addCommon(command: Command): void {
  command
    .addOption(
      new Option('--version <major>', 'PostgreSQL of both servers')
        .choices(['15', '16', '17', '18', 'system15'])
        .default('18'),
    )
    .option('--json', 'print the result as JSON', false)
    .option('--record', 'append the result to bench/RESULTS.md', false)
    .option('--note <text>', 'a remark for --record')
}

function program(): Command {
  const bench = new Command('bench').description('measures Sterna beside native logical replication')
  addCommon(
    bench
      .command('apply')
      .description('seconds and CPU to apply a backlog')
      .option('--rounds <n>', 'rounds of each row of work; medians are reported', count, 3)
      .option('--transactions <n>', 'TPC-B transactions of a round', count, 80_000)
      .option('--scale <n>', 'scale of the TPC-B tables', count, 10)
      .option('--rows <n>', 'rows of the large insert; two fifths of them are updated', count, 500_000)
      .addOption(new Option('--work <name>', 'only this row of work').choices(WORKS))
      .option('--cpu-prof', 'write V8 profiles of the agent to bench/profiles', false)
      .action(apply),
  )
  addCommon(
    bench
      .command('overhead')
      .description("what Sterna's triggers cost local writes")
      .option('--rounds <n>', 'rounds of each row of work; medians are reported', count, 5)
      .option('--rows <n>', 'rows of each row of work', count, 100_000)
      .action(overhead),
  )
  return bench
}

if (!existsSync('/proc/self/stat')) {
  console.error('error: the bench reads CPU times from /proc\nhint:  run it on Linux')
  process.exit(1)
}
try {
  await program().parseAsync()
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`)
  if (error instanceof Error && error.cause !== undefined) console.error(error.cause)
  process.exitCode = 1
}

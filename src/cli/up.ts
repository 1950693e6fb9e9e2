import { extname, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Command, Option } from 'commander'
import { SternaError } from '../core/errors.ts'
import { type LocalCluster, localDsn } from '../local/cluster-file.ts'
import { clusterPaths, nodePaths } from '../local/layout.ts'
import {
  findRunning,
  runDetached,
  runForeground,
  runInBackground,
  type RunningCluster,
  type RunOptions,
} from '../local/run-cluster.ts'
import type { MeshFunctions } from '../local/supervisor.ts'
import type { UpRequest } from '../local/prepare-cluster.ts'
import { note, print, printJson } from './output.ts'
import { DEFAULT_DIR } from './target.ts'

interface UpOptions {
  readonly dir: string
  readonly nodes?: number
  readonly port?: number
  readonly pg?: string
  readonly detach?: boolean
  readonly supervise?: boolean
  readonly json?: boolean
}

/** The exit code of a program that a Ctrl-C interrupted. */
const INTERRUPTED = 130

/**
 * `sterna up`: starts the local cluster, and creates it first where there is none. Tests replace what it runs on.
 */
export function upCommand(replaced: Partial<RunOptions> = {}): Command {
  return new Command('up')
    .description('start a local cluster: PostgreSQL servers and agents on this machine, each writable')
    .addOption(new Option('--nodes <count>', 'how many nodes (default: 3)').argParser(wholeNumber('--nodes')))
    .option('--dir <directory>', 'where the cluster lives', DEFAULT_DIR)
    .addOption(
      new Option(
        '--port <port>',
        'port of the first server; the others count up, agents are 100 above (default: 7001)',
      ).argParser(wholeNumber('--port')),
    )
    .option('--pg <version>', 'PostgreSQL: 15 to 18, or the directory of its programs (default: 18)')
    .option('--detach', 'run it in the background and return when it is ready')
    .addOption(new Option('--supervise').hideHelp())
    .option('--json', 'print one JSON document when it is ready')
    .addHelpText(
      'after',
      `
Run it again to go on with the same data. It runs until Ctrl-C; with --detach until sterna down.

Examples:
  sterna up
  sterna up --nodes 5 --port 8001 --dir /srv/sterna
  sterna up --pg /usr/lib/postgresql/17/bin --detach`,
    )
    .action((options: UpOptions) => up(options, replaced))
}

/** A cluster that exists would only say that it has another number. */
function wholeNumber(what: string): (text: string) => number {
  return (text) => {
    if (/^[1-9]\d{0,4}$/.test(text)) return Number(text)
    throw new SternaError('INVALID_VALUE', { what, value: text, expected: 'a whole number, at least 1' })
  }
}

async function up(options: UpOptions, replaced: Partial<RunOptions>): Promise<void> {
  const directory = resolve(options.dir)
  const request: UpRequest = { directory, nodes: options.nodes, port: options.port, pg: options.pg }
  const run: RunOptions = {
    mesh: MESH,
    sternaCommand: sternaCommand(),
    say: (line) => note(line),
    ...replaced,
  }
  if (options.supervise) return runInBackground(directory, run)
  const running = await findRunning(request)
  if (running) {
    note(`the local cluster in ${options.dir} runs already (process ${running.pid})`)
    return report(running, true, options)
  }
  if (options.detach) {
    const started = await runDetached(request, run)
    if (started) report(started, false, options)
    else process.exitCode = INTERRUPTED
    return
  }
  const wasReady = await runForeground(request, run, (started) => report(started, false, options))
  if (wasReady) note(`stopped; the data stays in ${shown(directory)}`)
  else process.exitCode = INTERRUPTED
}

/** Loaded when they are needed, which is once in the life of a cluster. */
const MESH: MeshFunctions = {
  async createMesh(nodes, options) {
    const { createMesh } = await import('../mesh/create-cluster.ts')
    await createMesh(nodes, options)
  },
  async waitForMesh(nodes, options) {
    const { waitForMesh } = await import('../mesh/wait-for-mesh.ts')
    await waitForMesh(nodes, options)
  },
}

/** How this very program is started again. */
function sternaCommand(): [string, string] {
  const main = new URL(`./main${extname(import.meta.url)}`, import.meta.url)
  return [process.execPath, fileURLToPath(main)]
}

function report({ cluster, pid }: RunningCluster, wasRunning: boolean, options: UpOptions): void {
  if (options.json) return printJson(describeCluster(cluster, pid, wasRunning))
  const dir = options.dir === DEFAULT_DIR ? '' : ` --dir ${shown(cluster.directory)}`
  const inForeground = !wasRunning && pid === process.pid
  print(
    '',
    `Cluster "${cluster.name}" is ready: ${cluster.nodes.length} nodes with PostgreSQL ${cluster.pg.version}, each takes writes.`,
    ...cluster.nodes.map((node) => `  ${node.name}  ${localDsn(cluster, node)}`),
    '',
    `  psql        psql "$(npx sterna dsn ${cluster.nodes[0]!.name}${dir})"`,
    `  no psql     npx sterna sql ${cluster.nodes[0]!.name}${dir} "select version()"`,
    `  status      npx sterna status${dir}`,
    `  stop        ${inForeground ? 'Ctrl-C' : `npx sterna down${dir}`}`,
    '',
  )
}

/** What `sterna up --json` prints. The password is in `password_file`. */
export function describeCluster(cluster: LocalCluster, pid: number, wasRunning: boolean): unknown {
  return {
    name: cluster.name,
    directory: cluster.directory,
    already_running: wasRunning,
    supervisor_pid: pid,
    pg: { version: cluster.pg.version, bindir: cluster.pg.binDir },
    role: cluster.role,
    database: cluster.database,
    password_file: clusterPaths(cluster.directory).passwordFile,
    nodes: cluster.nodes.map((node) => {
      const paths = nodePaths(cluster.directory, node.name)
      return {
        name: node.name,
        dsn: localDsn(cluster, node),
        port: node.port,
        http_port: node.httpPort,
        data_dir: node.dataDir,
        server_log: paths.serverLog,
        agent_log: paths.agentLog,
      }
    }),
  }
}

function shown(directory: string): string {
  const inside = relative(process.cwd(), directory)
  return inside && !inside.startsWith('..') ? inside : directory
}

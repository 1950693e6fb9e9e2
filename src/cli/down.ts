import { createInterface } from 'node:readline/promises'
import { resolve } from 'node:path'
import { Command } from 'commander'
import { SternaError } from '../core/errors.ts'
import { readLocalCluster } from '../local/cluster-file.ts'
import { destroyCluster, stopCluster } from '../local/stop-cluster.ts'
import { note, print, printJson } from './output.ts'
import { DEFAULT_DIR } from './target.ts'

interface DownOptions {
  readonly dir: string
  readonly destroy?: boolean
  readonly yes?: boolean
  readonly json?: boolean
}

/** `sterna down`: stops the local cluster, and removes it when asked to. */
export function downCommand(): Command {
  return new Command('down')
    .description('stop the local cluster; its data stays unless --destroy is given')
    .option('--dir <directory>', 'where the cluster lives', DEFAULT_DIR)
    .option('--destroy', 'also remove the cluster with all its data')
    .option('--yes', 'with --destroy: do not ask')
    .option('--json', 'print one JSON document')
    .addHelpText('after', '\nExamples:\n  sterna down\n  sterna down --destroy --yes')
    .action(down)
}

async function down(options: DownOptions): Promise<void> {
  const directory = resolve(options.dir)
  const cluster = await readLocalCluster(directory)
  if (!cluster)
    throw new SternaError('CLUSTER_NOT_FOUND', { reason: `there is no local cluster in ${options.dir}` })
  if (options.destroy && !options.yes && !(await isConfirmed(directory, cluster.nodes.length))) {
    note('nothing was changed')
    process.exitCode = 1
    return
  }
  const stopped = await stopCluster(cluster)
  if (options.destroy) await destroyCluster(cluster)
  if (options.json) {
    printJson({ name: cluster.name, directory, was_running: stopped, destroyed: options.destroy === true })
    return
  }
  print(stopped ? `stopped cluster "${cluster.name}"` : `cluster "${cluster.name}" was not running`)
  if (options.destroy) print(`removed it with its data: ${options.dir}`)
}

async function isConfirmed(directory: string, nodeCount: number): Promise<boolean> {
  if (!process.stdin.isTTY) {
    throw new SternaError('CONFIRMATION_NEEDED', { what: `removing ${directory} with all its data` })
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const answer = await terminal.question(
      `Remove ${directory} with the data of ${nodeCount} nodes? This cannot be undone. Type yes: `,
    )
    return answer.trim().toLowerCase() === 'yes'
  } finally {
    terminal.close()
  }
}

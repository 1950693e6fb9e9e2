import { setTimeout as delay } from 'node:timers/promises'

import { Command, Option } from 'commander'

import { clusterAlarms } from '../mesh/status/cluster-alarms.ts'
import { readNodeStatus } from '../mesh/status/read-node-status.ts'
import { isAway, type NodeStatus } from '../mesh/status/node-status.ts'
import { paintFor, print, printJson } from './output.ts'
import { statusDocument, statusLines, type ClusterStatus } from './status-output.ts'
import { addTargetOptions, findCluster, type ClusterTarget, type TargetOptions } from './target.ts'

const WATCH_INTERVAL_MS = 1_000

interface StatusOptions extends TargetOptions {
  readonly json?: boolean
  readonly watch?: boolean
}

/** `sterna status`: all nodes at a glance, and what to do about what is wrong. */
export function statusCommand(): Command {
  const command = new Command('status')
    .description('show nodes, subscriptions with their lag, conflicts, and alarms with what to do')
    .addOption(new Option('--json', 'print one JSON document').conflicts('watch'))
    .option('--watch', 'show it again every second until Ctrl-C')
    .addHelpText(
      'after',
      `
Exit code: 0 all is well, 5 something is not (a node away, an agent down, an alarm), 4 no node can be reached.

Examples:
  sterna status
  sterna status --watch
  sterna status --cluster shop.cluster.json --json | jq .alarms`,
    )
    .action(runStatus)
  return addTargetOptions(command)
}

async function runStatus(options: StatusOptions): Promise<void> {
  const target = await findCluster(options)
  if (options.watch) return watch(target)
  const status = await readStatus(target)
  if (options.json) printJson(statusDocument(status))
  else print(...statusLines(status, paintFor(process.stdout)))
  process.exitCode = statusExitCode(status)
}

async function readStatus(target: ClusterTarget): Promise<ClusterStatus> {
  const nodes = await Promise.all(target.nodes.map(readNodeStatus))
  const alarms = clusterAlarms(nodes)
  return {
    name: target.name,
    at: new Date(),
    nodes,
    alarms,
    ok: alarms.length === 0 && nodes.every(isSettled),
  }
}

/** A node whose subscriptions all do what they are there for. */
function isSettled(node: NodeStatus): boolean {
  return node.subscriptions.every(({ status }) => status === 'replicating' || status === 'catching_up')
}

/** 0 all is well, 5 something is not, 4 no node can be reached at all. */
export function statusExitCode({ ok, nodes }: ClusterStatus): number {
  if (ok) return 0
  return nodes.every(isAway) ? 4 : 5
}

async function watch(target: ClusterTarget): Promise<void> {
  const stop = new AbortController()
  const onSignal = (): void => stop.abort()
  process.once('SIGINT', onSignal)
  process.once('SIGTERM', onSignal)
  try {
    while (!stop.signal.aborted) {
      const lines = statusLines(await readStatus(target), paintFor(process.stdout))
      if (stop.signal.aborted) break
      show(lines)
      await delay(WATCH_INTERVAL_MS, undefined, { signal: stop.signal }).catch(() => {})
    }
  } finally {
    process.off('SIGINT', onSignal)
    process.off('SIGTERM', onSignal)
  }
}

/** On a terminal the last picture is written over in place, which does not flicker; elsewhere each is printed. */
function show(lines: readonly string[]): void {
  if (!process.stdout.isTTY) return print(...lines, '')
  const home = '\u001b[H'
  const restOfLine = '\u001b[K'
  const restOfScreen = '\u001b[J'
  // A terminal that does not know its height says 0.
  const fitting = process.stdout.rows > 0 ? lines.slice(0, Math.max(1, process.stdout.rows - 1)) : lines
  process.stdout.write(home + fitting.map((line) => `${line}${restOfLine}\n`).join('') + restOfScreen)
}

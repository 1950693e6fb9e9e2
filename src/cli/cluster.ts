import { resolve } from 'node:path'

import { Command, Option } from 'commander'

import { SternaError } from '../core/errors.ts'
import { createMesh } from '../mesh/create-cluster.ts'
import { examineServers } from '../mesh/doctor/examine.ts'
import { checkNodeNames, type MeshNode } from '../mesh/mesh-node.ts'
import { waitForMesh } from '../mesh/wait-for-mesh.ts'
import { parseDsn } from '../postgres/dsn.ts'
import { agentFiles, startAgents, writeAgentFiles, type AgentFiles } from './agent-files.ts'
import { writeClusterFile } from './cluster-file.ts'
import { blockingError, findingLines } from './doctor.ts'
import { note, paintFor, print, printJson } from './output.ts'

const FIRST_HTTP_PORT = 7101
const AGENTS_READY_MS = 120_000

interface CreateOptions {
  readonly node?: readonly string[]
  readonly region?: readonly string[]
  readonly acceptDifferentData?: boolean
  readonly startAgents?: boolean
  readonly httpPort: number
  readonly json?: boolean
}

/** `sterna cluster`: commands over clusters of servers that exist already. */
export function clusterCommand(): Command {
  return new Command('cluster')
    .description('make a cluster of servers that exist')
    .addCommand(createCommand())
}

function createCommand(): Command {
  const collect = (value: string, before: readonly string[] = []): string[] => [...before, value]
  return new Command('create')
    .description('make existing servers, PostgreSQL 15 to 18 in any mix, one multi-active database')
    .argument('<name>', 'name of the cluster')
    .addOption(new Option('--node <name=dsn>', 'a node; give it for each').argParser(collect))
    .addOption(new Option('--region <name=region>', 'where a node lives').argParser(collect))
    .option(
      '--accept-different-data',
      'go on although tables have unequal numbers of rows: nothing makes them equal',
    )
    .option('--start-agents', 'run the agents here, in the background, and wait until all replicates')
    .addOption(
      new Option('--http-port <port>', "port of the first agent's HTTP server; the others count up")
        .argParser(parsePort)
        .default(FIRST_HTTP_PORT),
    )
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
All servers are checked first, as sterna doctor does; when something blocks, nothing is changed. The tables have to be
the same everywhere, and their data too: existing rows are not copied yet. Run it again with the same nodes to complete
an attempt that was interrupted, or with more nodes to add them.

Written here, readable by you only: NAME.cluster.json, for --cluster of other commands, and NAME.<node>.agent.json, with
which each agent is run.

Examples:
  sterna cluster create shop --node n1=postgresql://sterna@db1/app --node n2=postgresql://sterna@db2/app
  sterna cluster create shop --node "n1=host=db1 dbname=app" --node "n2=host=db2 dbname=app" \\
    --region n1=eu-west --region n2=us-east --start-agents

Passwords come from PGPASSWORD too; what stands on a command line can be read by other users of this host.`,
    )
    .action(runCreate)
}

async function runCreate(name: string, options: CreateOptions): Promise<void> {
  const nodes = nodesOf(options)
  checkClusterName(name)
  note(`checking ${nodes.length} servers`)
  const examination = await examineServers(nodes)
  const blocked = blockingError(examination)
  const worthSaying = examination.findings.filter(({ severity }) => severity !== 'info')
  note(...findingLines(worthSaying, paintFor(process.stderr)))
  if (blocked) throw blocked
  const unequal = examination.findings.flatMap((finding) =>
    finding.check === 'data_differs' ? [finding.object ?? '?'] : [],
  )
  if (unequal.length > 0 && !options.acceptDifferentData)
    throw new SternaError('DATA_DIFFERS', { tables: unequal })
  await createMesh(nodes, { name, onProgress: note })

  const clusterFile = resolve(`${name}.cluster.json`)
  await writeClusterFile(clusterFile, { name, nodes })
  const files = nodes.map((node, at) => agentFiles(name, node, options.httpPort + at))
  await writeAgentFiles(files)
  if (options.startAgents) {
    await startAgents(files, note)
    await waitForMesh(nodes, { timeoutMs: AGENTS_READY_MS, onProgress: note })
  }
  if (options.json) printJson(createdDocument(name, clusterFile, files, options.startAgents === true))
  else print(...createdLines(name, clusterFile, files, options.startAgents === true))
}

/**
 * The nodes that --node and --region name. A password from the environment becomes part of the connection string, since
 * the agents elsewhere do not have that environment.
 * @throws INVALID_VALUE; NODE_NAME_TWICE; NODE_UNKNOWN; DSN_INVALID
 */
export function nodesOf(options: Pick<CreateOptions, 'node' | 'region'>, env = process.env): MeshNode[] {
  const regions = new Map((options.region ?? []).map((text) => splitPair('--region', text, 'n1=eu-west')))
  const nodes = (options.node ?? []).map((text) => {
    const [name, dsn] = splitPair('--node', text, 'n1=postgresql://user@host/database')
    return { name, dsn: withPassword(dsn, env), region: regions.get(name) }
  })
  if (nodes.length < 2)
    throw new SternaError('INVALID_VALUE', {
      what: 'number of --node options',
      value: nodes.length,
      expected: 'two or more, each --node NAME=DSN',
    })
  checkNodeNames(nodes)
  const names = nodes.map((node) => node.name)
  for (const region of regions.keys())
    if (!names.includes(region)) throw new SternaError('NODE_UNKNOWN', { node: region, nodes: names })
  return nodes
}

function splitPair(option: string, text: string, example: string): [string, string] {
  const equals = text.indexOf('=')
  if (equals > 0 && equals < text.length - 1) return [text.slice(0, equals), text.slice(equals + 1)]
  // The value is not repeated: it may be a connection string with a password.
  throw new SternaError('INVALID_VALUE', {
    what: option,
    value: '...',
    expected: `name=value, such as ${example}`,
  })
}

function withPassword(dsn: string, env: NodeJS.ProcessEnv): string {
  const password = env['PGPASSWORD']
  if (!password || parseDsn(dsn, {}).password !== undefined) return dsn
  if (!/^\s*postgres(ql)?:\/\//.test(dsn))
    return `${dsn} password='${password.replaceAll(/(['\\])/g, '\\$1')}'`
  return `${dsn}${dsn.includes('?') ? '&' : '?'}password=${encodeURIComponent(password)}`
}

function checkClusterName(name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/.test(name)) return
  throw new SternaError('INVALID_VALUE', {
    what: 'cluster name',
    value: name,
    expected: 'letters, digits, "_" and "-", at most 63',
  })
}

function parsePort(text: string): number {
  const port = Number(text)
  if (Number.isInteger(port) && port > 0 && port < 65_536) return port
  throw new SternaError('INVALID_VALUE', {
    what: '--http-port',
    value: text,
    expected: 'a port from 1 to 65535',
  })
}

function createdLines(
  name: string,
  clusterFile: string,
  files: readonly AgentFiles[],
  started: boolean,
): string[] {
  const status = `  sterna status --cluster ${name}.cluster.json`
  if (started)
    return [
      `Cluster "${name}" is ready: ${files.length} nodes, each takes writes.`,
      '',
      status,
      '',
      ...stopLines(files),
    ]
  return [
    `Cluster "${name}" is defined. Start the agents, one beside each server; take the file along:`,
    '',
    ...files.flatMap(({ node, host, command }) => [`  # ${node}, on ${host}`, `  ${command}`]),
    '',
    'Then look at it from here:',
    '',
    status,
    '',
    `The files hold passwords: ${[clusterFile, ...files.map((each) => each.configFile)].join(', ')}`,
  ]
}

function stopLines(files: readonly AgentFiles[]): string[] {
  return ['Stop the agents with:', '', ...files.map(({ pidFile }) => `  kill "$(cat ${pidFile})"`)]
}

/** The document of `sterna cluster create --json`. */
function createdDocument(
  name: string,
  clusterFile: string,
  files: readonly AgentFiles[],
  started: boolean,
): unknown {
  return {
    name,
    cluster_file: clusterFile,
    agents_started: started,
    nodes: files.map(({ node, region, configFile, command, httpAddress }) => ({
      name: node,
      region,
      agent_config_file: configFile,
      agent_command: command,
      agent_http: httpAddress,
    })),
  }
}

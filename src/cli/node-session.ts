import { Option, type Command } from 'commander'

import { SternaError } from '../core/errors.ts'
import { connectNode, type MeshNode } from '../mesh/mesh-node.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { ServerError } from '../postgres/server-error.ts'
import type { SqlParam } from '../postgres/text-values.ts'
import { note, print, printJson } from './output.ts'
import { addTargetOptions, findCluster, nodeNamed, type TargetOptions } from './target.ts'

/** What --on accepts for every node. */
const ALL = 'all'

/** Options of commands that run SQL functions on nodes. */
export interface OnNodeOptions extends TargetOptions {
  readonly on?: string
  readonly json?: boolean
}

/** Adds --on, --json and the options that find the cluster. */
export function addNodeOptions(command: Command, on: string): Command {
  return addTargetOptions(
    command.addOption(new Option('--on <node>', on)).option('--json', 'print one JSON document'),
  )
}

/**
 * The nodes on which a command that changes something runs: the one named, all of them for `all`, the only one.
 * @throws USAGE where there are several and none is named; NODE_UNKNOWN
 */
export async function nodesToChange(options: OnNodeOptions): Promise<readonly MeshNode[]> {
  const target = await findCluster(options)
  if (options.on === ALL || (options.on === undefined && target.nodes.length === 1)) return target.nodes
  if (options.on !== undefined) return [nodeNamed(target, options.on)]
  const names = target.nodes.map((node) => node.name).join(', ')
  throw new SternaError('USAGE', {
    reason: `say on which node, with --on: ${names} or all`,
    help: 'sterna help',
  })
}

/** The nodes that a list shows: the one named, or all. */
export async function nodesToList(options: OnNodeOptions): Promise<readonly MeshNode[]> {
  const target = await findCluster(options)
  return options.on === undefined || options.on === ALL ? target.nodes : [nodeNamed(target, options.on)]
}

/**
 * Runs `work` on each node in turn, with a session of its own.
 * @throws NOT_A_NODE; REFUSED where a function of schema sterna refused; what connecting and SQL throw
 */
export async function onEach<T>(
  nodes: readonly MeshNode[],
  work: (conn: PgConnection, node: MeshNode) => Promise<T>,
): Promise<T[]> {
  const results: T[] = []
  for (const node of nodes) {
    const { conn } = await connectNode(node, 'command')
    try {
      await requireNode(conn)
      results.push(await work(conn, node))
    } catch (error) {
      throw refusalOf(error, node.name)
    } finally {
      await conn.close()
    }
  }
  return results
}

/** What nodes answered, and which of them could not be asked. */
export interface Answers<T> {
  readonly rows: readonly T[]
  readonly unreachable: readonly { readonly node: string; readonly error: SternaError }[]
}

/**
 * Asks several nodes at once and puts their answers together. A node that cannot be reached is told on standard error,
 * and makes the exit code 5; when none can, its error is thrown.
 */
export async function askAll<T>(
  nodes: readonly MeshNode[],
  ask: (conn: PgConnection, node: MeshNode) => Promise<readonly T[]>,
): Promise<Answers<T>> {
  const outcomes = await Promise.all(
    nodes.map(async (node) => {
      try {
        return { node: node.name, rows: (await onEach([node], ask)).flat(), error: null }
      } catch (error) {
        if (!(error instanceof SternaError) || error.exitCode !== 4 || nodes.length === 1) throw error
        return { node: node.name, rows: [], error }
      }
    }),
  )
  const unreachable = outcomes.flatMap(({ node, error }) => (error ? [{ node, error }] : []))
  if (unreachable.length === nodes.length) throw unreachable[0]!.error
  if (unreachable.length > 0) process.exitCode = 5
  for (const { node, error } of unreachable) note(`${node}: ${error.message}`)
  return { rows: outcomes.flatMap(({ rows }) => rows), unreachable }
}

/** Runs one statement on the nodes that --on names, and says that it is done. */
export async function change(
  options: OnNodeOptions,
  sql: string,
  params: readonly SqlParam[],
  done: string,
): Promise<void> {
  const nodes = await onEach(await nodesToChange(options), async (conn, { name }) => {
    await conn.query(sql, params)
    return name
  })
  if (options.json) printJson({ done, nodes })
  else print(...nodes.map((name) => `${name}: ${done}`))
}

async function requireNode(conn: PgConnection): Promise<void> {
  const row = await conn.row<{ present: boolean }>(
    `select pg_catalog.to_regclass('sterna.local_node') is not null as present`,
  )
  if (!row?.present) throw new SternaError('NOT_A_NODE', { address: conn.address })
}

/** The SQLSTATEs of schema sterna's own refusals begin with ST; the server's text is for people already. */
export function refusalOf(error: unknown, node: string): unknown {
  if (!(error instanceof ServerError) || !error.sqlstate.startsWith('ST')) return error
  const { message, detail, hint } = error.fields
  const reason = detail ? `${message} (${detail})` : message
  return new SternaError('REFUSED', { node, reason, remedy: hint ?? 'See the documentation.' }, error)
}

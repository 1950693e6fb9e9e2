import { Command } from 'commander'

import {
  addNodeOptions,
  askAll,
  nodesToChange,
  nodesToList,
  onEach,
  type OnNodeOptions,
} from './node-session.ts'
import { formatTable, paintFor, print, printJson } from './output.ts'

interface NodeRow {
  readonly node_id: number
  readonly node_name: string
  readonly location: string | null
  readonly is_local: boolean
}

/** `sterna node`: the nodes that each node knows. */
export function nodeCommand(): Command {
  return new Command('node')
    .description('list the nodes, or take one out')
    .addCommand(listCommand())
    .addCommand(dropCommand())
}

function listCommand(): Command {
  const command = new Command('list')
    .description('list the nodes that each node knows')
    .addHelpText('after', '\nExamples:\n  sterna node list\n  sterna node list --on n2 --json')
    .action(async (options: OnNodeOptions) => {
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => {
        const { rows: found } = await conn.query<NodeRow>(
          'select node_id, node_name::text, location, is_local from sterna.nodes order by node_id',
        )
        return found.map((row) => Object.assign({ on: name }, row))
      })
      if (options.json)
        return printJson({
          nodes: rows.map((row) => ({
            on: row.on,
            node_id: row.node_id,
            node_name: row.node_name,
            region: row.location,
            is_local: row.is_local,
          })),
          unreachable,
        })
      print(
        ...formatTable(
          [{ title: 'on' }, { title: 'id', align: 'right' }, { title: 'node' }, { title: 'region' }],
          rows.map((row) => [
            row.on,
            String(row.node_id),
            row.is_local ? `${row.node_name} (itself)` : row.node_name,
            row.location ?? '-',
          ]),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only what this node knows')
}

function dropCommand(): Command {
  const command = new Command('drop')
    .description('forget a node; run on the node itself, its database becomes an ordinary one')
    .argument('<name>', 'the node to forget')
    .option('--if-exists', 'no error when it is not known')
    .addHelpText(
      'after',
      `
Subscriptions that use the node have to be dropped first.

Examples:
  sterna sub drop sub_n1_n3 --on n1      # n1 no longer follows n3
  sterna node drop n3 --on n1            # n1 forgets n3
  sterna node drop n3 --on n3            # n3 itself is no node any more`,
    )
    .action(async (name: string, options: OnNodeOptions & { readonly ifExists?: boolean }) => {
      const outcomes = await onEach(await nodesToChange(options), async (conn, node) => {
        const row = await conn.row<{ dropped: boolean }>('select sterna.node_drop($1, $2) as dropped', [
          name,
          options.ifExists ?? false,
        ])
        return { on: node.name, dropped: row?.dropped ?? false }
      })
      if (options.json) return printJson({ node: name, outcomes })
      print(
        ...outcomes.map(
          ({ on, dropped }) => `${on}: ${dropped ? `forgot node ${name}` : `knows no node ${name}`}`,
        ),
      )
    })
  return addNodeOptions(command, 'node that forgets it, or "all"')
}

import { Command } from 'commander'

import { print, printJson } from './output.ts'
import { addTargetOptions, findCluster, nodeNamed, type TargetOptions } from './target.ts'

/** `sterna dsn`: prints the connection string of a node. */
export function dsnCommand(): Command {
  const command = new Command('dsn')
    .description('print a connection string that psql and any driver takes')
    .argument('<node>', 'name of the node, such as n1')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Examples:
  psql "$(sterna dsn n1)"
  DATABASE_URL="$(sterna dsn n2)" npm run my-app

The connection string contains the password.`,
    )
    .action(async (nodeName: string, options: TargetOptions & { readonly json?: boolean }) => {
      const node = nodeNamed(await findCluster(options), nodeName)
      if (options.json) printJson({ node: node.name, dsn: node.dsn })
      else print(node.dsn)
    })
  return addTargetOptions(command)
}

import { Command, Option } from 'commander'

import { parseDsn } from '../postgres/dsn.ts'
import { addNodeOptions, askAll, change, nodesToList, type OnNodeOptions } from './node-session.ts'
import { formatBytes, formatSeconds, formatTable, paintFor, print, printable, printJson } from './output.ts'
import { findCluster, nodeNamed } from './target.ts'

/** `sterna sub`: which node follows which. */
export function subCommand(): Command {
  return new Command('sub')
    .description('subscriptions: which node follows which')
    .addCommand(listCommand())
    .addCommand(createCommand())
    .addCommand(dropCommand())
    .addCommand(switchCommand('enable', 'let a subscription go on from where it was'))
    .addCommand(switchCommand('disable', 'stop a subscription; its slot stays and holds WAL at the provider'))
}

interface SubscriptionRow {
  readonly subscription_name: string
  readonly status: string
  readonly provider_node: string | null
  readonly slot_name: string | null
  readonly replication_sets: readonly string[]
  readonly lag_bytes: bigint | null
  readonly lag_seconds: number | null
}

function listCommand(): Command {
  const command = new Command('list')
    .description('list subscriptions with their state and lag')
    .addHelpText('after', '\nExamples:\n  sterna sub list\n  sterna sub list --on n2 --json')
    .action(async (options: OnNodeOptions) => {
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => {
        const { rows: found } = await conn.query<SubscriptionRow>(
          `select subscription_name::text, status, provider_node::text, slot_name::text,
             replication_sets::text[], lag_bytes::bigint, lag_seconds::float8
           from sterna.sub_show_status() order by subscription_name`,
        )
        return found.map((row) => Object.assign({ on: name }, row))
      })
      if (options.json) return printJson({ subscriptions: rows, unreachable })
      print(
        ...formatTable(
          [
            { title: 'on' },
            { title: 'subscription' },
            { title: 'status' },
            { title: 'provider' },
            { title: 'lag', align: 'right' },
            { title: '', align: 'right' },
            { title: 'sets' },
          ],
          rows.map((row) => [
            row.on,
            printable(row.subscription_name),
            row.status,
            row.provider_node ?? '-',
            row.lag_bytes === null ? '-' : formatBytes(Number(row.lag_bytes)),
            row.lag_seconds === null ? '' : formatSeconds(row.lag_seconds),
            printable(row.replication_sets.join(', ')),
          ]),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only the subscriptions of this node')
}

interface CreateOptions extends OnNodeOptions {
  readonly provider: string
  readonly sets?: string
  readonly disabled?: boolean
}

function createCommand(): Command {
  const command = new Command('create')
    .description('let a node follow another')
    .argument('<subscription>', 'name of the subscription, such as sub_n2_n1')
    .requiredOption('--provider <node>', 'the node to follow: its name, or a connection string')
    .option(
      '--sets <names>',
      'replication sets of the provider, separated by commas (default: the built-in ones)',
    )
    .option('--disabled', 'define it, but do not start it')
    .addHelpText(
      'after',
      `
Examples:
  sterna sub create sub_n2_n1 --provider n1 --on n2
  sterna sub create sub_n2_n1 --provider n1 --on n2 --sets default,default_insert_only,ddl_sql,reports`,
    )
    .action(async (subscription: string, options: CreateOptions) => {
      const dsn = isDsn(options.provider)
        ? options.provider
        : nodeNamed(await findCluster(options), options.provider).dsn
      parseDsn(dsn)
      const sets = options.sets?.split(',').map((name) => name.trim())
      await change(
        options,
        `select sterna.sub_create(subscription_name => $1, provider_dsn => $2, enabled => $3::boolean
           ${sets ? ', replication_sets => $4::text[]' : ''})`,
        [subscription, dsn, options.disabled !== true, ...(sets ? [sets] : [])],
        `created subscription ${subscription}`,
      )
    })
  return addNodeOptions(command, 'the node that follows')
}

function isDsn(text: string): boolean {
  return text.includes('=') || text.includes('://')
}

function dropCommand(): Command {
  const command = new Command('drop')
    .description('end a subscription; the agent drops its slot at the provider')
    .argument('<subscription>', 'name of the subscription')
    .addOption(new Option('--if-exists', 'no error when there is none'))
    .addHelpText('after', '\nExamples:\n  sterna sub drop sub_n2_n1 --on n2')
    .action((subscription: string, options: OnNodeOptions & { readonly ifExists?: boolean }) =>
      change(
        options,
        'select sterna.sub_drop($1, $2)',
        [subscription, options.ifExists ?? false],
        `dropped subscription ${subscription}`,
      ),
    )
  return addNodeOptions(command, 'the node that follows')
}

function switchCommand(verb: 'enable' | 'disable', description: string): Command {
  const command = new Command(verb)
    .description(description)
    .argument('<subscription>', 'name of the subscription')
    .addHelpText('after', `\nExamples:\n  sterna sub ${verb} sub_n2_n1 --on n2`)
    .action((subscription: string, options: OnNodeOptions) =>
      change(
        options,
        `select sterna.sub_${verb}($1)`,
        [subscription],
        `${verb}d subscription ${subscription}`,
      ),
    )
  return addNodeOptions(command, 'the node that follows')
}

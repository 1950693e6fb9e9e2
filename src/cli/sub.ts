import { Argument, Command, Option } from 'commander'

import type { PgConnection } from '../postgres/connection.ts'
import { parseDsn } from '../postgres/dsn.ts'
import { addNodeOptions, askAll, change, nodesToList, type OnNodeOptions } from './node-session.ts'
import { formatBytes, formatSeconds, formatTable, paintFor, print, printable, printJson } from './output.ts'
import { findCluster, nodeNamed } from './target.ts'

/** What `on_exception` can be. */
const EXCEPTION_MODES = ['park', 'transdiscard', 'stop']

/** `sterna sub`: which node follows which. */
export function subCommand(): Command {
  return new Command('sub')
    .description('subscriptions: which node follows which')
    .addCommand(listCommand())
    .addCommand(createCommand())
    .addCommand(dropCommand())
    .addCommand(switchCommand('enable', 'let a subscription go on from where it was'))
    .addCommand(switchCommand('disable', 'stop a subscription; its slot stays and holds WAL at the provider'))
    .addCommand(onExceptionCommand())
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
        const modes = await readModes(conn)
        return found.map((row) =>
          Object.assign({ on: name }, row, { on_exception: modes.get(row.subscription_name) ?? null }),
        )
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
            { title: 'on exception' },
            { title: 'sets' },
          ],
          rows.map((row) => [
            row.on,
            printable(row.subscription_name),
            row.status,
            row.provider_node ?? '-',
            row.lag_bytes === null ? '-' : formatBytes(Number(row.lag_bytes)),
            row.lag_seconds === null ? '' : formatSeconds(row.lag_seconds),
            row.on_exception ?? '-',
            printable(row.replication_sets.join(', ')),
          ]),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only the subscriptions of this node')
}

/** What each subscription does with changes that cannot be applied; of none to a role that may not read it. */
async function readModes(conn: PgConnection): Promise<Map<string, string>> {
  const may = await conn.row<{ read: boolean }>(
    `select pg_catalog.has_table_privilege('sterna.subscription', 'SELECT') as read`,
  )
  if (!may?.read) return new Map()
  const { rows } = await conn.query<{ name: string; mode: string }>(
    'select sub_name::text as name, on_exception as mode from sterna.subscription',
  )
  return new Map(rows.map(({ name, mode }) => [name, mode]))
}

interface CreateOptions extends OnNodeOptions {
  readonly provider: string
  readonly sets?: string
  readonly disabled?: boolean
  readonly onException: string
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
    .addOption(
      new Option('--on-exception <mode>', 'what it does with a change that cannot be applied')
        .choices(EXCEPTION_MODES)
        .default('park'),
    )
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
        `select sterna.sub_create(subscription_name => $1, provider_dsn => $2, enabled => $3::boolean,
           on_exception => $4 ${sets ? ', replication_sets => $5::text[]' : ''})`,
        [subscription, dsn, options.disabled !== true, options.onException, ...(sets ? [sets] : [])],
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

function onExceptionCommand(): Command {
  const command = new Command('set-on-exception')
    .description('what a subscription does with a change that cannot be applied')
    .argument('<subscription>', 'name of the subscription')
    .addArgument(
      new Argument('<mode>', 'park the change, park its whole transaction, or stop').choices(EXCEPTION_MODES),
    )
    .addHelpText('after', '\nExamples:\n  sterna sub set-on-exception sub_n2_n1 stop --on n2')
    .action((subscription: string, mode: string, options: OnNodeOptions) =>
      change(
        options,
        'select sterna.sub_set_on_exception($1, $2)',
        [subscription, mode],
        `${subscription} is on_exception = ${mode}`,
      ),
    )
  return addNodeOptions(command, 'the node that follows')
}

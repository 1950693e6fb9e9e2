import { Command, Option } from 'commander'

import { SternaError } from '../core/errors.ts'
import { addNodeOptions, askAll, change, nodesToList, type OnNodeOptions } from './node-session.ts'
import { formatTable, paintFor, print, printable, printJson } from './output.ts'

const OPERATIONS = ['insert', 'update', 'delete', 'truncate'] as const

/** `sterna repset`: replication sets and the tables in them. */
export function repsetCommand(): Command {
  return new Command('repset')
    .description('replication sets: which tables replicate, and what of them')
    .addCommand(listCommand())
    .addCommand(createCommand())
    .addCommand(dropCommand())
    .addCommand(addTableCommand())
    .addCommand(removeTableCommand())
}

interface SetRow {
  readonly set_name: string
  readonly operations: readonly string[]
  readonly tables: readonly string[]
}

function listCommand(): Command {
  const command = new Command('list')
    .description('list replication sets and their tables')
    .addHelpText('after', '\nExamples:\n  sterna repset list\n  sterna repset list --on n1 --json')
    .action(async (options: OnNodeOptions) => {
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => {
        const { rows: found } = await conn.query<SetRow>(SETS_SQL)
        return found.map((row) => Object.assign({ on: name }, row))
      })
      if (options.json) return printJson({ replication_sets: rows, unreachable })
      print(
        ...formatTable(
          [{ title: 'on' }, { title: 'set' }, { title: 'replicates' }, { title: 'tables' }],
          rows.map((row) => [
            row.on,
            printable(row.set_name),
            row.operations.join(', '),
            printable(row.tables.join(', ')) || '-',
          ]),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only the sets of this node')
}

const SETS_SQL = `
  select s.set_name::text,
    pg_catalog.array_remove(array[
      case when s.replicate_insert then 'insert' end, case when s.replicate_update then 'update' end,
      case when s.replicate_delete then 'delete' end, case when s.replicate_truncate then 'truncate' end], null) as operations,
    (select coalesce(pg_catalog.array_agg(quote_ident(t.schema_name) || '.' || quote_ident(t.table_name)
                                          order by t.schema_name, t.table_name), '{}')
     from sterna.tables t where s.set_name = any(t.sets)) as tables
  from sterna.replication_set s order by s.set_name`

function createCommand(): Command {
  const command = new Command('create')
    .description('create a replication set')
    .argument('<set>', 'name of the set')
    .addOption(
      new Option('--replicate <operations>', 'what of its tables replicates').default(OPERATIONS.join(',')),
    )
    .addHelpText(
      'after',
      `
Examples:
  sterna repset create reports --on all
  sterna repset create archive --replicate insert,update --on n1`,
    )
    .action((set: string, options: OnNodeOptions & { readonly replicate: string }) => {
      const wanted = operationsOf(options.replicate)
      return change(
        options,
        `select sterna.repset_create($1, $2::boolean, $3::boolean, $4::boolean, $5::boolean)`,
        [set, ...OPERATIONS.map((operation) => wanted.includes(operation))],
        `created replication set ${set}`,
      )
    })
  return addNodeOptions(command, 'node to create it on, or "all"')
}

function operationsOf(text: string): string[] {
  const given = text.split(',').map((part) => part.trim())
  for (const operation of given)
    if (!(OPERATIONS as readonly string[]).includes(operation))
      throw new SternaError('INVALID_VALUE', {
        what: '--replicate',
        value: operation,
        expected: `some of ${OPERATIONS.join(', ')}, separated by commas`,
      })
  return given
}

function dropCommand(): Command {
  const command = new Command('drop')
    .description('drop a replication set; its tables stay')
    .argument('<set>', 'name of the set')
    .option('--if-exists', 'no error when there is none')
    .addHelpText('after', '\nExamples:\n  sterna repset drop reports --on all')
    .action((set: string, options: OnNodeOptions & { readonly ifExists?: boolean }) =>
      change(
        options,
        'select sterna.repset_drop($1, $2)',
        [set, options.ifExists ?? false],
        `dropped replication set ${set}`,
      ),
    )
  return addNodeOptions(command, 'node to drop it on, or "all"')
}

function addTableCommand(): Command {
  const command = new Command('add-table')
    .description('put a table into a replication set')
    .argument('<set>', 'name of the set')
    .argument('<table>', 'the table, as in SQL: orders, sales.orders, "Orders"')
    .option('--columns <names>', 'only these columns, separated by commas; the key has to be among them')
    .option('--where <condition>', 'only rows for which this SQL condition holds')
    .addHelpText(
      'after',
      `
Examples:
  sterna repset add-table default sales.orders --on all
  sterna repset add-table reports people --columns id,name --on n1
  sterna repset add-table eu people --where "region = 'eu'" --on n1`,
    )
    .action(
      (
        set: string,
        table: string,
        options: OnNodeOptions & { readonly columns?: string; readonly where?: string },
      ) =>
        change(
          options,
          `select sterna.repset_add_table(set_name => $1, relation => $2::regclass, columns => $3::text[], row_filter => $4)`,
          [set, table, options.columns?.split(',').map((name) => name.trim()), options.where],
          `${table} is in replication set ${set}`,
        ),
    )
  return addNodeOptions(command, 'node whose set it joins, or "all"')
}

function removeTableCommand(): Command {
  const command = new Command('remove-table')
    .description('take a table out of a replication set')
    .argument('<set>', 'name of the set')
    .argument('<table>', 'the table, as in SQL')
    .addHelpText('after', '\nExamples:\n  sterna repset remove-table default scratch --on all')
    .action((set: string, table: string, options: OnNodeOptions) =>
      change(
        options,
        'select sterna.repset_remove_table($1, $2::regclass)',
        [set, table],
        `${table} is not in replication set ${set} any more`,
      ),
    )
  return addNodeOptions(command, 'node whose set it leaves, or "all"')
}

import { Command, Option } from 'commander'

import { SternaError } from '../core/errors.ts'
import type { PgConnection } from '../postgres/connection.ts'
import type { SqlParam } from '../postgres/text-values.ts'
import { addNodeOptions, askAll, nodesToList, onEach, type OnNodeOptions } from './node-session.ts'
import { formatTable, note, paintFor, print, printable, printJson } from './output.ts'

/** `sterna table`: delta columns and policies, which are the same on all nodes. */
export function tableCommand(): Command {
  return new Command('table')
    .description('how conflicts of a table are decided: delta columns and policies')
    .addCommand(listCommand())
    .addCommand(addDeltaCommand())
    .addCommand(removeDeltaCommand())
    .addCommand(setPolicyCommand())
}

interface RuleRow {
  readonly table_name: string
  readonly rule: string
  readonly column_name: string | null
  readonly conflict_type: string | null
  readonly policy: string | null
  readonly merge_function: string | null
}

interface DefinitionRow {
  readonly table_name: string
  readonly definition: string
  readonly waiting_for: readonly string[]
}

function listCommand(): Command {
  const command = new Command('list')
    .description('list delta columns and policies in force, and what is under way')
    .addHelpText('after', '\nExamples:\n  sterna table list\n  sterna table list --on n1 --json')
    .action(async (options: OnNodeOptions) => {
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => [
        { on: name, ...(await readRules(conn)) },
      ])
      if (options.json) return printJson({ nodes: rows, unreachable })
      print(
        ...formatTable(
          [{ title: 'on' }, { title: 'table' }, { title: 'rule' }, { title: 'state' }],
          rows.flatMap(linesOf),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only what this node knows')
}

interface NodeRules {
  readonly on: string
  readonly rules: readonly RuleRow[]
  readonly under_way: readonly DefinitionRow[]
}

function linesOf({ on, rules, under_way: underWay }: NodeRules): string[][] {
  const inForce = rules.map((rule) => [on, printable(rule.table_name), printable(ruleText(rule)), 'in force'])
  return inForce.concat(
    underWay.map((each) => [
      on,
      printable(each.table_name),
      printable(each.definition),
      `waits for ${each.waiting_for.join(', ')}`,
    ]),
  )
}

async function readRules(conn: PgConnection): Promise<{ rules: RuleRow[]; under_way: DefinitionRow[] }> {
  const { rows: rules } = await conn.query<RuleRow>(
    `select table_name::text, rule, column_name::text, conflict_type, policy, merge_function from sterna.rules`,
  )
  const { rows: underWay } = await conn.query<DefinitionRow>(
    `select table_name, definition, waiting_for from sterna.definitions
      where state <> 'refused' and pg_catalog.cardinality(waiting_for) > 0`,
  )
  return { rules, under_way: underWay }
}

function ruleText({
  rule,
  column_name: column,
  conflict_type: type,
  policy,
  merge_function: merge,
}: RuleRow): string {
  if (column !== null) return `${rule} ${column}`
  return [policy, merge, type === null ? null : `for ${type}`].filter((part) => part !== null).join(' ')
}

interface DeclareOptions extends OnNodeOptions {
  readonly timeout: string
}

function addDeltaCommand(): Command {
  const command = new Command('add-delta')
    .description('make the values of a column sums of what all nodes contribute')
    .argument('<table>', 'the table, as in SQL: orders, sales.orders, "Orders"')
    .argument('<column>', 'smallint, integer, bigint, numeric with a scale, or money; not null')
    .addHelpText('after', '\nExamples:\n  sterna table add-delta account balance')
    .action((table: string, column: string, options: DeclareOptions) =>
      declare(
        options,
        'select sterna.delta_add($1::regclass, $2)::text as id',
        [table, column],
        `${column} of ${table} is a delta column`,
      ),
    )
  return addDeclareOptions(command)
}

function removeDeltaCommand(): Command {
  const command = new Command('remove-delta')
    .description('let the newer row win in a column again')
    .argument('<table>', 'the table, as in SQL')
    .argument('<column>', 'the delta column')
    .addHelpText('after', '\nExamples:\n  sterna table remove-delta account balance')
    .action((table: string, column: string, options: DeclareOptions) =>
      declare(
        options,
        'select sterna.delta_remove($1::regclass, $2)::text as id',
        [table, column],
        `${column} of ${table} is no delta column`,
      ),
    )
  return addDeclareOptions(command)
}

interface PolicyOptions extends DeclareOptions {
  readonly type?: string
  readonly function?: string
}

function setPolicyCommand(): Command {
  const command = new Command('set-policy')
    .description('say how conflicts of a table are decided')
    .argument('<table>', 'the table, as in SQL')
    .argument('<policy>', 'last_update_wins, manual, merge, apply_remote or keep_local')
    .option('--type <type>', 'only for this type of conflict, such as update_origin_differs')
    .option('--function <function>', 'for merge: the function, with its types, as in SQL')
    .addHelpText(
      'after',
      `
Examples:
  sterna table set-policy orders manual --type update_origin_differs
  sterna table set-policy best merge --function "higher(best, best)"
  sterna table set-policy best last_update_wins
  sterna table set-policy prices keep_local --on n2    # n2 follows, and is not followed`,
    )
    .action((table: string, policy: string, options: PolicyOptions) =>
      declare(
        options,
        'select sterna.policy_set($1::regclass, $2, $3, $4::regprocedure)::text as id',
        [table, options.type ?? null, policy, options.function ?? null],
        `policy of ${table}${options.type === undefined ? '' : ` for ${options.type}`} is ${policy}`,
      ),
    )
  return addDeclareOptions(command)
}

function addDeclareOptions(command: Command): Command {
  command.addOption(
    new Option('--timeout <seconds>', 'how long to wait until it is in force everywhere').default('60'),
  )
  return addNodeOptions(
    command,
    'node to say it to; it counts on all. The first that can be reached when left out',
  )
}

/** Declares on one node, and waits until it is in force on all. @throws REFUSED, INVALID_VALUE */
async function declare(
  options: DeclareOptions,
  sql: string,
  params: readonly SqlParam[],
  done: string,
): Promise<void> {
  const timeout = Number(options.timeout)
  if (!Number.isInteger(timeout) || timeout < 0)
    throw new SternaError('INVALID_VALUE', {
      what: '--timeout',
      value: options.timeout,
      expected: 'a whole number of seconds',
    })
  const on = await onFirst(options, async (conn) => {
    const row = await conn.row<{ id: string | null }>(sql, params)
    await conn.query('call sterna.definition_wait($1, $2)', [row!.id, timeout])
  })
  if (options.json) printJson({ done, on })
  else print(done)
}

/** Runs `work` on the node that --on names, else on the first that can be reached. Returns the node's name. */
async function onFirst(options: OnNodeOptions, work: (conn: PgConnection) => Promise<void>): Promise<string> {
  const nodes = await nodesToList(options)
  for (const [i, node] of nodes.entries()) {
    try {
      await onEach([node], work)
      return node.name
    } catch (error) {
      const isAway = error instanceof SternaError && error.exitCode === 4
      if (!isAway || i === nodes.length - 1) throw error
      note(`${node.name}: ${error.message}`)
    }
  }
  throw new SternaError('USAGE', { reason: 'the cluster has no nodes', help: 'sterna help table' })
}

import { Argument, Command } from 'commander'

import { SternaError } from '../core/errors.ts'
import { columnOrder, entryIds, formatTime, nodeOfEntry, unknownEntry } from './conflict-entries.ts'
import {
  addNodeOptions,
  askAll,
  nodesToChange,
  nodesToList,
  onEach,
  type OnNodeOptions,
} from './node-session.ts'
import { formatTable, paintFor, print, printable, printJson, type Paint } from './output.ts'
import { keyText, pairColumns, rowDiffLines, rowLines, type RowTexts } from './row-diff.ts'

/** `sterna exceptions`: changes that could not be applied. */
export function exceptionsCommand(): Command {
  return new Command('exceptions')
    .description('changes that could not be applied, and wait')
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(retryCommand())
    .addCommand(dropCommand())
}

interface ExceptionRow {
  readonly id: bigint
  readonly parked_at: string
  readonly reason: 'failed' | 'behind' | 'transaction'
  readonly origin_node: string | null
  readonly origin_node_id: number
  readonly table_name: string
  readonly operation: string
  readonly key: RowTexts
  readonly sqlstate: string | null
  readonly message: string | null
  readonly retries: number
  readonly next_retry_at: string | null
}

interface ExceptionDetails extends ExceptionRow {
  readonly detail: string | null
  readonly old_row: RowTexts
  readonly new_row: RowTexts
  readonly written_at: string | null
  readonly lsn: string
  readonly change_number: number
  readonly last_retry_at: string | null
  readonly table_oid: number | null
}

const LIST_COLUMNS = `id, ${formatTime('parked_at')}, reason, origin_node::text, origin_node_id, table_name, operation, key,
  sqlstate, message, retries, ${formatTime('next_retry_at')}`

const MAX_MESSAGE_LENGTH = 80

function listCommand(): Command {
  const command = new Command('list')
    .description('list changes that could not be applied, the oldest first')
    .addHelpText('after', '\nExamples:\n  sterna exceptions list\n  sterna exceptions list --on n2 --json')
    .action(async (options: OnNodeOptions) => {
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => {
        const { rows: found } = await conn.query<ExceptionRow>(
          `select ${LIST_COLUMNS} from sterna.exception_list order by id`,
        )
        return found.map((row) => Object.assign({ on: name }, row))
      })
      if (options.json) return printJson({ exceptions: rows, unreachable })
      print(
        ...formatTable(
          [
            { title: 'on' },
            { title: 'id', align: 'right' },
            { title: 'parked at' },
            { title: 'from' },
            { title: 'operation' },
            { title: 'table' },
            { title: 'key' },
            { title: 'retries', align: 'right' },
            { title: 'why' },
          ],
          rows.map((row) => [
            row.on,
            String(row.id),
            row.parked_at,
            originOf(row),
            row.operation,
            printable(row.table_name),
            keyText(row.key),
            String(row.retries),
            shortReason(row),
          ]),
          paintFor(process.stdout),
        ),
      )
    })
  return addNodeOptions(command, 'only those of this node')
}

function originOf({ origin_node, origin_node_id }: ExceptionRow): string {
  return origin_node ?? `#${origin_node_id}`
}

function reasonOf({ reason, sqlstate, message }: ExceptionRow): string {
  if (reason === 'behind') return 'waits behind an earlier change to its key'
  if (reason === 'transaction') return 'another change of its transaction failed'
  return printable([sqlstate, message].filter((part) => part !== null).join(' '))
}

function shortReason(row: ExceptionRow): string {
  const reason = reasonOf(row)
  return reason.length > MAX_MESSAGE_LENGTH ? `${reason.slice(0, MAX_MESSAGE_LENGTH)}...` : reason
}

function showCommand(): Command {
  const command = new Command('show')
    .description('show a change with its rows and why it failed')
    .argument('<id>', 'its id on that node')
    .addHelpText('after', '\nExamples:\n  sterna exceptions show 4 --on n2')
    .action(async (id: string, options: OnNodeOptions) => {
      const node = await nodeOfEntry(options)
      const [wanted] = entryIds([id])
      const [found] = await onEach([node], async (conn, { name }) => {
        const row = await conn.row<ExceptionDetails>(
          `select ${LIST_COLUMNS}, detail, old_row, new_row, ${formatTime('written_at')}, lsn::text, change_number,
             ${formatTime('last_retry_at')}, table_oid from sterna.exception_list where id = $1`,
          [wanted!],
        )
        if (!row) throw unknownEntry(name, `exception ${id}`, 'sterna exceptions list')
        return { row, order: await columnOrder(conn, row.table_oid) }
      })
      const { row, order } = found!
      if (options.json) return printJson({ exception: { on: node.name, ...row } })
      print(...detailLines(node.name, row, order, paintFor(process.stdout)))
    })
  return addNodeOptions(command, 'the node that has it')
}

/** The text of `sterna exceptions show`. */
export function detailLines(
  node: string,
  row: ExceptionDetails,
  order: readonly string[],
  paint: Paint,
): string[] {
  const facts: [string, string][] = [
    ['change', `${row.operation} on ${printable(row.table_name)}${row.key ? `, ${keyText(row.key)}` : ''}`],
    [
      'written',
      `on ${originOf(row)} at ${row.written_at ?? '?'} (change ${row.change_number} of the transaction at ${row.lsn})`,
    ],
    ['parked', `at ${row.parked_at}`],
    ['why', reasonOf(row)],
    ...(row.detail ? [['', printable(row.detail)] as [string, string]] : []),
    ['tried again', row.last_retry_at ? `${row.retries} times, last at ${row.last_retry_at}` : 'not yet'],
    ['next', row.next_retry_at ? `at ${row.next_retry_at}` : 'on demand'],
  ]
  const both = row.old_row !== null && row.new_row !== null
  const rows = both
    ? rowDiffLines(pairColumns(row.old_row, row.new_row, order), ['old row', 'new row'], paint)
    : rowLines(row.new_row ?? row.old_row, row.new_row ? 'new row' : 'old row', order, paint)
  return [
    paint('bold', `exception ${row.id} on ${node}`),
    ...facts.map(([name, value]) => `${name.padEnd(12)} ${value}`),
    ...(row.new_row || row.old_row ? ['', ...rows] : []),
    '',
    `Remove the cause, then: sterna exceptions retry ${row.id} --on ${node}`,
  ]
}

function retryCommand(): Command {
  const command = new Command('retry')
    .description('try changes again now, each after what it waits for')
    .argument('[ids...]', 'their ids on that node')
    .option('--all', 'all of them')
    .addHelpText(
      'after',
      `
The agent does it at once; what succeeds is gone from the list.

Examples:
  sterna exceptions retry 4 5 --on n2
  sterna exceptions retry --all --on all`,
    )
    .action(async (ids: string[], options: OnNodeOptions & { readonly all?: boolean }) => {
      if (ids.length > 0 === (options.all === true))
        throw new SternaError('USAGE', {
          reason: 'say which exceptions: their ids, or --all',
          help: 'sterna exceptions retry --help',
        })
      const wanted = options.all ? [null] : entryIds(ids)
      const nodes = options.all ? await nodesToChange(options) : [await nodeOfEntry(options)]
      const asked = await onEach(nodes, (conn, { name }) =>
        conn.transaction(async () => {
          let count = 0n
          for (const id of wanted) {
            const row = await conn.row<{ n: bigint }>('select sterna.exception_retry($1) as n', [id])
            count += row!.n
          }
          return { on: name, count }
        }),
      )
      if (options.json) return printJson({ asked })
      print(
        ...asked.map(
          ({ on, count }) => `${on}: ${count} ${count === 1n ? 'change is' : 'changes are'} tried again now`,
        ),
      )
    })
  return addNodeOptions(command, 'the node that has them; with --all also "all"')
}

function dropCommand(): Command {
  const command = new Command('drop')
    .description('give up a change for good: it is not applied on this node any more')
    .addArgument(new Argument('<ids...>', 'their ids on that node'))
    .option('--yes', 'do not ask')
    .addHelpText(
      'after',
      `
Other nodes keep what they have of it: the row may differ from now on. What waits behind it stays, in order.

Examples:
  sterna exceptions drop 4 --on n2 --yes`,
    )
    .action(async (ids: string[], options: OnNodeOptions & { readonly yes?: boolean }) => {
      const node = await nodeOfEntry(options)
      const wanted = entryIds(ids)
      if (!options.yes)
        throw new SternaError('CONFIRMATION_NEEDED', { what: `dropping ${ids.join(', ')} on ${node.name}` })
      const [dropped] = await onEach([node], (conn) =>
        conn.transaction(async () => {
          const all: unknown[] = []
          for (const id of wanted)
            all.push(
              await conn.row(
                `select id, origin_node_id, table_name, operation, key, old_row, new_row, sqlstate, message
                 from sterna.exception_drop($1)`,
                [id],
              ),
            )
          return all
        }),
      )
      if (options.json) return printJson({ on: node.name, dropped })
      print(...ids.map((id) => `${node.name}: dropped exception ${id}`))
    })
  return addNodeOptions(command, 'the node that has them')
}

import { Command, Option } from 'commander'

import { SternaError } from '../core/errors.ts'
import { columnOrder, entryIds, formatTime, nodeOfEntry, unknownEntry } from './conflict-entries.ts'
import { conflictLines, labelOf, type ConflictDetails, type ConflictRow } from './conflict-text.ts'
import { addNodeOptions, askAll, nodesToList, onEach, type OnNodeOptions } from './node-session.ts'
import { formatTable, paintFor, print, printable, printJson, type Paint } from './output.ts'
import { keyText } from './row-diff.ts'

/** `sterna conflicts`: what was decided, and what a person should look at. */
export function conflictsCommand(): Command {
  return new Command('conflicts')
    .description('conflicts: how they ended, and those that wait for a person')
    .addCommand(listCommand())
    .addCommand(showCommand())
    .addCommand(resolveCommand())
}

const LIST_COLUMNS = `kind, id, ${formatTime('recorded_at')}, conflict_type, reason, table_name, key,
  local_node::text, local_node_id, ${formatTime('local_at')}, remote_node::text, remote_node_id, ${formatTime('remote_at')},
  resolution, policy, concurrent, review_id, review_open, ${formatTime('closed_at')}, closed_by`

interface ListOptions extends OnNodeOptions {
  readonly type?: string
  readonly table?: string
  readonly since?: string
  readonly open?: boolean
  readonly limit: string
}

function listCommand(): Command {
  const command = new Command('list')
    .description('list conflicts, the newest first; open entries of the review queue are marked')
    .option(
      '--type <type>',
      'only of this type (update_origin_differs) or reason (manual, set_aside, remainder, orphan)',
    )
    .option('--table <table>', 'only of this table, as in SQL')
    .option('--since <time>', 'only what was recorded since then: 30m, 2h, 7d, or a timestamp')
    .option('--open', 'only what waits for a person')
    .addOption(new Option('--limit <number>', 'at most so many of each node').default('100'))
    .addHelpText(
      'after',
      `
Examples:
  sterna conflicts list --open
  sterna conflicts list --table orders --since 2h --on n1
  sterna conflicts list --type update_deleted --json`,
    )
    .action(async (options: ListOptions) => {
      const { sql, params } = listQuery(options)
      const { rows, unreachable } = await askAll(await nodesToList(options), async (conn, { name }) => {
        const { rows: found } = await conn.query<ConflictRow>(sql, params)
        return found.map((row) => Object.assign({ on: name }, row))
      })
      if (options.json) return printJson({ conflicts: rows, unreachable })
      const paint = paintFor(process.stdout)
      print(
        ...formatTable(
          [
            { title: 'on' },
            { title: 'id' },
            { title: 'at' },
            { title: 'type' },
            { title: 'table' },
            { title: 'key' },
            { title: 'outcome' },
            { title: 'review' },
          ],
          rows.map((row) => [
            row.on,
            labelOf(row),
            row.recorded_at,
            row.conflict_type ?? row.reason ?? '-',
            printable(row.table_name),
            keyText(row.key),
            row.resolution ?? row.reason ?? '-',
            reviewCell(row, paint),
          ]),
          paint,
        ),
      )
    })
  return addNodeOptions(command, 'only those of this node')
}

/** What --type, --table, --since, --open and --limit ask for. */
export function listQuery(options: Omit<ListOptions, keyof OnNodeOptions>): {
  sql: string
  params: (string | boolean | null)[]
} {
  if (!/^[1-9]\d{0,5}$/.test(options.limit))
    throw new SternaError('INVALID_VALUE', {
      what: '--limit',
      value: options.limit,
      expected: 'a number from 1',
    })
  const since = options.since === undefined ? null : sinceOf(options.since)
  return {
    sql: `select ${LIST_COLUMNS} from sterna.conflict_list c
      where ($1::text is null or c.conflict_type = $1 or c.reason = $1)
        and ($2::text is null or c.table_name = $2 or c.table_oid = sterna.root_table(pg_catalog.to_regclass($2)))
        and ($3::interval is null or c.recorded_at >= pg_catalog.now() - $3::interval)
        and ($4::timestamptz is null or c.recorded_at >= $4::timestamptz)
        and (c.review_open or not $5::boolean)
      order by c.recorded_at desc, c.id desc limit ${options.limit}`,
    params: [
      options.type ?? null,
      options.table ?? null,
      since && 'interval' in since ? since.interval : null,
      since && 'time' in since ? since.time : null,
      options.open === true,
    ],
  }
}

function sinceOf(text: string): { readonly interval: string } | { readonly time: string } {
  const duration = /^(\d{1,6})\s*(s|m|min|h|d)$/.exec(text)
  if (duration) {
    const unit = { s: 'seconds', m: 'minutes', min: 'minutes', h: 'hours', d: 'days' }[duration[2]!]!
    return { interval: `${duration[1]} ${unit}` }
  }
  const at = new Date(/\d$/.test(text) && text.includes(':') ? `${text}Z` : text)
  if (!/^\d{4}-\d\d-\d\d/.test(text) || Number.isNaN(at.getTime()))
    throw new SternaError('INVALID_VALUE', {
      what: '--since',
      value: text,
      expected: 'a duration such as 30m, 2h, 7d, or a time such as 2026-11-21 06:40 (UTC)',
    })
  return { time: at.toISOString() }
}

function reviewCell({ review_id, review_open, closed_by }: ConflictRow, paint: Paint): string {
  if (review_id === null) return ''
  return review_open ? paint('yellow', `r${review_id} open`) : `r${review_id} ${closed_by ?? 'closed'}`
}

function showCommand(): Command {
  const command = new Command('show')
    .description('show both rows of a conflict side by side, and why one of them won')
    .argument('<id>', 'h4 or r2, as the list has it')
    .addHelpText(
      'after',
      '\nExamples:\n  sterna conflicts show h4 --on n2\n  sterna conflicts show r2 --on n2 --json',
    )
    .action(async (label: string, options: OnNodeOptions) => {
      const node = await nodeOfEntry(options)
      const { kind, id } = parseLabel(label)
      const [found] = await onEach([node], async (conn, { name }) => {
        const row = await conn.row<ConflictDetails>(
          `select ${LIST_COLUMNS}, local_row, remote_row, detail, table_oid from sterna.conflict_list
           where ${kind === 'history' ? "kind = 'history' and id = $1" : 'review_id = $1'}`,
          [id],
        )
        if (!row) throw unknownEntry(name, `conflict ${label}`, 'sterna conflicts list')
        return { row, order: await columnOrder(conn, row.table_oid) }
      })
      const { row, order } = found!
      if (options.json) return printJson({ conflict: { on: node.name, ...row } })
      print(...conflictLines(node.name, row, order, paintFor(process.stdout)))
    })
  return addNodeOptions(command, 'the node that has it')
}

function parseLabel(label: string): { readonly kind: 'history' | 'review'; readonly id: bigint } {
  const match = /^([hr])(\d{1,18})$/.exec(label)
  if (!match)
    throw new SternaError('INVALID_VALUE', {
      what: 'id',
      value: label,
      expected: 'h and a number (history) or r and a number (review queue), as sterna conflicts list has it',
    })
  return { kind: match[1] === 'h' ? 'history' : 'review', id: BigInt(match[2]!) }
}

interface ResolveOptions extends OnNodeOptions {
  readonly keep?: 'local' | 'remote'
  readonly row?: string
  readonly dismiss?: boolean
}

function resolveCommand(): Command {
  const command = new Command('resolve')
    .description('settle an entry of the review queue, on all nodes')
    .argument('<id>', 'r2, as the list has it')
    .addOption(
      new Option('--keep <which>', 'the row as it is now on that node, or the other one').choices([
        'local',
        'remote',
      ]),
    )
    .option('--row <json>', 'these columns: {"column": "value"}')
    .option('--dismiss', 'write nothing')
    .addHelpText(
      'after',
      `
Writes the row on that node, from where it goes to all others as any write, and closes the entry everywhere.

Examples:
  sterna conflicts resolve r2 --on n1 --keep remote
  sterna conflicts resolve r2 --on n1 --row '{"email": "other@example.org"}'
  sterna conflicts resolve r2 --on n1 --dismiss`,
    )
    .action(async (label: string, options: ResolveOptions) => {
      const { choice, given } = choiceOf(options)
      const [id] = entryIds([/^r\d+$/.test(label) ? label.slice(1) : label])
      const node = await nodeOfEntry(options)
      const [outcome] = await onEach([node], async (conn) => {
        const row = await conn.row<{ done: string }>('select sterna.review_resolve($1, $2, $3) as done', [
          id!,
          choice,
          given,
        ])
        return row!.done
      })
      if (options.json) return printJson({ on: node.name, review_id: id, choice, outcome })
      print(
        `${node.name}: settled r${id} (${choice}); ${outcome === 'nothing' ? 'nothing was written' : `the row was ${outcome}`}`,
      )
    })
  return addNodeOptions(command, 'the node that has it')
}

/**
 * The choice that the options make.
 * @throws USAGE unless it is one; INVALID_VALUE
 */
export function choiceOf({ keep, row, dismiss }: Omit<ResolveOptions, keyof OnNodeOptions>): {
  choice: string
  given: string | null
} {
  const count = [keep, row, dismiss].filter((each) => each !== undefined).length
  if (count !== 1)
    throw new SternaError('USAGE', {
      reason: 'say one of --keep local, --keep remote, --row and --dismiss',
      help: 'sterna conflicts resolve --help',
    })
  if (row === undefined) return { choice: keep ?? 'dismiss', given: null }
  try {
    JSON.parse(row)
  } catch {
    throw new SternaError('INVALID_VALUE', {
      what: '--row',
      value: row,
      expected: 'a JSON object of columns: {"column": "value"}',
    })
  }
  return { choice: 'row', given: row }
}

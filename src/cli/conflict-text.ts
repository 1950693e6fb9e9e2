import { printable, type Paint } from './output.ts'
import { keyText, pairColumns, rowDiffLines, type RowTexts } from './row-diff.ts'

/** A line of the history, or an entry of the review queue that is in no such line. */
export interface ConflictRow {
  readonly kind: 'history' | 'review'
  readonly id: bigint
  readonly recorded_at: string
  readonly conflict_type: string | null
  /** Why it is in the review queue: manual, set_aside, remainder, orphan. */
  readonly reason: string | null
  readonly table_name: string
  readonly key: RowTexts
  readonly local_node: string | null
  readonly local_node_id: number | null
  readonly local_at: string | null
  readonly remote_node: string | null
  readonly remote_node_id: number | null
  readonly remote_at: string | null
  readonly resolution: string | null
  readonly policy: string | null
  readonly concurrent: boolean | null
  readonly review_id: bigint | null
  readonly review_open: boolean
  readonly closed_at: string | null
  readonly closed_by: string | null
}

/** One with its rows. */
export interface ConflictDetails extends ConflictRow {
  readonly local_row: RowTexts
  readonly remote_row: RowTexts
  readonly detail: string | null
  readonly table_oid: number
}

/** An id as the commands take it: h4 of the history, r2 of the review queue. */
export function labelOf({ kind, id }: ConflictRow): string {
  return `${kind === 'history' ? 'h' : 'r'}${id}`
}

/** The text of `sterna conflicts show`. */
export function conflictLines(
  node: string,
  row: ConflictDetails,
  order: readonly string[],
  paint: Paint,
): string[] {
  const facts: [string, string][] = [
    ['table', `${printable(row.table_name)}, ${keyText(row.key)}`],
    ['recorded', `at ${row.recorded_at}`],
    ['here', versionText(row.local_node, row.local_node_id, row.local_at, row.local_row)],
    ['remote', versionText(row.remote_node, row.remote_node_id, row.remote_at, row.remote_row)],
    ['outcome', outcomeText(row)],
    ['why', whyText(row)],
    ...(row.detail ? [['', printable(row.detail)] as [string, string]] : []),
    ...(row.review_id === null ? [] : [['review', reviewText(row)] as [string, string]]),
  ]
  const pairs = pairColumns(row.local_row, row.remote_row, order)
  const titles = [
    `here (${nodeText(row.local_node, row.local_node_id)})`,
    `remote (${nodeText(row.remote_node, row.remote_node_id)})`,
  ] as const
  return [
    paint('bold', `${row.conflict_type ?? row.reason ?? 'conflict'}: ${labelOf(row)} on ${node}`),
    ...facts.map(([name, value]) => `${name.padEnd(9)} ${value}`),
    ...(pairs.length > 0 ? ['', ...rowDiffLines(pairs, titles, paint)] : []),
    ...(row.review_open ? ['', ...choiceLines(node, row)] : []),
  ]
}

function nodeText(name: string | null, id: number | null): string {
  return name ?? (id === null ? '?' : `#${id}`)
}

function versionText(node: string | null, id: number | null, at: string | null, row: RowTexts): string {
  const presence = row === null ? 'no row' : 'a row'
  return at === null
    ? `${presence}, of unknown time`
    : `${presence}, written on ${nodeText(node, id)} at ${at}`
}

const OUTCOMES: Readonly<Record<string, string>> = {
  apply_remote: 'what arrived was applied',
  keep_local: 'what was here stays',
  merged: 'both became one row',
  set_aside: 'the older row stands aside',
  skip: 'what arrived was not applied',
}

function outcomeText({ resolution, reason }: ConflictRow): string {
  if (resolution !== null) return OUTCOMES[resolution] ?? resolution
  if (reason === 'set_aside') return OUTCOMES['set_aside']!
  if (reason === 'remainder') return 'the row is deleted, and sums of it are left'
  if (reason === 'orphan') return 'the row is here, and the row that it refers to is not'
  return 'the newer one won, and is to be looked at'
}

/** Why it ended so: by which versions, by which policy. */
export function whyText(row: ConflictRow): string {
  if (row.reason === 'set_aside') return 'it shares a unique value with a newer row'
  if (row.reason === 'remainder') return 'changes to the sums arrived that the delete did not know'
  if (row.reason === 'orphan') return 'foreign keys are not checked when changes arrive'
  if (row.policy !== null && row.policy !== 'last_update_wins' && row.policy !== 'manual')
    return `policy ${row.policy} of the table`
  const { local_at: localAt, remote_at: remoteAt } = row
  if (remoteAt === null) return 'the versions are not known'
  const known = row.concurrent === false ? '; its writer knew the other one' : ''
  const unknowing = row.concurrent === true ? '; neither writer knew the other one' : ''
  const note = `${known}${unknowing}`
  if (localAt === null) return `nothing newer was here${note}`
  if (localAt === remoteAt) {
    const winner = (row.local_node_id ?? 0) > (row.remote_node_id ?? 0) ? 'here' : 'remote'
    return `both were written at the same microsecond: the greater node id wins (${winner})${note}`
  }
  const winner = localAt > remoteAt ? 'what was here' : 'what arrived'
  return `${winner} is newer by ${secondsBetween(localAt, remoteAt)}${note}`
}

/** Times are texts of microseconds in UTC. */
function secondsBetween(a: string, b: string): string {
  const micros = (text: string): bigint => {
    const fraction = /\.(\d{6})Z$/.exec(text)?.[1] ?? '0'
    return BigInt(Date.parse(`${text.slice(0, 19).replace(' ', 'T')}Z`)) * 1000n + BigInt(fraction)
  }
  const difference = micros(a) - micros(b)
  const distance = difference < 0n ? -difference : difference
  return `${distance / 1_000_000n}.${String(distance % 1_000_000n).padStart(6, '0')} s`
}

function reviewText({ review_id, review_open, closed_at, closed_by }: ConflictRow): string {
  if (review_open) return `r${review_id} is open`
  return `r${review_id} was closed at ${closed_at ?? '?'}: ${closed_by ?? '?'}`
}

/** The commands that settle an open entry. */
function choiceLines(
  node: string,
  { review_id: id, reason, remote_row, conflict_type }: ConflictDetails,
): string[] {
  const resolve = `sterna conflicts resolve r${id} --on ${node}`
  const row = `${resolve} --row '{"column": "value"}'`
  if (reason === 'set_aside')
    return [
      `${row}   # gives this row another unique value: it returns`,
      `${resolve} --keep local   # deletes this row everywhere`,
      `${resolve} --dismiss   # leaves it aside; it returns when the value is free`,
    ]
  if (reason === 'remainder') return [`${resolve} --dismiss   # the sums stay with the key`, row]
  const hasRemote =
    reason !== 'orphan' && (remote_row !== null || conflict_type?.startsWith('delete') === true)
  return [
    `${resolve} --keep local   # the row as it is now on ${node}`,
    ...(hasRemote ? [`${resolve} --keep remote${remote_row === null ? '   # deletes it' : ''}`] : []),
    row,
    `${resolve} --dismiss   # writes nothing`,
  ]
}

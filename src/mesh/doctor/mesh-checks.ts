import type { ConnectedNode } from '../mesh-node.ts'
import { compareSchemas, formatDifference } from '../schema-compare.ts'
import type { ExaminedServer } from './examined-server.ts'
import type { Finding, Severity } from './finding.ts'
import { COUNTED_ROWS } from './row-counts.ts'
import type { ServerFacts } from './server-facts.ts'

/** What is wrong between servers that are each in order. */
export function checkTogether(
  servers: readonly ExaminedServer[],
  connected: readonly ConnectedNode[],
): Finding[] {
  if (servers.length < 2) return []
  return [
    ...checkSchemas(servers),
    ...checkAlike(servers),
    ...checkRowCounts(servers),
    ...checkLocalAddresses(connected),
  ]
}

function together(
  severity: Severity,
  check: string,
  what: string,
  fix: string | null,
  object: string | null = null,
): Finding {
  return { severity, check, server: null, object, what, fix }
}

function checkSchemas(servers: readonly ExaminedServer[]): Finding[] {
  const read = servers.flatMap(({ name, shapes }) => (shapes ? [{ node: name, tables: shapes }] : []))
  return compareSchemas(read).map((difference) =>
    together(
      'block',
      'schema_differs',
      `the tables differ: ${formatDifference(difference)}`,
      difference.kind === 'missing_table'
        ? `pg_dump --schema-only --table='${difference.table}' <a node that has it> | psql <the node that lacks it>`
        : `alter table ${difference.table} ...  -- on the node that is wrong`,
      difference.table,
    ),
  )
}

function checkAlike(servers: readonly ExaminedServer[]): Finding[] {
  const by = (of: (facts: ServerFacts) => string): Map<string, string[]> => {
    const groups = new Map<string, string[]>()
    for (const { name, facts } of servers)
      if (facts) groups.set(of(facts), [...(groups.get(of(facts)) ?? []), name])
    return groups
  }
  const spelled = (groups: Map<string, string[]>): string =>
    [...groups].map(([value, names]) => `${value} on ${names.join(', ')}`).join('; ')
  const findings: Finding[] = []
  const encodings = by((facts) => facts.encoding)
  if (encodings.size > 1)
    findings.push(
      together(
        encodings.has('SQL_ASCII') ? 'block' : 'warn',
        'encoding',
        `the encodings differ (${spelled(encodings)}): some text may not be storable everywhere`,
        `create database <name> template template0 encoding 'UTF8'  -- and load the data into it`,
      ),
    )
  const collations = by((facts) => facts.collation)
  if (collations.size > 1)
    findings.push(
      together(
        'warn',
        'collation',
        `the collations differ (${spelled(collations)}): text sorts differently`,
        null,
      ),
    )
  const versions = by((facts) => `PostgreSQL ${facts.majorVersion}`)
  if (versions.size > 1)
    findings.push(together('info', 'versions', `versions are mixed: ${spelled(versions)}`, null))
  return findings
}

function checkRowCounts(servers: readonly ExaminedServer[]): Finding[] {
  const counted = servers.flatMap(({ name, rowCounts }) => (rowCounts ? [{ name, rowCounts }] : []))
  const tables = new Set(counted.flatMap(({ rowCounts }) => [...rowCounts.keys()]))
  return [...tables].flatMap((table) => {
    const counts = counted.flatMap(({ name, rowCounts }) => {
      const rows = rowCounts.get(table)
      return rows === undefined ? [] : [{ name, rows }]
    })
    if (new Set(counts.map(({ rows }) => rows)).size < 2) return []
    const most = counts.reduce((a, b) => (b.rows > a.rows ? b : a))
    const spelled = counts.map(({ name, rows }) => `${formatCount(rows)} on ${name}`).join(', ')
    return [
      together(
        'warn',
        'data_differs',
        `the data differs: ${spelled}. Sterna does not copy existing rows yet; only what is written from now on replicates`,
        `pg_dump --data-only --table='${table}' <dsn of ${most.name}> | psql <dsn of the node that lacks rows>`,
        table,
      ),
    ]
  })
}

function formatCount(rows: number): string {
  return rows > COUNTED_ROWS ? `more than ${COUNTED_ROWS} rows` : `${rows} ${rows === 1 ? 'row' : 'rows'}`
}

/** Agents on other hosts are given the same connection strings: `localhost` is another machine for each of them. */
function checkLocalAddresses(nodes: readonly ConnectedNode[]): Finding[] {
  const isLocal = (host: string): boolean => /^(localhost|127\.|::1$|\/)/.test(host)
  const local = nodes.filter((node) => isLocal(node.target.host))
  if (local.length === 0 || local.length === nodes.length) return []
  return local.map((node) => ({
    severity: 'warn' as const,
    check: 'local_address',
    server: node.name,
    object: null,
    what: `its connection string says ${node.target.host}, which the agents on other hosts cannot reach`,
    fix: 'give the name or address by which the other hosts reach it',
  }))
}

import { Command } from 'commander'

import { SternaError } from '../core/errors.ts'
import { examineServers, type Examination } from '../mesh/doctor/examine.ts'
import type { Finding, Severity } from '../mesh/doctor/finding.ts'
import type { MeshNode } from '../mesh/mesh-node.ts'
import { addressOf, parseDsn } from '../postgres/dsn.ts'
import { formatTable, paintFor, print, printable, printJson, type Paint, type Tone } from './output.ts'
import { addTargetOptions, findCluster, nodeNamed, type TargetOptions } from './target.ts'

interface DoctorOptions extends TargetOptions {
  readonly json?: boolean
}

/** `sterna doctor`: checks servers and says how to fix what is wrong; changes nothing. */
export function doctorCommand(): Command {
  const command = new Command('doctor')
    .description('check servers for what replication needs; nothing is changed')
    .argument('[server...]', 'connection strings, or names of nodes (default: all nodes of the cluster)')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Exit code: 0 nothing blocks, 3 something does, 4 the only thing that blocks is a server that cannot be reached.

Examples:
  sterna doctor
  sterna doctor postgresql://me@db1/app postgresql://me@db2/app
  sterna doctor n2
  sterna doctor --cluster shop.cluster.json --json

Passwords are better kept out of the command line: PGPASSWORD or a cluster file.`,
    )
    .action(runDoctor)
  return addTargetOptions(command)
}

async function runDoctor(servers: string[], options: DoctorOptions): Promise<void> {
  const nodes = await serversOf(servers, options)
  const examination = await examineServers(nodes)
  if (options.json) printJson(doctorDocument(examination))
  else print(...doctorLines(examination, paintFor(process.stdout)))
  process.exitCode = doctorExitCode(examination.findings)
}

async function serversOf(servers: readonly string[], options: DoctorOptions): Promise<readonly MeshNode[]> {
  const isName = (text: string): boolean => !text.includes('=') && !text.includes('://')
  if (servers.length > 0 && !servers.some(isName)) return servers.map(serverOf)
  const target = await findCluster(options)
  if (servers.length === 0) return target.nodes
  return servers.map((text, at) => (isName(text) ? nodeNamed(target, text) : serverOf(text, at, servers)))
}

/** A server is called by its address; the same address twice is told apart by a number. */
function serverOf(dsn: string, at: number, all: readonly string[]): MeshNode {
  const address = addressOf(parseDsn(dsn))
  const before = all.slice(0, at).filter((other) => other.includes('=') || other.includes('://'))
  const same = before.filter((other) => addressOf(parseDsn(other)) === address).length
  return { name: same === 0 ? address : `${address} (${same + 1})`, dsn }
}

/** 3 when something blocks, 4 when that is only that servers cannot be reached. */
export function doctorExitCode(findings: readonly Finding[]): number {
  const blocking = findings.filter((finding) => finding.severity === 'block')
  if (blocking.length === 0) return 0
  return blocking.every(({ check }) => UNREACHABLE_CHECKS.has(check)) ? 4 : 3
}

const UNREACHABLE_CHECKS = new Set(['server_unreachable', 'connection_lost'])

/**
 * The error for an examination in which something blocks; null where nothing does.
 */
export function blockingError({ findings }: Examination): SternaError | null {
  const blocking = findings.filter((finding) => finding.severity === 'block')
  if (blocking.length === 0) return null
  return new SternaError('CHECKS_FAILED', {
    count: blocking.length,
    findings: blocking.map((finding) => `${subjectOf(finding)}: ${finding.what}`),
  })
}

/** The examination as a person reads it. */
export function doctorLines({ servers, findings }: Examination, paint: Paint): string[] {
  const table = formatTable(
    [{ title: 'server' }, { title: 'address' }, { title: 'version' }, { title: 'clock', align: 'right' }],
    servers.map(({ name, address, facts, clock }) => [
      name,
      address ?? '-',
      facts ? printable(facts.serverVersion) : '-',
      clock ? formatOffset(clock.offsetMs) : '-',
    ]),
    paint,
  )
  return [...table, '', ...findingLines(findings, paint), summaryOf(findings)]
}

/** Findings, each with its places, what it is and what fixes it; the same one on several servers is said once. */
export function findingLines(findings: readonly Finding[], paint: Paint): string[] {
  return mergedFindings(findings).flatMap(({ finding, servers }) => {
    const [label, tone] = LABELS[finding.severity]
    const subject = printable(subjectOf({ server: servers.join(', ') || null, object: finding.object }))
    const lines = [`${paint(tone, label)}  ${paint('bold', subject)}  ${printable(finding.what)}`]
    if (finding.fix)
      lines.push(...finding.fix.split('\n').map((line, at) => `       ${at === 0 ? 'fix:' : '    '} ${line}`))
    lines.push('')
    return lines
  })
}

/** Findings that differ in nothing but their server, put together where the first of them stands. */
function mergedFindings(findings: readonly Finding[]): { finding: Finding; servers: string[] }[] {
  const merged = new Map<string, { finding: Finding; servers: string[] }>()
  for (const finding of findings) {
    const { severity, check, object, what, fix, server } = finding
    const key = JSON.stringify([severity, check, object, what, fix])
    const same = merged.get(key)
    if (same && server !== null) same.servers.push(server)
    else merged.set(key, { finding, servers: server === null ? [] : [server] })
  }
  return [...merged.values()]
}

const LABELS: Readonly<Record<Severity, readonly [string, Tone]>> = {
  block: ['BLOCK', 'red'],
  warn: ['warn ', 'yellow'],
  info: ['info ', 'cyan'],
}

function subjectOf({ server, object }: Pick<Finding, 'server' | 'object'>): string {
  return [server, object].filter((part) => part !== null).join(' ') || 'all'
}

function summaryOf(findings: readonly Finding[]): string {
  if (findings.length === 0) return 'Everything is in order.'
  const of = (severity: Severity): number =>
    mergedFindings(findings).filter(({ finding }) => finding.severity === severity).length
  return `${of('block')} blocking, ${of('warn')} to mind, ${of('info')} to know.`
}

/** A clock offset with its sign. */
export function formatOffset(offsetMs: number): string {
  const rounded = Math.round(offsetMs)
  return `${rounded > 0 ? '+' : ''}${rounded} ms`
}

/** The document of `sterna doctor --json`. */
export function doctorDocument({ servers, findings }: Examination): unknown {
  return {
    ok: !findings.some((finding) => finding.severity === 'block'),
    servers: servers.map(({ name, address, facts, clock }) => ({
      name,
      address,
      server_version: facts?.serverVersion ?? null,
      clock_offset_ms: clock ? Math.round(clock.offsetMs * 1000) / 1000 : null,
    })),
    findings,
  }
}

import { SternaError } from '../../core/errors.ts'
import { connectNode, findSameDatabases, type ConnectedNode, type MeshNode } from '../mesh-node.ts'
import { readTableShapes } from '../schema-compare.ts'
import { checkClocks, measureClock } from './clock.ts'
import type { ExaminedServer } from './examined-server.ts'
import { sortFindings, type Finding } from './finding.ts'
import { checkSequenceLayout } from './layout-checks.ts'
import { checkTogether } from './mesh-checks.ts'
import { readRowCounts } from './row-counts.ts'
import { checkSequences, readSequenceFacts } from './sequence-checks.ts'
import { checkServer, OLDEST_MAJOR } from './server-checks.ts'
import { readServerFacts } from './server-facts.ts'
import { checkTables, readTableFacts } from './table-checks.ts'

/** The result of examineServers. */
export interface Examination {
  readonly servers: readonly ExaminedServer[]
  /** What blocks first. */
  readonly findings: readonly Finding[]
}

/**
 * Examines servers, each by itself and together, without changing anything on them. A server that cannot be reached is a
 * finding; it does not keep the others from being examined.
 */
export async function examineServers(nodes: readonly MeshNode[]): Promise<Examination> {
  const peers = Math.max(1, nodes.length - 1)
  const attempts = await Promise.all(nodes.map((node) => attempt(() => connectNode(node, 'doctor'))))
  const connected = attempts.flatMap((each) => (each instanceof SternaError ? [] : [each]))
  try {
    const servers = await Promise.all(
      attempts.map((each, at) =>
        each instanceof SternaError
          ? Promise.resolve(failed(nodes[at]!.name, each))
          : examineServer(each, peers),
      ),
    )
    const same = await findSameDatabases(connected)
    const findings = [
      ...servers.flatMap((server) => server.findings),
      ...same.map(sameDatabase),
      ...checkClocks(servers.flatMap((server) => server.clock ?? [])),
      ...checkTogether(servers, connected),
    ]
    return { servers, findings: sortFindings(findings) }
  } finally {
    await Promise.all(connected.map((node) => node.conn.close()))
  }
}

async function examineServer(node: ConnectedNode, peers: number): Promise<ExaminedServer> {
  const { conn, name } = node
  const examined = await attempt(async (): Promise<ExaminedServer> => {
    const facts = await readServerFacts(conn)
    const findings = checkServer(name, facts, peers)
    const base = { name, address: conn.address, facts, shapes: null, rowCounts: null, clock: null, findings }
    if (facts.majorVersion < OLDEST_MAJOR) return base
    findings.push(...checkTables(name, await readTableFacts(conn)))
    findings.push(
      ...(facts.installed
        ? await checkSequenceLayout(name, conn)
        : checkSequences(name, await readSequenceFacts(conn))),
    )
    const shapes = await readTableShapes(conn)
    const rowCounts = facts.installed ? null : await readRowCounts(conn, shapes)
    return { ...base, shapes, rowCounts, clock: await measureClock(conn, name) }
  })
  return examined instanceof SternaError ? failed(name, examined, conn.address) : examined
}

function failed(name: string, error: SternaError, address: string | null = null): ExaminedServer {
  const finding: Finding = {
    severity: 'block',
    check: error.code.toLowerCase(),
    server: name,
    object: null,
    what: error.message,
    fix: error.hint,
  }
  return { name, address, facts: null, shapes: null, rowCounts: null, clock: null, findings: [finding] }
}

function sameDatabase({ first, second }: { first: string; second: string }): Finding {
  const error = new SternaError('SAME_DATABASE_TWICE', { first, second })
  return {
    severity: 'block',
    check: 'same_database',
    server: null,
    object: null,
    what: error.message,
    fix: error.hint,
  }
}

/** The outcome of `work`, an operational error as a value. */
async function attempt<T>(work: () => Promise<T>): Promise<T | SternaError> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof SternaError) return error
    throw error
  }
}

import { describe, expect, test } from 'vitest'
import { formatLocalCluster, type LocalCluster, localDsn, parseLocalCluster } from './cluster-file.ts'
import { restartDelayMs } from './kept-process.ts'
import { nodeAddress } from './layout.ts'
import { requireSame } from './prepare-cluster.ts'
import { startOf } from './process-identity.ts'

const CLUSTER: LocalCluster = {
  directory: '/srv/app/.sterna',
  id: '0b9f2e04-1111-2222-3333-444455556666',
  name: 'local',
  createdAt: '2026-11-21T03:00:00.000Z',
  meshCreatedAt: null,
  role: 'sterna',
  database: 'app',
  pg: { wanted: '18', version: '18.4', binDir: '/pg/bin' },
  nodes: [
    { name: 'n1', port: 7001, httpPort: 7101, dataDir: '/srv/app/.sterna/n1/data' },
    { name: 'n2', port: 7002, httpPort: 7102, dataDir: '/var/lib/sterna/sterna-0b9f2e04/n2/data' },
  ],
}

describe('cluster.json', () => {
  test('what is written is what is read', () => {
    expect(parseLocalCluster(formatLocalCluster(CLUSTER), '/srv/app/.sterna')).toEqual(CLUSTER)
  })
  test('a directory that was moved takes its data along', () => {
    const moved = parseLocalCluster(formatLocalCluster(CLUSTER), '/elsewhere')
    expect(moved.nodes.map((node) => node.dataDir)).toEqual([
      '/elsewhere/n1/data',
      '/var/lib/sterna/sterna-0b9f2e04/n2/data',
    ])
  })
  test.each([
    ['no JSON', '{'],
    ['another format', '{"format":"other"}'],
    ['a node name that leads out of the directory', formatLocalCluster(CLUSTER).replace('"n1"', '"../.."')],
    ['no nodes', JSON.stringify({ ...JSON.parse(formatLocalCluster(CLUSTER)), nodes: [] })],
  ])('%s is refused', (_, text) => {
    expect(() => parseLocalCluster(text, '/x')).toThrow(
      expect.objectContaining({ code: 'CLUSTER_FILE_INVALID' }),
    )
  })
  test('connection strings', () => {
    expect(localDsn(CLUSTER, CLUSTER.nodes[0]!)).toBe('postgresql://sterna@127.0.0.1:7001/app')
    expect(localDsn(CLUSTER, CLUSTER.nodes[0]!, 'p/w')).toBe('postgresql://sterna:p%2Fw@127.0.0.1:7001/app')
  })
})

describe('going on with a cluster', () => {
  test.each([{}, { nodes: 2 }, { port: 7001 }, { pg: '18' }])('%j fits', (asked) => {
    expect(() => requireSame(CLUSTER, { directory: 'x', ...asked })).not.toThrow()
  })
  test.each([{ nodes: 3 }, { port: 7002 }, { pg: '17' }])('%j does not', (asked) => {
    expect(() => requireSame(CLUSTER, { directory: 'x', ...asked })).toThrow(
      expect.objectContaining({ code: 'CLUSTER_DIFFERS' }),
    )
  })
})

test('ports of nodes', () => {
  expect(nodeAddress(7001, 1)).toEqual({ name: 'n1', port: 7001, httpPort: 7101 })
  expect(nodeAddress(7001, 3)).toEqual({ name: 'n3', port: 7003, httpPort: 7103 })
})

test('restarts slow down and never stop', () => {
  expect([1, 2, 3].map(restartDelayMs)).toEqual([250, 500, 1000])
  expect(restartDelayMs(100)).toBe(15_000)
})

describe('the identity of a process', () => {
  const fields = (state: string): string =>
    `42 (a) b) ${state} ${Array.from({ length: 18 }, (_, i) => i).join(' ')} 987654 0 0`
  test('a command name with parentheses', () => expect(startOf(fields('S'), 'boot')).toBe('boot/987654'))
  test('a zombie is dead', () => expect(startOf(fields('Z'), 'boot')).toBeUndefined())
})

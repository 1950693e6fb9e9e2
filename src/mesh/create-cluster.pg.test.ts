import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../test/harness/servers.ts'
import { PgConnection, type Row } from '../postgres/connection.ts'
import { assignNodeIds, createMesh } from './create-cluster.ts'
import { examineServers } from './doctor/examine.ts'
import type { MeshNode } from './mesh-node.ts'
import { waitForMesh } from './wait-for-mesh.ts'

async function rowsOf<R = Row>(dsn: string, sql: string): Promise<R[]> {
  const conn = await PgConnection.connect(dsn)
  try {
    return (await conn.query<R>(sql)).rows
  } finally {
    await conn.close()
  }
}

const DEFINITIONS = `
  select (select jsonb_agg(jsonb_build_array(n.node_id, n.node_name, n.location)) from sterna.node n
          join sterna.local_node using (node_id)) as node,
    (select jsonb_agg(jsonb_build_array(s.sub_name, s.provider_dsn) order by s.sub_name) from sterna.subscription s) as subs`

const VERSIONS: readonly ServerVersion[] = ['18', 'system15', '17']

describe('three servers of different versions', () => {
  let servers: TestServers
  let nodes: MeshNode[]
  beforeAll(async () => {
    servers = await startServers({ count: 3, version: VERSIONS })
    nodes = servers.nodes.map(({ name, dsn }, at) => ({ name, dsn, region: at === 0 ? 'eu' : undefined }))
  })
  afterAll(() => servers.stop())

  const definitions = (): Promise<unknown> =>
    Promise.all(nodes.map(async ({ dsn }) => (await rowsOf(dsn, DEFINITIONS))[0]))

  it('tables that differ are refused before anything is changed', async () => {
    await rowsOf(nodes[0]!.dsn, 'create table t (id int primary key, a text)')
    await rowsOf(nodes[1]!.dsn, 'create table t (id int primary key, a text)')
    await rowsOf(nodes[2]!.dsn, 'create table t (id int primary key)')
    await expect(createMesh(nodes, { name: 'shop' })).rejects.toMatchObject({
      code: 'SCHEMA_DIFFERS',
      message: expect.stringContaining('public.t.a: missing on n3, present on n1, n2') as string,
    })
    for (const { dsn } of nodes)
      expect(await rowsOf(dsn, `select to_regnamespace('sterna')::text as found`)).toEqual([{ found: null }])
    await rowsOf(nodes[2]!.dsn, 'alter table t add a text')
  })

  it('the same database twice is refused, however it is spelt', async () => {
    const again = { name: 'n2', dsn: nodes[0]!.dsn.replace('127.0.0.1', 'localhost') }
    await expect(createMesh([nodes[0]!, again], { name: 'shop' })).rejects.toMatchObject({
      code: 'SAME_DATABASE_TWICE',
    })
    await expect(createMesh([nodes[0]!, nodes[0]!], { name: 'shop' })).rejects.toMatchObject({
      code: 'NODE_NAME_TWICE',
    })
  })

  it('a server that is away is refused before anything is changed', async () => {
    const away = { name: 'n4', dsn: 'postgresql://u:secret@127.0.0.1:1/app' }
    await expect(createMesh([...nodes, away], { name: 'shop' })).rejects.toMatchObject({
      code: 'SERVER_UNREACHABLE',
    })
    expect(await rowsOf(nodes[0]!.dsn, `select to_regnamespace('sterna')::text as found`)).toEqual([
      { found: null },
    ])
  })

  it('a half-finished attempt is completed, and running it again changes nothing', async () => {
    await createMesh(nodes.slice(0, 2), { name: 'shop' })
    await rowsOf(nodes[0]!.dsn, `select sterna.sub_drop('sub_n1_n2')`)
    const messages: string[] = []
    await createMesh(nodes, { name: 'shop', onProgress: (message) => messages.push(message) })
    expect(messages).toContain('n1: subscribes to n2')
    expect(messages).not.toContain('n2: subscribes to n1')
    const [dsn1, dsn2, dsn3] = nodes.map(({ dsn }) => dsn)
    const complete = [
      {
        node: [[1, 'n1', 'eu']],
        subs: [
          ['sub_n1_n2', dsn2],
          ['sub_n1_n3', dsn3],
        ],
      },
      {
        node: [[2, 'n2', null]],
        subs: [
          ['sub_n2_n1', dsn1],
          ['sub_n2_n3', dsn3],
        ],
      },
      {
        node: [[3, 'n3', null]],
        subs: [
          ['sub_n3_n1', dsn1],
          ['sub_n3_n2', dsn2],
        ],
      },
    ]
    expect(await definitions()).toEqual(complete)
    await createMesh(nodes, { name: 'shop' })
    expect(await definitions()).toEqual(complete)
  })

  it('tables that were there are in a replication set on every node', async () => {
    for (const { dsn } of nodes)
      expect(await rowsOf(dsn, `select sets, replicates from sterna.tables where table_name = 't'`)).toEqual([
        { sets: ['default'], replicates: 'all' },
      ])
  })

  it('the doctor knows interleaved sequences: ids of other nodes are no danger, a used one of the own is', async () => {
    const [n1] = nodes
    const behind = async (): Promise<unknown[]> =>
      (await examineServers([n1!])).findings
        .filter(({ check }) => check.startsWith('sequence'))
        .map(({ check, object, fix }) => [check, object, fix])
    await rowsOf(n1!.dsn, 'create table s (id serial primary key)')
    const [first] = await rowsOf<{ id: number }>(n1!.dsn, 'insert into s default values returning id')
    await rowsOf(n1!.dsn, `insert into s values (${first!.id + 16 * 100 + 1})`)
    expect(await behind()).toEqual([])
    await rowsOf(n1!.dsn, `insert into s values (${first!.id + 16})`)
    const fix = 'select sterna.sequences_skip_taken();'
    expect(await behind()).toEqual([['sequence_behind', 'public.s_id_seq', fix]])
    await rowsOf(n1!.dsn, fix)
    expect(await behind()).toEqual([])
  })

  it('a changed connection string is taken over', async () => {
    const moved = nodes.map((node, at) =>
      at === 0 ? { ...node, dsn: `${node.dsn}?connect_timeout=7` } : node,
    )
    await createMesh(moved, { name: 'shop' })
    expect(
      await rowsOf(
        nodes[1]!.dsn,
        `select provider_dsn from sterna.subscription where sub_name = 'sub_n2_n1'`,
      ),
    ).toEqual([{ provider_dsn: moved[0]!.dsn }])
    await createMesh(nodes, { name: 'shop' })
  })

  it('a node of another name or cluster is refused', async () => {
    await expect(
      createMesh([{ ...nodes[0]!, name: 'other' }, nodes[1]!], { name: 'shop' }),
    ).rejects.toMatchObject({
      code: 'NODE_BELONGS_ELSEWHERE',
    })
    await expect(createMesh(nodes, { name: 'else' })).rejects.toMatchObject({
      code: 'NODE_BELONGS_ELSEWHERE',
    })
  })

  it('waiting without agents ends in time and names what is missing', async () => {
    const progress: string[] = []
    await expect(
      waitForMesh(nodes, { timeoutMs: 300, onProgress: (message) => progress.push(message) }),
    ).rejects.toMatchObject({
      code: 'MESH_NOT_READY',
      message: expect.stringContaining('sub_n1_n2 (initializing)') as string,
    })
    expect(progress).toEqual(['0 of 6 subscriptions replicate'])
  })
})

describe('servers without a role "sterna", two nodes on one server', () => {
  let servers: TestServers
  beforeAll(async () => {
    servers = await startServers({ count: 1 })
  })
  afterAll(() => servers.stop())

  it('become a mesh all the same', async () => {
    const { dsn } = servers.nodes[0]!
    await rowsOf(dsn, `create role boss superuser login password 'boss'`)
    const boss = dsn.replace('sterna:sterna@', 'boss:boss@')
    await rowsOf(boss, 'alter role sterna rename to somebody')
    await rowsOf(boss, 'create database second')
    const nodes = [
      { name: 'n1', dsn: boss },
      { name: 'n2', dsn: boss.replace(/app$/, 'second') },
    ]
    await createMesh(nodes, { name: 'one-server' })
    expect(await rowsOf(nodes[1]!.dsn, 'select subscription_name from sterna.sub_show_status()')).toEqual([
      { subscription_name: 'sub_n2_n1' },
    ])
  })
})

describe('node ids', () => {
  const nodes = ['a', 'b', 'c'].map((name) => ({ name, dsn: '' }))
  const member = (
    nodeName: string,
    nodeId: number,
    knownIds: number[],
  ): Parameters<typeof assignNodeIds>[1][number] => ({
    nodeName,
    nodeId,
    knownIds,
    cluster: 'x',
  })

  it('members keep theirs, new nodes take what no member knows of', () => {
    expect(assignNodeIds(nodes, [null, null, null], 'x')).toEqual([1, 2, 3])
    expect(assignNodeIds(nodes, [null, member('b', 1, [1, 3]), null], 'x')).toEqual([2, 1, 4])
  })
})

import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { subscriptionName } from '../../src/mesh/mesh-node.ts'
import { PgConnection } from '../../src/postgres/connection.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

const SCHEMA = `
  create table item (id int primary key, v text not null);
  create table counted (id bigserial primary key, node text not null, n int not null);
  create table decimal_key (k numeric primary key, v text not null);
  create table real_key (k float8, n int, v text, primary key (k, n));
  create table tie (id int primary key, node text not null);
  create procedure write_at(keys int, first timestamptz, gap interval, me text) language plpgsql as $$
  begin
    for i in 1..keys loop
      insert into tie values (i, me);
      while clock_timestamp() < first + i * gap loop end loop;
      commit;
    end loop;
  end $$;`

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`writes on several nodes, ${layout.name}`, () => {
  let mesh: TestMesh
  let nodes: readonly MeshTestNode[]
  let n1: MeshTestNode
  let n2: MeshTestNode

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      schema: SCHEMA,
      relays: true,
    })
    nodes = mesh.nodes
    ;[n1, n2] = nodes as [MeshTestNode, MeshTestNode]
  })
  afterAll(() => mesh?.stop())

  test('writes on all nodes at once arrive everywhere, and their serial ids do not collide', async () => {
    const each = 300
    await Promise.all(
      nodes.map(async (node) => {
        for (let n = 0; n < each; n++)
          await node.query('insert into counted (node, n) values ($1, $2)', [node.name, n])
      }),
    )
    await mesh.settle()
    const hashes = await expectIdentical(nodes)
    expect(hashes['public.counted']).toMatch(new RegExp(`^${each * nodes.length} rows`))
    for (const node of nodes) {
      const counts = await node.query<{ node: string; n: bigint }>(
        'select node, count(distinct n) as n from counted group by node order by node',
      )
      expect(counts).toEqual(nodes.map(({ name }) => ({ node: name, n: BigInt(each) })))
    }
  })

  test('each application transaction is in the WAL of each node once, and when idle none is added: no loop', async () => {
    const slots = await Promise.all(nodes.map(openTestSlot))
    for (const [i, node] of nodes.entries())
      await node.query('insert into item values ($1, $2)', [i + 1, 'before'])
    await mesh.settle()
    for (const [i, node] of nodes.entries())
      await node.query('update item set v = $2 where id = $1', [((i + 1) % nodes.length) + 1, node.name])
    await mesh.settle()
    const beats = await beatsEverywhere(nodes)
    await waitUntil('three more heartbeats of every node have arrived on every node', async () => {
      const now = await beatsEverywhere(nodes)
      return now.every((count, i) => count >= beats[i]! + 3n)
    })
    for (const slot of slots) {
      const transactions = await slot.read()
      expect(transactions.length, `application transactions on ${slot.node}`).toBe(2 * nodes.length)
      expect(transactions.filter((it) => !it.fromElsewhere).length, `own ones of ${slot.node}`).toBe(2)
      expect(transactions.every((it) => it.changes === 1)).toBe(true)
      await slot.close()
    }
    await expectIdentical(nodes)
  })

  test('the same key inserted on both ends of a cut link: the later commit stands everywhere, one insert_exists', async () => {
    const before = await conflictCount(nodes, 'insert_exists')
    cut(mesh, n1, n2)
    await n1.query('insert into item values (100, $1)', ['first'])
    await arrives(n1, nodes.slice(2), "select from item where id = 100 and v = 'first'")
    await n2.query('insert into item values (100, $1)', ['second'])
    await arrives(n2, nodes.slice(2), "select from item where id = 100 and v = 'second'")
    expect(await n1.query('select v from item where id = 100')).toEqual([{ v: 'first' }])
    heal(mesh, n1, n2)
    await mesh.settle()
    for (const node of nodes)
      expect(await node.query('select v from item where id = 100'), `on ${node.name}`).toEqual([
        { v: 'second' },
      ])
    // Each node has met both: the one that lost there, or the one that won.
    await waitUntil(
      'one insert_exists is shown on each node',
      async () => (await conflictCount(nodes, 'insert_exists')) === before + nodes.length,
    )
    const [shown] = await n2.query<{ conflicts: Record<string, number> }>(
      'select conflicts from sterna.sub_show_status($1)',
      [subscriptionName('n2', 'n1')],
    )
    expect(shown!.conflicts['insert_exists']).toBe(1)
  })

  test('of two keys that are equal but look different, that of the later row stands everywhere', async () => {
    cut(mesh, n1, n2)
    await n1.exec(`insert into decimal_key values (1.0, 'first'), (2, 'x')`)
    await n1.exec(`insert into real_key values ('0', 1, 'first')`)
    await arrives(n1, nodes.slice(2), 'select from real_key where n = 1')
    await n2.exec(`insert into decimal_key values (1.00, 'second')`)
    await n2.exec(`insert into real_key values ('-0', 1, 'second')`)
    heal(mesh, n1, n2)
    await mesh.settle()
    for (const node of nodes) {
      const decimals = await node.query('select k::text, v from decimal_key order by decimal_key.k')
      expect(decimals, `on ${node.name}`).toEqual([
        { k: '1.00', v: 'second' },
        { k: '2', v: 'x' },
      ])
      expect(await node.query('select k::text, v from real_key'), `on ${node.name}`).toEqual([
        { k: '-0', v: 'second' },
      ])
    }
  })

  // Timestamps cannot be dictated: a transaction that carries an origin's timestamp carries its origin too, and is not
  // sent on. So both nodes commit the same keys at the same agreed moments, waiting for each in a loop: some commits hit
  // the same microsecond. Nothing is exchanged meanwhile. Which keys are ties is read from the commit timestamps of the local
  // rows, before anything else arrives; for those the node with the greater id must win, for the others the later one.
  test('equal timestamps from two origins: the same winner everywhere', async () => {
    const keys = 1500
    let expected: Map<number, string> | undefined
    for (let attempt = 1; attempt <= 20 && !expected; attempt++) {
      cut(mesh, n1, n2)
      for (const other of nodes.slice(2)) {
        cut(mesh, n1, other)
        cut(mesh, n2, other)
      }
      await Promise.all([n1, n2].map((node) => node.query('delete from tie')))
      const sessions = await Promise.all([n1, n2].map((node) => PgConnection.connect(node.dsn)))
      const first = new Date(Date.now() + 500)
      await Promise.all(
        sessions.map((session, i) =>
          session.query('call write_at($1, $2, $3, $4)', [keys, first, '200 us', `n${i + 1}`]),
        ),
      )
      await Promise.all(sessions.map((session) => session.close()))
      const [a, b] = await Promise.all([n1, n2].map(commitTimes))
      const ties = [...a!].filter(([id, time]) => b!.get(id) === time)
      if (ties.length > 0)
        expected = new Map([...a!].map(([id, time]) => [id, time > b!.get(id)! ? 'n1' : 'n2']))
      for (const other of nodes.slice(2)) {
        heal(mesh, n1, other)
        heal(mesh, n2, other)
      }
      heal(mesh, n1, n2)
      await mesh.settle()
      const winners = await Promise.all(
        nodes.map((node) => node.query<{ id: number; node: string }>('select id, node from tie')),
      )
      for (const [i, rows] of winners.entries()) {
        expect(rows.length).toBe(keys)
        if (!expected) continue
        const wrong = rows.filter((row) => expected!.get(row.id) !== row.node)
        expect(wrong, `wrong winners on ${nodes[i]!.name}`).toEqual([])
      }
      console.log(`commits in the same microsecond: ${ties.length} of ${keys}`)
    }
    expect(expected, 'some commits had equal timestamps').toBeDefined()
    await expectIdentical(nodes)
  })

  test('deletes and updates of rows that another node wrote', async () => {
    for (let id = 200; id < 220; id++) await n1.query('insert into item values ($1, $2)', [id, 'made on n1'])
    await mesh.settle()
    const last = nodes.at(-1)!
    await n2.query("update item set v = 'changed on n2' where id between 200 and 209")
    await last.query('delete from item where id between 210 and 219')
    await mesh.settle()
    await n1.query("update item set v = 'changed again' where id between 200 and 204")
    await n2.query('delete from item where id between 205 and 209')
    await mesh.settle()
    for (const node of nodes) {
      const [row] = await node.query<{ n: bigint; v: string }>(
        'select count(*) as n, min(v) as v from item where id between 200 and 219',
      )
      expect(row, `on ${node.name}`).toEqual({ n: 5n, v: 'changed again' })
    }
    await expectIdentical(nodes)
  })
})

function cut(mesh: TestMesh, a: MeshTestNode, b: MeshTestNode): void {
  mesh.link(a.name, b.name).cut()
  mesh.link(b.name, a.name).cut()
}

function heal(mesh: TestMesh, a: MeshTestNode, b: MeshTestNode): void {
  mesh.link(a.name, b.name).heal()
  mesh.link(b.name, a.name).heal()
}

async function arrives(from: MeshTestNode, at: readonly MeshTestNode[], query: string): Promise<void> {
  for (const node of at)
    await waitUntil(
      `${from.name}'s row is on ${node.name}`,
      async () => (await node.query(query)).length === 1,
    )
}

/** Microseconds of each row's commit, by key: exact, as text would be rounded by nothing. */
async function commitTimes(node: MeshTestNode): Promise<Map<number, bigint>> {
  const rows = await node.query<{ id: number; at: bigint }>(
    'select id, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint as at from tie order by id',
  )
  return new Map(rows.map(({ id, at }) => [id, at]))
}

/** For each pair of nodes, how many heartbeats of the one the other has. */
async function beatsEverywhere(nodes: readonly MeshTestNode[]): Promise<bigint[]> {
  const rows = await Promise.all(
    nodes.map((node) => node.query<{ beats: bigint }>('select beats from sterna.heartbeat order by node_id')),
  )
  return rows.flat().map(({ beats }) => beats)
}

async function conflictCount(nodes: readonly MeshTestNode[], type: string): Promise<number> {
  const rows = await Promise.all(
    nodes.map((node) =>
      node.query<{ conflicts: Record<string, number> }>('select conflicts from sterna.sub_show_status()'),
    ),
  )
  return rows.flat().reduce((sum, { conflicts }) => sum + (conflicts[type] ?? 0), 0)
}

interface DecodedTransaction {
  changes: number
  fromElsewhere: boolean
}

/** A slot of the test's own, which decodes what the node's WAL has of application tables, wherever it came from. */
async function openTestSlot(
  node: MeshTestNode,
): Promise<{ node: string; read(): Promise<DecodedTransaction[]>; close(): Promise<void> }> {
  const connection = await PgConnection.connect(node.dsn)
  await connection.query("select pg_create_logical_replication_slot('test_observer', 'pgoutput', true)")
  return {
    node: node.name,
    async read() {
      const { rows } = await connection.query<{ xid: string; kind: string }>(
        `select xid::text, chr(get_byte(data, 0)) as kind
           from pg_logical_slot_get_binary_changes('test_observer', null, null, 'proto_version', '1',
                                                   'publication_names', 'sterna_default,sterna_default_insert_only')`,
      )
      const transactions = new Map<string, DecodedTransaction>()
      for (const { xid, kind } of rows) {
        const transaction = transactions.get(xid) ?? { changes: 0, fromElsewhere: false }
        transactions.set(xid, transaction)
        if (kind === 'O') transaction.fromElsewhere = true
        if ('IUDT'.includes(kind)) transaction.changes++
      }
      return [...transactions.values()]
    },
    close: () => connection.close(),
  }
}

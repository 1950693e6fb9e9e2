import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { failureOf } from '../harness/failure.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'

describe('delta columns and policies take effect on all nodes at one point of each stream', () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    mesh = await startMesh({
      count: 3,
      relays: true,
      schema: `create table account (id int primary key, balance int not null, note text);
               create table quiet (id int primary key, n int not null, m int not null);
               create table hot (id int primary key, n int not null);
               create table busy (id int primary key, n int not null);
               create table best (id int primary key, score int not null);
               create function higher(best, best) returns best language sql immutable
                 return row($1.id, greatest($1.score, $2.score))::best;
               create table short (id int primary key, n int not null)`,
    })
    ;[n1, n2, n3] = [mesh.nodes[0]!, mesh.nodes[1]!, mesh.nodes[2]!]
    await n3.exec('set sterna.ddl_replication = off')
    await n3.exec('alter table short drop column n')
  })
  afterAll(() => mesh.stop())

  const declare = async (node: MeshTestNode, call: string): Promise<string> => {
    const [row] = await node.query<{ id: string }>(`select sterna.${call}::text as id`)
    return row!.id
  }
  const inForce = (node: MeshTestNode, id: string): Promise<unknown> =>
    node.query('call sterna.definition_wait($1, 40)', [id])
  const deltas = (table: string): Promise<unknown[]> =>
    Promise.all(
      mesh.nodes.map(async (node) => {
        const [row] = await node.query<{ deltas: string[] }>(
          `select sterna.table_rules('${table}'::regclass) -> 'deltas' as deltas`,
        )
        return row!.deltas
      }),
    )
  const steps = (node: MeshTestNode, id: string): Promise<unknown[]> =>
    node.query(
      'select node_id, step from sterna.definition_step where definition_id = $1 order by node_id, step',
      [id],
    )

  it('a delta column, declared while all nodes write to the table', async () => {
    await n1.query('insert into account select g, 100 from generate_series(1, 30) g')
    await mesh.settle()
    let stop = false
    const written = mesh.nodes.map(async (node, i) => {
      const client = await PgConnection.connect(node.dsn)
      let count = 0
      // Each node has rows of its own: what concurrent writes to one row come to is another test's business.
      for (; !stop; count++)
        await client.exec(
          `update account set balance = balance + 1 where id = ${i * 10 + (count % 10) + 1}; select pg_sleep(0.01)`,
        )
      await client.close()
      return count
    })
    const id = await declare(n2, `delta_add('account', 'balance')`)
    await inForce(n2, id)
    await inForce(n1, id)
    stop = true
    const counts = await Promise.all(written)
    expect(Math.min(...counts)).toBeGreaterThan(0)
    expect(await deltas('account')).toEqual([['balance'], ['balance'], ['balance']])
    await mesh.settle()
    for (const node of mesh.nodes) {
      const [sum] = await node.query<{ sum: bigint }>('select sum(balance) as sum from account')
      expect(Number(sum!.sum)).toBe(3000 + counts.reduce((a, b) => a + b))
      expect(
        await node.query(
          `select relreplident::text as identity from pg_class where oid = 'account'::regclass`,
        ),
      ).toEqual([{ identity: 'f' }])
    }
    expect(await steps(n3, id)).toEqual(
      [1, 2, 3].flatMap((node) =>
        ['active', 'closed', 'ready', 'seen'].map((step) => ({ node_id: node, step })),
      ),
    )
    await waitUntil('the gates are taken off', async () => {
      const left = await Promise.all(
        mesh.nodes.map((node) => node.query(`select 1 from pg_trigger where tgname = 'sterna_gate'`)),
      )
      return left.flat().length === 0
    })
  })

  it('all nodes write the same rows while it is declared, and taken back: all end the same', async () => {
    await n1.query('insert into hot select g, 0 from generate_series(1, 4) g')
    await mesh.settle()
    let stop = false
    const written = mesh.nodes.map(async (node) => {
      const client = await PgConnection.connect(node.dsn)
      // Not faster than it is applied elsewhere, so that what is declared does not come behind a long queue.
      for (let count = 0; !stop; count++)
        await client.exec(`update hot set n = n + 1 where id = ${(count % 4) + 1}; select pg_sleep(0.03)`)
      await client.close()
    })
    let declared = 0n
    try {
      await inForce(n1, await declare(n1, `delta_add('hot', 'n')`))
      const [row] = await n1.query<{ sum: bigint }>('select sum(n) as sum from hot')
      declared = row!.sum
      await inForce(n3, await declare(n3, `delta_remove('hot', 'n')`))
      await inForce(n2, await declare(n2, `delta_add('hot', 'n')`))
    } finally {
      stop = true
      await Promise.all(written)
    }
    await mesh.settle()
    const held = await Promise.all(mesh.nodes.map((node) => node.query('select id, n from hot order by id')))
    expect(held[1]).toEqual(held[0])
    expect(held[2]).toEqual(held[0])
    expect(declared).toBeGreaterThan(0n)
    expect(await deltas('hot')).toEqual([['n'], ['n'], ['n']])
    // And sums they are: what all add to one row adds up.
    const [before] = await n1.query<{ n: number }>('select n from hot where id = 1')
    await Promise.all(mesh.nodes.map((node) => node.query('update hot set n = n + 10 where id = 1')))
    await mesh.settle()
    for (const node of mesh.nodes)
      expect(await node.query('select n from hot where id = 1')).toEqual([{ n: before!.n + 30 }])
  })

  it('from then on the old row is sent', async () => {
    await n1.query(`select pg_create_logical_replication_slot('look', 'test_decoding')`)
    await n1.query(`update account set note = 'seen' where id = 1`)
    const rows = await n1.query<{ data: string }>(
      `select data from pg_logical_slot_get_changes('look', null, null) where data ~ 'account'`,
    )
    expect(rows.map(({ data }) => data).join('\n')).toMatch(/old-key: id\[integer\]:1 balance\[integer\]:\d+/)
    await n1.query(`select pg_drop_replication_slot('look')`)
    await mesh.settle()
  })

  it('a transaction that does not end keeps the gate open for all others, until it ends', async () => {
    const holder = await PgConnection.connect(n2.dsn)
    try {
      await holder.exec('begin; insert into busy values (1, 1)')
      const id = await declare(n1, `delta_add('busy', 'n')`)
      await waitUntil('n2 is the last one', async () => {
        const [row] = await n1.query<{ waiting: string[] }>(
          'select waiting_for as waiting from sterna.definitions where definition_id = $1',
          [id],
        )
        return row!.waiting.join() === 'n2'
      })
      // Writers of n2 are held up for moments only.
      await n2.query('insert into busy values (2, 2)')
      await holder.exec('commit')
      await inForce(n1, id)
      expect(await deltas('busy')).toEqual([['n'], ['n'], ['n']])
      await n2.query('insert into busy values (3, 3)')
    } finally {
      await holder.close()
    }
  })

  it('two columns of a table, one after the other; then one goes again', async () => {
    await inForce(n1, await declare(n1, `delta_add('quiet', 'n')`))
    await inForce(n3, await declare(n3, `delta_add('quiet', 'm')`))
    expect(await deltas('quiet')).toEqual([
      ['m', 'n'],
      ['m', 'n'],
      ['m', 'n'],
    ])
    await inForce(n2, await declare(n2, `delta_remove('quiet', 'm')`))
    expect(await deltas('quiet')).toEqual([['n'], ['n'], ['n']])
  })

  it('policies: manual at once, merge behind a fence', async () => {
    await inForce(n1, await declare(n1, `policy_set('best', 'update_origin_differs', 'manual')`))
    await n1.query('insert into best values (1, 5)')
    await inForce(n1, await declare(n1, `policy_set('best', null, 'merge', 'higher(best, best)')`))
    for (const node of mesh.nodes)
      expect(
        await node.query(
          `select conflict_type, policy, merge_function from sterna.rules where table_name = 'best'::regclass`,
        ),
      ).toEqual([
        { conflict_type: 'update_origin_differs', policy: 'manual', merge_function: null },
        { conflict_type: null, policy: 'merge', merge_function: 'public.higher' },
      ])
    await n3.query('update best set score = 3 where id = 1')
    expect(await n3.query('select score from best')).toEqual([{ score: 5 }])
    await inForce(n2, await declare(n2, `policy_unset('best')`))
    for (const node of mesh.nodes)
      expect(await node.query(`select 1 from sterna.rules where table_name = 'best'::regclass`)).toEqual([])
  })

  it('a node where it is not possible refuses it for all, and says why', async () => {
    const id = await declare(n1, `delta_add('short', 'n')`)
    expect(await failureOf(inForce(n1, id))).toMatchObject({
      sqlstate: 'ST164',
      message: 'the definition was refused: n3: there is no such column',
    })
    await waitUntil('all have refused', async () =>
      (await Promise.all(mesh.nodes.map((node) => steps(node, id)))).every(
        (taken) => taken.filter((step) => (step as { step: string }).step === 'refused').length === 3,
      ),
    )
    await n3.exec('alter table short add column n int not null')
    await inForce(n1, await declare(n1, `delta_add('short', 'n')`))
  })

  it('an agent that is killed while its gate is shut', async () => {
    // n2 does not learn that n3 has closed, and holds its gate.
    await n1.query('create table killed (id int primary key, n int not null)')
    await mesh.settle()
    const holder = await PgConnection.connect(n3.dsn)
    await holder.exec('begin; insert into killed values (1, 1)')
    const id = await declare(n1, `delta_add('killed', 'n')`)
    const shut = (): Promise<unknown[]> =>
      n2.query(
        `select 1 from sterna.definition_step where definition_id = $1 and node_id = 2 and step = 'closed'`,
        [id],
      )
    await waitUntil('n2 has shut its gate', async () => (await shut()).length > 0)
    await n2.agent.kill9()
    // The gate is open at once: this does not wait.
    await n2.query('insert into killed values (2, 2)')
    await holder.exec('commit')
    await holder.close()
    await n2.agent.start()
    expect(await failureOf(inForce(n1, id))).toMatchObject({
      sqlstate: 'ST164',
      message: expect.stringMatching(
        /^the definition was refused: n[123]: (the agent was interrupted|no answer from)/,
      ),
    })
    await mesh.settle()
    expect(await deltas('killed')).toEqual([[], [], []])
    const held = await Promise.all(
      mesh.nodes.map((node) => node.query('select id, n from killed order by id')),
    )
    expect(held).toEqual(
      Array.from({ length: 3 }, () => [
        { id: 1, n: 1 },
        { id: 2, n: 2 },
      ]),
    )
  })

  it('a node that is away: nobody waits for it, and it is named', async () => {
    await n1.query('create table away (id int primary key, n int not null)')
    await mesh.settle()
    await n3.agent.stop()
    const id = await declare(n1, `delta_add('away', 'n')`)
    await n1.query('insert into away values (1, 1)')
    await n2.query('insert into away values (2, 2)')
    expect(await failureOf(inForce(n1, id))).toMatchObject({
      sqlstate: 'ST164',
      message: expect.stringMatching(/no answer from n3/),
    })
    await n3.agent.start()
    await mesh.settle()
    expect(await deltas('away')).toEqual([[], [], []])
    await waitUntil('n3 knows', async () => (await steps(n3, id)).length > 3)
    await inForce(n1, await declare(n1, `delta_add('away', 'n')`))
    expect(await deltas('away')).toEqual([['n'], ['n'], ['n']])
  })
})

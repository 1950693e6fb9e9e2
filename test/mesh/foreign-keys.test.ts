import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

const layout = await testLayout()

interface Entry {
  readonly key: Readonly<Record<string, string>>
  readonly resolution: string | null
  readonly detail: string
}

describe.skipIf(layout.missing !== null)(`foreign keys, ${layout.name}`, () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      relays: true,
      schema: `create table parent (region text, id int, note text default 'made', primary key (region, id));
        create table child (id int primary key, region text, parent_id int, v text,
          constraint of_parent foreign key (region, parent_id) references parent);
        create index on child (region, parent_id);
        create table grandchild (id int primary key, child_id int not null references child on delete cascade);
        create table strict (id int primary key, region text not null, parent_id int not null check (parent_id > 0),
          constraint of_parent foreign key (region, parent_id) references parent)`,
    })
    ;[n1, n2, n3] = mesh.nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
  })
  afterAll(() => mesh?.stop())

  const cut = (): void => {
    for (const a of mesh.nodes) for (const b of mesh.nodes) if (a !== b) mesh.link(a.name, b.name).cut()
  }
  const heal = (): void => {
    for (const a of mesh.nodes) for (const b of mesh.nodes) if (a !== b) mesh.link(a.name, b.name).heal()
  }
  /** n1 deletes a parent while n2 gives it a child. */
  const race = async (id: number, child: string): Promise<void> => {
    await n1.query(`insert into parent values ('eu', ${id}, 'first')`)
    await mesh.settle()
    cut()
    await n1.query(`delete from parent where id = ${id}`)
    await n2.exec(child)
    heal()
    await mesh.settle()
  }
  const entries = (node: MeshTestNode, key: string): Promise<Entry[]> =>
    node.query<Entry>(
      `select key, resolution, detail from sterna.review where reason = 'orphan' and key = $1::jsonb order by id`,
      [key],
    )
  const policy = async (name: string, table = 'child'): Promise<void> => {
    await n3.query(`select sterna.fk_policy_set($1::regclass, 'of_parent', $2)`, [table, name])
    await mesh.settle()
  }
  const settledBy = async (key: string, name: string): Promise<void> => {
    await waitUntil('the policy is carried out', async () => (await entries(n2, key))[0]?.resolution === name)
    await mesh.settle()
    await expectIdentical(mesh.nodes)
  }

  test('an orphan is the same everywhere, and in the review queue where it was written until its parent is back', async () => {
    await race(1, `insert into child values (1, 'eu', 1, 'mine')`)
    await expectIdentical(mesh.nodes)
    await waitUntil('the entry', async () => (await entries(n2, '{"id": "1"}')).length > 0)
    expect(await entries(n2, '{"id": "1"}')).toEqual([
      {
        key: { id: '1' },
        resolution: null,
        detail: 'its parent in public.parent is gone (foreign key of_parent)',
      },
    ])
    await n3.query(`insert into parent values ('eu', 1, 'back')`)
    await waitUntil('it is closed', async () => (await entries(n2, '{"id": "1"}'))[0]!.resolution === 'gone')
  })

  test('delete_child: the writer of the child deletes it, alone, with what hangs on it', async () => {
    await policy('delete_child')
    await race(2, `insert into child values (2, 'eu', 2, 'mine'); insert into grandchild values (20, 2)`)
    await settledBy('{"id": "2"}', 'delete_child')
    for (const node of mesh.nodes) {
      expect(await node.query('select from child where id = 2'), `on ${node.name}`).toEqual([])
      expect(await node.query('select from grandchild'), `on ${node.name}`).toEqual([])
    }
    for (const node of [n1, n3])
      expect((await entries(node, '{"id": "2"}')).filter((it) => it.resolution === 'delete_child')).toEqual(
        [],
      )
  })

  test('set_null', async () => {
    await policy('set_null')
    await race(3, `insert into child values (3, 'eu', 3, 'mine')`)
    await settledBy('{"id": "3"}', 'set_null')
    for (const node of mesh.nodes)
      expect(
        await node.query('select region, parent_id, v from child where id = 3'),
        `on ${node.name}`,
      ).toEqual([{ region: null, parent_id: null, v: 'mine' }])
  })

  test('recreate_parent, once: nothing goes back and forth afterwards', async () => {
    await policy('recreate_parent')
    await race(4, `insert into child values (4, 'eu', 4, 'mine'), (5, 'eu', 4, 'mine too')`)
    const outcomes = async (): Promise<(string | null)[]> =>
      [...(await entries(n2, '{"id": "4"}')), ...(await entries(n2, '{"id": "5"}'))].map(
        (it) => it.resolution,
      )
    // For one of the two children; then the other has its parent too.
    await waitUntil('both are settled', async () => {
      const found = await outcomes()
      return found.length === 2 && !found.includes(null)
    })
    expect(new Set(await outcomes())).toEqual(new Set(['recreate_parent', 'gone']))
    await mesh.settle()
    await expectIdentical(mesh.nodes)
    const state = (): Promise<unknown[]> =>
      Promise.all(
        mesh.nodes.map((node) =>
          node.query(
            `select p.region, p.id, p.note, pg_xact_commit_timestamp(p.xmin)::text as at from parent p where p.id = 4`,
          ),
        ),
      )
    const before = await state()
    expect(before[0]).toEqual([{ region: 'eu', id: 4, note: 'made', at: expect.any(String) as unknown }])
    // What the agents would do over and over, done a few more times on all nodes.
    for (let round = 0; round < 3; round++) {
      for (const node of mesh.nodes) {
        await node.query('select sterna.fk_look(), sterna.fk_settle()')
        await node.query('select sterna.fk_compare(w.constraint_oid) from sterna.fk_watched() w')
      }
      await mesh.settle()
    }
    expect(await state()).toEqual(before)
    for (const node of mesh.nodes)
      expect(await node.query('select from sterna.orphan'), `on ${node.name}`).toEqual([])
  })

  test('a policy that fails leaves the entry open, and says why', async () => {
    await n1.exec("alter table parent add check (note <> 'made') not valid")
    await policy('recreate_parent', 'strict')
    await race(6, `insert into strict values (6, 'eu', 6)`)
    await waitUntil(
      'it says so',
      async () => (await entries(n2, '{"id": "6"}'))[0]?.detail.includes('failed') === true,
    )
    expect((await entries(n2, '{"id": "6"}'))[0]).toMatchObject({ resolution: null })
    await n2.query('delete from strict where id = 6')
    await waitUntil('it is closed', async () => (await entries(n2, '{"id": "6"}'))[0]!.resolution === 'gone')
  })

  test('a comparison of whole tables finds orphans on every node', async () => {
    await policy('report')
    await race(7, `insert into child values (7, 'eu', 7, 'mine')`)
    for (const node of mesh.nodes) {
      await node.query('select sterna.fk_compare(w.constraint_oid) from sterna.fk_watched() w')
      expect(
        (await entries(node, '{"id": "7"}')).map(({ resolution }) => resolution),
        `on ${node.name}`,
      ).toEqual([null])
    }
    await n1.query('delete from child where id = 7')
    for (const node of mesh.nodes)
      await waitUntil(`it is closed on ${node.name}`, async () =>
        (await entries(node, '{"id": "7"}')).every(({ resolution }) => resolution === 'gone'),
      )
  })
})

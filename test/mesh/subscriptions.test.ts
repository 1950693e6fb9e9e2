import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { subscriptionName } from '../../src/mesh/mesh-node.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`waiting and subscriptions, ${layout.name}`, () => {
  let mesh: TestMesh
  let nodes: readonly MeshTestNode[]
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode
  /** By it n2 follows n1. */
  const sub = subscriptionName('n2', 'n1')

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      schema: 'create table item (id int primary key, v text not null)',
      relays: true,
    })
    nodes = mesh.nodes
    ;[n1, n2, n3] = nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
  })
  afterAll(() => mesh?.stop())

  const statusOf = async (): Promise<string | undefined> =>
    (await n2.query<{ status: string }>('select status from sterna.sub_show_status($1)', [sub]))[0]?.status

  const slotsAtN1 = async (): Promise<{ name: string; active: boolean }[]> =>
    n1.query<{ name: string; active: boolean }>(
      `select slot_name::text as name, active from pg_replication_slots where slot_name like 'sterna%' order by 1`,
    )

  const has = async (node: MeshTestNode, id: number): Promise<boolean> =>
    (await node.query('select from item where id = $1', [id])).length === 1

  test('after wait_for_sync_event, by name and by id, everything committed before the event is visible', async () => {
    const [own] = await n1.query<{ id: number }>('select node_id as id from sterna.local_node')
    for (let id = 1; id <= 40; id++) {
      const [event] = await n1.query<{ lsn: string }>(
        `with row as (insert into item values ($1, 'x') returning id) select sterna.sync_event() as lsn from row`,
        [id],
      )
      for (const node of nodes.slice(1)) {
        const origin = id % 2 === 0 ? `'n1'::name` : `${own!.id}::oid`
        const [waited] = await node.query<{ result: boolean }>(
          `call sterna.wait_for_sync_event(null, ${origin}, '${event!.lsn}', 30)`,
        )
        expect(waited).toEqual({ result: true })
        expect(await has(node, id), `row ${id} on ${node.name}`).toBe(true)
      }
    }
  })

  test('wait_for_sync_event gives up after its timeout, and refuses a node that is not known', async () => {
    mesh.link('n2', 'n1').cut()
    const [event] = await n1.query<{ lsn: string }>('select sterna.sync_event() as lsn')
    const began = performance.now()
    const [waited] = await n2.query<{ result: boolean }>(
      `call sterna.wait_for_sync_event(null, 'n1'::name, '${event!.lsn}', 1)`,
    )
    expect(waited).toEqual({ result: false })
    expect(performance.now() - began).toBeGreaterThan(900)
    mesh.link('n2', 'n1').heal()
    expect(await n2.query(`call sterna.wait_for_sync_event(null, 'n1'::name, '${event!.lsn}', 30)`)).toEqual([
      { result: true },
    ])
    await expect(n2.query(`call sterna.wait_for_sync_event(null, 'n9'::name, '0/1', 1)`)).rejects.toThrow(
      /n9/,
    )
    await expect(n2.query(`call sterna.wait_for_sync_event(null, 999::oid, '0/1', 1)`)).rejects.toThrow(/999/)
  })

  test('wait_slot_confirm_lsn returns when the subscriber has the changes, and not before', async () => {
    const [row] = await n2.query<{ slot: string }>(
      'select slot_name as slot from sterna.sub_show_status($1)',
      [sub],
    )
    await n1.query(`insert into item values (100, 'x')`)
    await n1.query('select sterna.wait_slot_confirm_lsn($1, null)', [row!.slot])
    expect(await has(n2, 100)).toBe(true)
    await n1.query(`insert into item values (101, 'x')`)
    await n1.query('select sterna.wait_slot_confirm_lsn(null, pg_current_wal_insert_lsn())')
    for (const node of nodes) expect(await has(node, 101), `on ${node.name}`).toBe(true)

    mesh.link('n2', 'n1').cut()
    await n1.query(`insert into item values (102, 'x')`)
    await expect(
      n1.exec(
        `begin; set local statement_timeout = '1s'; select sterna.wait_slot_confirm_lsn('${row!.slot}', null); commit`,
      ),
    ).rejects.toMatchObject({ sqlstate: '57014' })
    await n1.exec('rollback')
    expect(await has(n2, 102)).toBe(false)
    mesh.link('n2', 'n1').heal()
    await n1.query('select sterna.wait_slot_confirm_lsn($1, null)', [row!.slot])
    expect(await has(n2, 102)).toBe(true)
    await expect(n1.query(`select sterna.wait_slot_confirm_lsn('no_such_slot', null)`)).rejects.toThrow(
      /no_such_slot/,
    )
  })

  test('a disabled subscription keeps its place, disturbs no other, and goes on where it was', async () => {
    await n2.query('select sterna.sub_disable($1)', [sub])
    await waitUntil('the slot is not in use', async () =>
      (await slotsAtN1()).some(({ name, active }) => name.includes(sub) && !active),
    )
    expect(await statusOf()).toBe('disabled')
    await n1.query(`insert into item values (200, 'x')`)
    await n3.query(`insert into item values (201, 'x')`)
    await waitUntil('the others have both rows', async () => (await has(n3, 200)) && (await has(n1, 201)))
    await waitUntil('n2 has the row of n3', () => has(n2, 201))
    expect(await has(n2, 200)).toBe(false)
    await n1.query(`update item set v = 'changed' where id = 200`)
    await n2.query('select sterna.sub_enable($1)', [sub])
    await waitUntil('n2 has the row of n1', () => has(n2, 200))
    await waitUntil('it replicates', async () => (await statusOf()) === 'replicating')
    await mesh.settle()
    await expectIdentical(nodes)
  })

  test('a dropped subscription takes its slot and origin along; under the same name it can be made again', async () => {
    const [before] = await n2.query<{ slot: string; dsn: string; origin: string }>(
      'select slot_name::text as slot, provider_dsn as dsn, origin_name as origin from sterna.subscription where sub_name = $1',
      [sub],
    )
    await n2.query('select sterna.sub_drop($1)', [sub])
    await waitUntil('the slot is gone', async () =>
      (await slotsAtN1()).every(({ name }) => name !== before!.slot),
    )
    await waitUntil(
      'the origin is gone',
      async () =>
        (await n2.query('select from pg_replication_origin where roname = $1', [before!.origin])).length ===
        0,
    )
    await waitUntil(
      'nothing is left to clean up',
      async () => (await n2.query('select from sterna.slot_cleanup')).length === 0,
    )
    expect(await statusOf()).toBeUndefined()
    await n1.query(`insert into item values (300, 'while there was none')`)

    await n2.query('select sterna.sub_create($1, $2)', [sub, before!.dsn])
    await waitUntil('it replicates', async () => (await statusOf()) === 'replicating')
    expect((await slotsAtN1()).find(({ name }) => name === before!.slot)).toEqual({
      name: before!.slot,
      active: true,
    })
    await n1.query(`insert into item values (301, 'afterwards')`)
    await n2.query(`insert into item values (302, 'the other way')`)
    await mesh.settle()
    expect(await has(n2, 301)).toBe(true)
    expect(await has(n1, 302)).toBe(true)
    expect(await has(n2, 300), 'nothing is copied').toBe(false)
    // Rows from before: written under an origin that was dropped and made again.
    await n1.query(`update item set v = 'of n1' where id = 200`)
    await mesh.settle()
    await n2.query(`update item set v = v || ', n2' where id = 200`)
    await mesh.settle()
    expect(await n3.query('select v from item where id = 200')).toEqual([{ v: 'of n1, n2' }])
    await n1.query('delete from item where id = 300')
    await mesh.settle()
    await expectIdentical(nodes)
  })

  test('a slot whose provider is away is dropped when it comes back', async () => {
    const [before] = await n2.query<{ slot: string; dsn: string }>(
      'select slot_name::text as slot, provider_dsn as dsn from sterna.subscription where sub_name = $1',
      [sub],
    )
    mesh.link('n2', 'n1').cut()
    await n2.query('select sterna.sub_drop($1)', [sub])
    await waitUntil('the agent has tried', async () => {
      const rows = await n2.query<{ error: string | null }>(
        'select last_error as error from sterna.slot_cleanup',
      )
      return rows.length === 1 && rows[0]!.error !== null
    })
    expect((await slotsAtN1()).some(({ name }) => name === before!.slot)).toBe(true)
    mesh.link('n2', 'n1').heal()
    await waitUntil('the slot is gone', async () =>
      (await slotsAtN1()).every(({ name }) => name !== before!.slot),
    )
    await n2.query('select sterna.sub_create($1, $2)', [sub, before!.dsn])
    await waitUntil('it replicates', async () => (await statusOf()) === 'replicating')
    await mesh.settle()
  })
})

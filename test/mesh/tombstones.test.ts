import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'

describe('deletes and truncates win or lose by version, whatever arrives first', () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    mesh = await startMesh({
      count: 3,
      relays: true,
      schema: `create table t (id int primary key, v text);
               create table amount (n numeric, day date, v text, primary key (n, day));
               create table part (id int, region text, v text, primary key (id, region)) partition by list (region);
               create table part_eu partition of part for values in ('eu');
               create table part_us partition of part for values in ('us');
               create table odd ("Key %s" bit(4) primary key, v text)`,
    })
    ;[n1, n2, n3] = [mesh.nodes[0]!, mesh.nodes[1]!, mesh.nodes[2]!]
  })
  afterAll(() => mesh.stop())

  const cut = (): void => {
    for (const a of mesh.nodes) for (const b of mesh.nodes) if (a !== b) mesh.link(a.name, b.name).cut()
  }
  const heal = (): void => {
    for (const a of mesh.nodes) for (const b of mesh.nodes) if (a !== b) mesh.link(a.name, b.name).heal()
  }
  const everywhere = async (sql: string, rows: unknown[]): Promise<void> => {
    await mesh.settle()
    for (const node of mesh.nodes)
      expect({ [node.name]: await node.query(sql) }).toEqual({ [node.name]: rows })
  }

  it('an update that is older than a delete does not bring the row back', async () => {
    await n1.query("insert into t values (1, 'a')")
    await mesh.settle()
    cut()
    await n2.query("update t set v = 'b' where id = 1")
    await n1.query('delete from t where id = 1')
    heal()
    await everywhere('select v from t where id = 1', [])
  })

  it('an update that is newer than a delete keeps the row', async () => {
    await n1.query("insert into t values (2, 'a')")
    await mesh.settle()
    cut()
    await n1.query('delete from t where id = 2')
    await n2.query("update t set v = 'b' where id = 2")
    heal()
    await everywhere('select v from t where id = 2', [{ v: 'b' }])
  })

  it('an insert that arrives after the delete of its row stays out', async () => {
    mesh.link('n3', 'n1').cut()
    await n1.query("insert into t values (3, 'a')")
    await waitUntil('n2 has it', async () => (await n2.query('select from t where id = 3')).length === 1)
    await n2.query('delete from t where id = 3')
    await waitUntil(
      'n3 has the tombstone',
      async () => (await n3.query(`select from sterna.tombstone where key = '["3"]'`)).length === 1,
    )
    mesh.link('n3', 'n1').heal()
    await everywhere('select v from t where id = 3', [])
    await waitUntil('it is counted', async () => {
      const [row] = await n3.query<{ n: number | null }>(
        "select (conflicts ->> 'insert_deleted')::int as n from sterna.sub_show_status('sub_n3_n1')",
      )
      return (row?.n ?? 0) > 0
    })
  })

  it('a key that is deleted and used again lives on', async () => {
    for (let round = 0; round < 3; round++) {
      await n1.query("insert into t values (4, 'x')")
      await mesh.settle()
      await n2.query('delete from t where id = 4')
      await mesh.settle()
    }
    await n3.exec(
      "begin; insert into t values (4, 'one'); delete from t where id = 4; insert into t values (4, 'two'); commit",
    )
    await everywhere('select v from t where id = 4', [{ v: 'two' }])
  })

  it('a changed key leaves nothing under the old one', async () => {
    await n1.query("insert into t values (5, 'a')")
    await mesh.settle()
    cut()
    await n2.query("update t set v = 'older' where id = 5")
    await n1.query('update t set id = 6 where id = 5')
    heal()
    await everywhere('select id, v from t where id in (5, 6)', [{ id: 6, v: 'a' }])
  })

  it('keys are compared by the equality of their types', async () => {
    await n1.query("insert into amount values (1.0, '2026-01-01', 'a')")
    await mesh.settle()
    cut()
    await n2.query("update amount set v = 'b', n = 1.00 where n = 1")
    await n1.query('delete from amount where n = 1.000')
    heal()
    await everywhere('select v from amount', [])
  })

  it('types without a hash, and odd names', async () => {
    await n1.query("insert into odd values (b'0101', 'a'), (b'0001', 'c')")
    await mesh.settle()
    cut()
    await n2.query("update odd set v = 'b'")
    await n1.query('delete from odd where "Key %s" = b\'0101\'')
    heal()
    await everywhere('select v from odd', [{ v: 'b' }])
  })

  it('partitions, whether the statement names the parent or the partition', async () => {
    await n1.query("insert into part values (1, 'eu', 'a'), (2, 'us', 'a'), (3, 'us', 'a')")
    await mesh.settle()
    cut()
    await n2.query("update part set v = 'b'")
    await n1.query('delete from part where id = 1')
    await n1.query('delete from part_us where id = 2')
    heal()
    await everywhere('select id, v from part', [{ id: 3, v: 'b' }])
  })

  it('a truncate of one partition says nothing of the others', async () => {
    mesh.link('n3', 'n1').cut()
    await n1.query("insert into part values (70, 'us', 'stays'), (70, 'eu', 'goes')")
    await waitUntil(
      'n2 has them',
      async () => (await n2.query('select from part where id = 70')).length === 2,
    )
    await n2.exec('truncate part_eu')
    await waitUntil(
      'n3 knows of the truncate',
      async () =>
        (await n3.query(`select from sterna.truncation where table_oid = 'part_eu'::regclass`)).length === 1,
    )
    mesh.link('n3', 'n1').heal()
    await everywhere('select region, v from part where id = 70', [{ region: 'us', v: 'stays' }])
  })

  it('a truncate keeps out what is older, and lets in what is newer', async () => {
    await n1.query("insert into t values (20, 'a')")
    await mesh.settle()
    cut()
    await n2.query("insert into t values (21, 'older')")
    await n1.query('truncate t')
    await n3.query("insert into t values (22, 'newer')")
    heal()
    await everywhere('select id, v from t order by id', [{ id: 22, v: 'newer' }])
  })

  it('a delete that is being committed while an older update waits for it', async () => {
    await n1.query("insert into t values (30, 'a')")
    await mesh.settle()
    mesh.link('n1', 'n2').cut()
    await n2.query("update t set v = 'older' where id = 30")
    await n1.exec('begin; delete from t where id = 30')
    mesh.link('n1', 'n2').heal()
    const watcher = await PgConnection.connect(n1.dsn)
    await waitUntil('apply waits for the delete', async () => {
      const waiting =
        "select from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'"
      return (await watcher.query(waiting)).rows.length > 0
    })
    await watcher.close()
    await n1.exec('commit')
    await everywhere('select v from t where id = 30', [])
  })

  it("the key's type can change, and deletes still count", async () => {
    await n1.exec('alter table public.t alter column id type bigint')
    await mesh.settle()
    await n2.exec('alter table t rename column id to code')
    await mesh.settle()
    await n1.query("insert into t values (10000000000, 'a')")
    await mesh.settle()
    cut()
    await n2.query("update t set v = 'b' where code = 10000000000")
    await n1.query('delete from t where code = 10000000000')
    heal()
    await everywhere('select v from t where code = 10000000000', [])
  })

  it('tombstones go once every provider has shown that it is past them', async () => {
    await mesh.settle()
    await waitUntil(
      'no tombstones',
      async () => {
        const left = await Promise.all(mesh.nodes.map((node) => node.query('select from sterna.tombstone')))
        return left.every((rows) => rows.length === 0)
      },
      40_000,
    )
  })
})

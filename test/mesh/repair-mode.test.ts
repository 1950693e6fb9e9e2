import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`repair mode, ${layout.name}`, () => {
  let mesh: TestMesh
  let node: MeshTestNode
  let others: readonly MeshTestNode[]
  let session: PgConnection

  beforeAll(async () => {
    mesh = await startMesh({
      count: layout.versions.length,
      version: layout.versions,
      schema: `create table t (id int primary key, v text); create table other (id int primary key, v text)`,
    })
    ;[node, ...others] = mesh.nodes as [MeshTestNode, ...MeshTestNode[]]
    await node.query(`insert into t select g, 'everywhere' from generate_series(1, 9) g`)
    await node.query(`insert into other values (1, 'everywhere')`)
    await mesh.settle()
  })
  afterAll(() => mesh?.stop())
  beforeEach(async () => {
    session = await enter()
  })
  afterEach(() => session.close())

  const enter = async (): Promise<PgConnection> => {
    const conn = await PgConnection.connect(node.dsn)
    await conn.exec('select sterna.repair_mode(true)')
    return conn
  }
  const repair = async (sql: string, conn = session): Promise<unknown> =>
    conn.exec(`begin read write; select sterna.repair_mode(true); ${sql}; commit`)
  const rows = (at: MeshTestNode): Promise<unknown[]> => at.query('select id, v from t order by id')

  test('what it writes stays here: inserts, updates, deletes, truncates, several sessions at once', async () => {
    const before = await rows(others[0]!)
    const second = await enter()
    await session.exec('begin read write; select sterna.repair_mode(true)')
    await session.exec(`insert into t values (100, 'here'); update t set v = 'here' where id = 1`)
    await repair(`delete from t where id = 2; truncate other`, second)
    await session.exec('commit')
    await second.close()
    await mesh.settle()
    for (const other of others) {
      expect(await rows(other), `on ${other.name}`).toEqual(before)
      expect(await other.query('select v from other'), `on ${other.name}`).toEqual([{ v: 'everywhere' }])
    }
    expect(await node.query('select id, v from t where id in (1, 2, 100) order by id')).toEqual([
      { id: 1, v: 'here' },
      { id: 100, v: 'here' },
    ])
    expect(await node.query('select from other')).toEqual([])
  })

  test('and back: it makes nodes that differ equal again', async () => {
    await repair(`delete from t where id = 100; update t set v = 'everywhere' where id = 1;
      insert into t values (2, 'everywhere'); insert into other values (1, 'everywhere')`)
    await mesh.settle()
    await expectIdentical(mesh.nodes)
  })

  test('later changes of other nodes win over repaired rows, and reach repaired deletes', async () => {
    await repair(`update t set v = 'here' where id = 3; delete from t where id = 4`)
    await others[0]!.query(`update t set v = 'later' where id in (3, 4)`)
    await mesh.settle()
    await expectIdentical(mesh.nodes)
    expect(await node.query('select id, v from t where id in (3, 4) order by id')).toEqual([
      { id: 3, v: 'later' },
      { id: 4, v: 'later' },
    ])
  })

  test('after it the session replicates again', async () => {
    await repair(`update t set v = 'here' where id = 5`)
    await session.exec('select sterna.repair_mode(false)')
    await session.exec(`update t set v = 'for all' where id = 5`)
    await mesh.settle()
    await expectIdentical(mesh.nodes)
  })
})

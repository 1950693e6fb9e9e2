import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { runCommand } from '../harness/command.ts'
import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'
import {
  becomes,
  downWith,
  expectClean,
  expectEqual,
  only,
  replicates,
  shown,
  startFaultMesh,
  statusOf,
} from './rig.ts'

/** A hand on the schema of one node only. */
const BY_HAND = 'set sterna.ddl_replication = off;'
const MAIN = new URL('../../src/cli/main.ts', import.meta.url).pathname

let mesh: TestMesh
let n1: MeshTestNode
let n2: MeshTestNode
let n3: MeshTestNode
let id = 0

beforeAll(async () => {
  mesh = await startFaultMesh({
    count: 3,
    schema: `create table t (id int primary key, a text, b text);
      create table other (id int primary key, v text);
      create table keyless (v text)`,
  })
  ;[n1, n2, n3] = mesh.nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
})
afterAll(async () => {
  try {
    await expectClean(mesh)
  } finally {
    await mesh.stop()
  }
})

/**
 * Breaks the schema of n1, writes on n2 in one transaction with changes before and after the one that cannot be applied,
 * and checks what is said; n1 goes on following n3. After the repair all of it is there, once.
 */
async function breaksOnN1(fault: {
  readonly breakSql: string
  readonly repairSql: string
  /** Writes on n2 with {id}. */
  readonly write: string
  readonly code: string
  readonly says: readonly (string | RegExp)[]
  readonly remedy: string | RegExp
}): Promise<void> {
  id += 10
  await n1.exec(BY_HAND + fault.breakSql)
  await n1.exec('reset sterna.ddl_replication')
  await n2.exec(
    `begin; insert into other values (${id}, 'before'); ${fault.write.replaceAll('{id}', String(id))}; insert into other values (${id + 1}, 'after'); commit`,
  )
  await n2.query(`insert into other values (${id + 2}, 'later transaction')`)
  const { message, hint } = await downWith(n1, 'sub_n1_n2', fault.code)
  for (const text of fault.says) expect(message).toMatch(text)
  expect(hint).toMatch(fault.remedy)
  const alarm = (await statusOf(n1)).alarms.find(({ name }) => name === 'subscription_down')
  expect(alarm).toMatchObject({ subject: 'sub_n1_n2', message, action: hint })

  // Whole or not at all, in order; and the others are not disturbed.
  expect(await only(n1, `select count(*)::int from other where id between ${id} and ${id + 2}`)).toBe(0)
  await n3.query(`insert into other values (${id + 5}, 'of n3')`)
  await becomes(n1, `select count(*)::int from other where id = ${id + 5}`, 1, 3000)
  await replicates(n1, 'sub_n1_n3')
  await replicates(n3, 'sub_n3_n2')

  await n1.exec(BY_HAND + fault.repairSql)
  await n1.exec('reset sterna.ddl_replication')
  await becomes(n1, `select count(*)::int from other where id between ${id} and ${id + 2}`, 3)
  await replicates(n1, 'sub_n1_n2')
  await expectEqual(mesh, 't')
  await expectEqual(mesh, 'other')
}

/** The same, for a fault that one change runs into: that change waits with its reason, all else is applied. */
async function parksOnN1(fault: {
  readonly breakSql: string
  readonly repairSql: string
  readonly write: string
  readonly says: readonly (string | RegExp)[]
}): Promise<void> {
  id += 10
  await n1.exec(BY_HAND + fault.breakSql)
  await n1.exec('reset sterna.ddl_replication')
  await n2.exec(
    `begin; insert into other values (${id}, 'before'); ${fault.write.replaceAll('{id}', String(id))}; insert into other values (${id + 1}, 'after'); commit`,
  )
  await n2.query(`insert into other values (${id + 2}, 'later transaction')`)
  await becomes(n1, `select count(*)::int from other where id between ${id} and ${id + 2}`, 3)
  const why = await only(
    n1,
    `select operation || ' on ' || table_name || ': ' || sqlstate || ' ' || message from sterna.exception`,
  )
  for (const text of fault.says) expect(why).toMatch(text)
  await replicates(n1, 'sub_n1_n2')

  await n1.exec(BY_HAND + fault.repairSql)
  await n1.exec('reset sterna.ddl_replication')
  await n1.query('select sterna.exception_retry()')
  await becomes(n1, 'select count(*)::int from sterna.exception', 0)
  await expectEqual(mesh, 't')
  await expectEqual(mesh, 'other')
}

describe('schemas that differ: said with table, column and node; after a repair by hand nothing is lost', () => {
  test('a table is missing', () =>
    breaksOnN1({
      breakSql: 'alter table t rename to t_away',
      repairSql: 'alter table t_away rename to t',
      write: `insert into t values ({id}, 'a', 'b')`,
      code: 'TABLE_MISSING',
      says: [/public\.t .*from n2.*not exist on n1/],
      remedy: /Create public\.t on n1/,
    }))

  test('a column is missing', () =>
    breaksOnN1({
      breakSql: 'alter table t rename column b to b_away',
      repairSql: 'alter table t rename column b_away to b',
      write: `insert into t values ({id}, 'a', 'b')`,
      code: 'COLUMN_MISSING',
      says: [/column b of table public\.t .*from n2.*does not exist on n1/],
      remedy: /Add column b to public\.t on n1/,
    }))

  test('a column is generated', () =>
    breaksOnN1({
      breakSql: `alter table t rename column b to b_away; alter table t add b text generated always as ('x') stored`,
      repairSql: 'alter table t drop column b; alter table t rename column b_away to b',
      write: `insert into t values ({id}, 'a', 'b')`,
      code: 'COLUMN_MISSING',
      says: [/column b of table public\.t .*from n2.*is generated on n1/],
      remedy: /ordinary column/,
    }))

  test('the key is another one', () =>
    breaksOnN1({
      breakSql: `alter table t drop constraint t_pkey; alter table t alter a set not null; alter table t add constraint t_pkey primary key (id, a)`,
      repairSql: `alter table t drop constraint t_pkey; alter table t add constraint t_pkey primary key (id); alter table t alter a drop not null`,
      write: `insert into t values ({id}, 'a', 'b')`,
      code: 'KEY_DIFFERS',
      says: [/public\.t has key \(id, a\) on n1 and \(id\) on n2/],
      remedy: /same primary key/,
    }))

  test('the key is gone', () =>
    breaksOnN1({
      breakSql: 'alter table t drop constraint t_pkey',
      repairSql: 'alter table t add constraint t_pkey primary key (id)',
      write: `insert into t values ({id}, 'a', 'b'); update t set a = 'c' where id = {id}`,
      code: 'KEY_DIFFERS',
      says: [/public\.t has key \(none\) on n1 and \(id\) on n2/],
      remedy: /same primary key/,
    }))

  test('a type is another one, and a value does not fit', () =>
    breaksOnN1({
      breakSql: 'alter table t rename column b to b_away; alter table t add b int',
      repairSql: 'alter table t drop column b; alter table t rename column b_away to b',
      write: `insert into t values ({id}, 'a', 'no number')`,
      code: 'TYPE_DIFFERS',
      says: [/insert on public\.t/, /on n1/, /b is integer on n1 and text on n2/],
      remedy: /same type/,
    }))

  test('a type is another one, and every value fits: it replicates', async () => {
    await n1.exec(`${BY_HAND} alter table t alter b type varchar(20)`)
    await n1.exec('reset sterna.ddl_replication')
    await n2.query(`insert into t values (900, 'a', 'fits')`)
    await becomes(n1, 'select b from t where id = 900', 'fits')
    await n1.exec(`${BY_HAND} alter table t alter b type text`)
    await n1.exec('reset sterna.ddl_replication')
    await expectEqual(mesh, 't')
  })

  test('a constraint that only the subscriber has', () =>
    parksOnN1({
      breakSql: `alter table t add constraint only_here check (a <> 'refused')`,
      repairSql: 'alter table t drop constraint only_here',
      write: `insert into t values ({id}, 'fine', ''); update t set a = 'refused' where id = {id}`,
      says: [/update on public\.t/, /only_here/, /23514/],
    }))

  test('a NOT NULL column that only the subscriber has', () =>
    parksOnN1({
      breakSql: `alter table t add extra int not null default 0; alter table t alter extra drop default`,
      repairSql: 'alter table t drop column extra',
      write: `insert into t values ({id}, 'a', 'b')`,
      says: [/insert on public\.t/, /"extra"/, /23502/],
    }))

  test('a unique constraint that only the subscriber has', () =>
    parksOnN1({
      breakSql: `insert into t values (999, 'taken', ''); create unique index t_a on t (a) where a = 'taken'`,
      repairSql: `drop index t_a`,
      write: `insert into t values ({id}, 'taken', '')`,
      says: [/insert on public\.t/, /t_a/, /23505/],
    }))
})

describe('a table without a key', () => {
  test('its inserts replicate; it is shown in sterna.tables and by sterna status', async () => {
    await n2.query(`insert into keyless values ('one')`)
    await becomes(n1, 'select count(*)::int from keyless', 1)
    const [row] = await n2.query(`select * from sterna.tables where table_name = 'keyless'`)
    expect(JSON.stringify(row)).toContain('primary key')
    expect(JSON.stringify(row)).toContain('insert only')
    const { stdout } = await runCommand([MAIN, 'status', '--dsn', n1.dsn])
    expect(stdout).toMatch(/keyless/)
  })

  test('updates and deletes stay where they are, and nothing is down', async () => {
    await n2.query(`update keyless set v = 'two'`)
    await mesh.settle()
    expect(await only(n2, 'select v from keyless')).toBe('two')
    expect(await only(n1, 'select v from keyless')).toBe('one')
    expect((await shown(n1, 'sub_n1_n2')).last_error).toBeNull()
  })

  test('a set that replicates updates refuses it, with the remedy', async () => {
    await n2.query(`select sterna.repset_create('strict')`)
    await expect(n2.query(`select sterna.repset_add_table('strict', 'keyless')`)).rejects.toThrow(
      /primary key/,
    )
    await n2.query(`select sterna.repset_drop('strict')`)
  })
})

test('a new table on one node only, made with capture off: its rows arrive when it is made on the others', async () => {
  await n2.exec(`${BY_HAND} create table public.late (id int primary key, v text)`)
  await n2.exec('reset sterna.ddl_replication')
  await waitUntil('it is in the default set', async () =>
    Boolean(await only(n2, `select count(*) > 0 from pg_publication_tables where tablename = 'late'`)),
  )
  await n2.query(`insert into late values (1, 'early bird')`)
  await downWith(n1, 'sub_n1_n2', 'TABLE_MISSING')
  await downWith(n3, 'sub_n3_n2', 'TABLE_MISSING')
  for (const node of [n1, n3]) {
    await node.exec(`${BY_HAND} create table public.late (id int primary key, v text)`)
    await node.exec('reset sterna.ddl_replication')
  }
  await becomes(n1, 'select v from late', 'early bird')
  await becomes(n3, 'select v from late', 'early bird')
  await expectEqual(mesh, 'late')
})

import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { ACCOUNT_SQL, addAndSubtract } from '../harness/increments.ts'
import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { agreed, applyWaits, asideKeys, define, startStory, type Story } from '../harness/story.ts'

const SECONDS = 2

const SCHEMA = `
  create table account (id int primary key, balance bigint not null, amount numeric(20, 3) not null, paid money not null, note text);
  create table stock (k text primary key, n int not null, note text);
  create table named (id int primary key, name text unique, n int not null);
  create table late (id int primary key, n bigint not null, note text);
  create table loose (id int primary key, n numeric not null);
  create table other (id int primary key, v text);
  insert into account values (1, 0, 0, 0, ''), (2, 1000, 0.5, 10, '');
  insert into late values (1, 0, '');
  insert into other values (1, '');`

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`delta columns, ${layout.name}`, () => {
  let story: Story
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    story = await startStory({ count: layout.versions.length, version: layout.versions, schema: SCHEMA })
    ;({ n1, n2, n3 } = story)
    for (const column of ['balance', 'amount', 'paid'])
      await define(story.nodes, `select sterna.delta_add('account', '${column}')`)
    await define(story.nodes, `select sterna.delta_add('stock', 'n')`)
    await define(story.nodes, `select sterna.delta_add('named', 'n')`)
  })
  afterEach(() => story.releaseAll())
  afterAll(() => story?.stop())

  test('two nodes add and subtract on one row: the sum is exact everywhere', async () => {
    const { count, ...sums } = await addAndSubtract([n1, n2], SECONDS)
    await story.ends(ACCOUNT_SQL, [sums])
    console.log(`additions: ${count}`)
  })

  test('what loses adds all the same; the rest of the row is the newer one', async () => {
    story.holdAll()
    await n1.exec(
      `update account set balance = balance + 5, amount = amount + 0.25, note = 'older' where id = 2`,
    )
    await n2.exec(
      `update account set balance = balance - 7, paid = paid + '1.50', note = 'newer' where id = 2`,
    )
    await story.ends('select balance, amount, paid::numeric::text as paid, note from account where id = 2', [
      { balance: 998n, amount: '0.750', paid: '11.50', note: 'newer' },
    ])
  })

  test('a number set to a value is the difference to what stood there', async () => {
    story.holdAll()
    await n1.exec('update account set balance = 2000 where id = 2')
    await n2.exec('update account set balance = balance + 1 where id = 2')
    await story.ends('select balance from account where id = 2', [{ balance: 2001n }])
  })

  // 1.5 and 1.50 are one number: sums would differ in their looks.
  test('a numeric column without a scale is refused', async () => {
    await expect(n1.query(`select sterna.delta_add('loose', 'n')`)).rejects.toThrow(/scale/)
  })

  test('one key inserted on two nodes has both amounts', async () => {
    story.holdAll()
    await n1.exec(`insert into stock values ('both', 5, 'older')`)
    await n2.exec(`insert into stock values ('both', 7, 'newer')`)
    await story.ends(`select n, note from stock where k = 'both'`, [{ n: 12, note: 'newer' }])
  })

  test('a changed key takes its amount along, and what comes late stays with the old one', async () => {
    await n1.exec(`insert into stock values ('old', 10, '')`)
    await story.mesh.settle()
    story.holdAll()
    await n2.exec(`update stock set n = n + 3 where k = 'old'`)
    await n1.exec(`update stock set k = 'new', n = n + 1 where k = 'old'`)
    await story.ends(`select k, n from stock where k in ('old', 'new')`, [{ k: 'new', n: 11 }])
    for (const node of story.nodes) {
      const left = await node.query(
        `select remainder ->> 'n' as n from sterna.tombstone where table_oid = 'stock'::regclass and key = '["old"]'`,
      )
      expect(left, `on ${node.name}`).toEqual([{ n: '3' }])
    }
  })

  test('what a delete did not see stays in the review queue, and a row inserted over it has what was inserted', async () => {
    await n1.exec(`insert into stock values ('gone', 10, '')`)
    await story.mesh.settle()
    story.holdAll()
    await n2.exec(`update stock set n = n + 3 where k = 'gone'`)
    await n1.exec(`delete from stock where k = 'gone'`)
    await story.ends(`select n from stock where k = 'gone'`, [])
    const open = `select reason from sterna.review where key = '{"k": "gone"}' and closed_at is null`
    for (const node of story.nodes)
      await agreed(async () =>
        expect(await node.query(open), `on ${node.name}`).toEqual([{ reason: 'remainder' }]),
      )
    await n3.exec(`insert into stock values ('gone', 50, '')`)
    await story.ends(`select n from stock where k = 'gone'`, [{ n: 50 }])
    for (const node of story.nodes)
      await agreed(async () => expect(await node.query(open), `on ${node.name}`).toEqual([]))
    await n2.exec(`update stock set n = n + 1 where k = 'gone'`)
    await story.ends(`select n from stock where k = 'gone'`, [{ n: 51 }])
  })

  test('a row that lives on after an older delete shows what the deleter had not seen', async () => {
    await n1.exec(`insert into stock values ('kept', 10, '')`)
    await story.mesh.settle()
    story.holdAll()
    await n1.exec(`delete from stock where k = 'kept'`)
    await n2.exec(`update stock set n = n + 3, note = 'newer' where k = 'kept'`)
    await story.ends(`select n, note from stock where k = 'kept'`, [{ n: 3, note: 'newer' }])
  })

  test('a truncate takes away what it saw', async () => {
    await n1.exec(`insert into stock values ('t1', 10, ''), ('t2', 20, '')`)
    await story.mesh.settle()
    story.holdAll()
    await n2.exec(`update stock set n = n + 3 where k = 't1'`)
    await n1.exec('truncate stock')
    await n3.exec(`update stock set n = n + 4, note = 'newer' where k = 't2'`)
    await story.ends('select k, n, note from stock', [{ k: 't2', n: 4, note: 'newer' }])
  })

  test('a row aside counts on, and an insert over it cancels what it held', async () => {
    await n1.exec(`insert into named values (1, 'a', 10)`)
    await story.mesh.settle()
    story.holdAll()
    await n2.exec('update named set n = n + 5 where id = 1')
    await n3.exec(`update named set name = null where id = 1; insert into named values (2, 'a', 1)`)
    await n1.exec('update named set n = n + 6 where id = 1')
    // n1's update is the newest of row 1 and has its name; that row is newer than row 2, which yields.
    await story.ends('select id, name, n from named', [{ id: 1, name: 'a', n: 21 }])
    for (const node of story.nodes) expect(await asideKeys(node, 'named'), `on ${node.name}`).toEqual(['2'])
    await n2.exec(`insert into named values (2, 'b', 100)`)
    await story.comesTo('select id, name, n from named order by id', [
      { id: 1, name: 'a', n: 21 },
      { id: 2, name: 'b', n: 100 },
    ])
    for (const node of story.nodes) expect(await asideKeys(node, 'named'), `on ${node.name}`).toEqual([])
  })

  // Of the same age as its row is only what xmin says: where a losing difference is merged, the true version stands beside.
  test('an older update that waits for the very transaction that notes the version of its row', async () => {
    await n1.exec(`insert into stock values ('x', 100, 'base')`)
    await story.mesh.settle()
    for (const from of [n1, n3]) story.hold(n2, from)
    await n3.exec(
      `begin; update stock set n = n + 3 where k = 'x'; update other set v = 'n3' where id = 1; commit`,
    )
    await n1.exec(`update stock set note = 'n1' where k = 'x'`)
    await n2.exec(`update stock set note = 'n2' where k = 'x'`)
    const blocker = await PgConnection.connect(n2.dsn, { applicationName: 'test blocker' })
    try {
      await blocker.exec('begin; select from other where id = 1 for update')
      story.release(n2, n3)
      await applyWaits(n2)
      story.release(n2, n1)
      await agreed(async () => {
        const [row] = await n2.query(
          `select count(*)::int as n from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'`,
        )
        expect(row).toEqual({ n: 2 })
      })
      await blocker.exec('commit')
    } finally {
      await blocker.close()
    }
    await story.ends(`select n, note from stock where k = 'x'`, [{ n: 103, note: 'n2' }])
  })

  test('declared and withdrawn under load: nodes never disagree, and what is added in between is exact', async () => {
    await underLoad([n1, n2], () => define(story.nodes, `select sterna.delta_add('late', 'n')`))
    await story.mesh.settle()
    const [start] = await n1.query<{ n: bigint }>('select n from late')
    await story.ends('select n from late', [start])
    story.holdAll()
    await n1.exec('update late set n = n + 10')
    await n2.exec('update late set n = n + 100')
    await story.ends('select n from late', [{ n: start!.n + 110n }])
    await underLoad([n1, n3], () => define(story.nodes, `select sterna.delta_remove('late', 'n')`))
    await story.mesh.settle()
    const [end] = await n1.query('select n from late')
    await story.ends('select n from late', [end])
    story.holdAll()
    await n1.exec('update late set n = 10')
    await n2.exec('update late set n = 100')
    await story.ends('select n from late', [{ n: 100n }])
  })
})

/** Does something while each of these nodes adds to one row again and again. */
async function underLoad(nodes: readonly MeshTestNode[], work: () => Promise<void>): Promise<void> {
  let running = true
  const load = nodes.map(async (node) => {
    const session = await PgConnection.connect(node.dsn, { applicationName: 'test load' })
    while (running) {
      await session.exec(`update late set n = n + 1, note = '${node.name}' where id = 1`)
      await delay(5)
    }
    await session.close()
  })
  await work()
  running = false
  await Promise.all(load)
}

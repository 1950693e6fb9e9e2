import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { fakeTime } from '../harness/fake-time.ts'
import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { agreed, asideKeys, byHand, define, large, startStory, type Story } from '../harness/story.ts'
import { waitUntil } from '../harness/wait.ts'

// Short histories on which simpler rules diverge, several of them without any conflict. src/mesh/conflict/traces.test.ts has them
// on the pure rules; here they run between servers. Links that are held back make the order of arrival.

const SCHEMA = `
  create table collide (k text primary key, u text unique);
  create table counted (k text primary key, d int not null);
  create table mixed (k text primary key, u text unique, d int not null);
  create table toasted (k text primary key, v int, t text);
  create table checked (k text primary key, v int);
  create table plain (k text primary key, v int not null);
  create table chased (k text primary key, v int not null, w int not null);
  create table merged (k text primary key, m int not null);
  insert into plain values ('x', 1);
  insert into chased values ('x', 0, 0);
  insert into merged values ('k1', 0);
  create function keep_greater(a merged, b merged) returns merged language sql immutable
    as $$ select row(a.k, greatest(a.m, b.m))::public.merged $$;`

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`traces that broke simpler rules, ${layout.name}`, () => {
  let story: Story
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    story = await startStory({ count: layout.versions.length, version: layout.versions, schema: SCHEMA })
    ;({ n1, n2, n3 } = story)
  })
  afterEach(() => story.releaseAll())
  afterAll(() => story?.stop())

  test('1: the owner of the newer row never saw the collision', async () => {
    story.hold(n1, n2)
    story.hold(n2, n1)
    await n1.exec(`insert into collide values ('k2', 'Y')`)
    await n2.exec(`insert into collide values ('k4', 'Y')`)
    await agreed(async () => expect(await asideKeys(n3, 'collide')).toEqual(['k2']))
    story.release(n2, n1)
    await agreed(async () => expect(await asideKeys(n2, 'collide')).toEqual(['k2']))
    await n1.exec(`insert into collide values ('k4', null)`)
    for (const node of [n2, n3])
      await story.becomes(node, `select u from collide where k = 'k4'`, [{ u: null }])
    await story.ends('select k, u from collide order by k', [
      { k: 'k2', u: 'Y' },
      { k: 'k4', u: null },
    ])
  })

  test('2: a value that was given up before it was taken again, without any conflict', async () => {
    await n3.exec(`insert into collide values ('k20', 'Z')`)
    await story.becomes(n2, `select u from collide where k = 'k20'`, [{ u: 'Z' }])
    story.hold(n3, n2)
    await n2.exec(`update collide set u = null where k = 'k20'`)
    await story.becomes(n1, `select u from collide where k = 'k20'`, [{ u: null }])
    await n1.exec(`insert into collide values ('k30', 'Z')`)
    await story.becomes(n3, `select k from collide where u = 'Z'`, [{ k: 'k30' }])
    expect(await asideKeys(n3, 'collide')).toEqual(['k20'])
    await story.ends(`select k, u from collide where k in ('k20', 'k30') order by k`, [
      { k: 'k20', u: null },
      { k: 'k30', u: 'Z' },
    ])
  })

  test('4: a large value that an update does not send, where the update comes first', async () => {
    story.hold(n3, n2)
    await n2.exec(`insert into toasted values ('k1', 0, ${large('2', 20)})`)
    await n2.exec(`update toasted set t = ${large('6', 20)} where k = 'k1'`)
    const six = await n2.query('select md5(t) as t from toasted')
    await story.becomes(n1, 'select md5(t) as t from toasted', six)
    await n1.exec(`update toasted set v = 1 where k = 'k1'`)
    await story.becomes(n3, 'select v from toasted', [{ v: 1 }])
    await story.ends('select v, md5(t) as t from toasted', [{ v: 1, ...six[0] }])
  })

  test('6: a local update of what was applied just now is newer than that, every time', async () => {
    const rounds = 60
    await n1.exec(`create procedure pg_temp.chase() language plpgsql as $$
      declare r record;
      begin
        for i in 1..${rounds} loop
          loop
            select xmin as id into r from chased where v = i;
            exit when found;
            commit;
          end loop;
          update chased set w = i;
          commit;
          if pg_xact_commit_timestamp((select xmin from chased)) <= pg_xact_commit_timestamp(r.id) then
            raise exception 'round %: not newer than what it replaced', i;
          end if;
        end loop;
      end $$`)
    const chasing = n1.exec('call pg_temp.chase()')
    for (let i = 1; i <= rounds; i++) {
      await waitUntil(
        `round ${i}`,
        async () =>
          (await n2.query('update chased set v = $1 where w >= $1 - 1 returning 1', [i])).length === 1,
      )
    }
    await chasing
    await story.ends('select v, w from chased', [{ v: rounds, w: rounds }])
  })

  test('7: a row that its own transaction truncates', async () => {
    await n1.exec(`begin; insert into plain values ('k3', 1); truncate plain; commit`)
    await story.ends('select k from plain', [])
    await n2.exec(
      `begin; insert into plain values ('k3', 1); truncate plain; insert into plain values ('k3', 2); commit`,
    )
    await story.ends('select k, v from plain', [{ k: 'k3', v: 2 }])
  })

  test('8: a tombstone stays while the stream of one peer may still bring what it keeps out', async () => {
    story.hold(n2, n3)
    await n3.exec(`insert into plain values ('k8', 1)`)
    await story.becomes(n1, `select v from plain where k = 'k8'`, [{ v: 1 }])
    await n1.exec(`delete from plain where k = 'k8'`)
    const buried = `select from sterna.tombstone where key = '["k8"]'`
    await waitUntil('n2 has the delete', async () => (await n2.query(buried)).length === 1)
    // n1 has everything: its own goes. So the delete is long past by the clocks of all.
    await waitUntil('n1 needs it no more', async () => {
      await n1.query('select sterna.tombstone_clean()')
      return (await n1.query(buried)).length === 0
    })
    await n2.query('select sterna.tombstone_clean()')
    expect(await n2.query(buried)).toHaveLength(1)
    await story.ends(`select v from plain where k = 'k8'`, [])
  })

  describe('delta columns', () => {
    beforeAll(async () => {
      await define(story.nodes, `select sterna.delta_add('counted', 'd')`)
      await define(story.nodes, `select sterna.delta_add('mixed', 'd')`)
    })

    test('3: a row re-created after its delete, without any conflict, where the delete comes last', async () => {
      await n1.exec(`insert into counted values ('k1', 9)`)
      await story.becomes(n3, 'select d from counted', [{ d: 9 }])
      await story.becomes(n2, 'select d from counted', [{ d: 9 }])
      story.hold(n1, n3)
      await n3.exec(`delete from counted where k = 'k1'`)
      await story.becomes(n2, 'select d from counted', [])
      await n2.exec(`insert into counted values ('k1', 2)`)
      await story.becomes(n1, 'select d from counted', [{ d: 11 }])
      await story.ends('select d from counted', [{ d: 2 }])
    })

    test('9: an entry of row_clock that a row set aside depends on stays', async () => {
      await n1.exec(`insert into mixed values ('k2', null, 100), ('other', 'Q', 0)`)
      await n1.exec(`insert into counted values ('free', 100)`)
      await story.mesh.settle()
      for (const node of [n1, n2]) story.hold(node, n3)
      for (const node of [n1, n3]) story.hold(node, n2)
      await n3.exec(
        `update mixed set d = d + 3 where k = 'k2'; update counted set d = d + 3 where k = 'free'`,
      )
      await n2.exec(`insert into mixed values ('k4', 'Y', 1)`)
      await n1.exec(`update mixed set u = 'Y' where k = 'k2'; update counted set d = d + 1 where k = 'free'`)
      for (const node of [n2, n3])
        await story.becomes(node, `select u from mixed where k = 'k2'`, [{ u: 'Y' }])
      await story.ends(`select k, u, d from mixed where k in ('k2', 'k4') order by k`, [
        { k: 'k2', u: 'Y', d: 103 },
      ])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'mixed'), `on ${node.name}`).toEqual(['k4'])
      // The other table has had such an entry too, and nothing depends on that one.
      const clocks = `select table_oid::regclass::text as of from sterna.row_clock`
      for (const node of [n1, n2]) await story.becomes(node, clocks, [{ of: 'mixed' }])
      // A unique value becomes free, so that rows aside are looked at again.
      await n1.exec(`delete from mixed where k = 'other'`)
      await story.comesTo(`select k from mixed where u in ('Y', 'Q')`, [{ k: 'k2' }])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'mixed'), `on ${node.name}`).toEqual(['k4'])
      await n2.exec(`update mixed set u = 'V' where k = 'k2'`)
      await story.comesTo(`select k, u, d from mixed where k in ('k2', 'k4') order by k`, [
        { k: 'k2', u: 'V', d: 103 },
        { k: 'k4', u: 'Y', d: 1 },
      ])
    })

    test('12: an insert that arrives after the difference', async () => {
      story.hold(n3, n1)
      await n1.exec(`insert into counted values ('k12', 100)`)
      await story.becomes(n2, `select d from counted where k = 'k12'`, [{ d: 100 }])
      await n2.exec(`update counted set d = 110 where k = 'k12'`)
      await story.becomes(n3, `select d from counted where k = 'k12'`, [{ d: 10 }])
      await story.ends(`select d from counted where k = 'k12'`, [{ d: 110 }])
    })
  })

  describe('parked changes', () => {
    const broken = `alter table checked add constraint nothing check (k is null) not valid`
    const mended = `alter table checked drop constraint nothing`
    const parked = `select operation from sterna.exception order by id`
    const retry = async (): Promise<void> => {
      await byHand(n3, mended)
      await n3.query('select sterna.exception_retry()')
      await story.becomes(n3, 'select operation, message from sterna.exception', [])
    }

    test('5: an insert that is parked, and then deleted by its origin', async () => {
      await byHand(n3, broken)
      await n1.exec(`insert into checked values ('k1', 1)`)
      await story.becomes(n3, parked, [{ operation: 'insert' }])
      await n1.exec(`delete from checked where k = 'k1'`)
      await n1.exec(`insert into plain values ('k5', 5)`)
      await story.becomes(n3, `select v from plain where k = 'k5'`, [{ v: 5 }])
      await retry()
      await story.ends('select k from checked', [])
    })

    test('5: an insert that is parked, and truncated in its own transaction', async () => {
      await byHand(n3, broken)
      await n1.exec(`begin; insert into checked values ('k1', 1); truncate checked; commit`)
      await n1.exec(`insert into plain values ('k50', 5)`)
      await story.becomes(n3, `select v from plain where k = 'k50'`, [{ v: 5 }])
      await retry()
      await story.ends('select k from checked', [])
    })

    test('5: an insert that is parked, deleted by another node, and retried when tombstones would have gone', async () => {
      await byHand(n3, broken)
      await n1.exec(`insert into checked values ('k2', 1)`)
      await story.becomes(n3, parked, [{ operation: 'insert' }])
      await story.becomes(n2, 'select k from checked', [{ k: 'k2' }])
      await n2.exec(`delete from checked where k = 'k2'`)
      const buried = `select from sterna.tombstone where key = '["k2"]' and table_oid = 'checked'::regclass`
      await waitUntil('n3 has the delete', async () => (await n3.query(buried)).length === 1)
      for (const node of [n1, n2])
        await waitUntil(`${node.name} needs the tombstone no more`, async () => {
          await node.query('select sterna.tombstone_clean()')
          return (await node.query(buried)).length === 0
        })
      await n3.query('select sterna.tombstone_clean()')
      expect(await n3.query(buried)).toHaveLength(1)
      await retry()
      await story.ends('select k from checked', [])
    })
  })

  test('11: a merge function, where an earlier update comes late', async () => {
    await define(
      story.nodes,
      `select sterna.policy_set('merged', null, 'merge', 'keep_greater(merged, merged)')`,
    )
    story.holdAll()
    await n1.exec(`update merged set m = 34`)
    await n3.exec(`update merged set m = 12`)
    story.release(n3, n1)
    await story.becomes(n3, 'select m from merged', [{ m: 34 }])
    await story.ends('select m from merged', [{ m: 34 }])
    // A local update is merged with what it replaces.
    await n2.exec('update merged set m = 5')
    await story.ends('select m from merged', [{ m: 34 }])
    await n2.exec('update merged set m = 35')
    await story.ends('select m from merged', [{ m: 35 }])
  })

  // Last, because it restarts a server.
  test.skipIf(fakeTime === undefined)(
    '10: a clock that was set back deletes a row that is newer than the delete',
    async () => {
      await n3.exec(`insert into plain values ('k10', 1), ('k11', 1), ('reference', 1)`)
      await story.mesh.settle()
      await n2.server.stop()
      await n2.server.start({}, fakeTime!('-5s'))
      await waitUntil('the server is back', async () => (await n2.query('select 1')).length === 1)
      await n2.exec(`delete from plain where k = 'k10'`)
      await n2.exec(`update plain set v = 2 where k = 'k11'`)
      const [versions] = await n2.query<{ older: boolean }>(
        `select pg_xact_commit_timestamp(a.xmin) < pg_xact_commit_timestamp(b.xmin) as older
         from plain a, plain b where a.k = 'k11' and b.k = 'reference'`,
      )
      expect(versions!.older, 'the update seems older than what was there before').toBe(true)
      // Others keep what is newer, until n2 has written it again.
      const rows = `select k, v from plain where k in ('k10', 'k11')`
      for (const node of story.nodes)
        await agreed(async () => expect(await node.query(rows)).toEqual([{ k: 'k11', v: 2 }]), 40_000)
      await story.ends(rows, [{ k: 'k11', v: 2 }])
      await n2.server.stop()
      await n2.server.start()
    },
  )
})

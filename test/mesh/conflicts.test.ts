import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { agreed, applyWaits, asideKeys, startStory, type Story } from '../harness/story.ts'

const SCHEMA = `
  create table item (id int primary key, v text);
  create table person (id int primary key, email text unique, name text);
  create table seat (id int primary key, line int not null, place int not null, badge text unique, unique (line, place));
  create table ranked (id int primary key, rank int not null unique);
  create table log (id int primary key, node text not null);
  create table tagged (id int primary key, tag text unique);`

/** An entry of sterna.conflict_history, as the tests compare it. */
interface Recorded {
  readonly conflict_type: string
  readonly local_row: Readonly<Record<string, string | null>> | null
  readonly remote_row: Readonly<Record<string, string | null>> | null
  readonly resolution: string
  readonly concurrent: boolean | null
}

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`conflicts, ${layout.name}`, () => {
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

  /** What a node has recorded about a key, in order. */
  const recorded = (node: MeshTestNode, table: string, id: number): Promise<Recorded[]> =>
    node.query<Recorded>(
      `select conflict_type, local_row, remote_row, resolution, concurrent from sterna.conflict_history
        where table_oid = $1::regclass and key = jsonb_build_object('id', $2::text) order by id`,
      [table, String(id)],
    )
  const versionOf = async (node: MeshTestNode, table: string, id: number): Promise<string> => {
    const [row] = await node.query<{ version: string }>(
      `select row(pg_xact_commit_timestamp(t.xmin), (select node_id from sterna.local_node))::text as version from ${table} t where id = ${id}`,
    )
    return row!.version
  }

  describe('what is recorded', () => {
    test('insert_exists: once on each node that resolved it, with both rows and versions', async () => {
      story.hold(n1, n2)
      story.hold(n2, n1)
      await n1.exec(`insert into item values (1, 'first')`)
      await story.becomes(n3, 'select v from item where id = 1', [{ v: 'first' }])
      await n2.exec(`insert into item values (1, 'second')`)
      await story.beat()
      const older = await versionOf(n1, 'item', 1)
      const newer = await versionOf(n2, 'item', 1)
      await story.ends('select v from item where id = 1', [{ v: 'second' }])
      const first = { id: '1', v: 'first' }
      const second = { id: '1', v: 'second' }
      const replaced = { local_row: first, remote_row: second, resolution: 'apply_remote' }
      const kept = { local_row: second, remote_row: first, resolution: 'keep_local' }
      const common = { conflict_type: 'insert_exists', concurrent: true }
      for (const [node, entry] of [
        [n1, replaced],
        [n2, kept],
        [n3, replaced],
      ] as const)
        await agreed(async () =>
          expect(await recorded(node, 'item', 1), `on ${node.name}`).toEqual([{ ...common, ...entry }]),
        )
      const versions = `select local_version::text as local, remote_version::text as remote, policy, table_oid::regclass::text as table_name
                          from sterna.conflict_history where key = '{"id": "1"}'`
      const facts = { policy: 'last_update_wins', table_name: 'item' }
      expect(await n1.query(versions)).toMatchObject([{ ...facts, local: older, remote: newer }])
      expect(await n2.query(versions)).toMatchObject([{ ...facts, local: newer, remote: older }])
      const shown = await n1.query(
        `select conflict_type, conflict_resolution, local_tuple ->> 'v' as local, remote_tuple ->> 'v' as remote
           from sterna.resolutions where relname ~ 'item'`,
      )
      expect(shown).toEqual([
        {
          conflict_type: 'insert_exists',
          conflict_resolution: 'apply_remote',
          local: 'first',
          remote: 'second',
        },
      ])
    })

    test('update_origin_differs: two updates that do not know of each other', async () => {
      await n3.exec(`insert into item values (2, 'base')`)
      await story.mesh.settle()
      story.holdAll()
      await n1.exec(`update item set v = 'older' where id = 2`)
      await n2.exec(`update item set v = 'newer' where id = 2`)
      await story.beat()
      await story.ends('select v from item where id = 2', [{ v: 'newer' }])
      for (const [node, resolution] of [
        [n1, 'apply_remote'],
        [n2, 'keep_local'],
      ] as const)
        await agreed(async () =>
          expect(await recorded(node, 'item', 2), `on ${node.name}`).toMatchObject([
            { conflict_type: 'update_origin_differs', resolution, concurrent: true },
          ]),
        )
    })

    test('nodes that write one row in turn, each knowing what the other wrote, have no conflict', async () => {
      await n1.exec(`insert into item values (3, '')`)
      for (let turn = 0; turn < 4; turn++) {
        await story.allKnow()
        await [n1, n2, n3][turn % 3]!.exec(`update item set v = v || '${turn}' where id = 3`)
      }
      await story.allKnow()
      await n2.exec('delete from item where id = 3')
      await story.ends('select from item where id = 3', [])
      for (const node of story.nodes)
        await agreed(async () =>
          expect(
            (await recorded(node, 'item', 3)).filter(({ concurrent }) => concurrent !== false),
            `on ${node.name}`,
          ).toEqual([]),
        )
    })

    test('update_missing: an update before the insert of its row, which then loses; nothing is parked', async () => {
      story.hold(n3, n1)
      await n1.exec(`insert into item values (4, 'inserted')`)
      await story.becomes(n2, 'select v from item where id = 4', [{ v: 'inserted' }])
      await n2.exec(`update item set v = 'updated' where id = 4`)
      await story.becomes(n3, 'select v from item where id = 4', [{ v: 'updated' }])
      await story.ends('select v from item where id = 4', [{ v: 'updated' }])
      expect((await recorded(n3, 'item', 4))[0]).toMatchObject({
        conflict_type: 'update_missing',
        local_row: null,
        remote_row: { id: '4', v: 'updated' },
        resolution: 'apply_remote',
      })
      expect(await n3.query('select from sterna.exception')).toEqual([])
    })

    test('delete_missing and insert_deleted: the delete of a row comes before its insert', async () => {
      story.hold(n3, n1)
      await n1.exec(`insert into item values (5, 'a')`)
      await story.becomes(n2, 'select v from item where id = 5', [{ v: 'a' }])
      await n2.exec('delete from item where id = 5')
      await agreed(async () =>
        expect(await recorded(n3, 'item', 5)).toMatchObject([{ conflict_type: 'delete_missing' }]),
      )
      await story.ends('select from item where id = 5', [])
      expect((await recorded(n3, 'item', 5)).slice(1)).toMatchObject([
        { conflict_type: 'insert_deleted', remote_row: { id: '5', v: 'a' }, resolution: 'keep_local' },
      ])
    })

    test('update_deleted and delete_origin_differs: the delete is newer', async () => {
      await n3.exec(`insert into item values (6, 'base')`)
      await story.mesh.settle()
      story.holdAll()
      await n1.exec(`update item set v = 'lost' where id = 6`)
      await n2.exec('delete from item where id = 6')
      await story.beat()
      await story.ends('select from item where id = 6', [])
      await agreed(async () =>
        expect(await recorded(n1, 'item', 6)).toMatchObject([
          {
            conflict_type: 'delete_origin_differs',
            local_row: { v: 'lost' },
            remote_row: null,
            resolution: 'apply_remote',
            concurrent: true,
          },
        ]),
      )
      // What the delete wiped out unseen can be found where it was dropped, too.
      await agreed(async () =>
        expect(await recorded(n2, 'item', 6)).toMatchObject([
          { conflict_type: 'update_deleted', remote_row: { v: 'lost' }, concurrent: true },
        ]),
      )
    })

    test('delete_origin_differs: the delete is older, and the row lives on', async () => {
      await n3.exec(`insert into item values (7, 'base')`)
      await story.mesh.settle()
      story.holdAll()
      await n2.exec('delete from item where id = 7')
      await n1.exec(`update item set v = 'kept' where id = 7`)
      await story.beat()
      await story.ends('select v from item where id = 7', [{ v: 'kept' }])
      await agreed(async () =>
        expect(await recorded(n1, 'item', 7)).toMatchObject([
          {
            conflict_type: 'delete_origin_differs',
            local_row: { v: 'kept' },
            resolution: 'keep_local',
            concurrent: true,
          },
        ]),
      )
      expect((await recorded(n2, 'item', 7))[0]).toMatchObject({
        conflict_type: 'update_missing',
        remote_row: { v: 'kept' },
      })
    })

    test('counters of each type are in the status of the subscription', async () => {
      await agreed(async () => {
        const [row] = await n1.query<{ conflicts: Record<string, number> }>(
          `select conflicts from sterna.sub_show_status('sub_n1_n2')`,
        )
        const counted = Object.entries(row!.conflicts).filter(([, count]) => count > 0)
        expect(counted.map(([type]) => type).toSorted()).toEqual(
          expect.arrayContaining(['delete_origin_differs', 'insert_exists', 'update_origin_differs']),
        )
      })
    })
  })

  describe('other unique keys', () => {
    const openReviews = (node: MeshTestNode, id: number): Promise<unknown[]> =>
      node.query(
        `select reason from sterna.review where key = jsonb_build_object('id', $1::text) and closed_at is null`,
        [String(id)],
      )

    test('one e-mail under two keys: the newer row stays everywhere, the other waits in the queue with its data', async () => {
      story.holdAll()
      await n1.exec(`insert into person values (1, 'a@x.org', 'An')`)
      await n1.exec(`update person set name = 'Ann' where id = 1`)
      await n2.exec(`insert into person values (2, 'a@x.org', 'Bob')`)
      await story.ends('select id, name from person', [{ id: 2, name: 'Bob' }])
      for (const node of story.nodes) {
        const rows = await node.query(
          `select key, row_values, in_favour_of, constraints from sterna.aside where table_oid = 'person'::regclass`,
        )
        expect(rows, `on ${node.name}`).toEqual([
          {
            key: { id: '1' },
            row_values: { id: '1', email: 'a@x.org', name: 'Ann' },
            in_favour_of: { id: '2' },
            constraints: ['person_email_key'],
          },
        ])
        expect(await openReviews(node, 1), `on ${node.name}`).toEqual([{ reason: 'set_aside' }])
      }
    })

    test('the winner is deleted: the other one comes back on all nodes, under its own version', async () => {
      const [before] = await n2.query(
        `select version::text from sterna.aside where table_oid = 'person'::regclass`,
      )
      await n3.exec('delete from person where id = 2')
      await story.comesTo('select id, email, name from person', [{ id: 1, email: 'a@x.org', name: 'Ann' }])
      for (const node of story.nodes) {
        await agreed(async () => expect(await openReviews(node, 1), `on ${node.name}`).toEqual([]))
        const [row] = await node.query(
          `select sterna.version_of_row('person'::regclass::oid, sterna.key_hash_of_texts('person'::regclass, '{"id": "1"}'), t.xmin, null)::text as version
             from person t where id = 1`,
        )
        expect(row, `version on ${node.name}`).toEqual(before)
      }
    })

    test('the winner takes another e-mail: the other one comes back; what it missed meanwhile is in it', async () => {
      story.holdAll()
      await n1.exec(`insert into person values (3, 'c@x.org', 'Cid')`)
      await n3.exec(`insert into person values (4, 'c@x.org', 'Dan')`)
      story.release(n2, n1)
      await story.becomes(n2, 'select name from person where id = 3', [{ name: 'Cid' }])
      await n2.exec(`update person set name = 'Cidney' where id = 3`)
      // The update is the newest now: n3's row yields.
      await story.ends('select id, name from person where id in (3, 4)', [{ id: 3, name: 'Cidney' }])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'person'), `on ${node.name}`).toEqual(['4'])
      await n1.exec(`update person set email = 'cid@x.org' where id = 3`)
      await story.comesTo('select id, email, name from person where id in (3, 4) order by id', [
        { id: 3, email: 'cid@x.org', name: 'Cidney' },
        { id: 4, email: 'c@x.org', name: 'Dan' },
      ])
    })

    test('a row that collides with two others, in two constraints', async () => {
      story.holdAll()
      await n1.exec(`insert into seat values (1, 1, 1, 'x'), (2, 1, 2, 'y')`)
      await n2.exec(`insert into seat values (3, 1, 1, 'y')`)
      await story.ends('select id from seat order by id', [{ id: 3 }])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'seat'), `on ${node.name}`).toEqual(['1', '2'])
      const types = await n1.query<{ conflict_type: string }>(
        `select distinct conflict_type from sterna.conflict_history where table_oid = 'seat'::regclass`,
      )
      expect(types).toEqual([{ conflict_type: 'multiple_unique_conflicts' }])
      await n2.exec(`update seat set place = 9, badge = 'z' where id = 3`)
      await story.comesTo('select id from seat order by id', [{ id: 1 }, { id: 2 }, { id: 3 }])
    })

    test('a chain: what yields to one row lets another one stand', async () => {
      story.holdAll()
      await n1.exec(`insert into seat values (11, 2, 1, 'p')`)
      await n2.exec(`insert into seat values (12, 2, 1, 'q')`)
      await n3.exec(`insert into seat values (13, 2, 3, 'q')`)
      // 13 stands, 12 yields to it, and so 11 stands.
      await story.comesTo('select id from seat where id > 10 order by id', [{ id: 11 }, { id: 13 }])
      for (const node of story.nodes) expect(await asideKeys(node, 'seat'), `on ${node.name}`).toEqual(['12'])
    })

    test('a truncate takes rows aside along', async () => {
      await n2.exec('truncate seat')
      await story.ends('select from seat', [])
      for (const node of story.nodes) expect(await asideKeys(node, 'seat'), `on ${node.name}`).toEqual([])
    })

    test('two rows swap unique values in one transaction; all values shift by one in one statement', async () => {
      await n1.exec(`insert into ranked values (1, 1), (2, 2), (3, 3)`)
      await story.mesh.settle()
      await n2.exec(
        `begin; update ranked set rank = -1 where id = 1; update ranked set rank = 1 where id = 2; update ranked set rank = 2 where id = 1; commit`,
      )
      await story.ends('select id, rank from ranked order by id', [
        { id: 1, rank: 2 },
        { id: 2, rank: 1 },
        { id: 3, rank: 3 },
      ])
      await n3.exec('delete from ranked')
      await n3.exec('insert into ranked values (1, 1), (2, 2), (3, 3)')
      await n3.exec('update ranked set rank = rank - 1')
      await story.ends('select id, rank from ranked order by id', [
        { id: 1, rank: 0 },
        { id: 2, rank: 1 },
        { id: 3, rank: 2 },
      ])
    })

    test('two rows swap unique values on one node, and otherwise on another', async () => {
      story.holdAll()
      const swap = (a: number, b: number): string =>
        `do $$ declare x int; y int; begin
           select rank into x from ranked where id = ${a}; select rank into y from ranked where id = ${b};
           update ranked set rank = -5 where id = ${a}; update ranked set rank = x where id = ${b};
           update ranked set rank = y where id = ${a};
         end $$`
      await n1.exec(swap(1, 2))
      await n2.exec(swap(2, 3))
      // n1 gave rank 1 to row 1, n2 gave it to row 3, and later.
      await story.comesTo('select id, rank from ranked where id > 1 order by id', [
        { id: 2, rank: 2 },
        { id: 3, rank: 1 },
      ])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'ranked'), `on ${node.name}`).toEqual(['1'])
      await n3.exec('update ranked set rank = 7 where id = 3')
      await story.comesTo('select id, rank from ranked order by id', [
        { id: 1, rank: 1 },
        { id: 2, rank: 2 },
        { id: 3, rank: 7 },
      ])
    })

    test('a row that goes and comes back in one transaction, and one that changes its key, with a unique value', async () => {
      await n1.exec(`insert into tagged values (1, 'a'), (2, 'b')`)
      await story.mesh.settle()
      await n2.exec(`begin; delete from tagged where id = 1; insert into tagged values (3, 'a'); commit`)
      await n2.exec(
        `begin; update tagged set id = 4 where id = 2; insert into tagged values (2, 'c'); commit`,
      )
      await story.ends('select id, tag from tagged order by id', [
        { id: 2, tag: 'c' },
        { id: 3, tag: 'a' },
        { id: 4, tag: 'b' },
      ])
    })
  })

  describe('local transactions that are being committed', () => {
    /** Holds a local transaction open until a remote change waits for it; then commits it. */
    const whileOpen = async (local: string, remote: () => Promise<unknown>): Promise<void> => {
      const session = await PgConnection.connect(n1.dsn, { applicationName: 'test local' })
      try {
        story.hold(n1, n2)
        await remote()
        await session.exec(`begin; ${local}`)
        story.release(n1, n2)
        await applyWaits(n1)
        await session.exec('commit')
      } finally {
        await session.close()
      }
    }

    test('a delete, and an older insert of the same key', async () => {
      await whileOpen(`insert into item values (30, 'local'); delete from item where id = 30`, () =>
        n2.exec(`insert into item values (30, 'remote')`),
      )
      await story.ends('select v from item where id = 30', [])
    })

    test('a change of the key, and an older update of the old one', async () => {
      await n3.exec(`insert into item values (31, 'base')`)
      await story.mesh.settle()
      await whileOpen('update item set id = 32 where id = 31', () =>
        n2.exec(`update item set v = 'remote' where id = 31`),
      )
      await story.ends('select id, v from item where id in (31, 32)', [{ id: 32, v: 'base' }])
    })

    test('a truncate, and an older insert', async () => {
      await n3.exec(`insert into log values (1, 'base')`)
      await story.mesh.settle()
      await whileOpen('truncate log', () => n2.exec(`insert into log values (2, 'remote')`))
      await story.ends('select id from log', [])
    })

    test('a row with the unique value of an older remote one', async () => {
      await whileOpen(`insert into person values (31, 'e@x.org', 'local')`, () =>
        n2.exec(`insert into person values (32, 'e@x.org', 'remote')`),
      )
      await story.ends(`select id from person where email = 'e@x.org'`, [{ id: 31 }])
      for (const node of story.nodes)
        expect(await asideKeys(node, 'person'), `on ${node.name}`).toEqual(['32'])
    })
  })

  test('truncates on one node while others insert, again and again', async () => {
    let running = true
    const inserting = [n2, n3].map(async (node, i) => {
      for (let id = i; running; id += 2) {
        await node.query('insert into log values ($1, $2)', [id, node.name])
        await delay(3)
      }
    })
    for (let round = 0; round < 10; round++) {
      await story.mesh.settle()
      await n1.exec('truncate log')
    }
    running = false
    await Promise.all(inserting)
    await story.mesh.settle()
    await n1.exec(`insert into log values (-1, 'last')`)
    await story.ends('select node from log where id = -1', [{ node: 'last' }])
  })
})

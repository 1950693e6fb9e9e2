import { mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { runCommand } from '../harness/command.ts'
import { guardDirectory } from '../harness/guard.ts'
import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { agreed, startStory, type Story } from '../harness/story.ts'

/*
 * What a person does with conflicts and exceptions, on a real mesh: by the commands, on one node; the outcome is the same on
 * all nodes.
 */

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))
const SCHEMA = `
  create table item (id int primary key, v text, n int);
  create table person (id int primary key, email text unique, name text);
  create table picky (id int primary key, v int);`

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`review and exceptions, ${layout.name}`, () => {
  let story: Story
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode
  let clusterFile: string

  beforeAll(async () => {
    story = await startStory({ count: layout.versions.length, version: layout.versions, schema: SCHEMA })
    ;({ n1, n2, n3 } = story)
    const directory = await mkdtemp(join(tmpdir(), 'sterna-review-'))
    guardDirectory(directory)
    clusterFile = join(directory, 'test.cluster.json')
    const nodes = story.nodes.map(({ name, dsn }) => ({ name, dsn }))
    await writeFile(clusterFile, JSON.stringify({ name: 'test', nodes }), { mode: 0o600 })
    for (const node of story.nodes)
      await node.exec(
        `insert into sterna.policy (table_oid, conflict_type, policy) values ('item'::regclass, 'update_origin_differs', 'manual')`,
      )
  })
  afterEach(() => story.releaseAll())
  afterAll(() => story?.stop())

  const sterna = async <T>(...args: string[]): Promise<T> => {
    const { code, stdout, stderr } = await runCommand([MAIN, ...args, '--cluster', clusterFile, '--json'])
    if (code !== 0) throw new Error(`sterna ${args.join(' ')} ended with ${code}: ${stdout}${stderr}`)
    return JSON.parse(stdout) as T
  }
  /** The open entries of a table: node to id. */
  const openEntries = async (table: string): Promise<Map<string, bigint>> => {
    const entries = new Map<string, bigint>()
    for (const node of story.nodes) {
      const rows = await node.query<{ id: bigint }>(
        'select review_id as id from sterna.conflict_list where review_open and table_oid = $1::regclass',
        [table],
      )
      for (const { id } of rows) entries.set(node.name, id)
    }
    return entries
  }
  const untilOpenEverywhere = async (table: string): Promise<Map<string, bigint>> => {
    let entries = new Map<string, bigint>()
    await agreed(async () => {
      entries = await openEntries(table)
      expect([...entries.keys()].toSorted()).toEqual(story.nodes.map(({ name }) => name))
    }, 20_000)
    return entries
  }
  const untilClosedEverywhere = (table: string): Promise<void> =>
    agreed(async () => expect([...(await openEntries(table))]).toEqual([]))

  /** n1 and n2 write one row without knowing of each other; n2's is the newer. */
  const conflict = async (id: number): Promise<Map<string, bigint>> => {
    await n1.query(`insert into item values ($1, 'old', 0)`, [id])
    await story.mesh.settle()
    story.hold(n1, n2)
    story.hold(n2, n1)
    await n1.query(`update item set v = 'one', n = 1 where id = $1`, [id])
    await story.becomes(n3, `select v from item where id = ${id}`, [{ v: 'one' }])
    await n2.query(`update item set v = 'two', n = 2 where id = $1`, [id])
    await story.ends(`select v from item where id = ${id}`, [{ v: 'two' }])
    return untilOpenEverywhere('item')
  }

  describe('an entry of the review queue', () => {
    test('the row that lost is chosen on the node that wrote it; closed and the same on all', async () => {
      const entries = await conflict(1)
      // On n2 the newer row was here, and the older one arrived.
      await sterna('conflicts', 'resolve', `r${entries.get('n2')}`, '--on', 'n2', '--keep', 'remote')
      await story.ends('select v, n from item where id = 1', [{ v: 'one', n: 1 }])
      await untilClosedEverywhere('item')
      for (const node of story.nodes)
        expect(
          await node.query(`select distinct resolution from sterna.review where key = '{"id": "1"}'`),
        ).toEqual([{ resolution: 'remote' }])
    })

    test('the row stays as it is on a node, although another one is newer elsewhere', async () => {
      const entries = await conflict(2)
      story.hold(n1, n3)
      await n3.query(`update item set v = 'three' where id = 2`)
      await story.becomes(n2, 'select v from item where id = 2', [{ v: 'three' }])
      await sterna('conflicts', 'resolve', `r${entries.get('n1')}`, '--on', 'n1', '--keep', 'local')
      await story.ends('select v, n from item where id = 2', [{ v: 'two', n: 2 }])
      // What the resolution replaced unseen is queued in its turn.
      const again = await untilOpenEverywhere('item')
      await sterna('conflicts', 'resolve', `r${again.get('n3')}`, '--on', 'n3', '--dismiss')
      await untilClosedEverywhere('item')
    })

    test('a row that is given', async () => {
      const entries = await conflict(3)
      const shown = await sterna<{
        conflict: { local_row: object; remote_row: object; review_open: boolean }
      }>('conflicts', 'show', `r${entries.get('n3')}`, '--on', 'n3')
      expect(shown.conflict).toMatchObject({
        local_row: { id: '3', v: 'one', n: '1' },
        remote_row: { id: '3', v: 'two', n: '2' },
        review_open: true,
      })
      await sterna(
        'conflicts',
        'resolve',
        `r${entries.get('n3')}`,
        '--on',
        'n3',
        '--row',
        '{"v": "both", "n": 3}',
      )
      await story.ends('select v, n from item where id = 3', [{ v: 'both', n: 3 }])
      await untilClosedEverywhere('item')
    })

    test('dismissed: nothing is written, and it is closed on all', async () => {
      const entries = await conflict(4)
      const listed = await sterna<{ conflicts: { on: string; review_id: number }[] }>(
        'conflicts',
        'list',
        '--open',
      )
      expect(new Map(listed.conflicts.map((row) => [row.on, BigInt(row.review_id)]))).toEqual(entries)
      await sterna('conflicts', 'resolve', `r${entries.get('n1')}`, '--on', 'n1', '--dismiss')
      await story.ends('select v, n from item where id = 4', [{ v: 'two', n: 2 }])
      await untilClosedEverywhere('item')
    })
  })

  describe('a row set aside', () => {
    /** Two nodes give one e-mail to two persons: the older one stands aside. */
    const collide = async (id: number): Promise<Map<string, bigint>> => {
      story.hold(n1, n2)
      story.hold(n2, n1)
      await n1.query(`insert into person values ($1, $2, 'older')`, [id, `e${id}`])
      await story.becomes(n3, `select name from person where id = ${id}`, [{ name: 'older' }])
      await n2.query(`insert into person values ($1, $2, 'newer')`, [id + 1, `e${id}`])
      await story.ends(`select id from person where email = 'e${id}'`, [{ id: id + 1 }])
      return untilOpenEverywhere('person')
    }

    test('sterna.rows_aside says why; with another value it returns everywhere', async () => {
      const entries = await collide(10)
      for (const node of story.nodes)
        expect(await node.query(`select key, why, written_by::text from sterna.rows_aside`)).toEqual([
          {
            key: { id: '10' },
            why: 'email = e10 is also that of the row with id = 11, which is newer',
            written_by: 'n1',
          },
        ])
      await sterna(
        'conflicts',
        'resolve',
        `r${entries.get('n3')}`,
        '--on',
        'n3',
        '--row',
        '{"email": "other"}',
      )
      await story.comesTo('select id, email, name from person where id in (10, 11) order by id', [
        { id: 10, email: 'other', name: 'older' },
        { id: 11, email: 'e10', name: 'newer' },
      ])
      await untilClosedEverywhere('person')
      for (const node of story.nodes) expect(await node.query('select from sterna.aside')).toEqual([])
    })

    test('given up: it does not come back when the value is free', async () => {
      const entries = await collide(20)
      await sterna('conflicts', 'resolve', `r${entries.get('n2')}`, '--on', 'n2', '--keep', 'local')
      await untilClosedEverywhere('person')
      await n1.query('delete from person where id = 21')
      await story.comesTo('select id from person where id in (20, 21)', [])
      for (const node of story.nodes) expect(await node.query('select from sterna.aside')).toEqual([])
    })

    test('dismissed: it comes back by itself when the value is free', async () => {
      const entries = await collide(30)
      await sterna('conflicts', 'resolve', `r${entries.get('n1')}`, '--on', 'n1', '--dismiss')
      await untilClosedEverywhere('person')
      await n2.query('delete from person where id = 31')
      await story.comesTo(
        'select id, name from person where id in (30, 31)',
        [{ id: 30, name: 'older' }],
        30_000,
      )
    })
  })

  describe('exceptions', () => {
    const parked = async (): Promise<string[]> =>
      (await n3.query<{ id: bigint }>('select id from sterna.exception order by id')).map(({ id }) =>
        String(id),
      )

    test('a retry after the cause is gone brings the change; a dropped one stays out', async () => {
      await n3.exec('set sterna.ddl_replication = off')
      await n3.exec('alter table picky add constraint small check (v < 10)')
      await n1.query('insert into picky values (1, 5), (2, 50), (3, 6), (4, 60)')
      await agreed(async () => expect(await parked()).toHaveLength(2), 20_000)
      expect(await n3.query('select id from picky order by id')).toEqual([{ id: 1 }, { id: 3 }])
      const [first, second] = await parked()
      const listed = await sterna<{ exceptions: { on: string; id: number; sqlstate: string }[] }>(
        'exceptions',
        'list',
      )
      expect(listed.exceptions.map(({ on, id, sqlstate }) => [on, String(id), sqlstate])).toEqual([
        ['n3', first, '23514'],
        ['n3', second, '23514'],
      ])
      await sterna('exceptions', 'drop', second!, '--on', 'n3', '--yes')
      // Not by itself: its cause goes, and its next retry with it.
      await n3.exec(`begin; lock table picky in access exclusive mode; update sterna.exception set next_retry_at = null;
        alter table picky drop constraint small; commit`)
      await sterna('exceptions', 'retry', '--all', '--on', 'n3')
      await story.becomes(n3, 'select id, v from picky order by id', [
        { id: 1, v: 5 },
        { id: 2, v: 50 },
        { id: 3, v: 6 },
      ])
      await agreed(async () => expect(await parked()).toEqual([]))
      // The dropped row is on the other nodes still; its next change brings it here.
      await n2.query('update picky set v = 7 where id = 4')
      await story.ends('select id, v from picky order by id', [
        { id: 1, v: 5 },
        { id: 2, v: 50 },
        { id: 3, v: 6 },
        { id: 4, v: 7 },
      ])
    })

    test('a whole transaction, where the subscription says so: on demand only', async () => {
      await sterna('sub', 'set-on-exception', 'sub_n3_n1', 'transdiscard', '--on', 'n3')
      await n3.exec('set sterna.ddl_replication = off')
      await n3.exec('alter table picky add constraint small check (v < 80)')
      await story.mesh.settle()
      await n1.exec(
        'begin; insert into picky values (11, 1); insert into item values (11); insert into picky values (12, 90); commit',
      )
      await agreed(async () => expect(await parked()).toHaveLength(3), 20_000)
      expect(await n3.query('select id from picky where id > 10')).toEqual([])
      await n3.exec('alter table picky drop constraint small')
      await sterna('exceptions', 'retry', (await parked())[0]!, '--on', 'n3')
      await story.becomes(n3, 'select id from picky where id > 10', [{ id: 11 }])
      await sterna('exceptions', 'retry', '--all', '--on', 'n3')
      await story.comesTo('select id from picky where id > 10 order by id', [{ id: 11 }, { id: 12 }])
      await agreed(async () => expect(await parked()).toEqual([]))
    })
  })
})

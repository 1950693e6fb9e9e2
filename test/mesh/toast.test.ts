import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { large, startStory, type Story } from '../harness/story.ts'

const SCHEMA = `
  create table document (id int primary key, title text, body text, notes text);
  create table whole (id int primary key, title text, body text);
  alter table whole replica identity full;`

const MEGABYTES = 5

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`large values that updates leave alone, ${layout.name}`, () => {
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

  const shown = (id: number): string =>
    `select id, title, md5(body) as body, md5(notes) as notes from document where id = ${id}`
  const put = (node: MeshTestNode, id: number, kilobytes: number, seed = `${id}`): Promise<void> =>
    node.exec(
      `insert into document values (${id}, 'base', ${large(seed, kilobytes)}, ${large(`${seed} notes`, 10)})`,
    )

  for (const order of ['before', 'after'] as const)
    test(`${MEGABYTES} MB stay as they are on one node, just ${order} another node replaces them`, async () => {
      const id = order === 'before' ? 1 : 2
      await put(n3, id, MEGABYTES * 1024)
      await story.mesh.settle()
      story.holdAll()
      const leave = (): Promise<void> => n1.exec(`update document set title = 'left alone' where id = ${id}`)
      const replace = (): Promise<void> =>
        n2.exec(`update document set body = ${large('other', MEGABYTES * 1024)} where id = ${id}`)
      await (order === 'before' ? leave() : replace())
      await (order === 'before' ? replace() : leave())
      // The newer row, as its node has it now, is the row everywhere: whole.
      const [winner] = await (order === 'before' ? n2 : n1).query(shown(id))
      await story.ends(shown(id), [winner])
    })

  test('a chain of updates over three nodes, each of which leaves another value alone', async () => {
    await put(n1, 10, 50)
    await story.mesh.settle()
    story.hold(n3, n1)
    await n1.exec(`update document set body = ${large('chain 1', 50)} where id = 10`)
    const [one] = await n1.query(shown(10))
    await story.becomes(n2, shown(10), [one])
    await n2.exec(`update document set notes = ${large('chain 2', 50)} where id = 10`)
    const [two] = await n2.query(shown(10))
    // n3 has the update of n2 without the one before: the values must come from n2.
    await story.becomes(n3, shown(10), [two])
    await n3.exec(`update document set title = 'chain 3' where id = 10`)
    await story.becomes(n2, shown(10), [{ ...two, title: 'chain 3' }])
    story.hold(n1, n2)
    await story.becomes(n1, shown(10), [{ ...two, title: 'chain 3' }])
    await story.ends(shown(10), [{ ...two, title: 'chain 3' }])
  })

  test('the origin has replaced the row since, and then deleted it', async () => {
    await put(n1, 20, 50)
    await story.mesh.settle()
    story.hold(n3, n1)
    story.hold(n3, n2)
    await n2.exec(`update document set body = ${large('since', 50)} where id = 20`)
    const [second] = await n2.query(shown(20))
    await story.becomes(n1, shown(20), [second])
    await n1.exec(`update document set title = 'soon replaced' where id = 20`)
    await n1.exec(`update document set title = 'replaced', notes = ${large('replaced', 50)} where id = 20`)
    const [last] = await n1.query(shown(20))
    story.release(n3, n1)
    await story.becomes(n3, shown(20), [last])
    story.hold(n3, n1)
    await n1.exec(`update document set title = 'soon deleted' where id = 20`)
    await n1.exec('delete from document where id = 20')
    await story.ends(shown(20), [])
  })

  test('the key changes, and the large value does not', async () => {
    await put(n1, 30, 50)
    await story.mesh.settle()
    story.holdAll()
    await n2.exec(`update document set body = ${large('unseen', 50)} where id = 30`)
    await n1.exec('update document set id = 31 where id = 30')
    const [moved] = await n1.query(shown(31))
    await story.ends(`${shown(30)} union all ${shown(31)}`, [moved])
  })

  test('one transaction inserts, replaces and leaves alone', async () => {
    story.hold(n3, n2)
    await n1.exec(
      `begin; insert into document values (40, 'base', ${large('40', 50)}, ${large('40 n', 50)});
       update document set body = ${large('40 b', 50)} where id = 40; update document set title = 'end' where id = 40; commit`,
    )
    const [row] = await n1.query(shown(40))
    await story.ends(shown(40), [row])
  })

  test('an update that loses, with a value that nobody has sent', async () => {
    await put(n1, 50, 50)
    await story.mesh.settle()
    story.holdAll()
    await n1.exec(`update document set title = 'older' where id = 50`)
    await n2.exec(`update document set body = ${large('newer', 50)} where id = 50`)
    await n2.exec(`update document set title = 'newest' where id = 50`)
    const [row] = await n2.query(shown(50))
    await story.ends(shown(50), [row])
  })

  test('with REPLICA IDENTITY FULL the old row has the value, also where the row is not', async () => {
    const wholeSql = 'select title, md5(body) as body from whole'
    story.hold(n3, n2)
    await n2.exec(`insert into whole values (1, 'base', ${large('whole', 50)})`)
    await story.becomes(n1, 'select title from whole', [{ title: 'base' }])
    await n1.exec(`update whole set title = 'changed'`)
    const [row] = await n1.query(wholeSql)
    await story.becomes(n3, wholeSql, [row])
    await story.ends(wholeSql, [row])
  })

  test('everything of these tests was applied, nothing parked', async () => {
    for (const node of story.nodes)
      expect(await node.query('select from sterna.exception'), `on ${node.name}`).toEqual([])
  })
})

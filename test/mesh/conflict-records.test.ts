import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import type { MeshTestNode } from '../harness/mesh.ts'
import { startStory, type Story } from '../harness/story.ts'
import { waitUntil } from '../harness/wait.ts'

const HISTORY_SQL = `select conflict_type, key ->> 'id' as id, concurrent, (local_version).node_id as local, (remote_version).node_id as remote
  from sterna.conflict_history order by id`

describe('what is recorded of conflicts', () => {
  let story: Story
  let n1: MeshTestNode
  let n2: MeshTestNode
  let ids: Record<string, number>

  beforeAll(async () => {
    story = await startStory({ count: 3, schema: 'create table t (id int primary key, v text)' })
    ;({ n1, n2 } = story)
    const rows = await n1.query<{ name: string; id: number }>(
      'select node_name::text as name, node_id as id from sterna.nodes',
    )
    ids = Object.fromEntries(rows.map(({ name, id }) => [name, id]))
  })
  afterAll(() => story.stop())

  /** The version of a row of `t`. */
  const writtenAt = async (node: MeshTestNode, id: number): Promise<string> => {
    const [row] = await node.query<{ at: string }>(
      'select sterna.pg_time(pg_xact_commit_timestamp(xmin))::text as at from t where id = $1',
      [id],
    )
    return row!.at
  }

  /** Waits until heartbeats of `of` that were read after `time` have come to `at`. */
  const beaten = (at: MeshTestNode, of: MeshTestNode, time: string): Promise<void> =>
    waitUntil(`${at.name} has a heartbeat of ${of.name} past ${time}`, async () => {
      const rows = await at.query(
        'select from sterna.heartbeat where node_id = $1 and sterna.pg_time(seen_at) > $2::bigint',
        [ids[of.name]!, time],
      )
      return rows.length === 1
    })

  /** Waits until a node has said in a heartbeat that it has the row as another one wrote it. */
  const applied = async (at: MeshTestNode, from: MeshTestNode, id: number): Promise<void> => {
    const time = await writtenAt(at, id)
    await waitUntil(`${at.name} has said that it has what ${from.name} wrote`, async () => {
      const rows = await at.query(
        'select from sterna.heartbeat h join sterna.local_node using (node_id) where (h.applied ->> $1)::bigint > $2::bigint',
        [String(ids[from.name]), time],
      )
      return rows.length === 1
    })
  }

  /** Waits until every node has judged what it recorded of a version. */
  const judged = async (by: MeshTestNode, time: string): Promise<void> => {
    await story.mesh.settle()
    for (const node of story.nodes) {
      await beaten(node, by, time)
      await waitUntil(`${node.name} has judged its entries`, async () => {
        const open = await node.query(
          'select from sterna.conflict_history where concurrent is null and not settled',
        )
        return open.length === 0
      })
    }
  }

  it('nothing of a mere change of writer', async () => {
    await n1.query("insert into t values (1, 'a')")
    await story.mesh.settle()
    for (const [at, from, value] of [
      [n2, n1, 'b'],
      [n1, n2, 'c'],
      [story.n3, n1, 'd'],
    ] as const) {
      await applied(at, from, 1)
      await at.query('update t set v = $1 where id = 1', [value])
      await judged(at, await writtenAt(at, 1))
    }
    for (const node of story.nodes) {
      expect(await node.query('select v from t where id = 1')).toEqual([{ v: 'd' }])
      expect(await node.query(HISTORY_SQL), `on ${node.name}`).toEqual([])
    }
  })

  it('one entry on each node of updates that knew nothing of each other', async () => {
    await n1.query("insert into t values (2, 'a')")
    await story.mesh.settle()
    await applied(n2, n1, 2)
    story.holdAll()
    await n1.query("update t set v = 'one' where id = 2")
    await n2.query("update t set v = 'two' where id = 2")
    const time = await writtenAt(n2, 2)
    await beaten(n2, n2, time)
    story.releaseAll()
    await judged(n2, time)
    const [one, two] = [ids['n1']!, ids['n2']!]
    const entry = { conflict_type: 'update_origin_differs', id: '2', concurrent: true }
    expect(await n1.query(HISTORY_SQL)).toEqual([{ ...entry, local: one, remote: two }])
    expect(await n2.query(HISTORY_SQL)).toEqual([{ ...entry, local: two, remote: one }])
    expect(await story.n3.query(HISTORY_SQL)).toEqual([
      expect.objectContaining({ ...entry, remote: expect.toBeOneOf([one, two]) as number }),
    ])
    for (const node of story.nodes)
      expect(await node.query('select v from t where id = 2')).toEqual([{ v: 'two' }])
  })

  it('what waits shows in the state of the subscription that it came by', async () => {
    await n1.exec(`insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_name, operation, version)
      values ('failed', ${ids['n2']}, '0/1', 1, 'public.gone', 'insert', row(clock_timestamp(), ${ids['n2']})::sterna.row_version)`)
    const counts = `select provider_node, exceptions::int from sterna.sub_show_status() order by 1`
    await story.becomes(n1, counts, [
      { provider_node: 'n2', exceptions: 1 },
      { provider_node: 'n3', exceptions: 0 },
    ])
    await n1.exec('delete from sterna.exception')
    await story.becomes(n1, counts, [
      { provider_node: 'n2', exceptions: 0 },
      { provider_node: 'n3', exceptions: 0 },
    ])
  })
})

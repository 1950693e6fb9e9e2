import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { receiveHeartbeat, relationOf, type Heartbeat, type Heartbeats } from '../conflict/heartbeat.ts'
import type { RowVersion } from '../conflict/version.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

const at = (time: number): PgTime => pgTimeOf(BigInt(time))

/** Times by node, of the nodes 1 to 3. */
const times = fc
  .dictionary(fc.constantFrom('1', '2', '3'), fc.integer({ min: 10, max: 120 }))
  .map((byNode) => new Map(Object.entries(byNode).map(([node, time]) => [Number(node), at(time)])))

/** What nodes 1 and 2 say of themselves, each at later and later times. */
const spoken = fc
  .uniqueArray(
    fc.record({
      nodeId: fc.integer({ min: 1, max: 2 }),
      time: fc.integer({ min: 10, max: 120 }).map(at),
      claim: fc.constant(at(0)),
      applied: times,
      seen: times,
    }),
    { maxLength: 10, selector: ({ nodeId, time }) => `${nodeId} ${time}` },
  )
  .map((all): Heartbeat[] => all.toSorted((a, b) => Number(a.time - b.time)))

const version = fc.record({
  nodeId: fc.integer({ min: 1, max: 3 }),
  time: fc.integer({ min: 9, max: 121 }).map(at),
})

describe.each(MATRIX)('heartbeats on version %s', (server) => {
  let servers: TestServers
  let conn: PgConnection
  /** Commits as if it applied changes of another node. */
  let remote: PgConnection
  let beats = 0

  beforeAll(async () => {
    servers = await startServers({ count: 1, version: server })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await installSchema(conn)
    await conn.exec(`select sterna.node_create('n1', 'host=x', info => '{"node_id": 1}')`)
    await conn.exec(`select sterna.peer_upsert(2, 'n2', 'host=y', null, null, null);
                     select sterna.peer_upsert(3, 'n3', 'host=z', null, null, null)`)
    remote = await PgConnection.connect(servers.nodes[0]!.dsn)
    await remote.exec(`set session_replication_role = replica; select pg_replication_origin_create('test');
                       select pg_replication_origin_session_setup('test')`)
  })
  beforeEach(forget)
  afterAll(async () => {
    await Promise.all([conn.close(), remote.close()])
    await servers.stop()
  })

  async function forget(): Promise<void> {
    await conn.exec(
      'truncate sterna.heartbeat, sterna.heard_heartbeat, sterna.exception, sterna.conflict_history',
    )
  }

  /** Applies a heartbeat that was read at `readAt` and committed at its time. */
  async function hear({ nodeId, time, applied, seen }: Heartbeat, readAt: PgTime = time): Promise<void> {
    const json = (map: ReadonlyMap<number, PgTime>): string =>
      `{${[...map].map(([node, upTo]) => `"${node}": ${upTo}`).join(',')}}`
    await remote.exec(`
      select pg_replication_origin_xact_setup('0/1', sterna.time_of(${time}));
      insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, applied, seen, seen_at)
      values (${nodeId}, sterna.time_of(${readAt}), ${++beats}, '0/1', '${json(applied)}', '${json(seen)}', sterna.time_of(${readAt}))
      on conflict (node_id) do update set beats = excluded.beats, applied = excluded.applied, seen = excluded.seen, seen_at = excluded.seen_at`)
  }

  async function relations(pairs: readonly (readonly [RowVersion, RowVersion])[]): Promise<string[]> {
    const rows = pairs.map(([newer, older]) =>
      [newer.time, newer.nodeId, older.time, older.nodeId].map(String),
    )
    const { rows: found } = await conn.query<{ relation: string }>(
      `select sterna.version_relation(row(sterna.time_of((p.pair ->> 0)::bigint), (p.pair ->> 1)::integer)::sterna.row_version,
                                      row(sterna.time_of((p.pair ->> 2)::bigint), (p.pair ->> 3)::integer)::sterna.row_version) as relation
         from jsonb_array_elements($1::jsonb) with ordinality as p(pair, position) order by p.position`,
      [JSON.stringify(rows)],
    )
    return found.map(({ relation }) => relation)
  }

  it('version_relation says what relationOf says', async () => {
    const met = new Set<string>()
    await fc.assert(
      fc
        .asyncProperty(
          spoken,
          fc.array(fc.tuple(version, version), { minLength: 40, maxLength: 40 }),
          async (said, pairs) => {
            let heartbeats: Heartbeats = new Map()
            for (const heartbeat of said) {
              await hear(heartbeat)
              heartbeats = receiveHeartbeat(heartbeats, heartbeat, 100)
            }
            const expected = pairs.map(([newer, older]) => relationOf(newer, older, heartbeats))
            expected.forEach((relation) => met.add(relation))
            expect(await relations(pairs)).toEqual(expected)
          },
        )
        .afterEach(forget),
      { numRuns: 40 },
    )
    expect([...met].toSorted()).toEqual(['concurrent', 'ordered', 'unknown'])
  })

  it('what a heartbeat had seen counts from when that was read, not from its commit', async () => {
    const heartbeat = {
      nodeId: 2,
      time: at(30),
      claim: at(0),
      applied: new Map(),
      seen: new Map([[3, at(5)]]),
    }
    await hear(heartbeat, at(20))
    const older = { nodeId: 3, time: at(10) }
    const pair = (time: number) => [{ nodeId: 2, time: at(time) }, older] as const
    expect(await relations([pair(19), pair(20), pair(25), pair(30)])).toEqual([
      'concurrent',
      'unknown',
      'unknown',
      'unknown',
    ])
  })

  it('a node that is made anew under an old id begins anew', async () => {
    const heartbeat = {
      nodeId: 2,
      time: at(20),
      claim: at(0),
      applied: new Map([[3, at(15)]]),
      seen: new Map(),
    }
    await hear(heartbeat)
    await hear({ ...heartbeat, time: at(30) })
    beats = 0
    await hear({ ...heartbeat, time: at(40) })
    expect((await conn.query('select beats::int from sterna.heard_heartbeat')).rows).toEqual([{ beats: 1 }])
  })

  describe('conflict_settle', () => {
    /** An entry of a change of node 2 at `arriving` that met a row of node 3 at `met`. */
    async function record(type: string, met: number | null, arriving: number): Promise<void> {
      await conn.query(
        `insert into sterna.conflict_history (conflict_type, table_oid, table_name, key, local_version, remote_version, resolution)
         values ($1, 1, 't', '{}', case when $2::bigint is not null then row(sterna.time_of($2), 3)::sterna.row_version end,
                 row(sterna.time_of($3), 2)::sterna.row_version, 'apply_remote')`,
        [type, met, arriving],
      )
    }
    async function settle(): Promise<{ judged: number; left: string[] }> {
      const row = await conn.row<{ judged: number }>('select sterna.conflict_settle()::int as judged')
      const { rows } = await conn.query<{ entry: string }>(
        `select concat_ws(' ', conflict_type, coalesce(concurrent::text, 'unknown'), case when settled then 'settled' end) as entry
           from sterna.conflict_history order by id`,
      )
      return { judged: row!.judged, left: rows.map(({ entry }) => entry) }
    }
    const beat = (nodeId: number, time: number, upTo: number): Promise<void> =>
      hear({
        nodeId,
        time: at(time),
        claim: at(0),
        applied: new Map([[5 - nodeId, at(upTo)]]),
        seen: new Map([[5 - nodeId, at(upTo + 2)]]),
      })

    it('waits for a heartbeat past the newer version, then says what it is, or never', async () => {
      await beat(2, 20, 10)
      await record('update_origin_differs', 9, 25)
      await record('update_deleted', 9, 25)
      await record('update_origin_differs', 15, 25)
      await record('delete_origin_differs', 11, 25)
      // Met nothing.
      await record('update_missing', null, 25)
      // Still open after the next heartbeat.
      await record('insert_exists', 15, 35)
      expect((await settle()).judged).toBe(0)
      await beat(2, 30, 11)
      const first = [
        'update_deleted false settled',
        'update_origin_differs true settled',
        'delete_origin_differs unknown settled',
        'update_missing unknown',
      ]
      expect(await settle()).toEqual({ judged: 4, left: [...first, 'insert_exists unknown'] })
      // Nothing is looked at again.
      expect((await settle()).judged).toBe(0)
      await beat(2, 40, 12)
      expect(await settle()).toEqual({ judged: 1, left: [...first, 'insert_exists true settled'] })
    })

    it('goes by the node of the newer version, which may be the one that is here', async () => {
      await record('update_origin_differs', 25, 9)
      await beat(2, 30, 1)
      expect((await settle()).judged).toBe(0)
      await beat(3, 20, 10)
      await beat(3, 30, 10)
      expect(await settle()).toEqual({ judged: 1, left: [] })
    })

    it('closes the reviews of what turns out to be no conflict', async () => {
      await beat(2, 20, 10)
      await record('update_origin_differs', 9, 25)
      await record('update_origin_differs', 15, 25)
      await conn.exec(`insert into sterna.review (reason, conflict_type, table_oid, table_name, key, local_version, remote_version)
        select 'manual', h.conflict_type, h.table_oid, h.table_name, h.key, h.local_version, h.remote_version from sterna.conflict_history h
        union all select 'set_aside', h.conflict_type, h.table_oid, h.table_name, h.key, h.local_version, h.remote_version from sterna.conflict_history h`)
      await beat(2, 30, 10)
      await settle()
      expect(
        (
          await conn.query(
            `select reason, sterna.pg_time((local_version).at)::int as local, resolution from sterna.review order by 1, 2`,
          )
        ).rows,
      ).toEqual([
        { reason: 'manual', local: 9, resolution: 'no_conflict' },
        { reason: 'manual', local: 15, resolution: null },
        { reason: 'set_aside', local: 9, resolution: null },
        { reason: 'set_aside', local: 15, resolution: null },
      ])
    })

    it('does a bounded part of a long list at a time', async () => {
      await beat(2, 20, 10)
      await beat(2, 30, 10)
      await conn.exec(`insert into sterna.conflict_history (conflict_type, table_oid, table_name, key, local_version, remote_version, resolution)
        select 'update_origin_differs', 1, 't', '{}', row(sterna.time_of(9), 3)::sterna.row_version,
               row(sterna.time_of(25), 2)::sterna.row_version, 'apply_remote' from generate_series(1, 1001)`)
      expect((await settle()).judged).toBe(1000)
      expect(await settle()).toEqual({ judged: 1, left: [] })
    })
  })

  describe('of this node', () => {
    interface Beat {
      applied: Record<string, number>
      seen: Record<string, number>
      /** By how much seen_at is before the beat, in microseconds. */
      early: number
      now: number
    }
    async function beat(
      seen: Record<string, number | null> | null,
      seenAt: string | null = null,
    ): Promise<Beat> {
      await conn.query('select sterna.heartbeat_write($1, $2, $3)', [
        '1',
        seen && JSON.stringify(seen),
        seenAt,
      ])
      const row = await conn.row<Beat>(
        `select applied, seen, (extract(epoch from beat_at - seen_at) * 1000000)::float8 as early, sterna.pg_time(beat_at)::float8 as now
           from sterna.heartbeat where node_id = 1`,
      )
      return row!
    }

    it('has applied what the others claim in their streams, as long as nothing of it is parked', async () => {
      await conn.exec(`insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, complete_until)
        values (2, now(), 1, '0/1', sterna.time_of(1000)), (3, now(), 1, '0/1', null)`)
      expect((await beat({})).applied).toEqual({ 2: 1000 })
      await conn.exec(`insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_name, operation, version)
        select 'failed', n, '0/1', 1, 't', 'insert', row(sterna.time_of(t), n)::sterna.row_version
          from (values (2, 2000), (3, 500)) v(n, t)`)
      expect((await beat({})).applied).toEqual({ 2: 1000 })
      await conn.exec('update sterna.exception set version.at = sterna.time_of(700) where origin_node_id = 2')
      expect((await beat({})).applied).toEqual({ 2: 700 })
    })

    it('has seen what its agent says, and never less than before', async () => {
      expect((await beat({ 2: 1000 })).seen).toEqual({ 2: 1000 })
      expect((await beat({ 2: 900, 3: 5 })).seen).toEqual({ 2: 1000, 3: 5 })
      // A subscription is gone.
      expect((await beat({ 3: 6 })).seen).toEqual({ 2: 1000, 3: 6 })
      const unsure = await beat({ 2: null, 3: 7 })
      expect(unsure.seen).toEqual({ 2: unsure.now, 3: 7 })
      const begun = await beat(null)
      expect(begun.seen).toEqual({ 2: begun.now, 3: begun.now })
    })

    it('claims only what came before every transaction that has begun to write', async () => {
      const claim = async (): Promise<{ now: boolean; at: string }> => {
        const row = await conn.row<{ now: boolean; at: string }>(
          'select complete_until = beat_at as now, complete_until::text as at from sterna.heartbeat where node_id = 1',
        )
        return row!
      }
      await beat({})
      const first = await claim()
      expect(first.now).toBe(true)
      const other = await PgConnection.connect(servers.nodes[0]!.dsn)
      // Nothing with a greater id has ended: so a snapshot does not mention it.
      await other.exec('begin; select pg_current_xact_id()')
      await beat({})
      await beat({})
      expect(await claim()).toEqual({ now: false, at: first.at })
      const third = await PgConnection.connect(servers.nodes[0]!.dsn)
      await third.exec('begin; select pg_current_xact_id()')
      await other.exec('commit')
      await beat({})
      // Up to the first beat that knew nothing but what has ended since.
      const later = await claim()
      expect(later.now).toBe(false)
      expect(later.at > first.at).toBe(true)
      await third.exec('commit')
      await beat({})
      expect((await claim()).now).toBe(true)
      await Promise.all([other.close(), third.close()])
    })

    it('says when that was read', async () => {
      expect((await beat({})).early).toBe(0)
      const row = await conn.row<{ at: string }>(`select (clock_timestamp() - interval '1 min')::text as at`)
      expect((await beat({}, row!.at)).early).toBeGreaterThan(59_000_000)
      expect((await beat({}, 'infinity')).early).toBe(0)
    })

    it('is heard here too', async () => {
      await beat({ 2: 1000 })
      await beat({ 2: 1001 })
      expect(
        (await conn.query('select node_id, beats::int, seen from sterna.heard_heartbeat order by beats'))
          .rows,
      ).toEqual([
        { node_id: 1, beats: 1, seen: { 2: 1000 } },
        { node_id: 1, beats: 2, seen: { 2: 1001 } },
      ])
    })
  })
})

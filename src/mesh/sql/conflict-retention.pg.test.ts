import fc from 'fast-check'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { pgTimeOf, type PgTime } from '../../core/pg-time.ts'
import { PgConnection } from '../../postgres/connection.ts'
import type { Heartbeats } from '../conflict/heartbeat.ts'
import type { ParkedChange } from '../conflict/parked.ts'
import { mayDropRowClock, mayDropTombstone, type RetentionFacts } from '../conflict/retention.ts'
import type { RowVersion } from '../conflict/version.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']
const KEYS = [1, 2, 3]
const TABLES = ['a', 'b']

const time = fc.integer({ min: 10, max: 40 }).map((value) => pgTimeOf(BigInt(value)))
const version = fc.record({ nodeId: fc.integer({ min: 1, max: 3 }), time })
const table = fc.constantFrom(...TABLES)
const key = fc.constantFrom(...KEYS)

/** A parked delete of a key; null: a truncate, which touches them all. */
const parkedChange = fc.record({ table, key: fc.option(key), version })
/** What nodes 2 and 3 claim, and have applied. */
const heard = fc.record({
  2: fc.record({ claim: time, applied: fc.dictionary(fc.constantFrom('1', '3'), time) }),
  3: fc.record({ claim: time, applied: fc.dictionary(fc.constantFrom('1', '2'), time) }),
})
const tombstone = fc.record({
  table,
  key,
  version,
  remainder: fc.option(
    fc.constantFrom({ d: '0' }, { d: '0.00', e: '-0' }, { d: '0', e: '-3' }, { d: 'NaN' }),
  ),
})
/** By when the row was written, as its xmin says; node 2 did. */
const clock = fc.record({ table, key, version, written: fc.constantFrom(15, 25, 35) })

describe.each(MATRIX)('what conflict handling forgets on version %s', (server) => {
  let servers: TestServers
  let conn: PgConnection
  const oids = new Map<string, number>()
  const xids = new Map<number, string>()

  beforeAll(async () => {
    servers = await startServers({ count: 1, version: server })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await installSchema(conn)
    await conn.exec(`create table public.a (id int primary key); create table public.b (id int primary key);
      select sterna.node_create('n1', 'host=x', info => '{"node_id": 1}');
      select sterna.peer_upsert(2, 'n2', 'host=y', null, null, null);
      select sterna.peer_upsert(3, 'n3', 'host=z', null, null, null);
      insert into sterna.subscription (sub_name, provider_dsn, provider_node_id, replication_sets)
      values ('s2', 'host=y', 2, '{default}'), ('s3', 'host=z', 3, '{default}')`)
    for (const name of TABLES) {
      const row = await conn.row<{ oid: number }>('select $1::regclass::oid::int as oid', [name])
      oids.set(name, row!.oid)
    }
    const remote = await PgConnection.connect(servers.nodes[0]!.dsn)
    await remote.exec(`set session_replication_role = replica; select pg_replication_origin_create('sterna_1_2');
                       select pg_replication_origin_session_setup('sterna_1_2'); create table w (at int)`)
    for (const at of [15, 25, 35]) {
      await remote.exec(
        `select pg_replication_origin_xact_setup('0/1', sterna.time_of(${at})); insert into w values (${at})`,
      )
      const row = await conn.row<{ xid: string }>('select xmin::text as xid from w where at = $1', [at])
      xids.set(at, row!.xid)
    }
    await remote.close()
  })
  beforeEach(forget)
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })

  async function forget(): Promise<void> {
    await conn.exec(`delete from sterna.tombstone; delete from sterna.tombstone_mark; delete from sterna.row_clock;
      delete from sterna.exception; delete from sterna.aside; delete from sterna.given_up; delete from sterna.careful_table;
      delete from sterna.heartbeat; delete from sterna.heard_heartbeat; delete from sterna.truncation;
      delete from sterna.conflict_history; delete from sterna.review; delete from sterna.delta_column`)
  }

  const versionSql = ({ nodeId, time: at }: RowVersion): string =>
    `row(sterna.time_of(${at}), ${nodeId})::sterna.row_version`

  interface Facts {
    readonly heard: Readonly<Record<2 | 3, { claim: PgTime; applied: Record<string, PgTime> }>>
    readonly parked: readonly { table: string; key: number | null; version: RowVersion }[]
  }

  async function store(facts: Facts): Promise<(of: string) => RetentionFacts> {
    const heartbeats: [number, Heartbeats extends ReadonlyMap<number, infer T> ? T : never][] = []
    for (const nodeId of [2, 3] as const) {
      const { claim, applied } = facts.heard[nodeId]
      const json = JSON.stringify(
        Object.fromEntries(Object.entries(applied).map(([node, at]) => [node, Number(at)])),
      )
      await conn.exec(`insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, complete_until, applied)
        values (${nodeId}, now(), 1, '0/1', sterna.time_of(${claim}), '${json}')`)
      const byNode = new Map(Object.entries(applied).map(([node, at]) => [Number(node), at]))
      heartbeats.push([nodeId, [{ nodeId, time: claim, claim, applied: byNode, seen: new Map() }]])
    }
    for (const it of facts.parked)
      await conn.exec(`insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_oid, table_name, operation, key_hashes, version)
        values ('failed', ${it.version.nodeId}, '0/1', 1, ${oids.get(it.table)}, '${it.table}', 'delete',
                ${it.key === null ? 'null' : `'{${it.key}}'`}, ${versionSql(it.version)})`)
    const parked = facts.parked.map((it, i): ParkedChange => ({
      table: it.table,
      originId: it.version.nodeId,
      place: BigInt(i),
      change:
        it.key === null
          ? { tag: 'truncate', version: it.version }
          : { tag: 'delete', version: it.version, key: String(it.key), old: null },
    }))
    return (of) => ({ peers: [2, 3], heartbeats: new Map(heartbeats), parked, table: of })
  }

  /** `table key` of what is left. */
  async function left(of: string): Promise<string[]> {
    const { rows } = await conn.query<{ entry: string }>(
      `select format('%s %s', table_oid::regclass, key_hash) as entry from sterna.${of} order by 1`,
    )
    return rows.map(({ entry }) => entry)
  }

  const names = (kept: readonly { table: string; key: number }[]): string[] =>
    kept.map((it) => `${it.table} ${it.key}`).toSorted()
  const selector = (it: { table: string; key: number }): string => `${it.table} ${it.key}`

  test('tombstones go exactly when mayDropTombstone says so', async () => {
    const outcomes = new Set<boolean>()
    await fc.assert(
      fc
        .asyncProperty(
          heard,
          fc.array(parkedChange, { maxLength: 2 }),
          fc.uniqueArray(tombstone, { minLength: 1, maxLength: 6, selector }),
          async (said, parked, tombstones) => {
            const factsOf = await store({ heard: said, parked })
            for (const it of tombstones)
              await conn.exec(`insert into sterna.tombstone (table_oid, key_hash, key, version, remainder)
                values (${oids.get(it.table)}, ${it.key}, '[]', ${versionSql(it.version)}, ${it.remainder ? `'${JSON.stringify(it.remainder)}'` : 'null'})`)
            const kept = tombstones.filter((it) => {
              // What is no number is not zero either.
              const remainder = it.remainder?.d === 'NaN' ? { d: '1' } : (it.remainder ?? {})
              const may = mayDropTombstone(
                String(it.key),
                { version: it.version, remainder },
                factsOf(it.table),
              )
              outcomes.add(may)
              return !may
            })
            await conn.query('select sterna.tombstone_clean()')
            expect(await left('tombstone')).toEqual(names(kept))
          },
        )
        .afterEach(forget),
      { numRuns: 60 },
    )
    expect(outcomes.size).toBe(2)
  })

  test('entries of row_clock go exactly when mayDropRowClock says so, a row aside being near all rows of its table', async () => {
    const outcomes = new Set<boolean>()
    await fc.assert(
      fc
        .asyncProperty(
          heard,
          fc.array(parkedChange, { maxLength: 1 }),
          fc.option(table),
          fc.uniqueArray(clock, { minLength: 1, maxLength: 6, selector }),
          async (said, parked, aside, clocks) => {
            const factsOf = await store({ heard: said, parked })
            if (aside !== null)
              await conn.exec(
                `insert into sterna.aside (table_oid, key_hash, table_name, key, row_values) values (${oids.get(aside)}, 9, '', '{}', '{}')`,
              )
            for (const it of clocks)
              await conn.exec(`insert into sterna.row_clock (table_oid, key_hash, row_xmin, version)
                values (${oids.get(it.table)}, ${it.key}, '${xids.get(it.written)}', ${versionSql(it.version)})`)
            const kept = clocks.filter((it) => {
              const written = { nodeId: 2, time: pgTimeOf(BigInt(it.written)) }
              const may = mayDropRowClock(
                { version: it.version, written },
                aside === it.table,
                factsOf(it.table),
              )
              outcomes.add(may)
              return !may
            })
            await conn.query('select sterna.side_clean()')
            expect(await left('row_clock')).toEqual(names(kept))
          },
        )
        .afterEach(forget),
      { numRuns: 60 },
    )
    expect(outcomes.size).toBe(2)
  })

  const allPast = { 2: { claim: pgTimeOf(1000n), applied: {} }, 3: { claim: pgTimeOf(1000n), applied: {} } }

  test('nothing goes while a provider has not claimed anything', async () => {
    await store({ heard: allPast, parked: [] })
    await conn.exec(`update sterna.heartbeat set complete_until = null where node_id = 3;
      insert into sterna.tombstone (table_oid, key_hash, key, version) values (${oids.get('a')}, 1, '[]', ${versionSql({ nodeId: 2, time: pgTimeOf(1n) })})`)
    await conn.query('select sterna.tombstone_clean()')
    expect(await left('tombstone')).toEqual(['a 1'])
    await conn.exec('update sterna.heartbeat set complete_until = sterna.time_of(1000) where node_id = 3')
    await conn.query('select sterna.tombstone_clean()')
    expect(await left('tombstone')).toEqual([])
  })

  test('a truncate is remembered while something older is parked', async () => {
    await conn.exec(
      `insert into sterna.truncation (table_oid, times) values (${oids.get('a')}, 1), (${oids.get('b')}, 1)`,
    )
    const past = pgTimeOf(1n << 60n)
    const parked = [{ table: 'a', key: 1, version: { nodeId: 2, time: pgTimeOf(5n) } }]
    await store({ heard: { 2: { claim: past, applied: {} }, 3: { claim: past, applied: {} } }, parked })
    await conn.query('select sterna.tombstone_clean()')
    expect(
      (await conn.query('select table_oid::regclass::text as name from sterna.truncation')).rows,
    ).toEqual([{ name: 'a' }])
  })

  test('what was given up is forgotten when all streams are past what superseded it, and nothing of its key is parked', async () => {
    await store({
      heard: allPast,
      parked: [{ table: 'a', key: 4, version: { nodeId: 2, time: pgTimeOf(900n) } }],
    })
    const past = '1999-12-31'
    await conn.exec(`insert into sterna.given_up (table_oid, key_hash, version, since) values
      (${oids.get('a')}, 1, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, '${past}'),
      (${oids.get('a')}, 2, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, now()),
      (${oids.get('a')}, 3, ${versionSql({ nodeId: 2, time: pgTimeOf(1001n) })}, '${past}'),
      (${oids.get('a')}, 4, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, '${past}')`)
    await conn.exec(`insert into sterna.given_up as g (table_oid, key_hash, version, since)
      values (${oids.get('a')}, 5, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, '${past}');
      set session_replication_role = replica;
      update sterna.given_up set version.at = sterna.time_of(6) where key_hash = 5;
      reset session_replication_role`)
    await conn.query('select sterna.side_clean()')
    expect(await left('given_up')).toEqual(['a 2', 'a 3', 'a 4', 'a 5'])
  })

  test('a table needs no care any more when its last entry has gone; not while somebody may be adding one', async () => {
    await store({ heard: allPast, parked: [] })
    const careful = async (): Promise<unknown[]> =>
      (
        await conn.query(
          'select table_oid::regclass::text as name, (select epoch from sterna.careful_state)::int as epoch from sterna.careful_table',
        )
      ).rows
    await conn.exec(`update sterna.careful_state set epoch = 1; select sterna.careful_mark('public.a'::regclass);
      insert into sterna.given_up (table_oid, key_hash, version, since) values (${oids.get('a')}, 1, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, now())`)
    await conn.query('select sterna.side_clean()')
    expect(await careful()).toEqual([{ name: 'a', epoch: 2 }])
    await conn.exec('delete from sterna.given_up')
    const other = await PgConnection.connect(servers.nodes[0]!.dsn)
    await other.exec(`begin; select sterna.careful_mark('public.a'::regclass);
      insert into sterna.given_up (table_oid, key_hash, version) values (${oids.get('a')}, 2, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })})`)
    await conn.query('select sterna.side_clean()')
    expect(await careful()).toEqual([{ name: 'a', epoch: 2 }])
    await other.exec('rollback')
    await other.close()
    await conn.query('select sterna.side_clean()')
    expect(await careful()).toEqual([])
  })

  test('of dropped tables nothing stays', async () => {
    await conn.exec('create table public.gone (id int primary key, d int)')
    await conn.exec(`
      insert into sterna.given_up (table_oid, key_hash, version) values ('gone'::regclass, 1, ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })});
      insert into sterna.row_clock (table_oid, key_hash, row_xmin) values ('gone'::regclass, 1, '5');
      insert into sterna.aside (table_oid, key_hash, table_name, key, row_values) values ('gone'::regclass, 1, 'gone', '{}', '{}');
      insert into sterna.review (reason, table_oid, table_name, key) values ('set_aside', 'gone'::regclass, 'gone', '{}'), ('orphan', 'a'::regclass, 'a', '{}');
      insert into sterna.delta_column (table_oid, column_name) values ('gone'::regclass, 'd');
      select sterna.careful_mark('gone'::regclass)`)
    await conn.exec('drop table public.gone')
    await conn.query('select sterna.side_clean()')
    for (const of of ['given_up', 'row_clock', 'aside', 'delta_column', 'careful_table'])
      expect({ of, rows: (await conn.query(`select from sterna.${of}`)).rows }).toEqual({ of, rows: [] })
    expect((await conn.query('select reason, resolution from sterna.review order by 1')).rows).toEqual([
      { reason: 'orphan', resolution: null },
      { reason: 'set_aside', resolution: 'table_dropped' },
    ])
  })

  describe('conflict_clean', () => {
    const history = async (count: number, daysAgo: number): Promise<void> => {
      await conn.exec(`insert into sterna.conflict_history (recorded_at, conflict_type, table_oid, table_name, key, remote_version, resolution)
        select now() - interval '${daysAgo} days', 'update_missing', 1, 't', jsonb_build_object('id', '${daysAgo}'),
               ${versionSql({ nodeId: 2, time: pgTimeOf(5n) })}, 'apply_remote' from generate_series(1, ${count})`)
    }
    const rest = async (): Promise<unknown[]> =>
      (
        await conn.query(
          `select key ->> 'id' as id, count(*)::int from sterna.conflict_history group by 1 order by 1`,
        )
      ).rows
    const clean = async (): Promise<number> =>
      Number((await conn.row<{ n: bigint }>('select sterna.conflict_clean() as n'))!.n)

    test('drops history by age, in batches', async () => {
      await history(6001, 31)
      await history(2, 29)
      expect(await clean()).toBe(5000)
      expect(await clean()).toBe(1001)
      expect(await clean()).toBe(0)
      expect(await rest()).toEqual([{ id: '29', count: 2 }])
    })

    test('keeps no more than so many, the latest ones; gaps in their numbers do not count', async () => {
      await conn.exec(`update sterna.setting set value = '10' where name = 'conflict_history_rows'`)
      await history(8, 3)
      await conn.exec(
        `do $$ begin perform nextval('sterna.conflict_history_id_seq') from generate_series(1, 100); end $$`,
      )
      expect(await clean()).toBe(0)
      await history(5, 2)
      expect(await clean()).toBe(3)
      expect(await rest()).toEqual([
        { id: '2', count: 5 },
        { id: '3', count: 5 },
      ])
      await conn.exec(`update sterna.setting set value = 'many' where name = 'conflict_history_rows'`)
      expect(await clean()).toBe(0)
      await conn.exec(`update sterna.setting set value = '100000' where name = 'conflict_history_rows'`)
    })

    test('drops closed reviews by age, never open ones', async () => {
      await conn.exec(`insert into sterna.review (opened_at, reason, table_oid, table_name, key, closed_at)
        values ('2000-01-01', 'manual', 1, 'open', '{}', null), ('2000-01-01', 'manual', 1, 'old', '{}', '2000-01-02'),
               ('2000-01-01', 'manual', 1, 'new', '{}', now())`)
      expect(await clean()).toBe(1)
      expect((await conn.query('select table_name from sterna.review order by 1')).rows).toEqual([
        { table_name: 'new' },
        { table_name: 'open' },
      ])
    })

    test('drops messages that have done their work', async () => {
      await conn.exec(`insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts, sent_at)
        values (2, 'public', 'a', 'cancel', '{}', '{}', now() - interval '2 days'), (2, 'public', 'b', 'cancel', '{}', '{}', now())`)
      await clean()
      expect((await conn.query('select table_name::text as name from sterna.row_message')).rows).toEqual([
        { name: 'b' },
      ])
    })

    test('keeps what other nodes have settled for those that are away, however short the history is', async () => {
      await conn.exec(`update sterna.setting set value = '1' where name = 'conflict_history_days';
        delete from sterna.review_closure;
        insert into sterna.review_closure (node_id, schema_name, table_name, reason, key, resolution, closed_at, up_to)
        values (2, 'public', 'a', 'manual', '{}', 'dismissed', now() - interval '31 days', now()), (2, 'public', 'b', 'manual', '{}', 'dismissed', now() - interval '29 days', now())`)
      await clean()
      expect((await conn.query('select table_name::text as name from sterna.review_closure')).rows).toEqual([
        { name: 'b' },
      ])
      await conn.exec(`update sterna.setting set value = '30' where name = 'conflict_history_days'`)
    })

    test('keeps heartbeats of ten minutes, one of each minute of a day, and none of nodes that are gone', async () => {
      await conn.exec(`insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn) values (2, now(), 100000, '0/1');
        insert into sterna.heard_heartbeat (node_id, beats, applied, seen, seen_at)
        select n, b, '{}', '{}', now() from (values (2), (3)) v(n), generate_series(13001, 99999) b`)
      await clean()
      const { rows } = await conn.query(`select node_id, count(*) filter (where beats > 99400)::int as recent,
        count(*) filter (where beats <= 99400)::int as hourly, min(beats)::int as first from sterna.heard_heartbeat group by 1`)
      expect(rows).toEqual([{ node_id: 2, recent: 600, hourly: 1430, first: 13620 }])
    })
  })
})

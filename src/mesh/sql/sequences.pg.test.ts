import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('sequences on version %s', (version) => {
  let servers: TestServers
  let conns: PgConnection[]
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    const admin = await PgConnection.connect(servers.nodes[0]!.dsn)
    // Three nodes as three databases of one server: sequences need no replication.
    conns = []
    for (const name of ['a', 'b', 'c']) {
      await admin.exec(`create database ${name}`)
      const dsn = servers.nodes[0]!.dsn.replace(/\/app\b/, `/${name}`)
      const first = await PgConnection.connect(dsn)
      await first.exec('set client_min_messages = warning')
      await installSchema(first)
      await first.close()
      conns.push(await PgConnection.connect(dsn))
    }
    await admin.close()
    conn = conns[1]!
    await everywhere(`
      create table old (id serial primary key, v text);
      insert into old (v) select 'x' from generate_series(1, 30);
      create sequence down increment -5 start -3;
      create sequence cycling maxvalue 100 cycle;
      create sequence tiny maxvalue 10;
      create table short (id smallserial primary key);`)
    for (const [i, each] of conns.entries())
      await each.query(`select sterna.node_create('n${i + 1}', 'host=x', info => '{"node_id": ${i + 1}}')`)
    await everywhere('set sterna.ddl_replication = off')
  })
  afterAll(async () => {
    for (const each of conns) await each.close()
    await servers.stop()
  })

  const everywhere = async (sql: string): Promise<void> => {
    for (const each of conns) await each.exec(sql)
  }
  const next = async (sequence: string, count = 3, on = conn): Promise<number[]> => {
    const { rows } = await on.query<{ value: bigint | number }>(
      'select nextval($1::text::regclass) as value from generate_series(1, $2::int)',
      [sequence, count],
    )
    return rows.map((row) => Number(row.value))
  }
  const shown = async (sequence: string): Promise<unknown> =>
    conn.row(`select increment::int, interleaved, warning from sterna.sequences where sequence_name = $1`, [
      sequence,
    ])

  it('each node has values of its own, from tables that exist and from later ones', async () => {
    await everywhere('create table later (id bigint generated always as identity primary key, k serial)')
    expect(await Promise.all(conns.map((each) => next('later_id_seq', 3, each)))).toEqual([
      [1, 17, 33],
      [2, 18, 34],
      [3, 19, 35],
    ])
    expect(await Promise.all(conns.map((each) => next('old_id_seq', 2, each)))).toEqual([
      [33, 49],
      [34, 50],
      [35, 51],
    ])
    for (const options of [
      'increment 3 start 5',
      'increment -7',
      'increment 10 minvalue -1000 start -995',
      'as int increment -2 start -5',
    ]) {
      await everywhere(`create sequence s ${options}`)
      const values = (await Promise.all(conns.map((each) => next('s', 100, each)))).flat()
      expect(new Set(values).size).toBe(300)
      await everywhere('drop sequence s')
    }
    expect(await next('down')).toEqual([-8, -88, -168])
    expect(
      await conn.row(
        'select count(*)::int as left from sterna.sequence_layout l where not exists (select from pg_class c where c.oid = l.relid)',
      ),
    ).toEqual({ left: 0 })
  })

  it('those that would not have room are left alone, and shown', async () => {
    expect(await next('tiny')).toEqual([1, 2, 3])
    expect(await shown('tiny')).toEqual({
      increment: 1,
      interleaved: false,
      warning: expect.stringContaining('its range has no value for every node'),
    })
    expect(await shown('cycling')).toMatchObject({
      interleaved: false,
      warning: expect.stringContaining('cycles'),
    })
    await conn.exec('create temp sequence fleeting')
    await conn.exec('create unlogged table not_logged (id serial)')
    expect(await next('fleeting')).toEqual([1, 2, 3])
    expect(await next('not_logged_id_seq')).toEqual([1, 2, 3])
    expect(await shown('fleeting')).toBeUndefined()
  })

  it('what the user alters is kept, and laid out anew', async () => {
    await conn.exec('create sequence altered')
    expect(await next('altered', 2)).toEqual([2, 18])
    await conn.exec('alter sequence altered increment 10')
    expect(await shown('altered')).toMatchObject({ increment: 160, interleaved: true })
    const [value] = await next('altered', 1)
    expect(value! % 160).toBe(21)
    await conn.exec('alter sequence altered restart with 1000')
    expect(await next('altered', 1)).toEqual([1141])
    await conn.exec('alter sequence altered restart')
    expect(await next('altered', 2)).toEqual([21, 181])
    await conn.exec('alter sequence altered cycle')
    expect(await shown('altered')).toMatchObject({ increment: 10, interleaved: false })
    await conn.exec('alter sequence altered no cycle')
    expect(await shown('altered')).toMatchObject({ increment: 160, interleaved: true, warning: null })
    await conn.exec('alter table later alter id set increment by 2')
    expect(await shown('later_id_seq')).toMatchObject({ increment: 32 })
    await conn.exec('alter table later alter id restart with 500')
    const [identity] = await next('later_id_seq', 1)
    expect(Math.floor(identity! / 2) % 16).toBe(2)
    await conn.exec('truncate later restart identity')
    expect(Math.floor((await next('later_id_seq', 1))[0]! / 2) % 16).toBe(2)
    expect(await next('later_k_seq', 1)).toEqual([2])
  })

  it('setval to a value of another node is shown and put right', async () => {
    await conn.exec(`select setval('old_id_seq', 1000)`)
    expect(await shown('old_id_seq')).toMatchObject({ warning: expect.stringContaining('sequences_realign') })
    expect(await conn.row('select sterna.sequences_realign() as changed')).toEqual({ changed: 1 })
    expect(await conn.row('select sterna.sequences_realign() as changed')).toEqual({ changed: 0 })
    expect(await next('old_id_seq', 1)).toEqual([1010])
  })

  it('rows that a sequence will run into are found, and passed', async () => {
    const found = async (): Promise<unknown> =>
      (
        await conn.query(
          'select owned_by, taken_value::int, last_taken::int from sterna.sequence_collisions()',
        )
      ).rows
    expect(await found()).toEqual([])
    // Values of other nodes are none of its business.
    await conn.exec('insert into old (id) values (2001), (2003)')
    expect(await found()).toEqual([])
    await conn.exec('insert into old (id) values (2002), (3010)')
    expect(await found()).toEqual([{ owned_by: 'public.old.id', taken_value: 2002, last_taken: 3010 }])
    await conn.exec('select sterna.sequences_skip_taken()')
    expect(await found()).toEqual([])
    expect(await next('old_id_seq', 1)).toEqual([3026])
  })

  it('warns when half of a small range is used', async () => {
    await conn.exec(`select setval('short_id_seq', 20000)`)
    await conn.exec('select sterna.sequences_realign()')
    expect(
      await conn.row(
        `select owned_by, type, used_percent::float8, warning from sterna.sequences where sequence_name = 'short_id_seq'`,
      ),
    ).toMatchObject({
      owned_by: expect.stringContaining('short.id'),
      type: 'smallint',
      used_percent: expect.closeTo(61, 0),
      warning: expect.stringContaining('Make it bigint'),
    })
    await conn.exec(`select setval('short_id_seq', 32766)`)
    await conn.exec('select sterna.sequences_realign()')
    expect(await failureOf(next('short_id_seq', 1))).toMatchObject({ sqlstate: '2200H' })
    // An int4 column limits a bigint sequence.
    await conn.exec(
      'create sequence wide; create table narrow (id int default nextval($$wide$$) primary key)',
    )
    await conn.exec('alter sequence wide owned by narrow.id')
    await conn.exec(`select setval('wide', 2000000002)`)
    expect(await shown('wide')).toMatchObject({ warning: expect.stringContaining('of integer are used') })
  })

  it('everyone may read the view, and no more', async () => {
    await conn.exec('create role reader')
    await conn.exec('set role reader')
    expect(await shown('old_id_seq')).toMatchObject({ interleaved: true })
    for (const call of [
      'sequences_realign()',
      'sequences_skip_taken()',
      'sequence_collisions()',
      'node_detach()',
      'node_attach()',
    ])
      expect(await failureOf(conn.query(`select sterna.${call}`))).toMatchObject({ sqlstate: '42501' })
    await conn.exec('reset role')
  })

  it('another stride lays all out anew', async () => {
    await conn.exec(`update sterna.setting set value = '64' where name = 'sequence_stride'`)
    await conn.exec('select sterna.sequences_realign()')
    expect(await shown('old_id_seq')).toMatchObject({ increment: 64 })
    const [value] = await next('old_id_seq', 1)
    expect(value! % 64).toBe(2)
    await conn.exec(`update sterna.setting set value = 'x' where name = 'sequence_stride'`)
    expect(await failureOf(conn.query('select sterna.sequences_realign()'))).toMatchObject({
      sqlstate: 'ST221',
    })
    await conn.exec(`update sterna.setting set value = '16' where name = 'sequence_stride'`)
    await conn.exec('select sterna.sequences_realign()')
  })

  it('a node that is dropped has its own increments again, past what all nodes wrote', async () => {
    await conn.exec('create sequence untouched start 7')
    await conn.exec('insert into old (id) values (5000)')
    await conn.query(`select sterna.node_drop('n2')`)
    expect(await next('old_id_seq', 2)).toEqual([5001, 5002])
    expect(await next('untouched', 2)).toEqual([7, 8])
    const [first, second] = await next('down', 2)
    expect(second! - first!).toBe(-5)
    expect(await conn.row('select count(*)::int as rows from sterna.sequence_layout')).toEqual({ rows: 0 })
  })

  it('a node id with the remainder of a known one is refused', async () => {
    await conn.exec(`insert into sterna.node (node_id, node_name, dsn) values (18, 'n18', 'host=x')`)
    expect(
      await failureOf(conn.query(`select sterna.node_create('n2', 'host=x', info => '{"node_id": 2}')`)),
    ).toMatchObject({ sqlstate: 'ST220', hint: expect.stringContaining('node id') })
  })
})

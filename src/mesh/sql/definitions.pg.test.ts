import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema, readMigrations } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('nodes on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })

  it('the schema installs once, even by three at once, and again without effect', async () => {
    const others = await Promise.all([1, 2].map(() => PgConnection.connect(servers.nodes[0]!.dsn)))
    await Promise.all([conn, ...others].map((each) => installSchema(each)))
    await installSchema(conn)
    await Promise.all(others.map((each) => each.close()))
    // A role named like the schema would have its tables in it; new sessions of it do not.
    await conn.close()
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    expect(await conn.row('select current_user::text as role, current_schema()::text as schema')).toEqual({
      role: 'sterna',
      schema: 'public',
    })
    const { rows } = await conn.query<{ version: number; name: string; sha: string }>(
      'select version, name, sha from sterna.schema_migration order by version',
    )
    const known = await readMigrations()
    expect(rows).toEqual(known.map(({ version: number, name, sha }) => ({ version: number, name, sha })))
    expect(new Set(known.map((migration) => migration.version)).size).toBe(known.length)
  })

  it('a schema of a newer release is refused, and left alone', async () => {
    await conn.exec(`insert into sterna.schema_migration (version, name, sha) values (999, 'later', '')`)
    await expect(installSchema(conn)).rejects.toMatchObject({ code: 'SCHEMA_NEWER', exitCode: 3 })
    await conn.exec('delete from sterna.schema_migration where version = 999')
    await installSchema(conn)
  })

  it('what needs a node says that there is none', async () => {
    for (const sql of [
      `select sterna.sub_create('s', 'host=x')`,
      `select sterna.repset_create('s')`,
      'select sterna.sync_event()',
    ])
      expect(await failureOf(conn.query(sql))).toMatchObject({
        sqlstate: 'ST110',
        hint: expect.stringContaining('node_create'),
      })
    await conn.query(`select sterna.heartbeat_write('1')`)
  })

  it.each([
    [`'N1', 'host=x'`, 'ST104'],
    [`null, 'host=x'`, 'ST104'],
    [`'n 1', 'host=x'`, 'ST104'],
    [`'', 'host=x'`, 'ST104'],
    [`'${'n'.repeat(32)}', 'host=x'`, 'ST104'],
    [`'n1', null`, 'ST113'],
    [`'n1', ' '`, 'ST113'],
    [`'n1', 'host=x', info => '{"node_id": 0}'`, 'ST112'],
    [`'n1', 'host=x', info => '{"node_id": 1024}'`, 'ST112'],
    [`'n1', 'host=x', info => '{"node_id": "1.5"}'`, 'ST112'],
  ])('node_create(%s) is refused: %s', async (args, sqlstate) => {
    expect(await failureOf(conn.query(`select sterna.node_create(${args})`))).toMatchObject({ sqlstate })
    expect((await conn.query('select 1 from sterna.node')).rows).toEqual([])
  })

  it('node_create makes a node: its id, its sets, its publications; tables join', async () => {
    await conn.exec(`create table keyed (id int primary key); create table keyless (id int);
      create unlogged table unlogged (id int primary key); create temp table temporary (id int primary key);`)
    const created = await conn.row(
      `select sterna.node_create('n1', 'host=h password=p', 'eu', 'DE', '{"node_id": 7, "x": "y"}')::int as id`,
    )
    expect(created).toEqual({ id: 7 })
    expect(
      (await conn.query('select node_id, node_name::text, dsn, location, country, info from sterna.node'))
        .rows,
    ).toEqual([
      {
        node_id: 7,
        node_name: 'n1',
        dsn: 'host=h password=p',
        location: 'eu',
        country: 'DE',
        info: expect.anything(),
      },
    ])
    const { rows } = await conn.query(
      `select p.pubname::text as name, p.puballtables as everything, p.pubviaroot as via_root, concat_ws(' ',
         case when p.pubinsert then 'i' end, case when p.pubupdate then 'u' end, case when p.pubdelete then 'd' end,
         case when p.pubtruncate then 't' end) as publishes,
         (select string_agg(r.prrelid::regclass::text, ' ' order by r.prrelid::regclass::text)
            from pg_publication_rel r where r.prpubid = p.oid) as tables
       from pg_publication p order by 1`,
    )
    const one = { everything: false, via_root: false }
    expect(rows).toEqual([
      { ...one, name: 'sterna_ddl_sql', publishes: 'i', tables: 'sterna.ddl_queue' },
      { ...one, name: 'sterna_default', publishes: 'i u d t', tables: 'keyed' },
      { ...one, name: 'sterna_default_insert_only', publishes: 'i t', tables: 'keyless' },
      {
        ...one,
        name: 'sterna_internal',
        publishes: 'i u',
        tables:
          'sterna.definition sterna.definition_step sterna.fk_policy sterna.heartbeat sterna.review_closure sterna.row_message sterna.sync_event',
      },
    ])
  })

  it('a second node_create, a taken name and a taken id are refused', async () => {
    expect(await failureOf(conn.query(`select sterna.node_create('n2', 'host=x')`))).toMatchObject({
      sqlstate: 'ST101',
      message: 'database "app" is node "n1" already',
    })
    await conn.query(`select sterna.peer_upsert(8, 'n2', 'host=y', 'us', null, null)`)
    await conn.exec('begin; delete from sterna.local_node')
    expect(
      await failureOf(conn.query(`select sterna.node_create('n2', 'host=x')`)).finally(() =>
        conn.exec('rollback'),
      ),
    ).toMatchObject({ sqlstate: 'ST102' })
    await conn.exec('begin; delete from sterna.local_node')
    expect(
      await failureOf(
        conn.query(`select sterna.node_create('n3', 'host=x', info => '{"node_id": 8}')`),
      ).finally(() => conn.exec('rollback')),
    ).toMatchObject({ sqlstate: 'ST103', message: 'the node id 8 is taken by node "n2"' })
  })

  it('peer_upsert takes changes over, and refuses what contradicts', async () => {
    await conn.query(`select sterna.peer_upsert(8, 'n2', 'host=z', 'us', 'US', '{"a": 1}')`)
    expect(
      (await conn.query('select dsn, location, country from sterna.node where node_id = 8')).rows,
    ).toEqual([{ dsn: 'host=z', location: 'us', country: 'US' }])
    for (const args of [`9, 'n2'`, `8, 'n3'`, `7, 'n2'`, `7, 'n1'`, `7, 'n3'`, `9, 'n1'`])
      expect(
        await failureOf(conn.query(`select sterna.peer_upsert(${args}, 'host=q', null, null, null)`)),
      ).toMatchObject({ sqlstate: 'ST111' })
  })

  it('heartbeats count, and are dated', async () => {
    await conn.query(`select sterna.heartbeat_write('1.2')`)
    await conn.query(`select sterna.heartbeat_write('1.3')`)
    const { rows } = await conn.query(
      `select node_id, beats::int, sterna_version, clock_timestamp() - beat_at < interval '10 s' as now,
         wal_lsn <= pg_current_wal_insert_lsn() and wal_lsn > '0/0' as lsn from sterna.heartbeat`,
    )
    expect(rows).toEqual([{ node_id: 7, beats: 2, sterna_version: '1.3', now: true, lsn: true }])
  })

  it('origin_name has the oid of the database and the node', async () => {
    const row = await conn.row(
      `select sterna.origin_name(8) = format('sterna_%s_8', oid) as same from pg_database where datname = current_database()`,
    )
    expect(row).toEqual({ same: true })
  })

  it('changes of nodes, sets and subscriptions notify the agent', async () => {
    const heard: string[] = []
    conn.onNotification = (channel, payload) => heard.push(`${channel} ${payload}`)
    await conn.exec('listen sterna')
    await conn.query(`select sterna.repset_create('mine')`)
    await conn.query(`select sterna.sub_create('s', 'host=z')`)
    await conn.query(`update sterna.subscription set slot_name = 'x'`)
    await conn.query(`select sterna.sub_drop('s')`)
    await conn.query(`select sterna.heartbeat_write('1')`)
    await conn.exec('unlisten sterna; select 1')
    expect(heard).toEqual([
      'sterna replication_set',
      'sterna subscription',
      'sterna subscription',
      'sterna subscription',
      'sterna slot_cleanup',
    ])
  })

  it('node_drop: refused while in use, forgets peers, and leaves an ordinary database', async () => {
    await conn.query(`select sterna.sub_create('s', 'host=z')`)
    await conn.exec(`update sterna.subscription set provider_node_id = 8, provider_node_name = 'n2'`)
    for (const name of ['n1', 'n2'])
      expect(await failureOf(conn.query('select sterna.node_drop($1)', [name]))).toMatchObject({
        sqlstate: 'ST109',
        message: `node "${name}" is in use by subscription s`,
      })
    await conn.query(`select sterna.sub_drop('s')`)
    const dropped = await conn.row(
      `select sterna.node_drop('n2') as peer, sterna.node_drop('n2', true) as again`,
    )
    expect(dropped).toEqual({ peer: true, again: false })
    expect(await failureOf(conn.query(`select sterna.node_drop('n2')`))).toMatchObject({ sqlstate: 'ST108' })
    await conn.query(`select sterna.node_drop('n1')`)
    const left = await conn.row(
      `select (select count(*) from pg_publication)::int as publications, (select count(*) from sterna.node)::int as nodes,
         (select count(*) from pg_event_trigger where evtname like 'sterna%')::int as triggers`,
    )
    expect(left).toEqual({ publications: 0, nodes: 0, triggers: 0 })
    await conn.exec('create table after_all (id int); update keyless set id = 1')
    const again = await conn.row(
      `select id = 1 + sterna.stable_hash('n1') % 1023 as from_name from sterna.node_create('n1', 'host=x') as id`,
    )
    expect(again).toEqual({ from_name: true })
    await conn.query(`select sterna.node_drop('n1')`)
  })

  it('a server that is not set up is refused, with the command that helps', async () => {
    const node = servers.nodes[0]!
    for (const [settings, sqlstate, hint] of [
      [{ track_commit_timestamp: 'off' }, 'ST106', 'track_commit_timestamp = on'],
      [{ wal_level: 'replica' }, 'ST105', 'wal_level = logical'],
    ] as const) {
      await conn.close()
      await node.stop()
      await node.start(settings)
      conn = await PgConnection.connect(node.dsn)
      expect(await failureOf(conn.query(`select sterna.node_create('n1', 'host=x')`))).toMatchObject({
        sqlstate,
        hint: expect.stringContaining(hint),
      })
    }
  })
})

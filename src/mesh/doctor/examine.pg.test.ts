import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { startServers, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import type { MeshNode } from '../mesh-node.ts'
import { examineServers } from './examine.ts'
import type { Finding } from './finding.ts'

async function exec(dsn: string, sql: string): Promise<void> {
  const conn = await PgConnection.connect(dsn)
  try {
    for (const statement of sql.split(';\n')) if (statement.trim()) await conn.exec(statement)
  } finally {
    await conn.close()
  }
}

/** `severity check server object` of each finding. */
function keys(findings: readonly Finding[]): string[] {
  return findings.map(({ severity, check, server, object }) =>
    [severity, check, server ?? '-', object ?? '-'].join(' '),
  )
}

describe('servers that are in order', () => {
  let servers: TestServers
  let nodes: MeshNode[]
  beforeAll(async () => {
    servers = await startServers({
      count: 3,
      version: ['18', '18', 'system15'],
      settings: { max_slot_wal_keep_size: '1GB' },
    })
    nodes = servers.nodes.map(({ name, dsn }) => ({ name, dsn }))
  })
  afterAll(() => servers.stop())

  it('nothing blocks; that versions are mixed is said', async () => {
    const { findings } = await examineServers(nodes)
    expect(findings.filter(({ severity }) => severity !== 'info')).toEqual([])
    expect(keys(findings)).toEqual(['info versions - -'])
  })

  it('the same database twice, however it is spelt', async () => {
    const [n1] = nodes
    const again = { name: 'again', dsn: n1!.dsn.replace('127.0.0.1', 'localhost') }
    const { findings } = await examineServers([n1!, again])
    expect(keys(findings)).toContain('block same_database - -')
  })

  it('a dead server is a finding and does not hide those of others', async () => {
    await exec(nodes[0]!.dsn, 'create table nokey (a int)')
    const dead = { name: 'dead', dsn: 'postgresql://u:secret@127.0.0.1:1/app' }
    const { findings } = await examineServers([nodes[0]!, dead])
    expect(keys(findings)).toContain('block server_unreachable dead -')
    expect(keys(findings)).toContain('warn table_without_key n1 public.nokey')
    expect(JSON.stringify(findings)).not.toContain('secret')
    await exec(nodes[0]!.dsn, 'drop table nokey')
  })

  it('tables and sequences', async () => {
    const dsn = nodes[1]!.dsn
    await exec(
      dsn,
      `create table parent (id int primary key, mail text unique);
create table child (id serial primary key, parent int references parent);
insert into child (id) select 5;
create table nokey (a int not null, unique (a));
create table picky (id int primary key, a int, exclude using btree (a with =));
create unique index on picky (a) where a > 0;
create unique index on picky (abs(a));
create table "order" ("user" serial primary key);
insert into "order" values (7);
create table late (id int, primary key (id) deferrable);
create table nothing (id int primary key);
alter table nothing replica identity nothing;
create table whole (id int primary key);
alter table whole replica identity full;
create unlogged table quick (id int primary key);
create table small (id smallserial primary key);
select setval('small_id_seq', 30000)`,
    )
    const { findings } = await examineServers([nodes[1]!])
    expect(keys(findings)).toEqual([
      'warn deferrable_key n2 public.late',
      'warn table_without_key n2 public.nokey',
      'warn replica_identity_nothing n2 public.nothing',
      'warn unlogged_table n2 public.quick',
      'warn exclusive_constraint n2 -',
      'warn sequence_behind n2 public.child_id_seq',
      'warn sequence_behind n2 public.order_user_seq',
      'warn sequence_near_end n2 public.small_id_seq',
      'info replica_identity_full n2 public.whole',
      'info secondary_unique n2 -',
      'info foreign_keys n2 -',
    ])
    const exclusive = findings.find(({ check }) => check === 'exclusive_constraint')
    expect(exclusive).toMatchObject({
      what: expect.stringMatching(/^1 table with unique indexes over some rows .*\(public\.picky\)/),
    })
    expect(findings.find(({ check }) => check === 'secondary_unique')?.what).toMatch(
      /^1 table .*\(public\.parent\)/,
    )
    await exec(dsn, 'drop table picky')
    // Each fix is a command that works, and after it the finding is gone.
    const fixes = findings.flatMap(({ severity, fix }) => (severity === 'warn' && fix ? [fix] : []))
    for (const fix of fixes.filter((each) => !each.includes('not deferrable'))) await exec(dsn, fix)
    await exec(dsn, 'alter table late drop constraint late_pkey, add primary key (id)')
    const after = await examineServers([nodes[1]!])
    expect(keys(after.findings).filter((key) => key.startsWith('warn'))).toEqual([])
  })

  it('a generated key is proposed for an empty table only: rows would get another one on every node', async () => {
    const dsn = nodes[1]!.dsn
    await exec(dsn, 'create table keyless (v text)')
    const fix = async (): Promise<string | null | undefined> =>
      (await examineServers([nodes[1]!])).findings.find(({ object }) => object === 'public.keyless')?.fix
    expect(await fix()).toMatch(/add column id .* primary key;$/)
    await exec(dsn, "insert into keyless values ('a')")
    expect(await fix()).toMatch(/add primary key \(\.\.\.\); {2}-- /)
    await exec(dsn, 'drop table keyless')
  })

  it('tables that differ block, rows that differ warn', async () => {
    await exec(nodes[0]!.dsn, 'create table t (id int primary key, a text);\ninsert into t values (1)')
    await exec(nodes[2]!.dsn, 'create table t (id int primary key, a int)')
    const { findings } = await examineServers([nodes[0]!, nodes[2]!])
    expect(
      findings
        .filter(({ object }) => object === 'public.t')
        .map(({ severity, check, what }) => [severity, check, what]),
    ).toEqual([
      ['block', 'schema_differs', 'the tables differ: public.t.a: text on n1; integer on n3'],
      ['warn', 'data_differs', expect.stringContaining('1 row on n1, 0 rows on n3')],
    ])
  })
})

describe('a server that is not set up', () => {
  let servers: TestServers
  let dsn: string
  beforeAll(async () => {
    servers = await startServers({
      count: 1,
      settings: {
        wal_level: 'replica',
        track_commit_timestamp: 'off',
        max_replication_slots: '1',
        max_active_replication_origins: '1',
        max_wal_senders: '1',
        max_connections: '9',
      },
    })
    dsn = servers.nodes[0]!.dsn
  })
  afterAll(() => servers.stop())

  it('says everything that is missing at once, each with its fix', async () => {
    const nodes = ['n1', 'n2', 'n3'].map((name) => ({ name, dsn }))
    const { findings } = await examineServers(nodes)
    const own = findings.filter(({ server }) => server === 'n1')
    expect(keys(own)).toEqual([
      'block wal_level n1 -',
      'block track_commit_timestamp n1 -',
      'block replication_slots n1 -',
      'block wal_senders n1 -',
      'block replication_origins n1 -',
      'warn connections n1 -',
      'info max_slot_wal_keep_size n1 -',
    ])
    expect(own.every(({ fix }) => fix?.startsWith('alter system set'))).toBe(true)
  })

  it('names every grant that a role lacks; the commands given grant them', async () => {
    await exec(dsn, `create role plain login password 'plain';\ncreate table owned (id int primary key)`)
    const plain = { name: 'n1', dsn: dsn.replace('sterna:sterna@', 'plain:plain@') }
    const before = (await examineServers([plain])).findings
    expect(keys(before).filter((key) => key.includes('plain'))).toEqual([
      'block grants n1 plain',
      'block ownership n1 plain',
      'block event_triggers n1 plain',
    ])
    const grants = before.find(({ check }) => check === 'grants')!
    expect(grants.what).toMatch(
      /REPLICATION.*CREATE on the database.*session_replication_role.*origin functions/,
    )
    for (const { check, fix } of before)
      if (check === 'grants' || check === 'ownership')
        for (const line of fix!.split('\n')) await exec(dsn, line)
    const after = (await examineServers([plain])).findings
    expect(keys(after).filter((key) => key.includes('plain'))).toEqual(['block event_triggers n1 plain'])
  })
})

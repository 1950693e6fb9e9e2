import { afterAll, beforeAll, expect, test } from 'vitest'

import { startServers, type TestServers } from '../../test/harness/servers.ts'
import { PgConnection } from '../postgres/connection.ts'
import { ConflictHousekeeping, readConflictQueues } from './conflict-housekeeping.ts'
import type { Log } from './log.ts'
import { installSchema } from './schema.ts'

let servers: TestServers
let conn: PgConnection

beforeAll(async () => {
  servers = await startServers({ count: 1 })
  conn = await PgConnection.connect(servers.nodes[0]!.dsn)
  await installSchema(conn)
  await conn.exec(`select sterna.node_create('n1', 'host=x', info => '{"node_id": 1}');
    select sterna.peer_upsert(2, 'n2', 'host=y', null, null, null);
    insert into sterna.subscription (sub_name, provider_dsn, provider_node_id, replication_sets)
    values ('s2', 'host=y', 2, '{default}'), ('s3', 'host=z', null, '{default}')`)
})
afterAll(async () => {
  await conn.close()
  await servers.stop()
})

function logInto(lines: string[]): Log {
  const log: Log = {
    debug: (_: object, message: string) => lines.push(`debug ${message}`),
    info: (_: object, message: string) => lines.push(`info ${message}`),
    warn: (_: object, message: string) => lines.push(`warn ${message}`),
    error: (_: object, message: string) => lines.push(`error ${message}`),
    child: () => log,
  }
  return log
}

test('what waits is counted, changes by the subscription that brought them', async () => {
  expect(await readConflictQueues(conn)).toEqual({ exceptions: new Map(), openReviews: 0, rowsAside: 0 })
  await conn.exec(`
    insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_name, operation, version)
    select 'failed', 2, '0/1', n, 't', 'insert', row(now(), 2)::sterna.row_version from generate_series(1, 3) n;
    insert into sterna.review (reason, table_oid, table_name, key, closed_at) values ('orphan', 1, 't', '{}', null), ('orphan', 1, 't', '{}', now());
    insert into sterna.aside (table_oid, key_hash, table_name, key, row_values) values (1, 1, 't', '{}', '{}'), (1, 2, 't', '{}', '{}')`)
  expect(await readConflictQueues(conn)).toEqual({
    exceptions: new Map([['s2', 3]]),
    openReviews: 1,
    rowsAside: 2,
  })
})

test('one round judges and cleans', async () => {
  const lines: string[] = []
  await conn.exec(`insert into sterna.conflict_history (recorded_at, conflict_type, table_oid, table_name, key, remote_version, resolution)
    values ('2000-01-01', 'update_missing', 1, 't', '{}', row(now(), 2)::sterna.row_version, 'apply_remote')`)
  await new ConflictHousekeeping(logInto(lines)).work(conn)
  expect((await conn.query('select from sterna.conflict_history')).rows).toEqual([])
  expect((await conn.query('select from sterna.aside')).rows).toEqual([])
  expect(lines).toEqual([])
})

test('a lock that somebody holds is waited for shortly, and is nothing to tell; what fails otherwise is told once', async () => {
  const lines: string[] = []
  const housekeeping = new ConflictHousekeeping(logInto(lines))
  const other = await PgConnection.connect(servers.nodes[0]!.dsn)
  await other.exec('begin; lock table sterna.tombstone')
  await conn.exec(`insert into sterna.heartbeat (node_id, beat_at, beats, wal_lsn, complete_until) values (2, now(), 1, '0/1', now());
    delete from sterna.subscription where sub_name = 's3'`)
  await housekeeping.work(conn)
  expect(lines).toEqual(['debug conflict entries are left for later'])
  await other.exec('rollback')
  await other.close()
  await conn.exec('drop function sterna.conflict_settle()')
  await housekeeping.work(conn)
  await housekeeping.work(conn)
  expect(lines.slice(1)).toEqual([
    'warn conflict entries cannot be cleaned up',
    'debug conflict entries are left for later',
  ])
})

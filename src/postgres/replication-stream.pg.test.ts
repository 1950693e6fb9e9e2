import { afterAll, afterEach, beforeAll, expect, test } from 'vitest'
import { startServers, type TestServers } from '../../test/harness/servers.ts'
import { waitUntil } from '../../test/harness/wait.ts'
import type { SternaError } from '../core/errors.ts'
import { lsnOf, LSN_ZERO, parseLsn, type Lsn } from '../core/lsn.ts'
import { PGOUTPUT } from '../pgwire/pgoutput.ts'
import { PgConnection } from './connection.ts'
import { parseDsn, type ConnectTarget } from './dsn.ts'
import { ReplicationStream, type StreamHandler } from './replication-stream.ts'

let servers: TestServers
let connection: PgConnection
let target: ConnectTarget
const streams: ReplicationStream[] = []

/** With a quote, a double quote and a backslash: what must be escaped, and what must not. */
const PUBLICATION = `it's a "back\\slash"`

beforeAll(async () => {
  servers = await startServers({ count: 1, settings: { wal_sender_timeout: '2s' } })
  target = parseDsn(servers.nodes[0]!.dsn, {})
  connection = await PgConnection.connect(target)
  await connection.exec('create table t (id int primary key)')
  await connection.exec(`create publication "${PUBLICATION.replaceAll('"', '""')}" for table t`)
})
afterEach(() => Promise.all(streams.splice(0).map((stream) => stream.close())))
afterAll(async () => {
  await connection?.close()
  await servers?.stop()
})

class Recorder implements StreamHandler {
  readonly types: number[] = []
  ended: SternaError | undefined
  walEnd: Lsn = LSN_ZERO
  keepalives = 0

  onData(buffer: Buffer, at: number): void {
    this.types.push(buffer[at]!)
  }
  onBatchEnd(): void {}
  onKeepalive(walEnd: Lsn): void {
    this.keepalives++
    this.walEnd = walEnd
  }
  onEnd(error: SternaError): void {
    this.ended = error
  }
}

async function start(slotName: string, handler: StreamHandler): Promise<ReplicationStream> {
  const stream = await ReplicationStream.start(
    target,
    {
      slotName,
      applicationName: 'test',
      startLsn: LSN_ZERO,
      pluginOptions: { proto_version: '1', publication_names: `"${PUBLICATION.replaceAll('"', '""')}"` },
    },
    handler,
  )
  streams.push(stream)
  return stream
}

async function createSlot(name: string): Promise<void> {
  await connection.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name])
}

test('changes come in order, and what is confirmed is what the slot keeps', async () => {
  await createSlot('s1')
  const recorder = new Recorder()
  const stream = await start('s1', recorder)
  await connection.exec('insert into t values (1), (2)')
  await waitUntil('the commit is there', () => recorder.types.includes(PGOUTPUT.commit))
  const { begin, relation, insert, commit } = PGOUTPUT
  expect(recorder.types).toEqual([begin, relation, insert, insert, commit])
  const row = await connection.row<{ lsn: string }>('select pg_current_wal_lsn()::text as lsn')
  const now = parseLsn(row!.lsn)
  stream.confirm(now, now, now)
  const sql = `select confirmed_flush_lsn::text as lsn from pg_replication_slots where slot_name = 's1'`
  await waitUntil(
    'it is confirmed',
    async () => (await connection.row<{ lsn: string }>(sql))!.lsn === row!.lsn,
  )
})

test('a reply is sent when we ask for one', async () => {
  await createSlot('s2')
  const recorder = new Recorder()
  const stream = await start('s2', recorder)
  const before = recorder.keepalives
  stream.confirm(lsnOf(0n), lsnOf(0n), lsnOf(0n), true)
  await waitUntil('the keepalive is there', () => recorder.keepalives > before)
  expect(stream.receivedLsn).toBeGreaterThanOrEqual(recorder.walEnd)
})

test('a paused stream takes nothing, and all of it later', async () => {
  await createSlot('s3')
  const recorder = new Recorder()
  const stream = await start('s3', recorder)
  stream.pause()
  await connection.exec('insert into t select generate_series(1000, 3000)')
  stream.resume()
  await waitUntil(
    'all is there',
    () => recorder.types.filter((type) => type === PGOUTPUT.insert).length === 2001,
  )
})

test('a slot that is missing, in use, or of another kind', async () => {
  await expect(start('none', new Recorder())).rejects.toMatchObject({ sqlstate: '42704' })
  await expect(start(`no "such' \\one`, new Recorder())).rejects.toMatchObject({ code: 'STATEMENT_FAILED' })
  await createSlot('s4')
  await start('s4', new Recorder())
  await expect(start('s4', new Recorder())).rejects.toMatchObject({ sqlstate: '55006', retry: true })
  await connection.exec(`select pg_create_physical_replication_slot('physical')`)
  await expect(start('physical', new Recorder())).rejects.toMatchObject({ code: 'STATEMENT_FAILED' })
})

test('a provider that thinks us dead, one that is told to end us, one that is killed', async () => {
  await createSlot('s6')
  const silent = new Recorder()
  await start('s6', silent)
  // Nothing is confirmed for longer than wal_sender_timeout.
  await waitUntil('the stream ends', () => silent.ended !== undefined)
  expect(silent.ended).toMatchObject({ code: 'CONNECTION_LOST' })
  const ended = new Recorder()
  await waitUntil('the slot is free', () =>
    start('s6', ended).then(
      () => true,
      () => false,
    ),
  )
  await connection.exec(
    `select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 's6'`,
  )
  await waitUntil('the stream ends', () => ended.ended !== undefined)
  expect(ended.ended).toMatchObject({ sqlstate: '57P01', retry: true })
  const killed = new Recorder()
  await waitUntil('the slot is free', () =>
    start('s6', killed).then(
      () => true,
      () => false,
    ),
  )
  await servers.nodes[0]!.kill9()
  await waitUntil('the stream ends', () => killed.ended !== undefined)
  expect(killed.ended).toMatchObject({ code: 'CONNECTION_LOST', retry: true })
})

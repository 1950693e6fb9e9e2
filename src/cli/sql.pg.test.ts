import { cancelBackend, PgConnection } from '../postgres/connection.ts'
import { waitUntil } from '../../test/harness/wait.ts'
import { afterAll, beforeAll, expect, it } from 'vitest'

import { startServers, type TestServers } from '../../test/harness/servers.ts'
import type { ServerMessage } from '../pgwire/backend.ts'
import { parseDsn } from '../postgres/dsn.ts'
import type { ServerError } from '../postgres/server-error.ts'
import { WireSocket } from '../postgres/wire-socket.ts'
import { endSession, runScript, type StatementResult } from './sql-session.ts'

let servers: TestServers
let wire: WireSocket
beforeAll(async () => {
  servers = await startServers({ count: 1 })
  wire = await WireSocket.open(parseDsn(servers.nodes[0]!.dsn), { applicationName: 'test' })
})
afterAll(async () => {
  await endSession(wire)
  await servers.stop()
})

interface Ran {
  failure: ServerError | null
  results: StatementResult[]
  notices: ServerMessage[]
  copied: string
}

async function run(sql: string): Promise<Ran> {
  const ran: Ran = { failure: null, results: [], notices: [], copied: '' }
  ran.failure = await runScript(wire, sql, {
    onResult: (result) => ran.results.push(result),
    onNotice: (notice) => ran.notices.push(notice),
    onCopyData: (bytes) => (ran.copied += bytes.toString()),
  })
  return ran
}

it('several statements give their results in order, columns of one name stay apart', async () => {
  const { results, failure } = await run(
    'create table t (id int); insert into t values (1), (2);; select id, id + 1 as id, null from t',
  )
  expect(failure).toBeNull()
  expect(results.map((result) => result.command)).toEqual(['CREATE TABLE', 'INSERT 0 2', 'SELECT 2'])
  expect(results[2]!.rows).toEqual([
    ['1', '2', null],
    ['2', '3', null],
  ])
  expect(results[0]!.fields).toBeNull()
})

it('what ran before an error is handed out, and the session goes on', async () => {
  const { results, failure } = await run("select 'kept'; select nothing_here")
  expect(results.map((result) => result.rows)).toEqual([[['kept']]])
  expect(failure).toMatchObject({ sqlstate: '42703', fields: { position: '23' } })
  expect((await run('select 1')).failure).toBeNull()
})

it('notices are passed on', async () => {
  const { notices } = await run("do $$ begin raise warning 'look'; end $$")
  expect(notices).toMatchObject([{ severity: 'WARNING', message: 'look' }])
})

it('COPY TO STDOUT gives its data; COPY FROM STDIN is refused and does not hang', async () => {
  expect((await run('copy (values (1, null), (2, $$b$$)) to stdout')).copied).toBe('1\t\\N\n2\tb\n')
  expect((await run('copy t from stdin')).failure?.fields.message).toContain('use psql')
})

it('a statement is cancelled, and the session goes on', async () => {
  const sleeping = run('select pg_sleep(60)')
  const watcher = await PgConnection.connect(servers.nodes[0]!.dsn)
  await waitUntil('it runs', async () => {
    const { rows } = await watcher.query(
      "select from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'",
    )
    return rows.length > 0
  })
  await watcher.close()
  await cancelBackend(wire)
  expect((await sleeping).failure).toMatchObject({ sqlstate: '57014' })
  expect((await run('select 1')).failure).toBeNull()
})

it('a connection that ends in the middle rejects', async () => {
  const other = await WireSocket.open(parseDsn(servers.nodes[0]!.dsn), { applicationName: 'test' })
  const handlers = { onResult: () => {}, onNotice: () => {}, onCopyData: () => {} }
  await expect(
    runScript(other, 'select pg_terminate_backend(pg_backend_pid())', handlers),
  ).rejects.toMatchObject({
    code: 'CONNECTION_LOST',
  })
})

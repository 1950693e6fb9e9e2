import { fileURLToPath } from 'node:url'

import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { runCommand } from '../../test/harness/command.ts'
import { startServers, type TestServers } from '../../test/harness/servers.ts'
import { installSchema } from '../mesh/schema.ts'
import { PgConnection } from '../postgres/connection.ts'

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url))

let servers: TestServers
let conn: PgConnection
beforeAll(async () => {
  servers = await startServers({ count: 1 })
  conn = await PgConnection.connect(servers.nodes[0]!.dsn)
  await conn.exec(`set client_min_messages = warning;
    create table account (id int primary key, email text unique, "Note" text, n int);
    insert into account values (1, 'here', 'same', 1), (3, 'taken', null, 3)`)
  await installSchema(conn)
  await conn.query(`select sterna.node_create('n1', 'host=n1', info => '{"node_id": 1}')`)
  await conn.query(`select sterna.peer_upsert(2, 'n2', 'host=n2', null, null, null)`)
  await conn.query(`select sterna.sub_create('s', 'host=n2')`)
  const versions = `row('2026-11-21T06:00:00.5Z', 1)::sterna.row_version, row('2026-11-21T06:00:02Z', 2)::sterna.row_version`
  const rows = `'{"n": "1", "id": "1", "Note": "same", "email": "here"}'::jsonb, '{"n": null, "id": "1", "Note": "same", "email": "there"}'::jsonb`
  await conn.exec(`
    insert into sterna.conflict_history (recorded_at, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version,
        remote_version, resolution, policy, concurrent)
      select t.at, t.type, 'account'::regclass, 'public.account', t.key, r.l, r.r, ${versions}, t.resolution, t.policy, true
        from (select ${rows}) r(l, r),
             (values (now() - interval '3 hours', 'update_origin_differs', '{"id": "2"}'::jsonb, 'apply_remote', 'last_update_wins'),
                     (now(), 'update_origin_differs', '{"id": "1"}', 'apply_remote', 'manual')) t(at, type, key, resolution, policy);
    insert into sterna.review (opened_at, reason, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version)
      select now(), 'manual', 'update_origin_differs', 'account'::regclass, 'public.account', '{"id": "1"}', r.l, r.r, ${versions}
        from (select ${rows}) r(l, r);
    insert into sterna.review (opened_at, reason, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version)
      values (now() + interval '1 second', 'set_aside', 'insert_exists', 'account'::regclass, 'public.account', '{"id": "4"}',
        '{"id": "3", "email": "taken"}', '{"id": "4", "email": "taken", "Note": "aside"}', ${versions});
    insert into sterna.exception (parked_at, reason, origin_node_id, lsn, change_number, table_oid, table_name, operation, key_hashes,
        key, old_row, new_row, version, sqlstate, message, detail)
      values ('2026-11-21T06:00:03Z', 'failed', 2, '0/12', 3, 'account'::regclass, 'public.account', 'update', '{7}', '{"id": "5"}',
              '{"id": "5", "n": "1"}', '{"id": "5", "n": "-1"}', row('2026-11-21T06:00:02Z', 2)::sterna.row_version, '23514',
              'new row violates check constraint "positive"', 'Failing row contains (5).'),
             ('2026-11-21T06:00:04Z', 'behind', 2, '0/13', 1, 'account'::regclass, 'public.account', 'delete', '{7}', '{"id": "5"}',
              null, null, row('2026-11-21T06:00:03Z', 2)::sterna.row_version, null, null, null)`)
})
afterAll(async () => {
  await conn.close()
  await servers.stop()
})

const sterna = (
  ...args: string[]
): Promise<{ readonly code: number; readonly stdout: string; readonly stderr: string }> =>
  runCommand([MAIN, ...args], { env: { STERNA_DSN: servers.nodes[0]!.dsn, STERNA_CLUSTER: '' } })
const lines = async (...args: string[]): Promise<string[]> => {
  const { code, stdout, stderr } = await sterna(...args)
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return stdout.trimEnd().split('\n')
}
const json = async <T>(...args: string[]): Promise<T> =>
  JSON.parse((await sterna(...args, '--json')).stdout) as T
const refusal = async (...args: string[]): Promise<[number, string]> => {
  const { code, stdout, stderr } = await sterna(...args)
  expect(stderr).not.toMatch(/^\s+at /m)
  expect(stdout).toBe('')
  return [code, /^code: {2}(\w+)$/m.exec(stderr)?.[1] ?? stderr]
}
const ids = async (...args: string[]): Promise<string[]> =>
  (await json<{ conflicts: { kind: string; id: number }[] }>('conflicts', 'list', ...args)).conflicts.map(
    ({ kind, id }) => `${kind} ${id}`,
  )

describe('sterna conflicts', () => {
  it('lists history and review queue, the newest first', async () => {
    const list = await lines('conflicts', 'list')
    expect(list.map((line) => line.replace(/\d{4}-\S+ \S+Z/, 'TIME').split(/ {2,}/))).toEqual([
      ['on', 'id', 'at', 'type', 'table', 'key', 'outcome', 'review'],
      ['n1', 'r2', 'TIME', 'insert_exists', 'public.account', 'id = 4', 'set_aside', 'r2 open'],
      ['n1', 'h2', 'TIME', 'update_origin_differs', 'public.account', 'id = 1', 'apply_remote', 'r1 open'],
      ['n1', 'h1', 'TIME', 'update_origin_differs', 'public.account', 'id = 2', 'apply_remote'],
    ])
  })

  it('only some of them', async () => {
    expect(await ids('--open')).toEqual(['review 2', 'history 2'])
    expect(await ids('--type', 'set_aside')).toEqual(['review 2'])
    expect(await ids('--type', 'update_origin_differs')).toEqual(['history 2', 'history 1'])
    expect(await ids('--table', 'account', '--limit', '1')).toEqual(['review 2'])
    expect(await ids('--table', 'nothing')).toEqual([])
    expect(await ids('--since', '2h')).toEqual(['review 2', 'history 2'])
    expect(await ids('--since', '2020-01-01')).toHaveLength(3)
    expect(await ids('--since', '2100-01-01 10:00')).toEqual([])
    for (const wrong of [
      ['--since', 'yesterday'],
      ['--limit', '0'],
    ])
      expect(await refusal('conflicts', 'list', ...wrong)).toEqual([2, 'INVALID_VALUE'])
  })

  it('shows both rows side by side, what differs marked, and why one won', async () => {
    expect(await lines('conflicts', 'show', 'h2')).toEqual([
      'update_origin_differs: h2 on n1',
      'table     public.account, id = 1',
      expect.stringMatching(/^recorded {2}at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}Z$/),
      'here      a row, written on n1 at 2026-11-21 06:00:00.500000Z',
      'remote    a row, written on n2 at 2026-11-21 06:00:02.000000Z',
      'outcome   what arrived was applied',
      'why       what arrived is newer by 1.500000 s; neither writer knew the other one',
      'review    r1 is open',
      '',
      '   column  here (n1)  remote (n2)',
      '   id      1          1',
      '*  email   here       there',
      '   Note    same       same',
      '*  n       1          NULL',
      '',
      'sterna conflicts resolve r1 --on n1 --keep local   # the row as it is now on n1',
      'sterna conflicts resolve r1 --on n1 --keep remote',
      `sterna conflicts resolve r1 --on n1 --row '{"column": "value"}'`,
      'sterna conflicts resolve r1 --on n1 --dismiss   # writes nothing',
    ])
    const aside = await lines('conflicts', 'show', 'r2')
    expect(aside).toContain('why       it shares a unique value with a newer row')
    const { conflict } = await json<{ conflict: object }>('conflicts', 'show', 'r1')
    expect(conflict).toMatchObject({
      on: 'n1',
      kind: 'history',
      id: 2,
      review_id: 1,
      review_open: true,
      key: { id: '1' },
      remote_row: { id: '1', email: 'there', Note: 'same', n: null },
      local_node: 'n1',
      local_at: '2026-11-21 06:00:00.500000Z',
    })
  })

  it('what is not there, or is not said clearly, is refused with a code', async () => {
    expect(await refusal('conflicts', 'show', 'h99')).toEqual([3, 'REFUSED'])
    expect(await refusal('conflicts', 'show', '1')).toEqual([2, 'INVALID_VALUE'])
    expect(await refusal('conflicts', 'resolve', 'r99', '--dismiss')).toEqual([3, 'REFUSED'])
    expect(await refusal('conflicts', 'resolve', 'h1', '--dismiss')).toEqual([2, 'INVALID_VALUE'])
    expect(await refusal('conflicts', 'resolve', 'r1')).toEqual([2, 'USAGE'])
    expect(await refusal('conflicts', 'resolve', 'r1', '--dismiss', '--keep', 'local')).toEqual([2, 'USAGE'])
    expect(await refusal('conflicts', 'resolve', 'r1', '--row', '{x')).toEqual([2, 'INVALID_VALUE'])
    expect(await refusal('conflicts', 'resolve', 'r1', '--row', '{"x": 1}')).toEqual([3, 'REFUSED'])
    expect(await refusal('conflicts', 'resolve', 'r1', '--row', '{"n": "x"}')).toEqual([
      1,
      'STATEMENT_FAILED',
    ])
    const { stdout } = await sterna('conflicts', 'resolve', 'r99', '--dismiss', '--json')
    expect(JSON.parse(stdout)).toEqual({
      error: expect.objectContaining({
        code: 'REFUSED',
        message: expect.stringContaining('there is no review entry 99'),
      }),
    })
  })

  it('settles entries', async () => {
    expect(await lines('conflicts', 'resolve', 'r1', '--keep', 'remote')).toEqual([
      'n1: settled r1 (remote); the row was updated',
    ])
    expect(await json('conflicts', 'resolve', 'r2', '--row', '{"email": "free"}')).toEqual({
      on: 'n1',
      review_id: 2,
      choice: 'row',
      outcome: 'inserted',
    })
    expect((await conn.query('select id, email, "Note", n from account order by id')).rows).toEqual([
      { id: 1, email: 'there', Note: 'same', n: null },
      { id: 3, email: 'taken', Note: null, n: 3 },
      { id: 4, email: 'free', Note: 'aside', n: null },
    ])
    expect(await ids('--open')).toEqual([])
    expect((await lines('conflicts', 'show', 'h2')).join('\n')).toMatch(
      /review {4}r1 was closed at .*: remote$/m,
    )
  })
})

describe('sterna exceptions', () => {
  it('lists them', async () => {
    const list = await lines('exceptions', 'list')
    expect(list.map((line) => line.split(/ {2,}/))).toEqual([
      ['on', 'id', 'parked at', 'from', 'operation', 'table', 'key', 'retries', 'why'],
      [
        'n1',
        '1',
        '2026-11-21 06:00:03.000000Z',
        'n2',
        'update',
        'public.account',
        'id = 5',
        '0',
        '23514 new row violates check constraint "positive"',
      ],
      [
        'n1',
        '2',
        '2026-11-21 06:00:04.000000Z',
        'n2',
        'delete',
        'public.account',
        'id = 5',
        '0',
        'waits behind an earlier change to its key',
      ],
    ])
  })

  it('shows one with its rows', async () => {
    expect(await lines('exceptions', 'show', '1')).toEqual([
      'exception 1 on n1',
      'change       update on public.account, id = 5',
      'written      on n2 at 2026-11-21 06:00:02.000000Z (change 3 of the transaction at 0/12)',
      'parked       at 2026-11-21 06:00:03.000000Z',
      'why          23514 new row violates check constraint "positive"',
      '             Failing row contains (5).',
      'tried again  not yet',
      'next         on demand',
      '',
      '   column  old row  new row',
      '   id      5        5',
      '*  n       1        -1',
      '',
      'Remove the cause, then: sterna exceptions retry 1 --on n1',
    ])
    expect(await json('exceptions', 'show', '2')).toMatchObject({
      exception: { on: 'n1', id: 2, reason: 'behind', lsn: '0/13', new_row: null },
    })
  })

  it('asks for a retry: of one with what it waits for, or of all', async () => {
    expect(await lines('exceptions', 'retry', '2')).toEqual(['n1: 2 changes are tried again now'])
    expect(await json('exceptions', 'retry', '--all')).toEqual({ asked: [{ on: 'n1', count: 2 }] })
    expect(
      await conn.row('select count(*)::int as n from sterna.exception where next_retry_at <= now()'),
    ).toEqual({
      n: 2,
    })
    expect(await refusal('exceptions', 'retry')).toEqual([2, 'USAGE'])
    expect(await refusal('exceptions', 'retry', '1', '--all')).toEqual([2, 'USAGE'])
    expect(await refusal('exceptions', 'retry', 'x')).toEqual([2, 'INVALID_VALUE'])
    expect(await refusal('exceptions', 'retry', '9')).toEqual([3, 'REFUSED'])
  })

  it('drops one after a yes; an unknown one keeps the others', async () => {
    expect(await refusal('exceptions', 'drop', '1')).toEqual([2, 'CONFIRMATION_NEEDED'])
    expect(await refusal('exceptions', 'drop', '1', '9', '--yes')).toEqual([3, 'REFUSED'])
    expect(await json('exceptions', 'drop', '1', '--yes')).toMatchObject({
      on: 'n1',
      dropped: [{ id: 1, table_name: 'public.account', new_row: { id: '5', n: '-1' } }],
    })
    expect((await conn.query('select id::int from sterna.exception')).rows).toEqual([{ id: 2 }])
  })
})

it('sterna sub shows and sets what happens with exceptions', async () => {
  const modes = async (): Promise<unknown> =>
    (await json<{ subscriptions: { on_exception: string }[] }>('sub', 'list')).subscriptions.map(
      ({ on_exception: mode }) => mode,
    )
  expect(await modes()).toEqual(['park'])
  expect(await lines('sub', 'set-on-exception', 's', 'stop')).toEqual(['n1: s is on_exception = stop'])
  expect(await modes()).toEqual(['stop'])
  expect(await refusal('sub', 'set-on-exception', 'x', 'stop')).toEqual([3, 'REFUSED'])
  expect((await sterna('sub', 'set-on-exception', 's', 'skip')).code).toBe(2)
  expect(
    await lines('sub', 'create', 't', '--provider', 'host=n3 dbname=x', '--on-exception', 'transdiscard'),
  ).toHaveLength(1)
  expect(await modes()).toEqual(['stop', 'transdiscard'])
})

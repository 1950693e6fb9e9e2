import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startRelay, type Relay } from '../../test/harness/relay.ts'
import { startServers, type TestServer, type TestServers } from '../../test/harness/servers.ts'
import { waitUntil } from '../../test/harness/wait.ts'
import { PgConnection } from './connection.ts'
import { formatDsn, parseDsn, type ConnectTarget } from './dsn.ts'

let servers: TestServers
let server: TestServer
let connection: PgConnection
let target: ConnectTarget

beforeAll(async () => {
  servers = await startServers({ count: 1 })
  server = servers.nodes[0]!
  target = parseDsn(server.dsn, {})
  connection = await PgConnection.connect(target)
})
afterAll(async () => {
  await connection?.close()
  await servers?.stop()
})

/** Resolves when the server runs a statement that begins so, in another session. */
async function running(start: string): Promise<void> {
  const sql = `select count(*)::int as n from pg_stat_activity where state = 'active' and pid <> pg_backend_pid() and starts_with(query, $1)`
  await waitUntil(`"${start}" runs`, async () => (await connection.row<{ n: number }>(sql, [start]))!.n > 0)
}

/** Does something with a connection of its own. */
async function withConnection<T>(
  work: (own: PgConnection) => Promise<T>,
  to: ConnectTarget = target,
): Promise<T> {
  const own = await PgConnection.connect(to)
  try {
    return await work(own)
  } finally {
    await own.close()
  }
}

describe('values', () => {
  test('come as what they are', async () => {
    const { rows, fields, command, rowCount } = await connection.query(
      `select true as b, 9223372036854775807 as i8, 7 as i4, 1.5::float8 as f, 'NaN'::float8 as nan, 1.50::numeric as n,
              '{"a": [1, null]}'::jsonb as j, '\\x00ff'::bytea as raw, null as nothing, 'ä\t"''' as t,
              '{1,NULL,3}'::int4[] as ints, '{a,"b ,\\"{}",NULL,"NULL",""}'::text[] as texts, '{}'::text[] as none,
              '{{1,2},{3,4}}'::int4[] as grid, '[0:1]={5,6}'::int4[] as shifted, '2026-01-01 00:00:00+00'::timestamptz as ts`,
    )
    expect(rows).toEqual([
      {
        b: true,
        i8: 9_223_372_036_854_775_807n,
        i4: 7,
        f: 1.5,
        nan: Number.NaN,
        n: '1.50',
        j: { a: [1, null] },
        raw: Buffer.of(0, 255),
        nothing: null,
        t: 'ä\t"\'',
        ints: [1, null, 3],
        texts: ['a', 'b ,"{}', null, 'NULL', ''],
        none: [],
        grid: [
          [1, 2],
          [3, 4],
        ],
        shifted: [5, 6],
        ts: expect.stringMatching(/^2026-01-01 |^2025-12-31 /),
      },
    ])
    expect(fields.map(({ name }) => name)).toContain('grid')
    expect([command, rowCount]).toEqual(['SELECT 1', 1])
  })

  test('go there and come back', async () => {
    const texts = ['', 'NULL', null, 'a"b\\c,{}', ' x ', "'", 'ü𝄞']
    const row = await connection.row(
      'select $1::text as t, $2::int8 as i, $3::bool as b, $4::bytea as raw, $5::text[] as texts, $6::int8[] as ids, $7::timestamptz = $8 as same, $9::text as nothing',
      [
        'x\\y',
        -9_223_372_036_854_775_808n,
        false,
        Buffer.of(1, 2, 0),
        texts,
        [1n, null],
        new Date(Date.UTC(2026, 0)),
        '2026-01-01 00:00:00Z',
        undefined,
      ],
    )
    expect(row).toEqual({
      t: 'x\\y',
      i: -9_223_372_036_854_775_808n,
      b: false,
      raw: Buffer.of(1, 2, 0),
      texts,
      ids: [1n, null],
      same: true,
      nothing: null,
    })
  })

  test('are the same text whatever the database and the role say', async () => {
    const settings = ['datestyle = German', 'intervalstyle = iso_8601', 'extra_float_digits = 0']
    for (const setting of settings) await connection.exec(`alter role sterna set ${setting}`)
    try {
      const row = await withConnection((own) =>
        own.row(
          `select '2026-02-01'::date::text as d, '1 day'::interval::text as i, 0.1::float8 + 0.2::float8 as f`,
        ),
      )
      expect(row).toEqual({ d: '2026-02-01', i: '1 day', f: 0.1 + 0.2 })
    } finally {
      await connection.exec('alter role sterna reset all')
    }
  })

  test('of 30 MB', async () => {
    const row = await connection.row<{ t: string }>(`select repeat('0123456789', 3000000) as t`)
    expect(row!.t).toHaveLength(30_000_000)
    expect(await connection.row('select length($1) as n', [row!.t])).toEqual({ n: 30_000_000 })
  })
})

describe('statements', () => {
  test('given together run in order, each with its own answer', async () => {
    await connection.exec('create temp table t (i int)')
    const all = Array.from({ length: 200 }, (_, i) =>
      i % 2 === 0
        ? connection.query('insert into t values ($1)', [i])
        : connection.query<{ n: bigint }>('select count(*) as n from t'),
    )
    const answers = await Promise.all(all)
    expect(answers.filter((_, i) => i % 2 === 1).map(({ rows }) => (rows[0] as { n: bigint }).n)).toEqual(
      Array.from({ length: 100 }, (_, i) => BigInt(i + 1)),
    )
  })

  test('one that fails disturbs none of the others', async () => {
    const answers = await Promise.allSettled([
      connection.query('select 1 as n'),
      connection.query('select 1/0'),
      connection.exec('select 1; select nonsense; select 2'),
      connection.query('select 2 as n'),
    ])
    expect(answers).toMatchObject([
      { value: { rows: [{ n: 1 }] } },
      { reason: { sqlstate: '22012' } },
      { reason: { sqlstate: '42703' } },
      { value: { rows: [{ n: 2 }] } },
    ])
  })

  test('several in one string, and none', async () => {
    const results = await connection.exec(
      `create temp table u (i int); insert into u values (1), (2); select i from u; ; `,
    )
    expect(results.map(({ command }) => command)).toEqual(['CREATE TABLE', 'INSERT 0 2', 'SELECT 2'])
    expect(results.map(({ rowCount }) => rowCount)).toEqual([0, 2, 2])
    expect(await connection.exec('')).toMatchObject([{ command: '', rows: [] }])
    expect(await connection.query('')).toMatchObject({ command: '', rows: [] })
    expect(await connection.row('select where false')).toBeUndefined()
  })

  test('a zero byte is refused, and the session goes on', async () => {
    await expect(connection.query('select $1::text', ['a\0b'])).rejects.toMatchObject({ sqlstate: '22021' })
    await expect(connection.exec('select 1\0; select 2')).rejects.toMatchObject({ sqlstate: '08P01' })
    await expect(connection.query('select 1\0')).rejects.toMatchObject({ sqlstate: '08P01' })
    expect(await connection.row('select 1 as n')).toEqual({ n: 1 })
  })

  test('the fields of an error', async () => {
    await connection.exec('create table public.parent (id int constraint pk primary key)')
    await connection.exec('insert into parent values (1)')
    const error = await connection.query('insert into parent values (1)').catch((reason: unknown) => reason)
    expect(error).toMatchObject({
      code: 'STATEMENT_FAILED',
      sqlstate: '23505',
      retry: false,
      fields: {
        severity: 'ERROR',
        detail: expect.stringContaining('already exists'),
        schema: 'public',
        table: 'parent',
        constraint: 'pk',
      },
    })
    const wrong = await connection.query('select colour from parent').catch((reason: unknown) => reason)
    expect(wrong).toMatchObject({ sqlstate: '42703', fields: { position: '8' } })
    const raised = await connection
      .exec(`do $$ begin raise exception 'no' using errcode = 'ST001', hint = 'do it', column = 'c'; end $$`)
      .catch((reason: unknown) => reason)
    expect(raised).toMatchObject({
      sqlstate: 'ST001',
      hint: 'do it',
      fields: { column: 'c', context: expect.any(String) },
    })
  })

  test('COPY is refused and ends the session, without hanging', async () => {
    const own = await PgConnection.connect(target)
    await expect(own.exec('copy (select 1) to stdout')).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    await expect(own.exec('select 1')).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
  })
})

describe('time limits', () => {
  test('a statement is cancelled after its limit, and the session goes on', async () => {
    const before = performance.now()
    await expect(connection.query('select pg_sleep(60)', [], { timeoutMs: 100 })).rejects.toMatchObject({
      sqlstate: '57014',
      retry: true,
    })
    expect(performance.now() - before).toBeLessThan(5000)
    expect(await connection.row('select 1 as n')).toEqual({ n: 1 })
  })

  test('the limit counts from the start of its own statement, and its cancel hits no other', async () => {
    const answers = await Promise.allSettled([
      connection.query('select pg_sleep(0.5)'),
      connection.query('select 1 as n', [], { timeoutMs: 200 }),
      connection.query('select pg_sleep(60)', [], { timeoutMs: 100 }),
      ...Array.from({ length: 20 }, () => connection.query('select pg_sleep(0.001)')),
    ])
    expect(answers.map(({ status }) => status)).toEqual([
      'fulfilled',
      'fulfilled',
      'rejected',
      ...Array.from({ length: 20 }, () => 'fulfilled'),
    ])
  })

  test('limits that strike just when statements end harm nothing else', async () => {
    for (let i = 0; i < 15; i++) {
      const limited = connection.query('select pg_sleep(0.01)', [], { timeoutMs: 10 })
      const behind = connection.row('select $1::int as i', [i])
      await limited.catch((error: unknown) => expect(error).toMatchObject({ sqlstate: '57014' }))
      expect(await behind).toEqual({ i })
    }
  })

  test('a network that is gone: the statement is rejected', async () => {
    const relay: Relay = await startRelay({ to: { host: '127.0.0.1', port: server.port } })
    try {
      const own = await PgConnection.connect({ ...target, port: relay.port })
      relay.blackhole()
      await expect(own.query('select 1', [], { timeoutMs: 100 })).rejects.toMatchObject({
        code: 'CONNECTION_LOST',
      })
    } finally {
      await relay.close()
    }
  })
})

describe('transactions', () => {
  beforeAll(() => connection.exec('create table if not exists ledger (i int)'))
  const count = async (): Promise<bigint> =>
    (await withConnection((own) => own.row<{ n: bigint }>('select count(*) as n from ledger')))!.n

  test('commit, with the result', async () => {
    const before = await count()
    const result = await connection.transaction(async () => {
      await connection.query('insert into ledger values (1)')
      return 'done'
    })
    expect([result, await count()]).toEqual(['done', before + 1n])
  })

  test('roll back when the work throws, with its error', async () => {
    const before = await count()
    const own = new Error('own')
    const failing = connection.transaction(async () => {
      await connection.query('insert into ledger values (1)')
      throw own
    })
    await expect(failing).rejects.toBe(own)
    expect(await count()).toBe(before)
    expect(await connection.row('select pg_current_xact_id_if_assigned() is null as none')).toEqual({
      none: true,
    })
  })

  test('an error that the work swallowed is not taken for a commit', async () => {
    const before = await count()
    const swallowing = connection.transaction(async () => {
      await connection.query('insert into ledger values (1)')
      await connection.query('select 1/0').catch(() => {})
    })
    await expect(swallowing).rejects.toMatchObject({ sqlstate: '25P02' })
    expect(await count()).toBe(before)
  })

  test('an error at commit', async () => {
    await connection.exec('create table later (i int unique deferrable initially deferred)')
    const failing = connection.transaction(() => connection.query('insert into later values (1), (1)'))
    await expect(failing).rejects.toMatchObject({ sqlstate: '23505' })
  })
})

describe('messages that come by themselves', () => {
  test('notices and notifications', async () => {
    await withConnection(async (own) => {
      const heard: unknown[] = []
      own.onNotice = ({ severity, sqlstate, message }) => heard.push({ severity, sqlstate, message })
      own.onNotification = (channel, payload) => heard.push({ channel, payload })
      await own.exec('listen "Some channel"')
      await own.exec(`do $$ begin raise warning 'careful'; end $$`)
      await connection.query('select pg_notify($1, $2)', ['Some channel', 'ü, payload'])
      await waitUntil('the notification is there', () => heard.length === 2)
      expect(heard).toEqual([
        { severity: 'WARNING', sqlstate: '01000', message: 'careful' },
        { channel: 'Some channel', payload: 'ü, payload' },
      ])
    })
  })

  test('parameters follow what is set', async () => {
    await withConnection(async (own) => {
      expect(own.majorVersion).toBe(18)
      expect(own.parameter('application_name')).toBe('sterna')
      await own.exec(`set application_name = 'other'`)
      expect(own.parameter('application_name')).toBe('other')
    })
  })
})

describe('log-in', () => {
  test('with application name and options', async () => {
    const dsn = `${server.dsn}?application_name=mine&options=-c%20work_mem%3D7MB`
    const row = await withConnection(
      (own) => own.row(`select current_setting('application_name') as a, current_setting('work_mem') as w`),
      parseDsn(dsn, {}),
    )
    expect(row).toEqual({ a: 'mine', w: '7MB' })
  })

  test('hostaddr saves looking up the host', async () => {
    const named = { ...target, host: 'no-such-host.invalid', hostAddr: '127.0.0.1' }
    expect(await withConnection((own) => own.row('select 1 as n'), named)).toEqual({ n: 1 })
    const cancelled = withConnection((own) => own.query('select pg_sleep(60)', [], { timeoutMs: 50 }), named)
    await expect(cancelled).rejects.toMatchObject({ sqlstate: '57014' })
  })

  test.each([
    ['a wrong password', { password: 'hunter2' }, 'AUTH_FAILED'],
    ['a role that does not exist', { user: 'nobody' }, 'AUTH_FAILED'],
    ['a database that does not exist', { database: 'no such' }, 'DATABASE_MISSING'],
    ['an impossible setting', { options: '-c no_such=1' }, 'STATEMENT_FAILED'],
  ])('%s', async (_, change, code) => {
    const error = await PgConnection.connect({ ...target, ...change }).catch((reason: unknown) => reason)
    expect(error).toMatchObject({ code })
    expect((error as Error).message).not.toContain('hunter2')
  })

  test('a wrong password is offered once, whatever sslmode allows', async () => {
    const failures = async (): Promise<number> =>
      (await readServerLog()).split('password authentication failed for user "sterna"').length
    const before = await failures()
    const wrong = { ...target, password: 'hunter2', sslMode: 'prefer' } as const
    await expect(PgConnection.connect(wrong)).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    await waitUntil('the server has logged it', async () => (await failures()) > before)
    expect(await failures()).toBe(before + 1)
  })

  test('no password', async () => {
    const { password: _, ...without } = target
    const error = await PgConnection.connect(without).catch((reason: unknown) => reason)
    expect(error).toMatchObject({ code: 'AUTH_FAILED', message: expect.stringContaining('has none') })
  })

  test('the role that may not log in, the role without a connection to spare, and a full server', async () => {
    await connection.exec(`create role locked login password 'x' connection limit 0`)
    const full = PgConnection.connect({ ...target, user: 'locked', password: 'x' })
    await expect(full).rejects.toMatchObject({ code: 'CONNECTIONS_EXHAUSTED', retry: true })
    await connection.exec('alter role locked nologin')
    const refused = PgConnection.connect({ ...target, user: 'locked', password: 'x' })
    await expect(refused).rejects.toMatchObject({ code: 'AUTH_FAILED' })
  })

  test('any password, by SCRAM, from a connection string and from a password file', async () => {
    const passwords = [
      'a:b\\c@d/e?f%20&',
      'it\'s "quoted"',
      'ünï𝄞',
      'I\u00adX',
      '\u2168\u00a0x',
      '\u2168😀',
      ' lead',
      '\u2168\u06271',
    ]
    const directory = await mkdtemp(`${tmpdir()}/sterna-test-`)
    const passFile = `${directory}/pgpass`
    const { password: _, ...without } = target
    try {
      await connection.exec('create role ann login')
      for (const password of passwords) {
        await connection.exec(`alter role ann password '${password.replaceAll("'", "''")}'`)
        const dsn = formatDsn({ ...target, user: 'ann', password })
        expect(await withConnection((own) => own.row('select current_user as u'), parseDsn(dsn, {}))).toEqual(
          { u: 'ann' },
        )
        await writeFile(
          passFile,
          `127.0.0.1:${target.port}:*:ann:${password.replaceAll(/[:\\]/g, '\\$&')}\n`,
          { mode: 0o600 },
        )
        const byFile = { ...without, user: 'ann', passFile }
        expect(await withConnection((own) => own.row('select current_user as u'), byFile)).toEqual({
          u: 'ann',
        })
      }
      await chmod(passFile, 0o640)
      await expect(PgConnection.connect({ ...without, user: 'ann', passFile })).rejects.toThrow(
        'others may read it',
      )
    } finally {
      await rm(directory, { recursive: true })
    }
  })

  test('by md5', async () => {
    await connection.exec(
      `set password_encryption = md5; create role old login password 'se cret'; reset password_encryption`,
    )
    await withHba(['host all old 127.0.0.1/32 md5'], async () => {
      const old = { ...target, user: 'old', password: 'se cret' }
      expect(await withConnection((own) => own.row('select current_user as u'), old)).toEqual({ u: 'old' })
      await expect(PgConnection.connect({ ...old, password: 'x' })).rejects.toMatchObject({
        code: 'AUTH_FAILED',
      })
    })
  })

  test('by a password in clear, and with none asked for', async () => {
    await withHba(['host all sterna 127.0.0.1/32 password'], async () => {
      expect(await withConnection((own) => own.row('select 1 as n'))).toEqual({ n: 1 })
    })
    await withHba(['host all sterna 127.0.0.1/32 trust'], async () => {
      const { password: _, ...without } = target
      expect(await withConnection((own) => own.row('select 1 as n'), without)).toEqual({ n: 1 })
    })
  })

  test('no line in pg_hba.conf', async () => {
    await withHba(['host all sterna 127.0.0.1/32 reject'], async () => {
      await expect(PgConnection.connect(target)).rejects.toMatchObject({ code: 'AUTH_FAILED' })
    })
  })
})

describe('the end', () => {
  test('a session that is terminated in the middle of a statement', async () => {
    const own = await PgConnection.connect(target)
    const lost = new Promise((resolve) => {
      own.onLost = resolve
    })
    const sleeping = Promise.allSettled([own.query('select pg_sleep(60)'), own.query('select 1')])
    await running('select pg_sleep(60)')
    await connection.query('select pg_terminate_backend($1)', [own.backendPid])
    expect(await sleeping).toMatchObject([
      { status: 'rejected', reason: { sqlstate: '57P01', retry: true } },
      { status: 'rejected', reason: { code: 'CONNECTION_LOST' } },
    ])
    expect(await lost).toMatchObject({ code: 'CONNECTION_LOST' })
  })

  test('a server that is killed in the middle of a statement, and comes back', async () => {
    const own = await PgConnection.connect(target)
    const sleeping = Promise.allSettled([own.query('select pg_sleep(59)')])
    await running('select pg_sleep(59)')
    await server.kill9()
    expect(await sleeping).toMatchObject([{ status: 'rejected', reason: { retry: true } }])
    await expect(connection.query('select 1')).rejects.toMatchObject({ code: 'CONNECTION_LOST' })
    await expect(PgConnection.connect(target)).rejects.toMatchObject({ code: 'SERVER_UNREACHABLE' })
    await server.start()
    connection = await PgConnection.connect(target)
    expect(await connection.row('select 1 as n')).toEqual({ n: 1 })
  })
})

function readServerLog(): Promise<string> {
  return readFile(server.logFile, 'utf8')
}

/** Puts lines before all others of pg_hba.conf for a while. */
async function withHba(lines: readonly string[], work: () => Promise<void>): Promise<void> {
  const path = `${server.dataDir}/pg_hba.conf`
  const original = await readFile(path, 'utf8')
  const reloads = async (): Promise<number> => (await readServerLog()).split('reloading configuration').length
  const reload = async (text: string): Promise<void> => {
    const before = await reloads()
    await writeFile(path, text)
    await connection.query('select pg_reload_conf()')
    await waitUntil('the server reads its rules again', async () => (await reloads()) > before)
  }
  await reload(`${lines.join('\n')}\n${original}`)
  try {
    await work()
  } finally {
    await reload(original)
  }
}

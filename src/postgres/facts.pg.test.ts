import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startServers, type ServerVersion, type TestServers } from '../../test/harness/servers.ts'
import { waitUntil } from '../../test/harness/wait.ts'
import type { SternaError } from '../core/errors.ts'
import { LSN_ZERO } from '../core/lsn.ts'
import { formatPgTime } from '../core/pg-time.ts'
import { BACKEND, parseServerMessage } from '../pgwire/backend.ts'
import { writeBindText, writeExecute, writeParse, writeSync } from '../pgwire/frontend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import {
  COLUMN_KIND,
  parseBegin,
  parseOrigin,
  parseRelation,
  PGOUTPUT,
  TupleLayout,
  type RemoteRelation,
} from '../pgwire/pgoutput.ts'
import { PgConnection } from './connection.ts'
import { parseDsn } from './dsn.ts'
import { ReplicationStream, type StreamHandler } from './replication-stream.ts'
import { WireSocket } from './wire-socket.ts'

/**
 * What the design takes for granted about stock PostgreSQL and no other test would notice, so that a new major version
 * that changes it is found here.
 */
const MATRIX: readonly ServerVersion[] = ['18', 'system15']

const PAST = '2026-01-01T00:00:00.123456Z'

describe.each(MATRIX)('PostgreSQL %s', (version) => {
  let servers: TestServers
  let dsn: string
  let conn: PgConnection
  let major: number
  const open: PgConnection[] = []
  const streams: ReplicationStream[] = []

  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    dsn = servers.nodes[0]!.dsn
    conn = await PgConnection.connect(dsn)
    major = conn.majorVersion
    await conn.exec('create table t (id int primary key, v text)')
  })
  afterAll(async () => {
    for (const stream of streams) await stream.close()
    for (const one of open) await one.close()
    await conn.close()
    await servers.stop()
  })

  /** A session that applies for an origin, which it makes. */
  async function sessionFor(origin: string): Promise<PgConnection> {
    const session = await PgConnection.connect(dsn)
    open.push(session)
    await session.query(
      'select pg_replication_origin_create($1) where not exists (select from pg_replication_origin where roname = $1)',
      [origin],
    )
    await session.query('select pg_replication_origin_session_setup($1)', [origin])
    return session
  }

  /** Commit time and origin of the transaction that wrote a row. */
  const written = (id: number): Promise<unknown> =>
    conn.row(
      `select to_char(c.timestamp at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as time, o.roname as origin
         from t, pg_xact_commit_timestamp_origin(t.xmin) c left join pg_replication_origin o on o.roident = c.roident where t.id = $1`,
      [id],
    )
  const progress = (origin: string): Promise<unknown> =>
    conn.row('select pg_replication_origin_progress($1, false)::text as lsn', [origin])

  describe('origin and commit timestamp', () => {
    test('xact_setup gives the commit its timestamp, origin and progress', async () => {
      const session = await sessionFor('a')
      await session.transaction(async () => {
        await session.exec(
          `select pg_replication_origin_xact_setup('0/AB', '${PAST}'); insert into t values (1)`,
        )
      })
      expect(await written(1)).toEqual({ time: PAST, origin: 'a' })
      expect(await progress('a')).toEqual({ lsn: '0/AB' })
    })

    test('a local commit has the time of now and origin 0; a subtransaction has the time of its whole', async () => {
      await conn.exec('begin; savepoint s; insert into t values (2); release s; commit')
      expect(await written(2)).toMatchObject({ origin: null, time: expect.stringMatching(/^20/) })
    })

    test('xact_setup survives a rollback: the next commit inherits the time, and moves progress over what was lost', async () => {
      const session = await sessionFor('b')
      await session.exec(`begin; select pg_replication_origin_xact_setup('0/BB', '${PAST}'); rollback`)
      await session.exec('insert into t values (3)')
      expect(await written(3)).toEqual({ time: PAST, origin: 'b' })
      expect(await progress('b')).toEqual({ lsn: '0/BB' })
    })

    test('session_setup survives a rollback', async () => {
      const session = await PgConnection.connect(dsn)
      open.push(session)
      await session.exec(`begin; select pg_replication_origin_create('c'); commit`)
      await session.exec(`begin; select pg_replication_origin_session_setup('c'); rollback`)
      expect(await session.row('select pg_replication_origin_session_is_setup() as yes')).toEqual({
        yes: true,
      })
    })

    test('an abort after xact_setup moves progress on 16 and later, and not on 15', async () => {
      const session = await sessionFor('d')
      const failing = session.exec(
        `begin; insert into t values (4); select pg_replication_origin_xact_setup('0/DD', '${PAST}'); select 1/0`,
      )
      await expect(failing).rejects.toMatchObject({ sqlstate: '22012' })
      await session.exec('rollback')
      expect(await progress('d')).toEqual({ lsn: major >= 16 ? '0/DD' : null })
      expect(await conn.row('select count(*)::int as n from t where id = 4')).toEqual({ n: 0 })
    })

    test('one session at a time for an origin', async () => {
      await sessionFor('e')
      const second = await PgConnection.connect(dsn)
      open.push(second)
      const attempt = second.exec(`select pg_replication_origin_session_setup('e')`)
      await expect(attempt).rejects.toMatchObject({ sqlstate: '55006', retry: true })
    })

    test('progress is a high-water mark', async () => {
      const session = await sessionFor('f')
      for (const [id, lsn] of [
        [51, '0/20'],
        [52, '0/10'],
      ] as const) {
        await session.exec(
          `begin; select pg_replication_origin_xact_setup('${lsn}', '${PAST}'); insert into t values (${id}); commit`,
        )
      }
      const row = await session.row('select pg_replication_origin_session_progress(false)::text as lsn')
      // A high-water mark: what is committed out of order under one origin is not seen in it.
      expect(row).toEqual({ lsn: '0/20' })
    })

    test('progress of a transaction that wrote nothing moves only if it took a transaction id', async () => {
      const session = await sessionFor('g')
      await session.exec(`begin; select pg_replication_origin_xact_setup('0/10', '${PAST}'); commit`)
      expect(await progress('g')).toEqual({ lsn: null })
      await session.exec(
        `begin; select pg_current_xact_id(), pg_replication_origin_xact_setup('0/20', '${PAST}'); commit`,
      )
      expect(await progress('g')).toEqual({ lsn: '0/20' })
    })

    test('the own row that is not committed yet has no timestamp', async () => {
      const row = await conn.transaction(async () => {
        await conn.exec('insert into t values (6)')
        return conn.row(
          'select pg_xact_commit_timestamp(xmin) is null as unknown, c.roident is null as none from t, pg_xact_commit_timestamp_origin(xmin) c where id = 6',
        )
      })
      expect(row).toEqual({ unknown: true, none: true })
    })

    test('a frozen row still has its timestamp', async () => {
      await conn.exec('vacuum freeze t')
      expect(await written(1)).toEqual({ time: PAST, origin: 'a' })
    })

    test('timestamps and origins survive kill -9 once they are flushed', async () => {
      const session = await sessionFor('h')
      await session.exec(
        `set synchronous_commit = on; begin; select pg_replication_origin_xact_setup('0/77', '${PAST}'); insert into t values (7); commit`,
      )
      await servers.nodes[0]!.kill9()
      await servers.nodes[0]!.start()
      conn = await PgConnection.connect(dsn)
      expect(await written(7)).toEqual({ time: PAST, origin: 'h' })
      expect(await progress('h')).toEqual({ lsn: '0/77' })
    })
  })

  describe('applying', () => {
    /** Sends messages as they are; resolves at the last of `syncs` ReadyForQuery with what came. */
    async function pipeline(
      wire: WireSocket,
      syncs: number,
      write: (w: MessageWriter) => void,
    ): Promise<string[]> {
      const seen: string[] = []
      const done = new Promise<void>((resolve, reject) => {
        wire.onClose = reject
        wire.onFrame = (type, buffer, start, end) => {
          if (type === BACKEND.error) seen.push(parseServerMessage(buffer, start, end).sqlstate)
          if (type === BACKEND.commandComplete) seen.push(buffer.toString('utf8', start, end - 1))
          if (type === BACKEND.readyForQuery) {
            seen.push(`ready ${String.fromCharCode(buffer[start]!)}`)
            if (--syncs === 0) resolve()
          }
        }
      })
      const writer = new MessageWriter()
      write(writer)
      wire.write(writer.take())
      await done
      return seen
    }
    const run = (w: MessageWriter, sql: string): void => {
      writeParse(w, '', sql)
      writeBindText(w, '', [])
      writeExecute(w)
    }

    test('what lies between two Syncs is one transaction: all or nothing', async () => {
      const wire = await WireSocket.open(parseDsn(dsn), { applicationName: 'facts' })
      const seen = await pipeline(wire, 3, (w) => {
        run(w, 'insert into t values (101)')
        run(w, 'insert into t values (102)')
        writeSync(w)
        run(w, 'insert into t values (103)')
        run(w, 'select 1/0')
        run(w, 'insert into t values (104)')
        writeSync(w)
        run(w, 'insert into t values (105)')
        writeSync(w)
      })
      expect(seen).toEqual([
        'INSERT 0 1',
        'INSERT 0 1',
        'ready I',
        'INSERT 0 1',
        '22012',
        'ready I',
        'INSERT 0 1',
        'ready I',
      ])
      const { rows } = await conn.query(
        'select id, xmin::text as x from t where id between 101 and 105 order by id',
      )
      expect(rows.map((row) => row['id'])).toEqual([101, 102, 105])
      expect(rows[0]!['x']).toBe(rows[1]!['x'])
      await wire.end(Buffer.alloc(0))
    })

    test('session_replication_role=replica keeps triggers, foreign keys and event triggers out, but not those ENABLE ALWAYS', async () => {
      await conn.exec(`
        create table parent (id int primary key);
        create table child (id int primary key, parent int references parent);
        create table fired (name text);
        create function fire() returns trigger language plpgsql as $$ begin insert into fired values (tg_name); return new; end $$;
        create trigger ordinary before insert on child for each row execute function fire();
        create trigger always before insert on child for each row execute function fire();
        alter table child enable always trigger always;
        create function fire_event() returns event_trigger language plpgsql as $$ begin insert into fired values (tg_event); end $$;
        create event trigger ordinary_event on ddl_command_end execute function fire_event();
        create event trigger always_event on ddl_command_start execute function fire_event();
        alter event trigger always_event enable always;
        truncate fired`)
      const session = await PgConnection.connect(dsn, { parameters: { session_replication_role: 'replica' } })
      await session.exec('insert into child values (1, 42)')
      await session.exec('create table made ()')
      await session.close()
      const { rows } = await conn.query('select name from fired order by 1')
      await conn.exec('drop event trigger ordinary_event; drop event trigger always_event')
      expect(rows).toEqual([{ name: 'always' }, { name: 'ddl_command_start' }])
    })

    test('a version check in WHERE waits for the other transaction and then sees its timestamp', async () => {
      await conn.exec('insert into t values (200)')
      const session = await sessionFor('i')
      await session.exec(
        `begin; select pg_replication_origin_xact_setup('0/1', '2040-01-01'); update t set v = 'theirs' where id = 200`,
      )
      const mine = conn.query(
        `update t set v = 'mine' where id = 200 and pg_xact_commit_timestamp(t.xmin) < '2039-01-01'`,
      )
      await waitUntil('it waits', async () => {
        const row = await session.row<{ n: number }>(
          `select count(*)::int as n from pg_locks where not granted`,
        )
        return row!.n > 0
      })
      await session.exec('commit')
      expect(await mine).toMatchObject({ rowCount: 0 })
    })
  })

  describe('pgoutput', () => {
    interface Message {
      readonly type: number
      readonly bytes: Buffer
    }

    class Recorder implements StreamHandler {
      readonly messages: Message[] = []
      ended: SternaError | undefined
      onData(buffer: Buffer, at: number, end: number): void {
        this.messages.push({ type: buffer[at]!, bytes: Buffer.from(buffer.subarray(at + 1, end)) })
      }
      onBatchEnd(): void {}
      onKeepalive(): void {}
      onEnd(error: SternaError): void {
        this.ended = error
      }
    }

    /** Streams what `work` does from a slot of its own, until `commits` transactions have come. */
    async function decoded(
      name: string,
      commits: number,
      options: Readonly<Record<string, string>>,
      work: () => Promise<unknown>,
    ): Promise<Message[]> {
      await conn.query(`select pg_create_logical_replication_slot($1, 'pgoutput')`, [name])
      const recorder = new Recorder()
      const stream = await ReplicationStream.start(
        parseDsn(dsn),
        {
          slotName: name,
          applicationName: 'facts',
          startLsn: LSN_ZERO,
          pluginOptions: { proto_version: '1', publication_names: 'pub', ...options },
        },
        recorder,
      )
      streams.push(stream)
      await work()
      await waitUntil('the transactions have come', () => {
        if (recorder.ended) throw recorder.ended
        return recorder.messages.filter(({ type }) => type === PGOUTPUT.commit).length >= commits
      })
      return recorder.messages
    }
    const typesOf = (messages: readonly Message[]): string =>
      String.fromCharCode(...messages.map(({ type }) => type))

    beforeAll(async () => {
      await conn.exec(`
        create table p (id int primary key, v text);
        alter table p alter v set storage external;
        create table whole (id int primary key, v text);
        alter table whole replica identity full;
        create publication pub for table p, whole`)
    })

    test('O follows B with the origin; B carries the time of the origin; a local transaction has none', async () => {
      const session = await sessionFor('elsewhere')
      const messages = await decoded('o1', 2, {}, async () => {
        await session.exec(
          `begin; select pg_replication_origin_xact_setup('0/CAFE', '${PAST}'); insert into p values (1); commit`,
        )
        await conn.exec('insert into p values (2)')
      })
      expect(typesOf(messages)).toBe('BORICBIC')
      expect(formatPgTime(parseBegin(messages[0]!.bytes, 0).commitTime)).toBe(PAST)
      expect(parseOrigin(messages[1]!.bytes, 0)).toEqual({ originLsn: 0xcafen, originName: 'elsewhere' })
    })

    test('origin none leaves such transactions out on 16 and later, and is refused on 15', async () => {
      const session = await sessionFor('elsewhere2')
      const attempt = decoded('o2', 1, { origin: 'none' }, async () => {
        await session.exec(
          `begin; select pg_replication_origin_xact_setup('0/1', '${PAST}'); insert into p values (3); commit`,
        )
        await conn.exec('insert into p values (4)')
      })
      if (major >= 16) expect(typesOf(await attempt)).toBe('BRIC')
      else await expect(attempt).rejects.toMatchObject({ code: 'STATEMENT_FAILED' })
    })

    test('binary values are those that Bind takes, byte for byte', async () => {
      const messages = await decoded('o3', 1, { binary: 'true' }, () =>
        conn.exec(`insert into p values (258, 'é')`),
      )
      const insert = messages.find(({ type }) => type === PGOUTPUT.insert)!.bytes
      const tuple = new TupleLayout()
      expect(tuple.read(insert, 5)).toBe(insert.length)
      expect([...tuple.kinds.subarray(0, 2)]).toEqual([COLUMN_KIND.binary, COLUMN_KIND.binary])
      expect(insert.subarray(tuple.starts[0]!, tuple.starts[0]! + tuple.lengths[0]!).toString('hex')).toBe(
        '00000102',
      )
      expect(insert.subarray(tuple.starts[1]!, tuple.starts[1]! + tuple.lengths[1]!).toString()).toBe('é')
    })

    test('an update leaves unchanged TOAST values out; with REPLICA IDENTITY FULL the old tuple has them', async () => {
      const big = `repeat('x', 10000)`
      await conn.exec(
        `insert into p values (10, ${big}); insert into whole select 10, string_agg(md5(i::text), '') from generate_series(1, 400) i`,
      )
      const messages = await decoded('o4', 2, {}, async () => {
        await conn.exec('update p set id = id where id = 10')
        await conn.exec('update whole set id = 11 where id = 10')
      })
      const [plain, full] = messages.filter(({ type }) => type === PGOUTPUT.update).map(({ bytes }) => bytes)
      const tuple = new TupleLayout()
      expect(plain![4]).toBe(0x4e)
      tuple.read(plain!, 5)
      expect(tuple.kinds[1]).toBe(COLUMN_KIND.unchanged)
      expect(full![4]).toBe(0x4f)
      const next = tuple.read(full!, 5)
      expect(tuple.lengths[1]).toBe(12_800)
      expect(full![next]).toBe(0x4e)
    })

    test('REPLICA IDENTITY FULL marks every column as key; a table is described again after it changed', async () => {
      const messages = await decoded('o5', 2, {}, async () => {
        await conn.exec('insert into whole values (20)')
        await conn.exec('alter table whole add w int')
        await conn.exec('insert into whole values (21)')
      })
      const relations = messages
        .filter(({ type }) => type === PGOUTPUT.relation)
        .map(({ bytes }): RemoteRelation => parseRelation(bytes, 0))
      expect(relations.map(({ columns }) => columns.map(({ name }) => name).join())).toEqual([
        'id,v',
        'id,v,w',
      ])
      expect(
        relations.every(
          ({ columns, replicaIdentity }) => replicaIdentity === 'f' && columns.every(({ isKey }) => isKey),
        ),
      ).toBe(true)
    })

    test('an update and a delete of a published table without key fail; inserts go through', async () => {
      await conn.exec(
        'create table keyless (v int); alter publication pub add table keyless; insert into keyless values (1)',
      )
      await expect(conn.exec('update keyless set v = 2')).rejects.toMatchObject({ sqlstate: '55000' })
      await expect(conn.exec('delete from keyless')).rejects.toMatchObject({ sqlstate: '55000' })
    })
  })
})

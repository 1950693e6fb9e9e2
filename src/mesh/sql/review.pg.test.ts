import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

const SCHEMA = `
  create role shop login password 's';
  create schema app authorization shop;
  create table person (id int primary key, email text unique, note text not null default '-', n int not null default 0,
                       twice int generated always as (n * 2) stored);
  create table part (id numeric, region text, v text, primary key (id, region)) partition by list (region);
  create table part_eu partition of part for values in ('eu');
  create table odd ("Key %s" bit(4) primary key, a int[], j jsonb, t timestamptz, "v'%" text)`

describe.each(MATRIX)('the review queue and exceptions on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec(`set client_min_messages = warning; ${SCHEMA}`)
    await installSchema(conn)
    await conn.query(`select sterna.node_create('n1', 'host=n1', info => '{"node_id": 1}')`)
    await conn.query(`select sterna.peer_upsert(2, 'n2', 'host=n2', null, null, null)`)
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })
  beforeEach(() =>
    conn.exec(`truncate person, part, odd, sterna.review, sterna.review_closure, sterna.exception, sterna.aside, sterna.tombstone,
      sterna.truncation, sterna.row_message, sterna.conflict_history, sterna.delta_column restart identity`),
  )

  interface Entry {
    reason?: string
    type?: string | null
    table?: string
    key?: object
    local?: object | null
    remote?: object | null
    localAt?: string
    remoteAt?: string
  }

  const OLD = { localAt: '2026-01-01T00:00:01Z', remoteAt: '2026-01-01T00:00:02Z' }
  /** Opens an entry as the lanes of apply do, and returns its id. The versions are of now where none are given. */
  const open = async ({
    reason = 'manual',
    type = 'update_origin_differs',
    table = 'person',
    key = { id: '1' },
    local = { id: '1', email: 'local', note: 'l', n: '1', twice: '2' },
    remote = { id: '1', email: 'remote', note: 'r', n: '5', twice: '10' },
    localAt,
    remoteAt,
  }: Entry = {}): Promise<bigint> => {
    const row = await conn.row<{ id: bigint }>(
      `insert into sterna.review (reason, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version)
       values ($1, $2, $3::regclass, 'public.' || $3, $4, $5, $6, row(coalesce($7, clock_timestamp()), 1)::sterna.row_version,
               row(coalesce($8, clock_timestamp()), 2)::sterna.row_version) returning id`,
      [
        reason,
        type,
        table,
        JSON.stringify(key),
        local && JSON.stringify(local),
        remote && JSON.stringify(remote),
        localAt,
        remoteAt,
      ],
    )
    return row!.id
  }
  const resolve = async (id: bigint, choice: string | null, given?: object): Promise<string> =>
    (await conn.row<{ done: string }>('select sterna.review_resolve($1, $2, $3) as done', [
      id,
      choice,
      given && JSON.stringify(given),
    ]))!.done
  const person = async (columns = 'email, note, n'): Promise<unknown> =>
    (await conn.query(`select ${columns} from person order by id`)).rows
  const states = async (): Promise<unknown> =>
    (
      await conn.query(
        'select id::int, resolution, closed_at is not null as closed from sterna.review order by id',
      )
    ).rows
  const CURRENT = `insert into person values (1, 'now', 'now', 7)`

  it('remote: the values of the other row are written; what is computed is left to the table', async () => {
    await conn.exec(CURRENT)
    expect(await resolve(await open(), 'remote')).toBe('updated')
    expect(await person('email, note, n, twice')).toEqual([{ email: 'remote', note: 'r', n: 5, twice: 10 }])
    expect(await states()).toEqual([{ id: 1, resolution: 'remote', closed: true }])
  })

  it('remote: a row that is not here is inserted; a delete that lost is done', async () => {
    expect(await resolve(await open(), 'remote')).toBe('inserted')
    expect(await person()).toEqual([{ email: 'remote', note: 'r', n: 5 }])
    const gone = await open({ type: 'delete_origin_differs', remote: null })
    expect(await resolve(gone, 'remote')).toBe('deleted')
    expect(await person()).toEqual([])
    expect(
      (await conn.query(`select key from sterna.tombstone where table_oid = 'person'::regclass`)).rows,
    ).toEqual([{ key: ['1'] }])
    expect(await failureOf(open({ remote: null }).then((id) => resolve(id, 'remote')))).toMatchObject({
      sqlstate: 'ST152',
    })
  })

  it('remote leaves sums alone: they are not one node’s to set', async () => {
    await conn.exec(`${CURRENT}; insert into sterna.delta_column values ('person'::regclass, 'n')`)
    await resolve(await open(), 'remote')
    expect(await person()).toEqual([{ email: 'remote', note: 'r', n: 7 }])
    await resolve(await open(), 'row', { n: 9 })
    expect(await person()).toEqual([{ email: 'remote', note: 'r', n: 9 }])
  })

  it('local: the row is written again as it is, with a newer version', async () => {
    await conn.exec(CURRENT)
    const before = await conn.row<{ x: string }>('select xmin::text as x from person')
    expect(await resolve(await open(), 'local')).toBe('updated')
    expect(await person()).toEqual([{ email: 'now', note: 'now', n: 7 }])
    expect(await conn.row<{ x: string }>('select xmin::text as x from person')).not.toEqual(before)
    await conn.exec('delete from person')
    expect(await resolve(await open(), 'local')).toBe('nothing')
  })

  it('row: the given columns over the row as it is, or over that of the entry where there is none', async () => {
    await conn.exec(CURRENT)
    expect(await resolve(await open(), 'row', { email: null, n: 3, id: 1 })).toBe('updated')
    expect(await person()).toEqual([{ email: null, note: 'now', n: 3 }])
    await conn.exec('delete from person')
    expect(await resolve(await open(), 'row', { email: "o'k\\" })).toBe('inserted')
    expect(await person()).toEqual([{ email: "o'k\\", note: 'r', n: 5 }])
  })

  it.each([
    [{}, 'no columns'],
    [['a'], 'no columns'],
    [{ nothing: 1 }, 'no such column'],
    [{ twice: 1 }, 'computed'],
    [{ id: 2 }, 'key'],
  ])('row %j is refused', async (given, reason) => {
    const id = await open()
    expect(await failureOf(resolve(id, 'row', given))).toMatchObject({
      sqlstate: 'ST153',
      message: expect.stringContaining(reason),
      hint: expect.stringMatching(/\.$/),
    })
    expect(await states()).toEqual([{ id: 1, resolution: null, closed: false }])
  })

  it('a value that the column does not take leaves the entry open', async () => {
    await conn.exec(CURRENT)
    const id = await open()
    expect(await failureOf(resolve(id, 'row', { n: 'x' }))).toMatchObject({ sqlstate: '22P02' })
    expect(await states()).toEqual([{ id: 1, resolution: null, closed: false }])
  })

  it('dismiss writes nothing', async () => {
    await conn.exec(CURRENT)
    expect(await resolve(await open(), 'dismiss')).toBe('nothing')
    expect(await person()).toEqual([{ email: 'now', note: 'now', n: 7 }])
    expect(await states()).toEqual([{ id: 1, resolution: 'dismiss', closed: true }])
  })

  it('what does not fit is refused, each with a hint', async () => {
    const id = await open()
    await resolve(await open({ key: { id: '2' } }), 'dismiss')
    const cases: [Promise<unknown>, string][] = [
      [resolve(99n, 'local'), 'ST150'],
      [resolve(2n, 'local'), 'ST151'],
      [resolve(id, 'both'), 'ST152'],
      [resolve(id, null), 'ST152'],
      [resolve(id, 'row'), 'ST152'],
      [resolve(id, 'local', { n: 1 }), 'ST152'],
    ]
    for (const [call, sqlstate] of cases)
      expect(await failureOf(call)).toMatchObject({ sqlstate, hint: expect.stringMatching(/\.$/) })
    for (const [reason, choice] of [
      ['set_aside', 'remote'],
      ['remainder', 'local'],
      ['remainder', 'remote'],
      ['orphan', 'remote'],
    ] as const) {
      const other = await open({ reason })
      expect(await failureOf(resolve(other, choice))).toMatchObject({ sqlstate: 'ST152' })
    }
  })

  it('identities that are always generated', async () => {
    await conn.exec('create table numbered (id int generated always as identity primary key, v text)')
    await conn.exec(`insert into numbered (v) values ('now')`)
    const entry: Entry = { table: 'numbered', remote: { id: '1', v: 'remote' } }
    const before = await conn.row('select xmin::text as x from numbered')
    expect(await resolve(await open(entry), 'local')).toBe('updated')
    expect(await conn.row('select xmin::text as x from numbered')).not.toEqual(before)
    expect(await resolve(await open(entry), 'remote')).toBe('updated')
    await conn.exec('delete from numbered')
    expect(await resolve(await open(entry), 'row', { v: 'given' })).toBe('inserted')
    expect((await conn.query('select id, v from numbered')).rows).toEqual([{ id: 1, v: 'given' }])
    // Nothing else: no column could be written.
    await conn.exec('alter table numbered drop column v')
    expect(await resolve(await open({ ...entry, remote: { id: '1' } }), 'local')).toBe('nothing')
    await conn.exec('drop table numbered')
  })

  it('a table that is gone: only dismissing is left', async () => {
    await conn.exec('create table brief (id int primary key)')
    const id = await open({ table: 'brief' })
    await conn.exec('drop table brief')
    expect(await failureOf(resolve(id, 'local'))).toMatchObject({ sqlstate: 'ST154' })
    expect(await resolve(id, 'dismiss')).toBe('nothing')
    expect(await states()).toEqual([{ id: 1, resolution: 'dismiss', closed: true }])
  })

  it('partitions, keys of several columns, odd names and types', async () => {
    await conn.exec(`insert into part values (1.50, 'eu', 'now')`)
    const remote = { id: '1.5', region: 'eu', v: 'remote' }
    await resolve(await open({ table: 'part', key: { id: '1.5', region: 'eu' }, remote }), 'remote')
    expect((await conn.query('select id::text, v from part')).rows).toEqual([{ id: '1.50', v: 'remote' }])
    const row = {
      'Key %s': '0101',
      a: '{1,2}',
      j: '{"a": 1}',
      t: '2026-01-01 10:00:00+00',
      "v'%": "%s '",
    }
    const id = await open({ table: 'odd', key: { 'Key %s': '0101' }, remote: row })
    expect(await resolve(id, 'remote')).toBe('inserted')
    const again = await open({ table: 'odd', key: { 'Key %s': '0101' }, remote: row })
    expect(await resolve(again, 'row', { j: { b: [2] }, "v'%": '%1$s' })).toBe('updated')
    const { rows } = await conn.query(
      `select "Key %s"::text as k, a, j, extract(epoch from t)::int as t, "v'%" as v from odd`,
    )
    expect(rows).toEqual([{ k: '0101', a: [1, 2], j: { b: [2] }, t: 1767261600, v: '%1$s' }])
  })

  describe('what a closure closes', () => {
    it('the open entries of the key that are not newer; those of other keys and reasons stay', async () => {
      await conn.exec(CURRENT)
      await open()
      await open({ remoteAt: '2099-01-01T00:00:00Z' })
      await open({ key: { id: '2' } })
      await open({ reason: 'orphan' })
      await resolve(await open(), 'local')
      expect(await states()).toEqual([
        { id: 1, resolution: 'local', closed: true },
        { id: 2, resolution: null, closed: false },
        { id: 3, resolution: null, closed: false },
        { id: 4, resolution: null, closed: false },
        { id: 5, resolution: 'local', closed: true },
      ])
    })

    it('after dismissing, those that are newer than what was looked at stay open', async () => {
      const id = await open(OLD)
      await open({ ...OLD, localAt: '2026-01-01T00:00:00Z' })
      await open({ ...OLD, remoteAt: '2026-01-01T00:00:03Z' })
      await resolve(id, 'dismiss')
      expect(await states()).toEqual([
        { id: 1, resolution: 'dismiss', closed: true },
        { id: 2, resolution: 'dismiss', closed: true },
        { id: 3, resolution: null, closed: false },
      ])
    })

    it('one that another node made, in a session that applies; the key is compared as its type does', async () => {
      await open({ table: 'part', key: { id: '1.50', region: 'eu' } })
      await open({ table: 'part', key: { id: '1.51', region: 'eu' } })
      await conn.exec(`begin; set local session_replication_role = replica;
        insert into sterna.review_closure (node_id, closure_id, schema_name, table_name, reason, key, resolution, up_to)
        overriding system value values (2, 1, 'public', 'part', 'manual', '{"id": "1.5", "region": "eu"}', 'remote', now()); commit`)
      expect(await states()).toEqual([
        { id: 1, resolution: 'remote', closed: true },
        { id: 2, resolution: null, closed: false },
      ])
      // An entry that is opened late, by a change that was on its way.
      await conn.exec('begin; set local session_replication_role = replica')
      await open({ ...OLD, table: 'part', key: { id: '1.500', region: 'eu' } })
      await open({ table: 'part', key: { id: '1.5', region: 'eu' }, remoteAt: '2099-01-01T00:00:00Z' })
      await conn.exec('commit')
      expect(await states()).toMatchObject([
        {},
        {},
        { id: 3, resolution: 'remote', closed: true },
        { id: 4, closed: false },
      ])
    })

    it('what the resolution itself met on its way, if the person had seen it', async () => {
      const later = { remoteAt: '2026-06-01T00:00:02Z' }
      await conn.exec('begin; set local session_replication_role = replica')
      await open({ ...later, localAt: OLD.remoteAt })
      await open({ ...later, localAt: '2026-01-01T00:00:03Z' })
      await conn.exec(`insert into sterna.review_closure (node_id, closure_id, schema_name, table_name, reason, key, resolution, closed_at, up_to, seen)
        overriding system value values (2, 1, 'public', 'person', 'manual', '{"id": "1"}', 'remote', '2026-06-01T00:00:01Z',
          '2026-06-01T00:00:01Z', '{${OLD.localAt},${OLD.remoteAt}}'); commit`)
      expect(await states()).toEqual([
        { id: 1, resolution: 'remote', closed: true },
        { id: 2, resolution: null, closed: false },
      ])
    })

    it('a table that is not here does no harm', async () => {
      await conn.exec(`insert into sterna.review_closure (node_id, closure_id, schema_name, table_name, reason, key, resolution, up_to)
        overriding system value values (2, 1, 'public', 'gone', 'manual', '{"id": "x"}', 'remote', now()),
                                       (2, 2, 'public', 'person', 'manual', '{"id": "x"}', 'remote', now())`)
    })
  })

  describe('rows set aside', () => {
    const aside = async (): Promise<bigint> => {
      await conn.exec(`insert into person values (1, 'taken', 'winner', 1);
        insert into sterna.aside (table_oid, key_hash, table_name, key, row_values, version, in_favour_of, constraints)
        values ('person'::regclass, sterna.key_hash_of_texts('person'::regclass, '{"id": "2"}'), 'public.person', '{"id": "2"}',
                '{"id": "2", "email": "taken", "note": "aside", "n": "4", "twice": "8"}', row('2026-01-01', 2)::sterna.row_version,
                '{"id": "1"}', '{person_email_key}')`)
      return open({
        reason: 'set_aside',
        type: 'insert_exists',
        key: { id: '2' },
        local: { id: '1', email: 'taken', note: 'winner', n: '1', twice: '2' },
        remote: { id: '2', email: 'taken', note: 'aside', n: '4', twice: '8' },
      })
    }

    it('sterna.rows_aside says why, and what would bring it back', async () => {
      await aside()
      const { rows } = await conn.query(
        'select table_name, key, "row", written_by::text, why, comes_back, review_id::int from sterna.rows_aside',
      )
      expect(rows).toEqual([
        {
          table_name: 'public.person',
          key: { id: '2' },
          row: { id: '2', email: 'taken', note: 'aside', n: '4', twice: '8' },
          written_by: 'n2',
          why: 'email = taken is also that of the row with id = 1, which is newer',
          comes_back: `it returns when the row with id = 1 is deleted or gets another email; or give it another one itself: select sterna.review_resolve(1, 'row', '{"email": "..."}')`,
          review_id: 1,
        },
      ])
    })

    it('row: another unique value brings it back; the same one is refused', async () => {
      const id = await aside()
      expect(await failureOf(resolve(id, 'row', { note: 'x' }))).toMatchObject({ sqlstate: '23505' })
      expect(await resolve(id, 'row', { email: 'free' })).toBe('inserted')
      expect(await person('id, email, note, n')).toEqual([
        { id: 1, email: 'taken', note: 'winner', n: 1 },
        { id: 2, email: 'free', note: 'aside', n: 4 },
      ])
      expect((await conn.query('select from sterna.aside')).rows).toEqual([])
    })

    it('local: it is given up everywhere, with its share of the sums', async () => {
      const id = await aside()
      await conn.exec(`insert into sterna.delta_column values ('person'::regclass, 'n')`)
      expect(await resolve(id, 'local')).toBe('discarded')
      expect((await conn.query('select from sterna.aside')).rows).toEqual([])
      const { rows } = await conn.query(
        'select node_id, schema_name::text, table_name::text, operation, key, amounts from sterna.row_message',
      )
      expect(rows).toEqual([
        {
          node_id: 1,
          schema_name: 'public',
          table_name: 'person',
          operation: 'delete',
          key: { id: '2' },
          amounts: { n: '4' },
        },
      ])
      expect(
        (
          await conn.query(
            `select s.key from sterna.tombstone s where s.key_hash = sterna.key_hash_of_texts('person'::regclass, '{"id": "2"}')`,
          )
        ).rows,
      ).toEqual([{ key: ['2'] }])
      expect(await person('id')).toEqual([{ id: 1 }])
      // One that came back meanwhile is not.
      const late = await open({ reason: 'set_aside', key: { id: '2' }, remoteAt: '2099-01-01T00:00:00Z' })
      expect(await failureOf(resolve(late, 'local'))).toMatchObject({ sqlstate: 'ST152' })
    })

    it('remainder: row makes a row of what is given', async () => {
      const id = await open({ reason: 'remainder', key: { id: '9' }, local: null, remote: null })
      expect(await resolve(id, 'row', { email: 'new', n: 2 })).toBe('inserted')
      expect(await person('id, email, note, n')).toEqual([{ id: 9, email: 'new', note: '-', n: 2 }])
    })
  })

  describe('rights', () => {
    let shop: PgConnection
    beforeAll(async () => {
      shop = await PgConnection.connect(servers.nodes[0]!.dsn.replace('sterna:sterna@', 'shop:s@'))
      await shop.exec('set search_path = app, public')
      await shop.exec('create table app.audit (who text)')
      await shop.exec('create table app.account (id int primary key, v text, d text default current_user)')
      await shop.exec(`create function app.fires() returns trigger language plpgsql as $$
        begin
          insert into audit values (current_user);
          begin
            reset role;
            insert into audit values ('reset to ' || current_user);
          exception when insufficient_privilege then null;
          end;
          return new;
        end $$`)
      await shop.exec(
        'create trigger t before insert or update on app.account for each row execute function app.fires()',
      )
    })
    afterAll(() => shop.close())
    beforeEach(() => shop.exec('truncate audit, account'))
    const account: Entry = {
      table: 'app.account',
      key: { id: '1' },
      local: { id: '1', v: 'l' },
      remote: { id: '1', v: 'r' },
    }
    const audit = async (): Promise<unknown> =>
      (await shop.query<{ who: string }>('select who from audit')).rows.map(({ who }) => who)

    it('a superuser who resolves does not run the code of a table’s owner with more rights than the owner', async () => {
      await conn.exec('set search_path = app, public')
      expect(await resolve(await open(account), 'remote')).toBe('inserted')
      await conn.exec('set search_path = app, public')
      expect(await resolve(await open(account), 'row', { v: 'x' })).toBe('updated')
      expect(await audit()).toEqual(['shop', 'shop'])
      expect((await shop.query('select v, d from account')).rows).toEqual([{ v: 'x', d: 'shop' }])
      expect(
        (
          await conn.query(
            `select from pg_proc where pronamespace = 'sterna_apply'::regnamespace and proname like 'review%'`,
          )
        ).rows,
      ).toEqual([])
    })

    it('deferrable triggers would run at the commit: refused', async () => {
      await shop.exec(
        'create constraint trigger late after insert or update on account deferrable for each row execute function fires()',
      )
      expect(await failureOf(open(account).then((id) => resolve(id, 'remote')))).toMatchObject({
        sqlstate: 'ST155',
        message: expect.stringContaining('deferrable'),
      })
      await shop.exec('drop trigger late on account')
    })

    it('the owner of a table resolves with his own rights, when that was granted; others’ tables are not his', async () => {
      expect(await failureOf(shop.query(`select sterna.review_resolve(1, 'remote')`))).toMatchObject({
        sqlstate: '42501',
      })
      await conn.exec(`grant select on sterna.review_list to shop;
        grant execute on function sterna.review_resolve(bigint, text, jsonb), sterna.review_prepare(bigint, text, jsonb, name),
          sterna.review_close(bigint, text), sterna.review_outcome(sterna.review_plan, integer) to shop`)
      const id = await open(account)
      expect((await shop.query('select id, remote_row from sterna.review_list')).rows).toEqual([
        { id, remote_row: account.remote },
      ])
      expect(await shop.row('select sterna.review_resolve($1, $2) as done', [id, 'remote'])).toEqual({
        done: 'inserted',
      })
      expect(await audit()).toEqual(['shop', 'reset to shop'])
      const other = await open()
      expect(
        await failureOf(shop.query('select sterna.review_resolve($1, $2)', [other, 'remote'])),
      ).toMatchObject({
        sqlstate: '42501',
      })
      // Not even by giving another name.
      await conn.exec('revoke execute on function sterna.review_resolve(bigint, text, jsonb) from shop')
      const plan = await shop.row<{ f: string | null }>(
        `select (sterna.review_prepare($1, 'remote', null, 'sterna')).owner_function as f`,
        [await open(account)],
      )
      expect(await failureOf(shop.query(`select ${plan?.f ?? 'sterna_apply.review_2'}()`))).toMatchObject({
        sqlstate: '42501',
      })
    })
  })

  describe('the lists', () => {
    it('history and queue as one, each conflict once', async () => {
      await conn.exec(
        `insert into sterna.conflict_history (conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version, resolution, policy)
         select 'update_origin_differs', 'person'::regclass, 'public.person', '{"id": "1"}', null, null,
                row('2026-01-01T00:00:01Z', 1)::sterna.row_version, row('2026-01-01T00:00:02Z', 2)::sterna.row_version, 'apply_remote', 'manual'`,
      )
      await open(OLD)
      await open({ reason: 'remainder', type: null, key: { id: '2' } })
      const { rows } = await conn.query(
        `select kind, id::int, local_node::text, remote_node::text, reason, review_id::int, review_open from sterna.conflict_list order by kind, id`,
      )
      const nodes = { local_node: 'n1', remote_node: 'n2', review_open: true }
      expect(rows).toEqual([
        { ...nodes, kind: 'history', id: 1, reason: null, review_id: 1 },
        { ...nodes, kind: 'review', id: 2, reason: 'remainder', review_id: 2 },
      ])
    })
  })

  describe('exceptions', () => {
    const park = async (table: string, hashes: string | null, origin = 2): Promise<void> => {
      await conn.query(
        `insert into sterna.exception (reason, origin_node_id, lsn, change_number, table_oid, table_name, operation, key_hashes, key,
           new_row, version, sqlstate, message, next_retry_at)
         values ('failed', $3, '0/1', 1, $1::regclass, $1, 'insert', $2, '{"id": "1"}', '{"id": "1"}', row(now(), 2)::sterna.row_version,
                 '23514', 'violates check', '2099-01-01')`,
        [table, hashes, origin],
      )
    }
    const due = async (): Promise<unknown> =>
      (
        await conn.query<{ id: number }>(
          'select id::int as id from sterna.exception where next_retry_at <= now() order by id',
        )
      ).rows.map(({ id }) => id)

    it('retry: one and what it waits for, or all; the agent is told', async () => {
      await park('person', '{1}')
      await park('person', '{1,2}')
      await park('person', '{3}')
      await park('person', '{1,2}', 3)
      await park('part', '{1,2}')
      await park('person', '{2}')
      const listener = await PgConnection.connect(servers.nodes[0]!.dsn)
      const told = new Promise<void>((resolved) => {
        listener.onNotification = () => resolved()
      })
      await listener.exec('listen sterna')
      expect(await conn.row('select sterna.exception_retry(6)::int as n')).toEqual({ n: 3 })
      expect(await due()).toEqual([1, 2, 6])
      await told
      await listener.close()
      expect(await conn.row('select sterna.exception_retry()::int as n')).toEqual({ n: 6 })
      expect(await due()).toEqual([1, 2, 3, 4, 5, 6])
    })

    it('drop: gone for good, and returned; what waited behind it is next', async () => {
      await park('person', '{1}')
      await park('person', null)
      await park('person', '{2}')
      const { rows } = await conn.query('select id::int, table_name, new_row from sterna.exception_drop(1)')
      expect(rows).toEqual([{ id: 1, table_name: 'person', new_row: { id: '1' } }])
      expect(await due()).toEqual([2])
      expect(
        (await conn.query('select origin_node::text as o from sterna.exception_list order by id')).rows,
      ).toEqual([{ o: 'n2' }, { o: 'n2' }])
      for (const call of [
        'sterna.exception_retry(1)',
        'sterna.exception_drop(1)',
        'sterna.exception_drop(null)',
      ])
        expect(await failureOf(conn.query(`select ${call}`))).toMatchObject({
          sqlstate: 'ST150',
          hint: expect.stringMatching(/\.$/),
        })
    })

    it('on_exception of a subscription', async () => {
      await conn.query(
        `select sterna.sub_create('s', 'host=x'), sterna.sub_create('t', 'host=y', on_exception => 'stop')`,
      )
      await conn.query(`select sterna.sub_set_on_exception('s', 'transdiscard')`)
      const { rows } = await conn.query(
        'select sub_name::text as name, on_exception as mode from sterna.subscription order by 1',
      )
      expect(rows).toEqual([
        { name: 's', mode: 'transdiscard' },
        { name: 't', mode: 'stop' },
      ])
      for (const [call, sqlstate] of [
        [`sub_set_on_exception('x', 'park')`, 'ST130'],
        [`sub_set_on_exception('s', 'skip')`, 'ST135'],
        [`sub_set_on_exception('s', null)`, 'ST135'],
        [`sub_create('u', 'host=z', on_exception => 'skip')`, 'ST135'],
      ])
        expect(await failureOf(conn.query(`select sterna.${call}`))).toMatchObject({ sqlstate })
    })
  })
})

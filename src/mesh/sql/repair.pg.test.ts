import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'

import { failureOf } from '../../../test/harness/failure.ts'
import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']
const ENTER = 'select sterna.repair_mode(true)'
const LEAVE = 'select sterna.repair_mode(false)'
const BEGIN = `begin read write; ${ENTER};`

describe.each(MATRIX)('repair mode on version %s', (version) => {
  let servers: TestServers
  let one: PgConnection
  let two: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version, settings: { max_prepared_transactions: '5' } })
    const conn = await open()
    await installSchema(conn)
    await conn.exec(`select sterna.node_create('n1', 'host=x')`)
    await conn.exec('create table public.t (id int primary key, v text)')
    await conn.exec('insert into public.t select g from generate_series(1, 9) g')
    await conn.close()
  })
  afterAll(() => servers.stop())
  beforeEach(async () => {
    one = await open()
    two = await open()
  })
  afterEach(() => Promise.all([one.close(), two.close()]))

  const open = async (): Promise<PgConnection> => {
    const conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await conn.exec('set client_min_messages = warning')
    return conn
  }
  /** Who wrote a row: the origin's name without the database, null for an ordinary commit. */
  const writer = async (
    id: number,
  ): Promise<{ origin: string | null; at: string; behindMs: number } | undefined> =>
    two.row(
      `select regexp_replace(o.roname, '^sterna_[0-9]+_', '') as origin, c.timestamp::text as at,
              extract(epoch from clock_timestamp() - c.timestamp)::float8 * 1000 as "behindMs"
         from t, pg_xact_commit_timestamp_origin(t.xmin) c left join pg_replication_origin o on o.roident = c.roident
        where t.id = $1`,
      [id],
    )

  it('each transaction that asks carries an origin of the pool and a timestamp of its own', async () => {
    await one.exec(ENTER)
    await one.exec(`${BEGIN} update t set v = 'a' where id = 1; commit`)
    await one.exec(`${BEGIN} update t set v = 'a' where id = 2; commit`)
    const [first, second] = [await writer(1), await writer(2)]
    expect([first!.origin, second!.origin]).toEqual(['repair_1', 'repair_1'])
    expect(first!.at < second!.at, `${first!.at} is before ${second!.at}`).toBe(true)
    expect(second!.behindMs).toBeLessThan(10_000)
    await one.exec(LEAVE)
    await one.exec(`update t set v = 'b' where id = 1`)
    expect((await writer(1))!.origin).toBe(null)
  })

  it('its rows are newer than what they replace, also where it had to wait', async () => {
    await one.exec(ENTER)
    await one.exec(BEGIN)
    await two.exec(`update t set v = 'while it was open' where id = 3`)
    const replaced = await writer(3)
    await one.exec(`update t set v = 'repaired' where id = 3; commit`)
    const repaired = await writer(3)
    expect(repaired!.at > replaced!.at, `${repaired!.at} is after ${replaced!.at}`).toBe(true)
  })

  it('a transaction that does not ask cannot write, after a commit and after a rollback', async () => {
    await one.exec(ENTER)
    const refused = { sqlstate: '25006' }
    expect(await failureOf(one.exec(`update t set v = 'x' where id = 4`))).toMatchObject(refused)
    await one.exec(`${BEGIN} update t set v = 'x' where id = 4; rollback`)
    expect(await failureOf(one.exec(`update t set v = 'x' where id = 4`))).toMatchObject(refused)
    await one.exec(`${BEGIN} update t set v = 'y' where id = 4; commit`)
    expect(await failureOf(one.exec(`begin; update t set v = 'x' where id = 4`))).toMatchObject(refused)
    await one.exec('rollback')
    expect(await two.row('select v from t where id = 4')).toEqual({ v: 'y' })
  })

  it('the transaction that enters it cannot write, whatever becomes of it', async () => {
    await one.exec('begin; savepoint a')
    await one.exec(ENTER)
    expect(await failureOf(one.exec(`update t set v = 'x' where id = 5`))).toMatchObject({
      sqlstate: '25006',
    })
    await one.exec('rollback')
    await one.exec(`update t set v = 'ordinary' where id = 5`)
    expect(await writer(5)).toMatchObject({ origin: null })
  })

  it('says what is wrong', async () => {
    await one.exec(`begin; update t set v = 'x' where id = 6`)
    expect(await failureOf(one.exec(ENTER))).toMatchObject({ sqlstate: 'ST601' })
    await one.exec('rollback')
    await one.exec(ENTER)
    expect(await failureOf(one.exec(ENTER))).toMatchObject({
      sqlstate: 'ST602',
      hint: expect.stringContaining('begin read write') as unknown,
    })
    await one.exec(`begin read write; insert into t values (100)`)
    expect(await failureOf(one.exec(ENTER))).toMatchObject({ sqlstate: 'ST601' })
    await one.exec('rollback')
    await one.exec(`${BEGIN} insert into t values (100)`)
    expect(await failureOf(one.exec(LEAVE))).toMatchObject({ sqlstate: 'ST601' })
    await one.exec('rollback; set default_transaction_read_only = off')
    expect(await failureOf(one.exec(ENTER))).toMatchObject({ sqlstate: 'ST603' })
    expect(await failureOf(one.exec('select sterna.repair_mode(null)'))).toMatchObject({ sqlstate: 'ST135' })
    await one.exec(LEAVE)
  })

  it('cannot be prepared, since another session would commit it', async () => {
    await one.exec(ENTER)
    await one.exec(`${BEGIN} update t set v = 'x' where id = 7`)
    expect(await failureOf(one.exec(`prepare transaction 'p'`))).toMatchObject({ sqlstate: '0A000' })
  })

  it('several sessions at once have each their own origin, and give it back', async () => {
    await one.exec(ENTER)
    await two.exec(ENTER)
    await one.exec(`${BEGIN} update t set v = 'x' where id = 8`)
    await two.exec(`${BEGIN} update t set v = 'x' where id = 9; commit`)
    await one.exec('commit')
    const both = [(await writer(8))!.origin, (await writer(9))!.origin]
    expect(new Set(both)).toEqual(new Set(['repair_1', 'repair_2']))
    await one.exec(LEAVE)
    const three = await open()
    await three.exec(ENTER)
    await three.exec(`${BEGIN} update t set v = 'x' where id = 8; commit`)
    expect((await writer(8))!.origin).toBe(both[0])
    await three.close()
  })

  it('a session that forgot all by DISCARD ALL keeps its origin from the others, and can go on or leave', async () => {
    await one.exec(ENTER)
    await one.exec(`${BEGIN} update t set v = 'x' where id = 1; commit`)
    await one.exec('discard all')
    await two.exec(ENTER)
    await two.exec(`${BEGIN} update t set v = 'x' where id = 2; commit`)
    expect((await writer(2))!.origin).toBe('repair_2')
    await one.exec(LEAVE)
    await one.exec(`update t set v = 'ordinary' where id = 1`)
    expect((await writer(1))!.origin).toBe(null)
  })

  it('leaves tombstones, and a line in sterna.repair_log for each transaction', async () => {
    await one.exec(ENTER)
    await one.exec(`${BEGIN} delete from t where id = 3; commit`)
    const row = await two.row(
      `select l.role_name::text as role, c.roident <> 0 as marked from sterna.tombstone s, pg_xact_commit_timestamp_origin(s.xmin) c,
              sterna.repair_log l where s.key = '["3"]' and l.xid::xid = s.xmin`,
    )
    expect(row).toEqual({ role: 'sterna', marked: true })
  })
})

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { testLayout } from '../harness/layout.ts'
import type { MeshTestNode } from '../harness/mesh.ts'
import { agreed, applyWaits, byHand, define, startStory, type Story } from '../harness/story.ts'
import { waitUntil } from '../harness/wait.ts'

const SCHEMA = `
  create table first (id int primary key, v text);
  create table checked (id int primary key, v int);
  create table last (id int primary key, v text);
  create table tally (id int primary key, n int not null);
  insert into tally values (1, 0);`

/** A constraint that only n3 has. */
const BREAK =
  'alter table checked drop constraint if exists small, add constraint small check (v < 100) not valid'
const MEND = 'alter table checked drop constraint small'

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`changes that cannot be applied, ${layout.name}`, () => {
  let story: Story
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    story = await startStory({ count: layout.versions.length, version: layout.versions, schema: SCHEMA })
    ;({ n1, n2, n3 } = story)
    await define(story.nodes, `select sterna.delta_add('tally', 'n')`)
  })
  afterEach(() => story.releaseAll())
  afterAll(() => story?.stop())

  const parkedSql =
    'select reason, operation, table_oid::regclass::text as table_name, key::text, sqlstate from sterna.exception order by id'
  const parked = (reason: string, operation: string, table: string, id: number, sqlstate: string | null) => ({
    reason,
    operation,
    table_name: table,
    key: `{"id": "${id}"}`,
    sqlstate,
  })
  /** A transaction over three tables, with the row in the middle that n3 refuses. */
  const writeThree = (id: number): Promise<void> =>
    n1.exec(
      `begin; insert into first values (${id}, 'a'); insert into checked values (${id}, 1${id}); insert into last values (${id}, 'a'); commit`,
    )
  const count = (table: string, id: number): string =>
    `select count(*)::int as n from ${table} where id = ${id}`
  /** What n1 writes afterwards arrives on n3, and what n2 writes too. */
  const othersFlow = async (id: number): Promise<void> => {
    for (const [node, row] of [
      [n1, id],
      [n2, id + 1],
    ] as const) {
      await node.exec(`insert into first values (${row}, 'later'); insert into checked values (${row}, 1)`)
      await story.becomes(n3, count('checked', row), [{ n: 1 }])
    }
  }
  const mend = async (): Promise<void> => {
    await byHand(n3, MEND)
    await n3.query('select sterna.exception_retry()')
    await story.becomes(n3, parkedSql, [])
  }
  const mode = (on: string): Promise<unknown> =>
    n3.query('select sterna.sub_set_on_exception($1, $2)', ['sub_n3_n1', on])

  test('park: the row waits, the rest of its transaction and what comes later is applied', async () => {
    await byHand(n3, BREAK)
    await writeThree(200)
    await story.becomes(n3, parkedSql, [parked('failed', 'insert', 'checked', 200, '23514')])
    await story.becomes(n3, count('last', 200), [{ n: 1 }])
    await story.becomes(n3, count('first', 200), [{ n: 1 }])
    const [entry] = await n3.query(
      'select new_row, message, version::text is not null as versioned, lsn is not null as placed, change_number from sterna.exception',
    )
    expect(entry).toMatchObject({
      new_row: { id: '200', v: '1200' },
      message: expect.stringContaining('small') as unknown,
      versioned: true,
      placed: true,
      change_number: 2,
    })
    await othersFlow(210)
    await mend()
    await story.ends(`select v from checked where id = 200`, [{ v: 1200 }])
  })

  test('park: updates and a delete of the parked row queue behind it, of its transaction and later; other rows do not', async () => {
    await byHand(n3, BREAK)
    await n1.exec(
      `begin; insert into checked values (220, 1000); update checked set v = 2000 where id = 220; insert into checked values (221, 1); commit`,
    )
    await n1.exec('update checked set v = 5 where id = 220')
    await n1.exec('update checked set v = 6 where id = 221')
    await story.becomes(n3, 'select v from checked where id = 221', [{ v: 6 }])
    const queue = [
      parked('failed', 'insert', 'checked', 220, '23514'),
      parked('behind', 'update', 'checked', 220, null),
      parked('behind', 'update', 'checked', 220, null),
    ]
    await story.becomes(n3, parkedSql, queue)
    await n1.exec('delete from checked where id = 220')
    await story.becomes(n3, parkedSql, [...queue, parked('behind', 'delete', 'checked', 220, null)])
    expect(await n3.query('select from checked where id = 220')).toEqual([])
    await mend()
    await story.ends('select id from checked where id in (220, 221)', [{ id: 221 }])
  })

  test('park: a newer row from another node stands; the retry loses by version', async () => {
    await byHand(n3, BREAK)
    await n1.exec('insert into checked values (230, 1000)')
    await story.becomes(n3, parkedSql, [parked('failed', 'insert', 'checked', 230, '23514')])
    await story.becomes(n2, 'select v from checked where id = 230', [{ v: 1000 }])
    await n2.exec('update checked set v = 7 where id = 230')
    await story.becomes(n3, 'select v from checked where id = 230', [{ v: 7 }])
    await mend()
    await story.ends('select v from checked where id = 230', [{ v: 7 }])
  })

  test('park: without anybody asking, the retry comes some time after the cause has gone', async () => {
    await byHand(n3, BREAK)
    await n1.exec('insert into checked values (235, 1000)')
    await story.becomes(n3, parkedSql, [parked('failed', 'insert', 'checked', 235, '23514')])
    await byHand(n3, MEND)
    // Nobody waits half a minute here: the time that it has set itself comes sooner.
    const sooner = `update sterna.exception set next_retry_at = next_retry_at - interval '1 minute' returning id`
    expect(await n3.query(sooner)).toHaveLength(1)
    await story.becomes(n3, parkedSql, [])
    await story.ends('select v from checked where id = 235', [{ v: 1000 }])
  })

  test('park: a person drops the change, and what is behind it is applied', async () => {
    await byHand(n3, BREAK)
    await n1.exec('insert into checked values (240, 1000)')
    await n1.exec('update checked set v = 8 where id = 240')
    await story.becomes(n3, parkedSql, [
      parked('failed', 'insert', 'checked', 240, '23514'),
      parked('behind', 'update', 'checked', 240, null),
    ])
    const [first] = await n3.query<{ id: bigint }>('select min(id) as id from sterna.exception')
    await n3.query('select from sterna.exception_drop($1)', [first!.id])
    await story.comesTo('select v from checked where id = 240', [{ v: 8 }])
    await byHand(n3, MEND)
  })

  test('transdiscard: the whole transaction waits, and is applied as a whole', async () => {
    await mode('transdiscard')
    await byHand(n3, BREAK)
    await writeThree(250)
    await story.becomes(
      n3,
      `select table_oid::regclass::text as table_name, operation from sterna.exception order by id`,
      [
        { table_name: 'first', operation: 'insert' },
        { table_name: 'checked', operation: 'insert' },
        { table_name: 'last', operation: 'insert' },
      ],
    )
    const [cause] = await n3.query(
      `select message from sterna.exception where table_oid = 'checked'::regclass`,
    )
    expect(cause).toMatchObject({ message: expect.stringContaining('small') as unknown })
    for (const table of ['first', 'checked', 'last'])
      expect(await n3.query(count(table, 250)), `table ${table}`).toEqual([{ n: 0 }])
    await n1.exec(`update last set v = 'b' where id = 250`)
    await othersFlow(260)
    // Behind the transaction, since it touches one of its rows.
    expect(await n3.query(count('last', 250))).toEqual([{ n: 0 }])
    await mend()
    await story.ends('select v from last where id = 250', [{ v: 'b' }])
    await mode('park')
  })

  test('stop: the subscription disables itself and keeps its place; the others go on', async () => {
    await mode('stop')
    await byHand(n3, BREAK)
    await writeThree(270)
    await waitUntil('the subscription is disabled', async () => {
      const [row] = await n3.query<{ status: string }>(
        `select status from sterna.sub_show_status('sub_n3_n1')`,
      )
      return row!.status === 'disabled'
    })
    expect(n3.agent.log).toContain('EXCEPTION_STOPPED')
    expect(
      await n3.query(
        "select subscription_name from sterna.sub_show_status() where last_error_code = 'EXCEPTION_STOPPED' and hint <> ''",
      ),
    ).toHaveLength(1)
    await n1.exec(`insert into first values (271, 'waits')`)
    await n2.exec(`insert into first values (272, 'flows')`)
    await story.becomes(n3, count('first', 272), [{ n: 1 }])
    for (const table of ['first', 'checked', 'last'])
      expect(await n3.query(count(table, 270)), `table ${table}`).toEqual([{ n: 0 }])
    expect(await n3.query(parkedSql)).toEqual([])
    await byHand(n3, MEND)
    await n3.query(`select sterna.sub_enable('sub_n3_n1')`)
    await story.ends('select v from checked where id = 270', [{ v: 1270 }])
    await mode('park')
  })

  describe('what passes by itself is repeated, never parked', () => {
    const nothingParked = async (): Promise<void> => {
      for (const node of story.nodes) expect(await node.query(parkedSql), `on ${node.name}`).toEqual([])
    }

    test('a deadlock with a local transaction, of which apply is the victim, in a table that needs care', async () => {
      await n1.exec(`insert into tally values (2, 0), (3, 0)`)
      await story.mesh.settle()
      const local = await PgConnection.connect(n3.dsn, { applicationName: 'test local' })
      try {
        await local.exec(`set deadlock_timeout = '1min'; begin; update tally set n = n + 1 where id = 3`)
        await n1.exec(
          `begin; update tally set n = n + 10 where id = 2; update tally set n = n + 10 where id = 3; insert into first values (300, 'r'); commit`,
        )
        await applyWaits(n3)
        await local.exec('update tally set n = n + 1 where id = 2')
        await local.exec('commit')
      } finally {
        await local.close()
      }
      await story.ends('select n from tally where id in (2, 3)', [{ n: 11 }, { n: 11 }])
      expect(n3.agent.log).toMatch(/40P01|deadlock/)
      await nothingParked()
    })

    test('apply sessions that are cancelled and ended while they wait', async () => {
      for (const how of ['pg_cancel_backend', 'pg_terminate_backend']) {
        for (const table of ['tally', 'last']) {
          const local = await PgConnection.connect(n3.dsn, { applicationName: 'test local' })
          try {
            await local.exec(`begin; lock table ${table}`)
            await n1.exec(
              `begin; update tally set n = n + 1 where id = 1; insert into last select coalesce(max(id), 0) + 1, '${how}' from last; commit`,
            )
            await applyWaits(n3)
            await n3.query(
              `select ${how}(pid) from pg_stat_activity where application_name like '% apply' and wait_event_type = 'Lock'`,
            )
            await agreed(async () => {
              const [row] = await n3.query(
                `select last_error is not null as failed from sterna.sub_show_status('sub_n3_n1')`,
              )
              expect(row).toEqual({ failed: true })
            })
            await local.exec('commit')
          } finally {
            await local.close()
          }
        }
      }
      await story.ends('select n from tally where id = 1', [{ n: 4 }])
      await nothingParked()
    })

    test('a statement that gives up waiting for a lock', async () => {
      await n1.exec(`insert into first values (399, 'locked')`)
      await story.mesh.settle()
      // A trigger of Sterna's own role, as an application might have one, that waits no longer than this.
      await byHand(
        n3,
        `create function impatient() returns trigger language plpgsql set lock_timeout = '50ms' as $$
           begin perform from public.first where id = 399 for update; return new; end $$;
         create trigger impatient before insert on last for each row execute function impatient();
         alter table last enable always trigger impatient`,
      )
      const local = await PgConnection.connect(n3.dsn, { applicationName: 'test local' })
      try {
        await local.exec('begin; select from first where id = 399 for update')
        await n1.exec(`insert into last (id, v) values (400, 'patient')`)
        await waitUntil('it was tried', () => /55P03|lock timeout/.test(n3.agent.log))
        await local.exec('commit')
      } finally {
        await local.close()
      }
      await story.becomes(n3, count('last', 400), [{ n: 1 }])
      await byHand(n3, 'drop trigger impatient on last; drop function impatient')
      await story.ends('select v from last where id = 400', [{ v: 'patient' }])
      await nothingParked()
    })

    test('no free connection for apply, when it must connect again', async () => {
      const sessions: PgConnection[] = []
      try {
        await n1.exec('insert into tally values (500, 1)')
        await story.becomes(n3, 'select n from tally where id = 500', [{ n: 1 }])
        const fill = async (): Promise<boolean> => {
          try {
            sessions.push(await PgConnection.connect(n3.dsn, { applicationName: 'test crowd' }))
            return true
          } catch {
            return false
          }
        }
        while (await fill());
        await n3.query(
          `select pg_terminate_backend(pid) from pg_stat_activity where application_name like '% apply'`,
        )
        await waitUntil('it is refused', async () => {
          while (await fill());
          return n3.agent.log.includes('CONNECTIONS_EXHAUSTED') || /53300/.test(n3.agent.log)
        })
        await n1.exec('update tally set n = 2 where id = 500')
      } finally {
        await Promise.all(sessions.map((session) => session.close()))
      }
      await story.ends('select n from tally where id = 500', [{ n: 2 }])
      await nothingParked()
    })

    test('the server restarts in the middle of a transaction that is applied', async () => {
      for (const how of ['stop', 'kill9'] as const) {
        const local = await PgConnection.connect(n3.dsn, { applicationName: 'test local' })
        local.onLost = () => {}
        await local.exec('begin; lock table last')
        await n1.exec(
          `begin; update tally set n = n + 1 where id = 500; insert into checked values (${how === 'stop' ? 501 : 502}, 1);
           insert into last (id, v) values (${how === 'stop' ? 501 : 502}, 'x'); commit`,
        )
        await applyWaits(n3)
        await n3.server[how]()
        await n3.server.start()
        local.destroy()
        await waitUntil('it answers', async () => (await n3.query('select 1')).length === 1)
      }
      await story.ends('select n from tally where id = 500', [{ n: 4 }])
      await nothingParked()
    })
  })
})

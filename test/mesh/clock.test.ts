import { access } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { PgConnection } from '../../src/postgres/connection.ts'
import { runCommand } from '../harness/command.ts'
import { skipLoudly, testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

const AHEAD_MS = 2000
const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url))

const layout = await testLayout()
const fakeTime = await findFakeTime()

/** Gives a program another clock. The only sound way: a transaction that carries a timestamp carries an origin too. */
async function findFakeTime(): Promise<string | undefined> {
  for (const path of ['x86_64-linux-gnu', 'aarch64-linux-gnu'].map(
    (triplet) => `/usr/lib/${triplet}/faketime/libfaketimeMT.so.1`,
  )) {
    const found = await access(path).then(
      () => true,
      () => false,
    )
    if (found) return path
  }
  skipLoudly(
    'tests with a clock that is ahead',
    'libfaketime is not installed (Debian: apt-get install libfaketime)',
  )
  return undefined
}

interface AgentStatus {
  readonly alarms: readonly { readonly name: string; readonly subject: string }[]
}

describe.skipIf(layout.missing !== null || fakeTime === undefined)(
  `the clock of n1 is two seconds ahead, ${layout.name}`,
  () => {
    let mesh: TestMesh
    let nodes: readonly MeshTestNode[]
    let ahead: MeshTestNode
    let others: readonly MeshTestNode[]

    beforeAll(async () => {
      mesh = await startMesh({
        count: layout.versions.length,
        version: layout.versions,
        http: true,
        schema: 'create table item (id int primary key, v text not null, n int not null default 0)',
      })
      nodes = mesh.nodes
      ahead = nodes[0]!
      others = nodes.slice(1)
      await ahead.server.stop()
      await ahead.server.start(
        {},
        {
          LD_PRELOAD: fakeTime!,
          FAKETIME: `+${AHEAD_MS / 1000}s`,
          DONT_FAKE_MONOTONIC: '1',
          FAKETIME_DONT_RESET: '1',
        },
      )
      await waitUntil('the server is back', async () => (await ahead.query('select 1')).length === 1)
    })
    afterAll(() => mesh?.stop())

    test('its clock is', async () => {
      const [row] = await ahead.query<{ ms: number }>(
        'select extract(epoch from clock_timestamp())::float8 * 1000 as ms',
      )
      expect(row!.ms - Date.now()).toBeGreaterThan(AHEAD_MS - 300)
      expect(row!.ms - Date.now()).toBeLessThan(AHEAD_MS + 300)
    })

    test('its changes are applied once the clock there is past them, in order, and nothing diverges', async () => {
      await ahead.query(`insert into item values (1, 'from ahead')`)
      for (const node of others) {
        await waitUntil(
          'the row is there',
          async () => (await node.query('select from item where id = 1')).length === 1,
        )
        const [row] = await node.query<{ past: boolean }>(
          'select clock_timestamp() > pg_xact_commit_timestamp(xmin) as past from item where id = 1',
        )
        expect(row!.past, `the clock of ${node.name} is past what it applied`).toBe(true)
      }
      await Promise.all(
        nodes.map(async (node) => {
          for (let n = 0; n < 60; n++)
            await node.query(
              `insert into item values ($1, $2, $3) on conflict (id) do update set v = excluded.v, n = excluded.n`,
              [10 + (n % 20), node.name, n],
            )
        }),
      )
      await mesh.settle()
      await expectIdentical(nodes)
      // Written at the same time as the others', two seconds later by its clock: it wins.
      const winners = await others[0]!.query<{ v: string }>('select distinct v from item where id >= 10')
      expect(winners).toEqual([{ v: 'n1' }])
    })

    test('a local write over an applied one has the greater timestamp, and stands everywhere', async () => {
      const [local] = others
      await Promise.all(
        Array.from({ length: 10 }, async (_, i) => {
          const id = 100 + i
          await ahead.query(`insert into item values ($1, 'from ahead')`, [id])
          const session = await PgConnection.connect(local!.dsn)
          const [before] = await firstRows(
            session,
            `select pg_xact_commit_timestamp(xmin)::text as at from item where id = ${id}`,
          )
          await session.query(`update item set v = 'changed later' where id = ${id}`)
          const { rows } = await session.query<{ later: boolean }>(
            `select pg_xact_commit_timestamp(xmin) > $1::timestamptz as later from item where id = ${id}`,
            [before!['at'] as string],
          )
          expect(rows, `row ${id}`).toEqual([{ later: true }])
          await session.close()
        }),
      )
      await mesh.settle()
      for (const node of nodes)
        expect(
          await node.query(`select count(*) as n from item where v = 'changed later'`),
          `on ${node.name}`,
        ).toEqual([{ n: 10n }])
      await expectIdentical(nodes)
    })

    test('the alarm shows in the status of the agents that wait, and in sterna status', async () => {
      let writing = true
      const writer = (async () => {
        while (writing) {
          await ahead.query('update item set n = n + 1 where id = 1')
          await new Promise((resolve) => setTimeout(resolve, 50))
        }
      })()
      for (const node of others)
        await waitUntil(`the agent of ${node.name} reports clock_skew`, async () => {
          const status = (await (await fetch(`${node.http}/status`)).json()) as AgentStatus
          return status.alarms.some(({ name, subject }) => name === 'clock_skew' && subject.endsWith('_n1'))
        })
      const own = (await (await fetch(`${ahead.http}/status`)).json()) as AgentStatus
      expect(own.alarms.filter(({ name }) => name === 'clock_skew')).toEqual([])
      const { code, stdout } = await runCommand([MAIN, 'status', '--json', '--dsn', others[0]!.dsn])
      const shown = JSON.parse(stdout) as { alarms: { name: string; message: string }[] }
      expect(code).toBe(5)
      expect(shown.alarms.map(({ name }) => name)).toContain('clock_offset')
      expect(shown.alarms.find(({ name }) => name === 'clock_offset')!.message).toContain('n1')
      writing = false
      await writer
    })

    test('once the clock is right again the alarm goes, and later writes win again', async () => {
      await mesh.settle()
      const [last] = await ahead.query<{ at: string }>(
        'select max(pg_xact_commit_timestamp(xmin))::text as at from item',
      )
      await ahead.server.stop()
      await ahead.server.start()
      await waitUntil('its clock has passed what it wrote', async () => {
        const [row] = await ahead.query<{ past: boolean }>(
          'select clock_timestamp() > $1::timestamptz as past',
          [last!.at],
        )
        return row!.past
      })
      await ahead.query(`update item set v = 'right again' where id = 1`)
      await mesh.settle()
      for (const node of nodes)
        expect(await node.query('select v from item where id = 1'), `on ${node.name}`).toEqual([
          { v: 'right again' },
        ])
      for (const node of nodes)
        await waitUntil(`no clock_skew at ${node.name}`, async () => {
          const status = (await (await fetch(`${node.http}/status`)).json()) as AgentStatus
          return !status.alarms.some(({ name }) => name === 'clock_skew')
        })
      await expectIdentical(nodes)
    })
  },
)

/** Rows of a query as soon as there are any. */
async function firstRows(session: PgConnection, sql: string): Promise<Record<string, unknown>[]> {
  let rows: Record<string, unknown>[] = []
  await waitUntil(sql, async () => {
    rows = (await session.query(sql)).rows
    return rows.length > 0
  })
  return rows
}

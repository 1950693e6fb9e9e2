import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { fakeTime } from '../harness/fake-time.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type MeshTestNode, type TestMesh } from '../harness/mesh.ts'
import { expectIdentical } from '../harness/table-hash.ts'
import { waitUntil } from '../harness/wait.ts'

const BACK_MS = 8000

const layout = await testLayout()

interface AgentStatus {
  readonly alarms: readonly { readonly name: string; readonly subject: string; readonly message: string }[]
}

// Trace 10 of the design, and what else can be written while the clock is back.
describe.skipIf(layout.missing !== null || fakeTime === undefined)(
  `the clock of n2 steps back by eight seconds, ${layout.name}`,
  () => {
    let mesh: TestMesh
    let n1: MeshTestNode
    let n2: MeshTestNode
    let n3: MeshTestNode
    let directory: string

    beforeAll(async () => {
      directory = await mkdtemp(join(tmpdir(), 'sterna-clock-'))
      await chmod(directory, 0o755)
      await setClock(0)
      mesh = await startMesh({
        count: layout.versions.length,
        version: layout.versions,
        http: true,
        schema: `create table item (id int primary key, v text, big text);
          alter table item alter big set storage external;
          create table part (id int, region text, v text, primary key (id, region)) partition by list (region);
          create table part_eu partition of part for values in ('eu');
          create table counted (id int generated always as identity primary key, twice int generated always as (n * 2) stored, n int);
          create table emptied (id int primary key);
          create role plain;
          create function public.loud() returns trigger language plpgsql as $$
            begin
              if current_setting('session_replication_role') = 'replica' and current_user <> 'plain' then
                raise exception 'code of plain with the rights of %', current_user;
              end if;
              return new;
            end $$;
          create table owned (id int primary key, v text);
          create trigger loud before update on owned for each row execute function loud();
          alter table owned enable always trigger loud;
          alter function loud() owner to plain;
          alter table owned owner to plain`,
      })
      ;[n1, n2, n3] = mesh.nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
      const { LD_PRELOAD, DONT_FAKE_MONOTONIC } = fakeTime!('+0s') as {
        LD_PRELOAD: string
        DONT_FAKE_MONOTONIC: string
      }
      await n2.server.stop()
      await n2.server.start(
        {},
        // The offset is read from the file at each call.
        {
          LD_PRELOAD,
          DONT_FAKE_MONOTONIC,
          FAKETIME_TIMESTAMP_FILE: join(directory, 'offset'),
          FAKETIME_NO_CACHE: '1',
        },
      )
      await waitUntil('n2 is back', async () => (await n2.query('select 1')).length === 1)
      await mesh.settle()
    })
    afterAll(async () => {
      await mesh?.stop()
      await rm(directory, { recursive: true, force: true })
    })

    const setClock = (offsetMs: number): Promise<void> =>
      writeFile(join(directory, 'offset'), `${offsetMs < 0 ? '-' : '+'}${Math.abs(offsetMs) / 1000}s\n`)
    const alarms = async (node: MeshTestNode): Promise<AgentStatus['alarms']> =>
      ((await (await fetch(`${node.http}/status`)).json()) as AgentStatus).alarms
    const stepped = async (): Promise<AgentStatus['alarms']> =>
      (await alarms(n2)).filter(({ name }) => name === 'clock_stepped_back')
    const everywhere = async (sql: string, rows: unknown[]): Promise<void> => {
      for (const node of mesh.nodes)
        expect({ [node.name]: await node.query(sql) }).toEqual({ [node.name]: rows })
    }

    test('no alarm while it is right', async () => {
      expect(await stepped()).toEqual([])
    })

    test('what n2 writes then loses at first; the alarm shows', async () => {
      await n3.exec(`insert into item select g, 'new', repeat('x', 20000) || g from generate_series(1, 5) g;
        insert into part values (1, 'eu', 'new'), (2, 'eu', 'new'); insert into counted (n) values (7), (8);
        insert into emptied values (1); insert into owned values (1, 'new')`)
      await mesh.settle()
      await setClock(-BACK_MS)
      await n2.exec(`delete from item where id = 1; update item set v = 'changed' where id = 2;
        update item set id = 30 where id = 3; delete from item where id = 4; insert into item values (4, 'again', 'small');
        delete from part where id = 1; update part set v = 'changed' where id = 2; update counted set n = 9 where n = 7;
        truncate emptied; update owned set v = 'changed' where id = 1`)
      await waitUntil('the alarm', async () => (await stepped()).length > 0)
      const [alarm] = await stepped()
      expect(alarm!.subject).toBe('n2')
      expect(Number(/by (\d+) ms/.exec(alarm!.message)![1])).toBeGreaterThan(BACK_MS - 1500)
      // That it loses is what makes the rest of this test worth something.
      expect(await n1.query('select id, v from item where id <= 2 order by id')).toEqual([
        { id: 1, v: 'new' },
        { id: 2, v: 'new' },
      ])
    })

    test('once the clock has passed what it had shown, all nodes have what n2 wrote', async () => {
      await waitUntil('the alarm goes', async () => (await stepped()).length === 0, 60_000)
      // So that n2 need not wait with what the others write.
      await setClock(0)
      await mesh.settle()
      const state = await n2.query(
        'select rows_rewritten::int as rows, deletes_rewritten::int as deletes from sterna.clock_state',
      )
      await everywhere('select id, v, length(big) as length from item order by id', [
        { id: 2, v: 'changed', length: 20001 },
        { id: 4, v: 'again', length: 5 },
        { id: 5, v: 'new', length: 20001 },
        { id: 30, v: 'new', length: 20001 },
      ])
      await everywhere('select id, v from part', [{ id: 2, v: 'changed' }])
      await everywhere('select n, twice from counted order by n', [
        { n: 8, twice: 16 },
        { n: 9, twice: 18 },
      ])
      expect(state).toEqual([{ rows: 6, deletes: 4 }])
      await n1.query('delete from emptied')
      await mesh.settle()
      await expectIdentical(mesh.nodes)
    })

    test('a truncate is left to a person', async () => {
      const truncates = async (): Promise<string[]> =>
        (await alarms(n2)).filter(({ name }) => name === 'clock_truncate').map(({ subject }) => subject)
      expect(await truncates()).toEqual(['public.emptied'])
      await n2.query(`select sterna.clock_truncate_checked('emptied')`)
      await waitUntil('the alarm goes', async () => (await truncates()).length === 0)
    })

    test('a step while no agent watches is noticed too', async () => {
      await n3.query(`insert into item values (50, 'new', 'x')`)
      await mesh.settle()
      await n2.agent.stop()
      await n2.query(`insert into item values (51, 'last', 'x')`)
      await setClock(-60_000)
      await n2.query('delete from item where id = 50')
      await n2.agent.start()
      await waitUntil('the alarm', async () => (await stepped()).length > 0)
      await setClock(0)
      await waitUntil('the alarm goes', async () => (await stepped()).length === 0)
      await mesh.settle()
      await everywhere('select id from item where id >= 50', [{ id: 51 }])
      await expectIdentical(mesh.nodes)
    })
  },
)

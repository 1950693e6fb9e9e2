import { fileURLToPath } from 'node:url'

import { afterAll, beforeAll, expect, it } from 'vitest'

import { runCommand } from '../../test/harness/command.ts'
import { startServers, type TestServers } from '../../test/harness/servers.ts'
import { installSchema } from '../mesh/schema.ts'
import { PgConnection } from '../postgres/connection.ts'

const MAIN = fileURLToPath(new URL('./main.ts', import.meta.url))

let servers: TestServers
let conn: PgConnection
beforeAll(async () => {
  servers = await startServers({ count: 1 })
  conn = await PgConnection.connect(servers.nodes[0]!.dsn)
  await installSchema(conn)
  await conn.query(`select sterna.node_create('n1', $1)`, [servers.nodes[0]!.dsn])
  await conn.exec('set sterna.ddl_replication = off')
  await conn.exec(`create table public.account (id int primary key, balance int not null, rate float not null);
    create table public.best (id int primary key, score int not null);
    create function public.higher(public.best, public.best) returns public.best language sql immutable
      return row($1.id, greatest($1.score, $2.score))::public.best`)
})
afterAll(async () => {
  await conn.close()
  await servers.stop()
})

const sterna = (...args: string[]): ReturnType<typeof runCommand> =>
  runCommand([MAIN, 'table', ...args, '--dsn', servers.nodes[0]!.dsn], { cwd: import.meta.dirname })

it('declares, lists and takes back', async () => {
  expect(await sterna('add-delta', 'account', 'balance')).toMatchObject({
    code: 0,
    stdout: 'balance of account is a delta column\n',
  })
  expect(await sterna('set-policy', 'account', 'manual', '--type', 'update_missing')).toMatchObject({
    code: 0,
    stdout: 'policy of account for update_missing is manual\n',
  })
  expect(
    (await sterna('set-policy', 'best', 'merge', '--function', 'higher(best, best)', '--json')).stdout,
  ).toBe(`${JSON.stringify({ done: 'policy of best is merge', on: 'n1' }, null, 2)}\n`)
  const { stdout } = await sterna('list')
  expect(stdout.split('\n').map((line) => line.trim().split(/\s{2,}/))).toEqual([
    ['on', 'table', 'rule', 'state'],
    ['n1', 'account', 'delta column balance', 'in force'],
    ['n1', 'account', 'manual for update_missing', 'in force'],
    ['n1', 'best', 'merge public.higher', 'in force'],
    [''],
  ])
  await sterna('remove-delta', 'account', 'balance')
  await sterna('set-policy', 'account', 'last_update_wins')
  await sterna('set-policy', 'best', 'last_update_wins')
  expect(JSON.parse((await sterna('list', '--json')).stdout)).toEqual({
    nodes: [{ on: 'n1', rules: [], under_way: [] }],
    unreachable: [],
  })
})

it('says why not', async () => {
  const refused = await sterna('add-delta', 'account', 'rate')
  expect(refused.code).toBe(3)
  expect(refused.stderr).toMatch(/column rate of table .*account cannot be a delta column: double precision/)
  expect((await sterna('add-delta', 'account', 'balance', '--timeout', 'x')).code).toBe(2)
})

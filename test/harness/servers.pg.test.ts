import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { PgConnection } from '../../src/postgres/connection.ts'
import { startServers, type ServerVersion, type TestServers } from './servers.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('servers of version %s', (version) => {
  let servers: TestServers
  beforeAll(async () => {
    servers = await startServers({ count: 2, version })
  })
  afterAll(() => servers.stop())

  const ask = async (node: number, sql: string): Promise<string> => {
    const connection = await PgConnection.connect(servers.nodes[node]!.dsn)
    try {
      const { rows } = await connection.query<Record<string, string | number>>(sql)
      return String(Object.values(rows[0] ?? {})[0])
    } finally {
      await connection.close()
    }
  }

  test('they are set up as nodes', async () => {
    expect(await ask(0, 'select current_database()')).toBe('app')
    expect(await ask(0, 'show wal_level')).toBe('logical')
    expect(await ask(0, 'show track_commit_timestamp')).toBe('on')
    expect(await ask(0, 'show fsync')).toBe('off')
    expect(Number(await ask(0, 'show max_replication_slots'))).toBeGreaterThanOrEqual(40)
    expect(await ask(0, 'select rolpassword from pg_authid where rolname = current_user')).toMatch(
      /^SCRAM-SHA-256/,
    )
  })

  test('each has a system identifier of its own, which its server agrees with', async () => {
    const sql = 'select system_identifier from pg_control_system()'
    expect(await ask(0, sql)).not.toBe(await ask(1, sql))
  })

  test('a wrong password is refused', async () => {
    const dsn = servers.nodes[0]!.dsn.replace('sterna:sterna@', 'sterna:wrong@')
    await expect(PgConnection.connect(dsn)).rejects.toMatchObject({ code: 'AUTH_FAILED' })
  })

  test('committed rows survive kill -9, and the server comes back on its port', async () => {
    const node = servers.nodes[0]!
    await ask(0, 'create table kept (id int primary key)')
    await ask(0, 'insert into kept values (1)')
    await node.kill9()
    expect(node.pid).toBeUndefined()
    await node.start()
    expect(await ask(0, 'select count(*) from kept')).toBe('1')
  })

  test('stop and start with other settings', async () => {
    const node = servers.nodes[1]!
    await node.stop()
    await node.start({ work_mem: '7MB' })
    expect(await ask(1, 'show work_mem')).toBe('7MB')
  })
})

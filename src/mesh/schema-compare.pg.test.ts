import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../test/harness/servers.ts'
import { PgConnection } from '../postgres/connection.ts'
import { compareSchemas, formatDifference, readTableShapes } from './schema-compare.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

describe.each(MATRIX)('on version %s', (version) => {
  let servers: TestServers
  let n1: PgConnection
  let n2: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 2, version })
    n1 = await PgConnection.connect(servers.nodes[0]!.dsn)
    n2 = await PgConnection.connect(servers.nodes[1]!.dsn)
  })
  afterAll(async () => {
    await Promise.all([n1.close(), n2.close()])
    await servers.stop()
  })

  async function differences(): Promise<string[]> {
    const [first, second] = await Promise.all([readTableShapes(n1), readTableShapes(n2)])
    return compareSchemas([
      { node: 'n1', tables: first },
      { node: 'n2', tables: second },
    ]).map(formatDifference)
  }

  it('equal tables are equal, whatever the order of columns and the search path', async () => {
    const types = `create type mood as enum ('sad', 'ok'); create domain pos as int check (value > 0);`
    await n1.exec(
      `${types} create table t (id int primary key, m mood, p pos, ms mood[], a varchar(10), g int generated always as (id + 1) stored)`,
    )
    await n2.exec(
      `${types} create table t (a varchar(10), ms mood[], p pos, m mood, id int primary key, g int generated always as (id + 1) stored)`,
    )
    await n2.exec('set search_path = pg_catalog')
    expect(await differences()).toEqual([])
    await n2.exec('reset search_path')
  })

  it('names what differs, where, and on which node', async () => {
    await n2.exec(`
      alter type mood add value 'happy';
      alter table t alter a type varchar(20), alter a set not null, drop column p, drop constraint t_pkey;
      create table only_here (id int primary key);
      create unlogged table not_replicable (id int);`)
    expect(await differences()).toEqual([
      'public.only_here: missing on n1',
      `public.t.m: public.mood ('sad', 'ok') on n1; public.mood ('sad', 'ok', 'happy') on n2`,
      'public.t.p: missing on n2, present on n1',
      `public.t.ms: public.mood[] ('sad', 'ok') on n1; public.mood[] ('sad', 'ok', 'happy') on n2`,
      'public.t.a: character varying(10) on n1; character varying(20) on n2',
      'public.t.a: nullable on n1; not null on n2',
      'public.t: key (id) on n1; no key on n2',
    ])
  })

  it('a replica identity index is the key; a deferrable primary key is none', async () => {
    for (const conn of [n1, n2])
      await conn.exec('create table k (id int primary key, "B" int not null unique)')
    await n1.exec('alter table k replica identity using index "k_B_key"')
    await n2.exec('alter table k drop constraint k_pkey, add primary key (id) deferrable')
    expect((await differences()).filter((line) => line.startsWith('public.k:'))).toEqual([
      'public.k: key ("B") on n1; no key on n2',
    ])
  })
})

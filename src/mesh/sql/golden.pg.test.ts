import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { startServers, type ServerVersion, type TestServers } from '../../../test/harness/servers.ts'
import { PgConnection } from '../../postgres/connection.ts'
import { installSchema } from '../schema.ts'

const MATRIX: readonly ServerVersion[] = ['18', 'system15']

/** Every object of the schema as one line, in an order of its own; the same text on every version of PostgreSQL. */
const DUMP_SQL = `
  select dump.line from (
  select format('%s %s', case c.relkind when 'v' then 'view' when 'S' then 'sequence' else
           case c.relpersistence when 'u' then 'unlogged table' else 'table' end end, c.relname)
         || coalesce(' to ' || (select string_agg(a.privilege_type || ' ' || a.grantee::regrole::text, ', ' order by a.grantee, a.privilege_type)
              from aclexplode(c.relacl) a where a.grantee <> c.relowner and a.grantee <> 0), '')
         || case when exists (select from aclexplode(c.relacl) a where a.grantee = 0) then ' (public)' else '' end as line,
         1 as kind, c.relname::text as name, 0 as part
    from pg_class c where c.relnamespace = 'sterna'::regnamespace and c.relkind in ('r', 'v', 'S')
  union all
  select format('  %s %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod), case when a.attnotnull then ' not null' else '' end,
           case when a.attidentity <> '' then ' identity' else '' end, ' default ' || pg_get_expr(d.adbin, d.adrelid)),
         1, c.relname::text, a.attnum
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
   where c.relnamespace = 'sterna'::regnamespace and c.relkind in ('r', 'v')
  union all
  select '  ' || pg_get_constraintdef(k.oid), 1, c.relname::text, 1000 + row_number() over (partition by c.oid order by k.conname)
    from pg_class c join pg_constraint k on k.conrelid = c.oid and k.contype <> 'n'
   where c.relnamespace = 'sterna'::regnamespace
  union all
  select format('  trigger %s: %s', t.tgname, substring(pg_get_triggerdef(t.oid) from ' (AFTER .*)$')),
         1, c.relname::text, 2000 + row_number() over (partition by c.oid order by t.tgname)
    from pg_class c join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
   where c.relnamespace = 'sterna'::regnamespace
  union all
  select format('%s %s(%s)', case p.prokind when 'p' then 'procedure' else 'function' end, p.proname, pg_get_function_arguments(p.oid))
         || coalesce(' returns ' || pg_get_function_result(p.oid), '')
         || case p.provolatile when 'i' then ' immutable' when 's' then ' stable' else '' end
         || case when p.proisstrict then ' strict' else '' end || case when p.prosecdef then ' security definer' else '' end
         || coalesce(' set ' || array_to_string(p.proconfig, ' set '), '')
         || case when has_function_privilege('public', p.oid, 'execute') then ' (public)' else '' end,
         2, p.proname || pg_get_function_arguments(p.oid), 0
    from pg_proc p where p.pronamespace = 'sterna'::regnamespace
  ) dump order by dump.kind, dump.name collate "C", dump.part`

describe.each(MATRIX)('schema sterna on version %s', (version) => {
  let servers: TestServers
  let conn: PgConnection
  beforeAll(async () => {
    servers = await startServers({ count: 1, version })
    conn = await PgConnection.connect(servers.nodes[0]!.dsn)
    await installSchema(conn)
  })
  afterAll(async () => {
    await conn.close()
    await servers.stop()
  })

  it('is what golden.txt says; after a wanted change: vitest run src/mesh/sql/golden -u', async () => {
    await conn.exec('set search_path = pg_catalog')
    const { rows } = await conn.query<{ line: string }>(DUMP_SQL)
    await expect(rows.map(({ line }) => `${line}\n`).join('')).toMatchFileSnapshot('./golden.txt')
  })
})

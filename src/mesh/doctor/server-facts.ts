import type { PgConnection } from '../../postgres/connection.ts'

/** What the server-wide checks need to know. */
export interface ServerFacts {
  readonly serverVersion: string
  readonly majorVersion: number
  readonly database: string
  readonly inRecovery: boolean
  readonly walLevel: string
  readonly trackCommitTimestamp: boolean
  readonly readOnly: boolean
  /** Megabytes; -1 without a bound. */
  readonly maxSlotWalKeepMb: number
  readonly slots: Room
  readonly walSenders: Room
  readonly origins: Room
  /** Of these, reserved ones are not counted. */
  readonly connections: Room
  readonly encoding: string
  readonly collation: string
  readonly role: RoleFacts
  /** Whether schema `sterna` is there. */
  readonly installed: boolean
}

/** How much of something there may be, how much there is, and how much of that is ours already. */
export interface Room {
  readonly setting: string
  readonly max: number
  readonly used: number
  readonly ours: number
}

/** What the role that we are logged in as may do. */
export interface RoleFacts {
  readonly name: string
  readonly superuser: boolean
  readonly replication: boolean
  readonly createSchema: boolean
  readonly setReplicationRole: boolean
  /** Origin functions that it may not execute, with their argument types. */
  readonly missingFunctions: readonly string[]
  /** Tables of the user that it does not own: they cannot be added to a publication by it. */
  readonly notOwned: readonly string[]
}

/** The functions by which apply keeps its progress. */
const ORIGIN_FUNCTIONS = [
  'pg_replication_origin_advance',
  'pg_replication_origin_create',
  'pg_replication_origin_drop',
  'pg_replication_origin_oid',
  'pg_replication_origin_progress',
  'pg_replication_origin_session_progress',
  'pg_replication_origin_session_reset',
  'pg_replication_origin_session_setup',
  'pg_replication_origin_xact_reset',
  'pg_replication_origin_xact_setup',
  'pg_show_replication_origin_status',
]

/** Reads the facts of the server and database that `conn` is logged in to. Works from PostgreSQL 11 on. */
export async function readServerFacts(conn: PgConnection): Promise<ServerFacts> {
  const settings = await readSettings(conn)
  const counts = (await conn.row<Record<string, number>>(COUNTS_SQL))!
  const database = (await conn.row<DatabaseRow>(DATABASE_SQL, [
    conn.majorVersion >= 17 ? 'datlocale' : 'daticulocale',
  ]))!
  const number = (name: string): number => Number(settings.get(name) ?? 0)
  const originSetting = settings.has('max_active_replication_origins')
    ? 'max_active_replication_origins'
    : 'max_replication_slots'
  return {
    serverVersion: conn.parameter('server_version') ?? '',
    majorVersion: conn.majorVersion,
    database: database.name,
    inRecovery: database.in_recovery,
    walLevel: settings.get('wal_level') ?? '',
    trackCommitTimestamp: settings.get('track_commit_timestamp') === 'on',
    readOnly: settings.get('default_transaction_read_only') === 'on',
    maxSlotWalKeepMb: number('max_slot_wal_keep_size'),
    slots: room(
      'max_replication_slots',
      number('max_replication_slots'),
      counts['slots'],
      counts['our_slots'],
    ),
    walSenders: room('max_wal_senders', number('max_wal_senders'), counts['senders'], counts['our_senders']),
    origins: room(originSetting, number(originSetting), counts['origins'], counts['our_origins']),
    connections: room(
      'max_connections',
      number('max_connections') - number('superuser_reserved_connections') - number('reserved_connections'),
      counts['connections'],
      counts['our_connections'],
    ),
    encoding: database.encoding,
    collation: collationOf(database),
    role: await readRole(conn),
    installed: database.installed,
  }
}

/** By what text sorts. Some locales of different providers and names are all the order of the code points. */
function collationOf({ provider, locale, collate }: DatabaseRow): string {
  const name = locale ?? collate
  if (provider !== 'i' && /^(C|POSIX|C\.utf-?8|PG_UNICODE_FAST)$/i.test(name)) return 'code points (C)'
  return `${{ c: 'libc', i: 'icu', b: 'builtin' }[provider] ?? provider} ${name}`
}

async function readSettings(conn: PgConnection): Promise<Map<string, string>> {
  const { rows } = await conn.query<{ name: string; setting: string }>(
    'select name, setting from pg_catalog.pg_settings where name = any($1::text[])',
    [
      [
        'wal_level',
        'track_commit_timestamp',
        'default_transaction_read_only',
        'max_slot_wal_keep_size',
        'max_replication_slots',
        'max_wal_senders',
        'max_active_replication_origins',
        'max_connections',
        'superuser_reserved_connections',
        'reserved_connections',
      ],
    ],
  )
  return new Map(rows.map((row) => [row.name, row.setting]))
}

function room(setting: string, max: number, used: number | undefined, ours: number | undefined): Room {
  return { setting, max, used: used ?? 0, ours: ours ?? 0 }
}

const COUNTS_SQL = `
  select
    (select count(*)::int from pg_catalog.pg_replication_slots) as slots,
    (select count(*)::int from pg_catalog.pg_replication_slots
     where slot_name like 'sterna\\_%' and database = pg_catalog.current_database()) as our_slots,
    (select count(*)::int from pg_catalog.pg_stat_replication) as senders,
    (select count(*)::int from pg_catalog.pg_stat_replication where application_name like 'sterna %') as our_senders,
    (select count(*)::int from pg_catalog.pg_replication_origin) as origins,
    (select count(*)::int from pg_catalog.pg_replication_origin
     where roname like 'sterna\\_' || (select oid from pg_catalog.pg_database
                                      where datname = pg_catalog.current_database()) || '\\_%') as our_origins,
    (select count(*)::int from pg_catalog.pg_stat_activity
     where datid is not null and backend_type is distinct from 'walsender'
       and application_name not like 'sterna % doctor') as connections,
    (select count(*)::int from pg_catalog.pg_stat_activity
     where application_name like 'sterna %' and application_name not like '% doctor' and backend_type is distinct from 'walsender') as our_connections`

interface DatabaseRow {
  readonly name: string
  readonly in_recovery: boolean
  readonly encoding: string
  readonly provider: string
  readonly collate: string
  readonly locale: string | null
  readonly installed: boolean
}

/** The ICU or builtin locale's column has another name since 17, hence the way through jsonb. */
const DATABASE_SQL = `
  select d.datname as name, pg_catalog.pg_is_in_recovery() as in_recovery,
    pg_catalog.pg_encoding_to_char(d.encoding) as encoding, d.datcollate as collate,
    coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') as provider,
    pg_catalog.to_jsonb(d) ->> $1::text as locale,
    pg_catalog.to_regclass('sterna.local_node') is not null as installed
  from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()`

/** Reads what the role of this connection may do. */
export async function readRole(conn: PgConnection): Promise<RoleFacts> {
  const row = (await conn.row<{
    name: string
    superuser: boolean
    replication: boolean
    create_schema: boolean
    missing_functions: string[]
    not_owned: string[]
  }>(
    `select r.rolname as name, r.rolsuper as superuser, r.rolreplication as replication,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') as create_schema,
       (select coalesce(pg_catalog.array_agg(p.proname || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')'
                                             order by p.proname), '{}')
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace and p.proname = any($1::text[])
          and not pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) as missing_functions,
       (select coalesce(pg_catalog.array_agg(quote_ident(n.nspname) || '.' || quote_ident(c.relname)
                                             order by n.nspname, c.relname), '{}')
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
          and n.nspname not in ('pg_catalog', 'information_schema', 'sterna') and n.nspname not like 'pg\\_%'
          and not pg_catalog.pg_has_role(c.relowner, 'USAGE')) as not_owned
     from pg_catalog.pg_roles r where r.rolname = current_user`,
    [ORIGIN_FUNCTIONS],
  ))!
  const parameter =
    conn.majorVersion < 15
      ? { granted: true }
      : await conn.row<{ granted: boolean }>(
          `select pg_catalog.has_parameter_privilege('session_replication_role', 'SET') as granted`,
        )
  return {
    name: row.name,
    superuser: row.superuser,
    replication: row.replication,
    createSchema: row.create_schema,
    setReplicationRole: parameter?.granted ?? false,
    missingFunctions: row.missing_functions,
    notOwned: row.not_owned,
  }
}

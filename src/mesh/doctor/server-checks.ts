import { quoteIdent } from '../../core/quote.ts'
import type { Finding, Severity } from './finding.ts'
import type { Room, ServerFacts } from './server-facts.ts'

/** The oldest PostgreSQL that can be a node. */
export const OLDEST_MAJOR = 15

/** Sessions of an agent beside those of its subscriptions. */
const AGENT_SESSIONS = 3
/** Sessions of an agent at its own server for one subscription. */
const SESSIONS_PER_SUBSCRIPTION = 2

/**
 * What is wrong with one server. `peers` is the number of other nodes that it will have: each takes a slot and a WAL
 * sender here, and each needs an origin here.
 */
export function checkServer(server: string, facts: ServerFacts, peers: number): Finding[] {
  const found = (severity: Severity, check: string, what: string, fix: string | null = null): Finding => ({
    severity,
    check,
    server,
    object: null,
    what,
    fix,
  })
  const findings: Finding[] = []
  if (facts.majorVersion < OLDEST_MAJOR)
    findings.push(
      found(
        'block',
        'version',
        `PostgreSQL ${facts.serverVersion} is too old; ${OLDEST_MAJOR} or newer is needed`,
        'pg_upgrade to a newer version',
      ),
    )
  if (facts.inRecovery)
    findings.push(
      found('block', 'standby', 'the server is a standby and takes no writes; give the primary instead'),
    )
  if (facts.walLevel !== 'logical')
    findings.push(
      found(
        'block',
        'wal_level',
        `wal_level is ${facts.walLevel}, it must be logical`,
        "alter system set wal_level = 'logical'; then restart the server",
      ),
    )
  if (!facts.trackCommitTimestamp)
    findings.push(
      found(
        'block',
        'track_commit_timestamp',
        'track_commit_timestamp is off: without commit timestamps no row has a version',
        'alter system set track_commit_timestamp = on; then restart the server',
      ),
    )
  if (facts.readOnly)
    findings.push(
      found(
        'block',
        'read_only',
        'default_transaction_read_only is on',
        'alter system set default_transaction_read_only = off; select pg_reload_conf();',
      ),
    )
  for (const [check, room, what] of [
    ['replication_slots', facts.slots, 'replication slots: one for each node that follows this one'],
    ['wal_senders', facts.walSenders, 'WAL senders: one for each node that follows this one'],
    ['replication_origins', facts.origins, 'replication origins: one for each node that is followed'],
  ] as const)
    findings.push(...checkRoom(server, check, room, peers, what))
  findings.push(...checkConnections(server, facts.connections, peers))
  if (facts.maxSlotWalKeepMb < 0)
    findings.push(
      found(
        'info',
        'max_slot_wal_keep_size',
        'the WAL kept for a node that is away has no bound: it could fill the disk',
        "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf();  -- as much as the disk allows",
      ),
    )
  return [...findings, ...checkRole(server, facts)]
}

function checkRoom(server: string, check: string, room: Room, peers: number, what: string): Finding[] {
  const needed = Math.max(0, peers - room.ours)
  const free = room.max - room.used
  if (free >= needed) return []
  const enough = room.used + needed
  return [
    {
      severity: 'block',
      check,
      server,
      object: null,
      what: `${free} of ${room.max} ${what}; ${needed} more ${needed === 1 ? 'is' : 'are'} needed`,
      fix: `alter system set ${room.setting} = ${Math.max(enough + 5, 20)}; then restart the server`,
    },
  ]
}

function checkConnections(server: string, room: Room, peers: number): Finding[] {
  const needed = Math.max(0, AGENT_SESSIONS + SESSIONS_PER_SUBSCRIPTION * peers - room.ours)
  const free = room.max - room.used
  if (free >= needed) return []
  return [
    {
      severity: 'warn',
      check: 'connections',
      server,
      object: null,
      what: `${Math.max(free, 0)} of ${room.max} connections are free; an agent takes up to ${needed} more`,
      fix: `alter system set max_connections = ${room.max + Math.max(needed, 50)}; then restart the server`,
    },
  ]
}

function checkRole(server: string, { role, database, installed, majorVersion }: ServerFacts): Finding[] {
  if (role.superuser) return []
  const name = quoteIdent(role.name)
  const missing: { what: string; fix: string }[] = []
  if (!role.replication)
    missing.push({ what: 'the REPLICATION attribute', fix: `alter role ${name} replication;` })
  if (!role.createSchema && !installed)
    missing.push({
      what: 'CREATE on the database',
      fix: `grant create on database ${quoteIdent(database)} to ${name};`,
    })
  if (!role.setReplicationRole)
    missing.push({
      what: 'SET on parameter session_replication_role',
      fix: `grant set on parameter session_replication_role to ${name};`,
    })
  if (role.missingFunctions.length > 0)
    missing.push({
      what: `EXECUTE on ${role.missingFunctions.length} replication origin functions`,
      fix: `grant execute on function ${role.missingFunctions.join(', ')} to ${name};`,
    })
  const findings: Finding[] = []
  if (missing.length > 0 && majorVersion >= OLDEST_MAJOR)
    findings.push({
      severity: 'block',
      check: 'grants',
      server,
      object: role.name,
      what: `role ${role.name} lacks ${missing.map((each) => each.what).join('; ')}`,
      fix: missing.map((each) => each.fix).join('\n'),
    })
  if (role.notOwned.length > 0)
    findings.push({
      severity: 'block',
      check: 'ownership',
      server,
      object: role.name,
      what: `role ${role.name} does not own ${listed(role.notOwned)}, so it cannot publish them`,
      fix: role.notOwned.map((table) => `alter table ${table} owner to ${name};`).join('\n'),
    })
  if (!installed)
    findings.push({
      severity: 'block',
      check: 'event_triggers',
      server,
      object: role.name,
      what: `role ${role.name} is no superuser: only a superuser can create the event triggers that notice new tables and DDL`,
      fix: `alter role ${name} superuser;  -- or log in once as a superuser to create the cluster`,
    })
  return findings
}

/** The first few names of a list, and how many more there are. */
export function listed(names: readonly string[], most = 5): string {
  const rest = names.length - most
  return rest > 0 ? `${names.slice(0, most).join(', ')} and ${rest} more` : names.join(', ')
}

import { SternaError } from '../core/errors.ts'
import { quoteIdent } from '../core/quote.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { sqlstateOf, type ServerError } from '../postgres/server-error.ts'
import { readRole } from './doctor/server-facts.ts'

/** What a connection is for: `agent` applies in its own database, `provider` reads from another node. */
export type Part = 'agent' | 'provider'

/** A privilege that a role lacks, and the command that gives it. */
export interface MissingPrivilege {
  readonly what: string
  readonly fix: string
}

/** All that the role of this connection lacks for its part, at a server with schema `sterna`. */
export async function missingPrivileges(conn: PgConnection, part: Part): Promise<MissingPrivilege[]> {
  const role = await readRole(conn)
  if (role.superuser) return []
  const name = quoteIdent(role.name)
  const missing: MissingPrivilege[] = []
  if (part === 'provider') {
    if (!role.replication)
      missing.push({ what: 'the REPLICATION attribute', fix: `alter role ${name} replication;` })
    if (!(await mayUseSchema(conn, 'SELECT')))
      missing.push({
        what: 'SELECT on the tables of schema sterna',
        fix: `grant select on all tables in schema sterna to ${name};`,
      })
    return missing
  }
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
  if (!(await mayUseSchema(conn, 'INSERT')))
    missing.push({
      what: 'the use of tables and functions of schema sterna',
      fix: `grant all on all tables in schema sterna to ${name}; grant all on all sequences in schema sterna to ${name}; grant execute on all functions in schema sterna to ${name}; grant usage, create on schema sterna_apply to ${name};`,
    })
  return missing
}

/** @throws PRIVILEGE_MISSING with all that is missing */
export async function requirePrivileges(conn: PgConnection, part: Part, user: string): Promise<void> {
  const missing = await missingPrivileges(conn, part)
  if (missing.length > 0) throw privilegeMissing(conn.address, user, missing)
}

/**
 * A refusal for want of a privilege (42501) as PRIVILEGE_MISSING, with all else that is missing; any other error as it
 * is.
 */
export async function explainRefusal(
  error: unknown,
  conn: PgConnection,
  part: Part,
  user: string,
): Promise<unknown> {
  if (sqlstateOf(error) !== '42501') return error
  const missing = await missingOrNone(conn, part)
  if (missing.length > 0) return privilegeMissing(conn.address, user, missing, error)
  const facts = {
    address: conn.address,
    user,
    reason: (error as ServerError).fields.message,
    remedy: 'Run "sterna doctor" with this connection string: it lists what is missing.',
  }
  return new SternaError('PRIVILEGE_MISSING', facts, error)
}

/** The connection may be gone by now; then there is only the refusal itself to say. */
async function missingOrNone(conn: PgConnection, part: Part): Promise<MissingPrivilege[]> {
  try {
    return await missingPrivileges(conn, part)
  } catch {
    return []
  }
}

function privilegeMissing(
  address: string,
  user: string,
  missing: readonly MissingPrivilege[],
  cause?: unknown,
): SternaError {
  const facts = {
    address,
    user,
    reason: missing.map(({ what }) => what).join('; '),
    remedy: `As a superuser there: ${missing.map(({ fix }) => fix).join(' ')}`,
  }
  return new SternaError('PRIVILEGE_MISSING', facts, cause)
}

async function mayUseSchema(conn: PgConnection, privilege: 'SELECT' | 'INSERT'): Promise<boolean> {
  const row = await conn.row<{ all: boolean }>(
    `select not exists (
       select from pg_catalog.pg_class c
        where c.relnamespace = 'sterna'::pg_catalog.regnamespace and c.relkind = 'r'
          and not pg_catalog.has_table_privilege(c.oid, $1)) as all`,
    [privilege],
  )
  return row!.all
}

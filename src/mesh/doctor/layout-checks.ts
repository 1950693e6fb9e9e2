import type { PgConnection } from '../../postgres/connection.ts'
import { sqlstateOf } from '../../postgres/server-error.ts'
import type { Finding } from './finding.ts'

const INSUFFICIENT_PRIVILEGE = '42501'

/**
 * What is wrong with the sequences of a node, where they are interleaved: a value that another node has used is no
 * danger there, but one on the node's own residue is.
 */
export async function checkSequenceLayout(server: string, conn: PgConnection): Promise<Finding[]> {
  const { rows: warned } = await conn.query<{ name: string; warning: string }>(
    `select quote_ident(schema_name) || '.' || quote_ident(sequence_name) as name, warning
     from sterna.sequences where warning is not null order by 1`,
  )
  const { rows: colliding } = await readCollisions(conn)
  return [
    ...colliding.map(({ name, owned_by, last_value, taken_value }) => ({
      severity: 'warn' as const,
      check: 'sequence_behind',
      server,
      object: name,
      what: `is at ${last_value}, but ${owned_by} already has ${taken_value}: an insert will fail`,
      fix: 'select sterna.sequences_skip_taken();',
    })),
    ...warned.map(({ name, warning }) => ({
      severity: 'warn' as const,
      check: 'sequence_layout',
      server,
      object: name,
      what: warning,
      fix: /select sterna\.\w+\(\)/.exec(warning)?.[0].concat(';') ?? null,
    })),
  ]
}

interface Collision {
  readonly name: string
  readonly owned_by: string
  readonly last_value: bigint
  readonly taken_value: bigint
}

async function readCollisions(conn: PgConnection): Promise<{ rows: readonly Collision[] }> {
  try {
    return await conn.query<Collision>(
      `select quote_ident(schema_name) || '.' || quote_ident(sequence_name) as name, owned_by, last_value,
         taken_value::bigint
       from sterna.sequence_collisions()`,
    )
  } catch (error) {
    if (sqlstateOf(error) !== INSUFFICIENT_PRIVILEGE) throw error
    return { rows: [] }
  }
}

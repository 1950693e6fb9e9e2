import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'

import { SternaError } from '../core/errors.ts'
import type { PgConnection } from '../postgres/connection.ts'

/** One file of `sql/`, named `NNN_name.sql`. */
export interface Migration {
  readonly version: number
  readonly name: string
  readonly sql: string
  /** SHA-256 of the file, in hex. */
  readonly sha: string
}

const DIRECTORY = join(import.meta.dirname, 'sql')
const FILE_PATTERN = /^(\d{3})_(\w+)\.sql$/

/** Advisory lock under which migrations run: "sterna" in ASCII. Advisory locks belong to one database. */
const LOCK_KEY = 0x73_74_65_72_6e_61n

/** All migrations that this release has, in order. */
export async function readMigrations(directory: string = DIRECTORY): Promise<Migration[]> {
  const files = (await readdir(directory)).filter((file) => FILE_PATTERN.test(file)).toSorted()
  return Promise.all(
    files.map(async (file) => {
      const [, version, name] = FILE_PATTERN.exec(file)!
      const sql = await readFile(join(directory, file), 'utf8')
      return {
        version: Number(version),
        name: name!,
        sql,
        sha: createHash('sha256').update(sql).digest('hex'),
      }
    }),
  )
}

/**
 * Brings schema `sterna` in this database to the form of this release: runs the migrations that are not recorded yet,
 * each in one transaction. Idempotent; of several callers at once, one does the work and the others wait.
 * @throws SCHEMA_NEWER; SCHEMA_EDITED; what SQL throws
 */
export async function installSchema(conn: PgConnection): Promise<void> {
  const migrations = await readMigrations()
  await conn.query('select pg_catalog.pg_advisory_lock($1)', [LOCK_KEY])
  try {
    const applied = await readApplied(conn)
    const newestKnown = migrations.at(-1)?.version ?? 0
    const newestApplied = Math.max(0, ...applied.keys())
    if (newestApplied > newestKnown) {
      throw new SternaError('SCHEMA_NEWER', {
        address: conn.address,
        version: newestApplied,
        known: newestKnown,
      })
    }
    for (const migration of migrations) {
      const sha = applied.get(migration.version)
      if (sha === undefined) await run(conn, migration)
      else if (sha !== migration.sha) {
        throw new SternaError('SCHEMA_EDITED', { address: conn.address, migration: migration.name })
      }
    }
  } finally {
    // Fails only with the session, and the lock is gone with that.
    await conn.query('select pg_catalog.pg_advisory_unlock($1)', [LOCK_KEY]).catch(() => {})
  }
}

/** The checksums of the applied migrations, by version. */
async function readApplied(conn: PgConnection): Promise<Map<number, string>> {
  const found = await conn.row<{ present: boolean }>(
    `select pg_catalog.to_regclass('sterna.schema_migration') is not null as present`,
  )
  if (!found?.present) return new Map()
  const { rows } = await conn.query<{ version: number; sha: string }>(
    'select version, sha from sterna.schema_migration',
  )
  return new Map(rows.map(({ version, sha }) => [version, sha]))
}

/**
 * The search path keeps objects that others have put into `public` out of the statements; `sterna.ddl_replication = off`
 * keeps the statements off the other nodes.
 */
async function run(conn: PgConnection, migration: Migration): Promise<void> {
  await conn.transaction(async () => {
    await conn.exec('set local search_path = pg_catalog, pg_temp; set local sterna.ddl_replication = off')
    await conn.exec(migration.sql)
    await conn.query('insert into sterna.schema_migration (version, name, sha) values ($1, $2, $3)', [
      migration.version,
      migration.name,
      migration.sha,
    ])
  })
}

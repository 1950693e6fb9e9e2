import { spawn } from 'node:child_process'
import { access, constants, readdir } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { PgConnection } from '../src/postgres/connection.ts'
import { parseDsn } from '../src/postgres/dsn.ts'

/** How much TPC-B to run, and where. */
export interface TpcbLoad {
  readonly dsn: string
  readonly scale: number
  readonly clients: number
  /** Transactions of each client. */
  readonly perClient: number
}

/** Runs TPC-B-like transactions, with pgbench where there is one. Commits do not wait for the disk. */
export async function runTpcb(load: TpcbLoad): Promise<void> {
  const pgbench = await findPgbench()
  await (pgbench === undefined ? runOwnDriver(load) : runPgbench(pgbench, load))
}

/** The newest pgbench of this machine; any version works with any server. */
export async function findPgbench(): Promise<string | undefined> {
  const root = '/usr/lib/postgresql'
  const versions = await readdir(root).catch(() => [])
  const directories = [
    ...versions.toSorted((a, b) => Number(b) - Number(a)).map((version) => join(root, version, 'bin')),
    ...(process.env['PATH'] ?? '').split(delimiter),
  ]
  for (const directory of directories) {
    const path = join(directory, 'pgbench')
    const works = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    )
    if (works) return path
  }
  return undefined
}

async function runPgbench(pgbench: string, { dsn, clients, perClient }: TpcbLoad): Promise<void> {
  const { host, port, user, password, database } = parseDsn(dsn)
  const args = ['-n', '-M', 'prepared', '-c', String(clients), '-j', '1', '-t', String(perClient)]
  const child = spawn(pgbench, [...args, '-h', host, '-p', String(port), '-U', user, database], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, PGPASSWORD: password ?? '', PGOPTIONS: '-c synchronous_commit=off' },
  })
  let errors = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text
  })
  const code = await new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  if (code !== 0) throw new Error(`pgbench ended with ${code}:\n${errors}`)
}

/** The same transactions as pgbench's, one string each. */
async function runOwnDriver({ dsn, scale, clients, perClient }: TpcbLoad): Promise<void> {
  const below = (limit: number): number => Math.floor(Math.random() * limit)
  const client = async (): Promise<void> => {
    const connection = await PgConnection.connect(dsn, { applicationName: 'bench load' })
    try {
      await connection.exec('set synchronous_commit = off')
      for (let i = 0; i < perClient; i++) {
        const [aid, bid, tid] = [1 + below(scale * 100_000), 1 + below(scale), 1 + below(scale * 10)]
        const delta = below(10_001) - 5000
        await connection.exec(
          `begin;
           update pgbench_accounts set abalance = abalance + ${delta} where aid = ${aid};
           select abalance from pgbench_accounts where aid = ${aid};
           update pgbench_tellers set tbalance = tbalance + ${delta} where tid = ${tid};
           update pgbench_branches set bbalance = bbalance + ${delta} where bid = ${bid};
           insert into pgbench_history (tid, bid, aid, delta, mtime) values (${tid}, ${bid}, ${aid}, ${delta}, current_timestamp);
           end`,
        )
      }
    } finally {
      await connection.close()
    }
  }
  await Promise.all(Array.from({ length: clients }, client))
}

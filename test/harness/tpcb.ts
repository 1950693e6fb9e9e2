import { setTimeout as delay } from 'node:timers/promises'
import { PgConnection } from '../../src/postgres/connection.ts'

/** Tables in the manner of TPC-B. History has no key, so that a row which arrives twice is there twice. */
export const TPCB_SCHEMA = `
  create table tpcb_branch (bid int primary key, balance bigint not null default 0, filler text);
  create table tpcb_teller (tid int primary key, bid int not null, balance bigint not null default 0, filler text);
  create table tpcb_account (aid int primary key, bid int not null, balance bigint not null default 0, filler text);
  create table tpcb_history (marker text not null, tid int not null, bid int not null, aid int not null, delta int not null,
                             at timestamptz not null default clock_timestamp());
  insert into tpcb_branch (bid) select i from generate_series(1, 4) i;
  insert into tpcb_teller (tid, bid) select i, i % 4 + 1 from generate_series(1, 40) i;
  insert into tpcb_account (aid, bid, filler) select i, i % 4 + 1, repeat('x', 80) from generate_series(1, 4000) i;`

/** What became of the transactions of all clients, by the markers that they wrote into history. */
export interface TpcbOutcome {
  /** The client was told that it is committed. */
  readonly committed: readonly string[]
  /** The connection was lost while COMMIT was under way. */
  readonly unknown: readonly string[]
  /** The transaction failed before COMMIT was sent. */
  readonly failed: readonly string[]
}

export interface RunningTpcb {
  /** Transactions committed so far. */
  readonly committedCount: number
  /** Ends all clients, each after its current transaction. */
  stop(): Promise<TpcbOutcome>
}

/**
 * Starts clients that run TPC-B-like transactions and go through the loss of their connection. What a connection does not
 * answer within a while counts as lost.
 */
export function startTpcb(
  targets: readonly { readonly name: string; readonly dsn: string }[],
  options: { readonly clientsPerNode: number; readonly random: () => number },
): RunningTpcb {
  const outcome = { committed: [] as string[], unknown: [] as string[], failed: [] as string[] }
  let running = true
  const clients = targets.flatMap(({ name, dsn }) =>
    Array.from({ length: options.clientsPerNode }, (_, k) =>
      runClient(`${name}-${k}`, dsn, options.random, outcome, () => running),
    ),
  )
  return {
    get committedCount() {
      return outcome.committed.length
    },
    async stop() {
      running = false
      await Promise.all(clients)
      return outcome
    },
  }
}

async function runClient(
  name: string,
  dsn: string,
  random: () => number,
  outcome: { committed: string[]; unknown: string[]; failed: string[] },
  isRunning: () => boolean,
): Promise<void> {
  let session: PgConnection | undefined
  for (let n = 0; isRunning(); n++) {
    session ??= await PgConnection.connect(dsn, { applicationName: 'tpcb' }).catch(() => undefined)
    if (!session) {
      await delay(50)
      continue
    }
    const marker = `${name}-${n}`
    const pick = (count: number): number => 1 + Math.floor(random() * count)
    const [aid, tid, bid, delta] = [pick(4000), pick(40), pick(4), pick(10_000) - 5000]
    let sent = false
    try {
      await session.exec(`begin;
        update tpcb_account set balance = balance + ${delta} where aid = ${aid};
        select balance from tpcb_account where aid = ${aid};
        update tpcb_teller set balance = balance + ${delta} where tid = ${tid};
        update tpcb_branch set balance = balance + ${delta} where bid = ${bid};
        insert into tpcb_history (marker, tid, bid, aid, delta) values ('${marker}', ${tid}, ${bid}, ${aid}, ${delta})`)
      sent = true
      await session.exec('commit')
      outcome.committed.push(marker)
    } catch {
      if (sent) outcome.unknown.push(marker)
      else outcome.failed.push(marker)
      session.destroy()
      session = undefined
    }
  }
  await session?.close()
}

import type { Bed, BenchTable } from './bed.ts'
import { runTpcb } from './tpcb.ts'

/** A row of work: tables, and a backlog to apply to them. */
export interface Work {
  /** For `--json` and for choosing it: `tpcb`. */
  readonly id: string
  readonly title: string
  readonly tables: readonly BenchTable[]
  /** Makes and fills the tables. */
  readonly schema: string
  /** How much one backlog is, and of what. */
  readonly amount: number
  readonly unit: 'transactions' | 'rows'
  /** Run on each of the three databases before a round, with no replication. */
  readonly reset: string
  /** Brings what one round touches into the cache of the server. */
  readonly warm: string
  /** Makes the backlog at the provider. */
  generate(bed: Bed): Promise<void>
}

/** Rows of an account table per unit of scale, as pgbench has it. */
const ACCOUNTS = 100_000
const CLIENTS = 4

/** Many small transactions: pgbench's TPC-B-like one, with three updates and an insert each. */
export function tpcbWork(transactions: number, scale: number): Work {
  const amount = Math.ceil(transactions / CLIENTS) * CLIENTS
  return {
    id: 'tpcb',
    title: `${amount} TPC-B transactions, scale ${scale}`,
    tables: [
      { name: 'pgbench_accounts', keyed: true },
      { name: 'pgbench_tellers', keyed: true },
      { name: 'pgbench_branches', keyed: true },
      { name: 'pgbench_history', keyed: false },
    ],
    // What pgbench -i makes, except that it makes it with the same rows on every database.
    schema: `
      create table pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
      create table pgbench_tellers (tid int primary key, bid int, tbalance int, filler char(84)) with (fillfactor = 100);
      create table pgbench_accounts (aid int primary key, bid int, abalance int, filler char(84)) with (fillfactor = 100);
      create table pgbench_branches (bid int primary key, bbalance int, filler char(88)) with (fillfactor = 100);
      insert into pgbench_branches (bid, bbalance) select i, 0 from generate_series(1, ${scale}) i;
      insert into pgbench_tellers (tid, bid, tbalance) select i, (i - 1) / 10 + 1, 0 from generate_series(1, ${scale * 10}) i;
      insert into pgbench_accounts (aid, bid, abalance, filler)
        select i, (i - 1) / ${ACCOUNTS} + 1, 0, '' from generate_series(1, ${scale * ACCOUNTS}) i;`,
    amount,
    unit: 'transactions',
    reset: 'vacuum pgbench_accounts, pgbench_tellers, pgbench_branches, pgbench_history',
    // By the index: a sequential scan of a large table passes the cache by.
    warm: `set enable_seqscan = off; set enable_bitmapscan = off; set max_parallel_workers_per_gather = 0;
           select sum(abalance) from pgbench_accounts where aid > 0;
           select sum(tbalance) from pgbench_tellers where tid > 0;
           select sum(bbalance) from pgbench_branches where bid > 0; reset all`,
    generate: (bed) =>
      runTpcb({ dsn: bed.dsn.provider, scale, clients: CLIENTS, perClient: amount / CLIENTS }),
  }
}

/** Two large transactions: an insert, then an update of two fifths of its rows. */
export function bulkWork(rows: number): Work {
  const updated = Math.floor((rows * 2) / 5)
  return {
    id: 'bulk',
    title: `one ${rows}-row insert, one ${updated}-row update`,
    tables: [{ name: 'bench_bulk', keyed: true }],
    schema: `create table bench_bulk (id bigint primary key, account int not null, amount numeric(12,2) not null,
               note text not null, changed_at timestamptz not null)`,
    amount: rows + updated,
    unit: 'rows',
    reset: 'truncate bench_bulk',
    warm: 'select 1',
    async generate(bed) {
      await bed.provider.exec(
        `insert into bench_bulk select i, i % 1000, (i % 100000) / 100.0, 'note of row ' || i || repeat('.', 40), now()
           from generate_series(1, ${rows}) i`,
      )
      await bed.provider.exec(
        `update bench_bulk set amount = amount + 1, changed_at = now() where id <= ${updated}`,
      )
    },
  }
}

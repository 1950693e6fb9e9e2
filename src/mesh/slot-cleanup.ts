import { messageOf } from '../core/errors.ts'
import { PgConnection } from '../postgres/connection.ts'
import type { LocalNode } from './definitions.ts'
import type { KeyedLock } from './keyed-lock.ts'
import type { Log } from './log.ts'

const QUERY_TIMEOUT_MS = 10_000

interface CleanupRow {
  id: bigint
  provider_dsn: string
  slot_name: string
  origin_name: string | null
  last_error: string | null
}

/**
 * Drops, at their providers, the slots of subscriptions that were dropped here. What cannot be reached stays on the list
 * with its reason. `origins`: held, by name of the origin, by whoever makes or drops an origin and its slot: a subscription
 * that is created again at once uses both names again.
 */
export async function cleanSlots(
  control: PgConnection,
  local: LocalNode,
  origins: KeyedLock,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  const { rows } = await control.query<CleanupRow>(
    'select id, provider_dsn, slot_name::text, origin_name, last_error from sterna.slot_cleanup order by id',
  )
  for (const row of rows) {
    if (signal.aborted) return
    try {
      await origins.hold(row.origin_name ?? row.slot_name, () => clean(control, row, local, log, signal))
    } catch (error) {
      log.debug({ slot: row.slot_name, reason: messageOf(error) }, 'slot cannot be dropped yet')
      // Each update wakes the agent, which would try again at once.
      if (row.last_error !== messageOf(error))
        await control.query('update sterna.slot_cleanup set last_error = $2 where id = $1', [
          row.id,
          messageOf(error),
        ])
    }
  }
}

async function clean(
  control: PgConnection,
  row: CleanupRow,
  local: LocalNode,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  // A subscription that took over the names while we waited has taken the entry off the list.
  const still = await control.row('select from sterna.slot_cleanup where id = $1', [row.id])
  if (!still) return
  await dropSlot(row, local, signal)
  if (row.origin_name !== null) {
    await control.query(
      `select pg_replication_origin_drop(roname) from pg_replication_origin
        where roname = $1 and not exists (select from sterna.subscription s where s.origin_name = $1)`,
      [row.origin_name],
    )
  }
  await control.query('delete from sterna.slot_cleanup where id = $1', [row.id])
  log.info({ slot: row.slot_name }, 'slot of a dropped subscription dropped')
}

async function dropSlot(row: CleanupRow, local: LocalNode, signal: AbortSignal): Promise<void> {
  const provider = await PgConnection.connect(row.provider_dsn, {
    applicationName: `sterna ${local.nodeName} cleanup`,
    signal,
  })
  provider.defaultTimeoutMs = QUERY_TIMEOUT_MS
  try {
    await provider.query(
      'select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1',
      [row.slot_name],
    )
  } finally {
    await provider.close()
  }
}

import type { Key, Values } from '../mesh/conflict/change.ts'
import {
  ABSENT,
  heldVersion,
  type KeyedRow,
  type KeyState,
  type Tombstone,
} from '../mesh/conflict/key-state.ts'
import type { Write } from '../mesh/conflict/resolve.ts'
import type { LocalRules } from '../mesh/conflict/rules.ts'
import { collidingConstraints } from '../mesh/conflict/set-aside.ts'
import { compareVersions, mayReplace, type RowVersion } from '../mesh/conflict/version.ts'
import type { Rule } from './plan.ts'

/** A transaction that writes rows: its id here, and the timestamp and origin that its commit has. */
export interface Stamp {
  readonly xid: number
  readonly version: RowVersion
}

interface StoredRow {
  readonly values: Values
  readonly xmin: Stamp
}

/** What PostgreSQL would answer with SQLSTATE 23505. Apply never runs into it. */
export class UniqueViolation extends Error {
  override name = 'UniqueViolation'
}

/**
 * One table as PostgreSQL and schema `sterna` would store it: a row in the table has no version of its own but that of the
 * transaction that wrote it, unless `row_clock` says otherwise for the same `xmin`.
 */
export class StoredTable {
  readonly rules: LocalRules
  readonly #off: Rule | null
  readonly #rows: Map<Key, StoredRow>
  readonly #aside: Map<Key, { readonly values: Values; readonly version: RowVersion | null }>
  readonly #tombstones: Map<Key, Tombstone>
  readonly rowClock: Map<Key, { readonly xid: number; readonly version: RowVersion }>
  truncated: RowVersion | null

  constructor(rules: LocalRules, off: Rule | null, copied?: StoredTable) {
    this.rules = rules
    this.#off = off
    this.#rows = new Map(copied ? copied.#rows : [])
    this.#aside = new Map(copied ? copied.#aside : [])
    this.#tombstones = new Map(copied ? copied.#tombstones : [])
    this.rowClock = new Map(copied ? copied.rowClock : [])
    this.truncated = copied ? copied.truncated : null
  }

  copy(): StoredTable {
    return new StoredTable(this.rules, this.#off, this)
  }

  held(key: Key): KeyState {
    const stored = this.#rows.get(key)
    if (stored) {
      return {
        row: { values: stored.values, version: this.#versionOf(key, stored), visible: true },
        tombstone: null,
      }
    }
    const aside = this.#aside.get(key)
    if (aside) return { row: { ...aside, visible: false }, tombstone: null }
    const tombstone = this.#tombstones.get(key)
    return tombstone ? { row: null, tombstone } : ABSENT
  }

  /** All keys of which something is known, sorted. */
  entries(): { readonly key: Key; readonly state: KeyState }[] {
    const keys = new Set([...this.#rows.keys(), ...this.#aside.keys(), ...this.#tombstones.keys()])
    return [...keys].toSorted().map((key) => ({ key, state: this.held(key) }))
  }

  aside(): KeyedRow[] {
    return [...this.#aside].map(([key, { values, version }]) => ({ key, values, version, visible: false }))
  }

  /** Rows under other keys, visible or aside, that share a unique value. */
  colliding(key: Key, values: Values): KeyedRow[] {
    const { uniques } = this.rules
    const found: KeyedRow[] = []
    if (uniques.length === 0) return found
    for (const [other, row] of this.#rows) {
      if (other !== key && collidingConstraints(row.values, values, uniques).length > 0) {
        found.push({ key: other, values: row.values, version: this.#versionOf(other, row), visible: true })
      }
    }
    for (const [other, row] of this.#aside) {
      if (other !== key && collidingConstraints(row.values, values, uniques).length > 0) {
        found.push({ ...row, key: other, visible: false })
      }
    }
    return found
  }

  notNewer(version: RowVersion): { readonly key: Key; readonly state: KeyState }[] {
    return this.entries().filter(({ state }) => mayReplace(version, heldVersion(state)))
  }

  /** Carries out writes in the transaction `stamp`, in their order. @throws UniqueViolation */
  write(writes: readonly Write[], stamp: Stamp): void {
    for (const { key, after } of writes) {
      this.#aside.delete(key)
      this.#tombstones.delete(key)
      if (!after.row?.visible) this.#rows.delete(key)
      if (after.tombstone && this.#off !== 'tombstones') this.#bury(key, after.tombstone)
      if (!after.row) continue
      const { values, version, visible } = after.row
      if (visible) this.#put(key, values, version, stamp)
      else if (this.#off !== 'set-aside') this.#aside.set(key, { values, version })
    }
  }

  /** What is forgotten: tombstones, and entries of row_clock, for which `may…` says so or that are void. */
  forget(
    mayDropTombstone: (key: Key, tombstone: Tombstone) => boolean,
    mayDropClock: (version: RowVersion, written: RowVersion, isNearAside: boolean) => boolean,
  ): number {
    let forgotten = 0
    for (const [key, tombstone] of this.#tombstones) {
      if (mayDropTombstone(key, tombstone) && this.#tombstones.delete(key)) forgotten += 1
    }
    for (const [key, { xid, version }] of this.rowClock) {
      const row = this.#rows.get(key)
      const isVoid = row?.xmin.xid !== xid
      const isNearAside = !isVoid && this.colliding(key, row.values).some(({ visible }) => !visible)
      if (isVoid || mayDropClock(version, row.xmin.version, isNearAside)) {
        this.rowClock.delete(key)
        forgotten += 1
      }
    }
    return forgotten
  }

  #bury(key: Key, tombstone: Tombstone): void {
    this.#tombstones.set(key, this.#off === 'delta-remainder' ? { ...tombstone, remainder: {} } : tombstone)
  }

  #put(key: Key, values: Values, version: RowVersion | null, stamp: Stamp): void {
    const other = this.colliding(key, values).find(({ visible }) => visible)
    if (other) throw new UniqueViolation(`${key} and ${other.key} have the same unique value`)
    this.#rows.set(key, { values, xmin: stamp })
    if (version === null || compareVersions(version, stamp.version) === 0) this.rowClock.delete(key)
    else if (this.#off !== 'row-clock') this.rowClock.set(key, { xid: stamp.xid, version })
  }

  #versionOf(key: Key, { xmin }: StoredRow): RowVersion {
    const entry = this.rowClock.get(key)
    return entry?.xid === xmin.xid ? entry.version : xmin.version
  }
}

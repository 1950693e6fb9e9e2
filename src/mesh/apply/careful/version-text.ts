import { pgTimeOf } from '../../../core/pg-time.ts'
import type { RowVersion } from '../../conflict/version.ts'

/** A version as `sterna.version_json` gives it; nulls: none is known. */
export interface VersionJson {
  readonly at: string | null
  readonly node: number | string | null
}

export function versionOf({ at, node }: VersionJson): RowVersion | null {
  return at === null || node === null ? null : { time: pgTimeOf(BigInt(at)), nodeId: Number(node) }
}

/** The two parameters by which `versionSql` takes a version. */
export function versionParams(version: RowVersion | null): [string | null, string | null] {
  return version === null ? [null, null] : [String(version.time), String(version.nodeId)]
}

/** SQL for the version in two parameters, the first of which is `$number`. */
export function versionSql(number: number): string {
  return `(case when $${number}::bigint is not null then row(sterna.time_of($${number}::bigint), $${number + 1}::integer)::sterna.row_version end)`
}

import { UNCHANGED, type Change, type SentValues } from '../mesh/conflict/change.ts'

/** A change in one line. */
export function describeChange(table: string, change: Change): string {
  const at = `@(${change.version.time},n${change.version.nodeId})`
  switch (change.tag) {
    case 'insert':
      return `${table} INSERT ${change.key} ${row(change.values)} ${at}`
    case 'update': {
      const moved = change.oldKey === change.key ? change.key : `${change.oldKey} to ${change.key}`
      return `${table} UPDATE ${moved} ${row(change.values)} ${at}`
    }
    case 'delete':
      return `${table} DELETE ${change.key} ${at}`
    case 'cancel':
      return `${table} CANCEL ${change.key} ${row(change.amounts)} ${at}`
    case 'truncate':
      return `${table} TRUNCATE ${at}`
  }
}

function row(values: SentValues): string {
  return Object.entries(values)
    .map(([column, value]) => `${column}=${value === UNCHANGED ? '(unchanged)' : (value ?? 'null')}`)
    .join(' ')
}

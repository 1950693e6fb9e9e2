import { quoteIdent } from '../../core/quote.ts'
import {
  admitted,
  burySql,
  emptySql,
  keyIs,
  putSql,
  rememberTruncateSql,
  removeSql,
  tellsCreation,
  type Origin,
  type TablePlan,
} from './table-plan.ts'

/** What a statement of a plan does. */
export type Write =
  | { readonly tag: 'put'; readonly operation: 'insert' | 'update' }
  | { readonly tag: 'delete' }
  | { readonly tag: 'truncate' }

/** High half of the key of the advisory lock between sessions that create rows and those that delete. Source: sterna.tombstone_lock. */
const TOMBSTONE_LOCK_CLASS = 9215n

/**
 * The body of the function that does a write with the rights of the table's owner; it returns how many rows it changed.
 * Its parameters are those of the statement of the same name in table-plan.
 */
export function ownerFunctionBody(plan: TablePlan, write: Write, origin: Origin): string {
  return `
#variable_conflict use_column
declare
  sterna_count bigint;
  sterna_admitted boolean;
begin
  ${bodyStatements(plan, write, origin)}
  return sterna_count;
end`
}

function bodyStatements(plan: TablePlan, write: Write, origin: Origin): string {
  const count = 'get diagnostics sterna_count = row_count;'
  switch (write.tag) {
    case 'put':
      return putStatements(plan, write.operation, putSql(plan, write.operation, origin), count)
    case 'delete': {
      const remove = `${removeSql(plan, origin)};
  ${count}`
      if (plan.guardOid === null) return remove
      // As in bury: a session that applies an older change may have created the row just now, unseen.
      return `${remove}
  if sterna_count = 0 then
    perform pg_advisory_xact_lock(${(TOMBSTONE_LOCK_CLASS << 32n) | BigInt(plan.guardOid)});
    ${remove}
  end if;`
    }
    case 'truncate':
      return `${emptySql(plan, origin)};
  ${count}`
  }
}

/** A row for which the guard of the table finds a newer tombstone is removed by the one who inserted it. */
function putStatements(
  plan: TablePlan,
  operation: 'insert' | 'update',
  statement: string,
  count: string,
): string {
  if (plan.keyPositions.length === 0) return `${statement} into sterna_admitted; ${count}`
  const put = tellsCreation(plan, operation) ? `${statement} into sterna_admitted` : statement
  if (plan.guardOid === null) return `${put}; ${count}`
  return `perform set_config('sterna.too_old', '', true);
  ${put};
  ${count}
  if current_setting('sterna.too_old') = '${plan.oid}' then
    delete from ${plan.rows} t where ${keyIs(plan, (position) => position + 1)} and ${admitted(plan)};
  end if;`
}

/** How many parameters the statement has; the last one is the commit timestamp. */
function parameterCount(plan: TablePlan, write: Write): number {
  switch (write.tag) {
    case 'put':
      return plan.remote.columns.length + 1
    case 'delete':
      return plan.keyPositions.length + 1
    case 'truncate':
      return 1
  }
}

/**
 * The statement that calls the function and sees afterwards that nothing is left behind in the session. `announced`: the
 * session tells triggers the timestamp of the transaction, and has to tell it again.
 */
export function ownerFunctionCall(
  plan: TablePlan,
  write: Write,
  name: string,
  origin: Origin,
  announced: boolean,
): string {
  const time = parameterCount(plan, write)
  const list = Array.from({ length: time }, (_, i) => `$${i + 1}`).join(', ')
  const args = plan.recordParameters ? `row(${list})` : list
  const changed = `sterna.apply_guard(sterna_apply.${quoteIdent(name)}(${args}), ${announced ? `$${time}` : 'null'})`
  if (plan.guardOid !== null && write.tag === 'delete')
    return `select 1 from (select ${changed} as changed offset 0) x where case when ${burySql(plan, 'true', origin)} then x.changed end`
  if (plan.guardOid !== null && write.tag === 'truncate')
    return rememberTruncateSql(
      plan,
      `from (select ${changed} as changed offset 0) x where x.changed is not null`,
      origin,
    )
  return `select 1 where ${changed}`
}

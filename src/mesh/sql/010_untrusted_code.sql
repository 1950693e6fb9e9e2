-- Code of ordinary roles in the way of apply. An ordinary role that owns a table can attach code to it (triggers that fire
-- always, check constraints, expressions of indexes, generated columns, domains), and apply writes with the rights of Sterna.
--
-- Tables without such code are written by plain statements. Each of these carries apply_trusted(), which PostgreSQL
-- evaluates when it plans the statement, not when it executes it: once for a prepared statement, and again after the table
-- or a name has changed, since that invalidates the plan. The lock under which it is planned keeps the table as it was
-- looked at. Tables with such code are written by functions that belong to their owners, in schema sterna_apply.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST005  a table was given such code, or another owner, after apply had looked at it: it looks again
-- ST006  code of an ordinary role left something that would be executed with the rights of Sterna

-- Functions made by apply sessions. Nobody else may use the schema: so the roles that own them cannot name them, hence
-- neither replace nor alter nor call them, which in pg_temp they could.
create schema sterna_apply;
revoke all on schema sterna_apply from public;

-- Whether a role may as well have the rights of Sterna.
create function sterna.trusted_role(role_oid oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from pg_roles r where r.oid = role_oid and (r.rolsuper or r.rolname = current_user))
$$;

-- Whether a function that anybody may put into an expression does no harm with the rights of Sterna: it belongs to a
-- trusted role, and computes only. Some functions of PostgreSQL itself execute SQL or read files (query_to_xml), none of them
-- immutable; of the stable ones, those of date and time are let through.
create function sterna.function_trusted(function_oid oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from pg_proc p
     where p.oid = function_oid and sterna.trusted_role(p.proowner)
       and (p.provolatile = 'i'
            or p.pronamespace = 'pg_catalog'::regnamespace and p.provolatile = 's'
               and (p.proname in ('now', 'transaction_timestamp', 'statement_timestamp')
                    or p.proargtypes::oid[] && '{1082,1083,1266,1114,1184,1186}'
                       and p.proargtypes::oid[] <@ '{1082,1083,1266,1114,1184,1186,25}')))
$$;

-- Whether an expression, as catalogs store it, calls nothing but trusted functions. Unknown kinds of nodes are not trusted.
create function sterna.expression_trusted(tree text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return tree is null or not exists (
    select from regexp_matches(tree, '\{([A-Z]\w*)', 'g') m
     where m[1] not in ('VAR', 'CONST', 'PARAM', 'FUNCEXPR', 'OPEXPR', 'DISTINCTEXPR', 'NULLIFEXPR', 'SCALARARRAYOPEXPR', 'BOOLEXPR',
       'NULLTEST', 'BOOLEANTEST', 'CASE', 'CASEEXPR', 'WHEN', 'CASEWHEN', 'CASETESTEXPR', 'COALESCE', 'COALESCEEXPR', 'MINMAX',
       'MINMAXEXPR', 'RELABELTYPE', 'COERCEVIAIO', 'ARRAYCOERCEEXPR', 'ARRAY', 'ARRAYEXPR', 'ROW', 'ROWEXPR', 'ROWCOMPARE',
       'ROWCOMPAREEXPR', 'FIELDSELECT', 'COERCETODOMAIN', 'COERCETODOMAINVALUE', 'COLLATEEXPR', 'COLLATE', 'SUBSCRIPTINGREF',
       'SQLVALUEFUNCTION', 'NAMEDARGEXPR')
  ) and not exists (
    select from regexp_matches(tree, ':\w*func_?id (\d+)', 'g') m
     where m[1] <> '0' and not sterna.function_trusted(m[1]::oid)
  ) and not exists (
    select from (select m[1] as oid from regexp_matches(tree, ':opno (\d+)', 'g') m
                 union select o from regexp_matches(tree, ':opnos \(o ([\d ]+)\)', 'g') m, regexp_split_to_table(m[1], ' ') o) u
     where not exists (select from pg_operator o where o.oid = u.oid::oid and sterna.function_trusted(o.oprcode))
  ) and not exists (
    select from regexp_matches(tree, ':\w*type(?:id)? (\d+)', 'gi') m
     where m[1] <> '0' and not sterna.type_trusted(m[1]::oid)
  );
end $$;

-- Whether reading, converting and checking a value of a type runs trusted code only. Domains and composites of ordinary roles
-- are not trusted whatever they are now: their owner can change them without a lock on the tables that use them.
create function sterna.type_trusted(type_oid oid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  t record;
begin
  if type_oid < 16384 then
    return true;
  end if;
  select p.typtype, p.typelem, p.typcategory, p.typbasetype, p.typowner, p.typrelid into t from pg_type p where p.oid = type_oid;
  if t.typtype = 'd' then
    return sterna.trusted_role(t.typowner) and sterna.type_trusted(t.typbasetype)
       and not exists (select from pg_constraint k where k.contypid = type_oid and not sterna.expression_trusted(k.conbin::text));
  elsif t.typtype = 'c' then
    return sterna.trusted_role(t.typowner)
       and not exists (select from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                                                    and not sterna.type_trusted(a.atttypid));
  elsif t.typtype in ('r', 'm') then
    return not exists (
      select from pg_range r
       where type_oid in (r.rngtypid, r.rngmultitypid)
         and not (sterna.type_trusted(r.rngsubtype)
                  and (r.rngcanonical = 0 or sterna.function_trusted(r.rngcanonical))
                  and (r.rngsubdiff = 0 or sterna.function_trusted(r.rngsubdiff))));
  elsif t.typtype = 'b' and t.typelem <> 0 and t.typcategory = 'A' then
    return sterna.type_trusted(t.typelem);
  end if;
  -- Base types are made by superusers, enumerations have no code.
  return coalesce(t.typtype in ('b', 'e'), false);
end $$;

-- Whether a trigger is one of Sterna or of PostgreSQL itself.
create function sterna.trigger_trusted(internal boolean, function_oid oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from pg_proc p where p.oid = function_oid and sterna.trusted_role(p.proowner)
                    and (p.pronamespace = 'sterna'::regnamespace or internal and p.pronamespace = 'pg_catalog'::regnamespace))
$$;

-- Whether a write to this very relation, in a session that applies, runs trusted code only. Column defaults apart.
create function sterna.relation_trusted(relation oid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from pg_class c where c.oid = relation and c.relkind in ('r', 'p'))
    and not exists (select from pg_trigger t where t.tgrelid = relation and t.tgenabled in ('A', 'R')
                       and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid))
    and not exists (select from pg_rewrite r where r.ev_class = relation and r.ev_enabled in ('A', 'R'))
    and not exists (select from pg_constraint k where k.conrelid = relation and not sterna.expression_trusted(k.conbin::text))
    and not exists (select from pg_attribute a join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
                     where a.attrelid = relation and a.attgenerated <> '' and not sterna.expression_trusted(d.adbin::text))
    and not exists (select from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
                       and not sterna.type_trusted(a.atttypid))
    and not exists (select from pg_index i where i.indrelid = relation
                       and not (sterna.expression_trusted(i.indexprs::text) and sterna.expression_trusted(i.indpred::text)))
    and not exists (select from pg_partitioned_table p where p.partrelid = relation and not sterna.expression_trusted(p.partexprs::text))
    and not exists (
      select from (select unnest(i.indclass::oid[]) as class from pg_index i where i.indrelid = relation
                   union select unnest(p.partclass::oid[]) from pg_partitioned_table p where p.partrelid = relation) u
        join pg_opclass c on c.oid = u.class and c.oid >= 16384
       where exists (select from pg_amproc f where f.amprocfamily = c.opcfamily
                        and not exists (select from pg_proc p where p.oid = f.amproc and sterna.trusted_role(p.proowner)))
          or exists (select from pg_amop f join pg_operator o on o.oid = f.amopopr where f.amopfamily = c.opcfamily
                        and not exists (select from pg_proc p where p.oid = o.oprcode and sterna.trusted_role(p.proowner))))
$$;

-- A table with its partitions and the tables that it is a partition of.
create function sterna.partition_family(relation oid) returns table (relid oid, relowner oid)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select c.oid, c.relowner from pg_class c
   where c.oid = relation or c.oid in (select t.relid from pg_partition_tree(relation) t)
      or c.oid in (select a.relid from pg_partition_ancestors(relation) a)
$$;

-- Whether apply may write a table by plain statements. `written`: the columns that an insert gives values to; null: no insert.
create function sterna.table_trusted(relation oid, written name[]) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when not exists (select from sterna.partition_family(relation) f where not sterna.trusted_role(f.relowner)) then true
    -- A partition comes and changes without a lock that would keep it from a statement on the table above it.
    when (select c.relkind from pg_class c where c.oid = relation) <> 'r' then false
    else not exists (select from sterna.partition_family(relation) f
                      where not sterna.trusted_role(f.relowner) and not sterna.relation_trusted(f.relid))
     and (written is null or not exists (
       select from pg_attribute a join pg_type t on t.oid = a.atttypid
         left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attname <> all (written)
          and not (sterna.expression_trusted(d.adbin::text) and sterna.expression_trusted(t.typdefaultbin::text))))
  end
$$;

-- Why apply cannot write a table that is not trusted, not even as its owner; null: it can.
create function sterna.code_refusal(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    (select format('table %s belongs to "%s", and its partition or parent %s with code of its own to "%s"',
                   c.oid::regclass, pg_get_userbyid(c.relowner), f.relid::regclass, pg_get_userbyid(f.relowner))
       from sterna.partition_family(relation) f
      where f.relowner <> c.relowner and not sterna.trusted_role(f.relowner)
        and (c.relkind <> 'r' or not sterna.relation_trusted(f.relid))
      limit 1),
    (select format('trigger %I of table %s is deferrable and fires in all sessions: it would run at the end of the transaction',
                   t.tgname, t.tgrelid::regclass)
       from sterna.partition_family(relation) f
       join pg_trigger t on t.tgrelid = f.relid and t.tgdeferrable and t.tgenabled in ('A', 'R')
      where not sterna.trigger_trusted(t.tgisinternal, t.tgfoid)
      limit 1),
    (select format('a column of the key of table %s has type %s, which has code of its own', c.oid::regclass, a.atttypid::regtype)
       from sterna.key_equality(relation) e join pg_attribute a on a.attrelid = relation and a.attname = e.name
      where not sterna.type_trusted(sterna.base_type(a.atttypid))
      limit 1),
    case when c.relrowsecurity and c.relforcerowsecurity
         then format('table %s has code of its own and forces row security on its owner', c.oid::regclass) end)
    from pg_class c where c.oid = relation
$$;

-- Raises ST005 unless the table that the statement writes may be written by plain statements. `target` is a null of the
-- table's row type, so it is the very table that the statement writes, whatever has got its name meanwhile.
create function sterna.apply_trusted(target anyelement, written name[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  -- An immutable function sees what the statement sees, which may have begun before the lock was granted.
  return sterna.apply_trusted_now(pg_typeof(target), written);
end $$;

create function sterna.apply_trusted_now(row_type oid, written name[]) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_relation constant oid := (select t.typrelid from pg_type t where t.oid = row_type);
begin
  if not sterna.table_trusted(v_relation, written) then
    raise exception 'table % has code of an ordinary role now', v_relation::regclass using errcode = 'ST005';
  end if;
  return true;
end $$;

-- The same within functions of table owners: raises ST005 unless the table belongs to the one who writes it.
create function sterna.apply_as_owner(target anyelement) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return sterna.apply_as_owner_now(pg_typeof(target));
end $$;

create function sterna.apply_as_owner_now(row_type oid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_type t join pg_class c on c.oid = t.typrelid
                  where t.oid = row_type and pg_get_userbyid(c.relowner) = current_user) then
    raise exception 'a table has another owner now' using errcode = 'ST005';
  end if;
  return true;
end $$;

-- Makes the function by which apply writes a table as its owner: in such a one PostgreSQL refuses SET ROLE, RESET ROLE and
-- SET SESSION AUTHORIZATION. Parameter types null: one record. `fresh`: those that the node's sessions made before go.
create function sterna.apply_function(node integer, name text, fresh boolean, owner oid, parameter_types oid[], body text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set check_function_bodies = off as $$
declare
  v_function regprocedure;
  v_parameters constant text := coalesce(
    (select string_agg(format_type(p.type, null), ', ' order by p.position) from unnest(parameter_types) with ordinality as p(type, position)),
    'sterna_row record');
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'sterna_apply'::regnamespace
       and (p.proname = apply_function.name or fresh and p.proname ^@ format('n%s_', node))
  loop
    execute format('drop function %s', v_function);
  end loop;
  execute format('create function sterna_apply.%I(%s) returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
                 name, v_parameters, body);
  select p.oid::regprocedure into strict v_function from pg_proc p
   where p.pronamespace = 'sterna_apply'::regnamespace and p.proname = apply_function.name;
  execute format('alter function %s owner to %I', v_function, pg_get_userbyid(owner));
  execute format('revoke all on function %s from public', v_function);
end $$;

-- After each call of such a function. Settings go back to what they were when the session began, the search_path first of
-- all; a prepared statement may have taken the name of one of ours. Whether the call changed anything.
-- `announced`: the timestamp of the remote transaction, where the session tells it to triggers.
create function sterna.apply_guard(changed bigint, announced timestamptz) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from pg_prepared_statements p where p.from_sql) then
    raise exception 'it prepared a statement in the session that applies it' using errcode = 'ST006';
  end if;
  reset all;
  if announced is not null then
    perform set_config('sterna.change_time', announced::text, true);
  end if;
  return changed > 0;
end $$;

-- At the end of a transaction in which code of ordinary roles was called: what waits for the commit would be executed with the
-- rights of Sterna. (Deferred triggers not so from PostgreSQL 18 on.) That triggers are pending is not shown anywhere, but
-- one that has an event pending can be neither dropped nor altered, and its table is locked as writing locks it.
create function sterna.apply_guard_commit() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger record;
begin
  if exists (select from pg_cursors c where c.is_holdable) then
    raise exception 'it left a cursor WITH HOLD in the session that applies it' using errcode = 'ST006';
  end if;
  for v_trigger in
    select t.tgname, t.tgrelid from pg_trigger t join pg_class c on c.oid = t.tgrelid
     where t.tgdeferrable and t.tgenabled in ('A', 'R')
       and not sterna.trusted_role(c.relowner) and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid)
  loop
    if exists (select from pg_locks l where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.relation = v_trigger.tgrelid
                  and l.database = (select d.oid from pg_database d where d.datname = current_database())
                  and l.mode = 'RowExclusiveLock') then
      raise exception 'trigger % of table % is deferrable and fires in all sessions', quote_ident(v_trigger.tgname),
        v_trigger.tgrelid::regclass using errcode = 'ST006';
    end if;
  end loop;
end $$;

-- What functions of table owners call: the version of a row can be read by anybody, and raising an error hurts nobody else.
alter function sterna.version_not_greater(xid, timestamptz, integer) security definer;
grant execute on function sterna.version_not_greater(xid, timestamptz, integer) to public;

select sterna.hide_functions(
  '^(trusted_role|function_trusted|expression_trusted|type_trusted|trigger_trusted|relation_trusted|'
  'partition_family|table_trusted|code_refusal|apply_trusted|apply_trusted_now|apply_function|'
  'apply_guard|apply_guard_commit)$');

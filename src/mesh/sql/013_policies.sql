-- Delta columns and policies: how they are declared, and what they need at local writes.
--
-- A rule such as "d is a delta column" must hold for the same changes on every node: where one node adds the difference of
-- an update, and another takes over its row, two concurrent updates end differently. So there is a fence in each node's
-- stream. When all nodes have said that they are there (`seen`), each shuts a gate: local writers of the table wait. In the
-- transaction that begins to hold them, after those that had written before have ended, the node sends whole old rows from
-- then on and writes step `closed`. A node that has received `closed` of all has everything that was written before, and has
-- decided it by the old rule; then it writes `ready` and opens its gate. The node that began, the coordinator, decides: `active`
-- once all are ready, `refused` else; its own gate stays shut until then. What local writers do from then on comes behind
-- `ready`, or behind the decision, in their node's stream, with old rows, so that others can apply it by either rule.
--
-- So of a change to the table that comes from a node which is ready, it may not be known yet by which rule to decide it: it
-- waits (definition_pending). What it waits for is in the coordinator's stream, and nothing waits there: behind the decision the outcome is
-- known. A change behind `closed` but before `ready` (of the coordinator: before the decision) shows that a gate opened too
-- soon, since the agent or its session ended. Such a node cannot become ready, nor decide `active`, any more: these take a session
-- that has held the gate all the time. So the definition will be refused, and the change is decided by the old rule. One
-- definition at a time is on its way through a node, so that none waits for another.
--
-- All nodes thus decide the same changes by the old rule and the same by the new one. Gates are shut for about one round trip, the
-- coordinator's for two. If the coordinator is lost before its decision has come, changes of the table wait in the streams, but no writer.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST160  the column cannot be a delta column
-- ST161  the policy cannot be set
-- ST162  the function cannot merge rows
-- ST163  the table has a merge function, hence no delete, truncate or change of key
-- ST164  the definition was refused
-- ST165  not a number, in a delta column
-- ST166  a TRUNCATE that cannot be replicated as deletes
-- ST167  there is no such definition, or it has not taken effect in time

-- A column keeps its number when it is renamed.
alter table sterna.delta_column add column column_number smallint;

-- Tables that have triggers because of their rules, for which rules, and which of them were given REPLICA IDENTITY FULL.
create table sterna.ruled_table (
  table_oid oid primary key,
  shape text not null,
  made_full oid[] not null default '{}'
);

-- Steps arrive by apply, whose sessions fire only such triggers.
create trigger notify_agent after insert or update on sterna.definition
  for each statement execute function sterna.notify_agent();
alter table sterna.definition enable always trigger notify_agent;
create trigger notify_agent after insert on sterna.definition_step
  for each statement execute function sterna.notify_agent();
alter table sterna.definition_step enable always trigger notify_agent;

-- Definitions of a table for which this node has shut its gate, and of which it has not carried out the outcome.
create function sterna.definitions_pending(root oid) returns setof sterna.definition
language sql stable set search_path = pg_catalog, pg_temp as $$
  select d.*
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    join sterna.definition d on d.schema_name = n.nspname and d.table_name = c.relname
    cross join sterna.local_node l
   where c.oid = root
     and exists (select from sterna.definition_step s where s.definition_id = d.definition_id and s.node_id = l.node_id and s.step = 'closed')
     and not exists (select from sterna.definition_step s where s.definition_id = d.definition_id and s.node_id = l.node_id
                        and s.step in ('active', 'refused'))
$$;

-- The delta columns of a table: those in force, and, if `written`, those for which local writers have to prepare already.
create function sterna.delta_columns(root oid, written boolean) returns table (name name, type oid)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select a.attname, a.atttypid
    from pg_attribute a
   where a.attrelid = root and a.attnum > 0 and not a.attisdropped
     and (exists (select from sterna.delta_column d where d.table_oid = root
                     and (d.column_number = a.attnum or d.column_number is null and d.column_name = a.attname))
          or written and exists (select from sterna.definitions_pending(root) p
                                  where p.kind = 'delta_add' and p.body ->> 'column' = a.attname::text))
   order by a.attname
$$;

-- Whether a change of this origin to the table has to wait: it comes behind the fence of a definition whose outcome is not
-- known here yet. `origin`: its node id; null: whether a definition is on its way here at all.
create function sterna.definition_pending(relation oid, origin integer default null) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from sterna.definitions_pending(sterna.root_table(relation)) p
     where origin is null
        or origin <> p.node_id
           and exists (select from sterna.definition_step s
                        where s.definition_id = p.definition_id and s.node_id = origin and s.step = 'ready'))
$$;

-- How conflicts of a table are decided, for apply:
-- deltas     columns whose values are sums of contributions
-- merge      schema.function(row, row) that takes the place of the newer row, or null
-- manual     types of conflict that are queued for review as well
-- oneWay     apply_remote or keep_local, or null
-- uniques    plain unique indexes besides the key
-- otherUniques  names of the rest: partial ones, those over expressions, exclusion constraints, deferrable and invalid ones
create function sterna.table_rules(relation oid) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  with root as (select sterna.root_table(table_rules.relation) as oid),
  other_index as (
    select k.relname as name, i.indexrelid, i.indnullsnotdistinct as nulls_collide,
           i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null and not i.indisexclusion as plain,
           (select jsonb_agg(a.attname order by u.position)
              from unnest(i.indkey::smallint[]) with ordinality as u(attnum, position)
              join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum
             where u.position <= i.indnkeyatts) as columns
      from pg_index i join pg_class k on k.oid = i.indexrelid join pg_class c on c.oid = i.indrelid
     where i.indrelid = table_rules.relation and (i.indisunique or i.indisexclusion) and i.indisready
       and not (case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end)
  )
  select jsonb_build_object(
    'deltas', (select coalesce(jsonb_agg(d.name), '[]') from root, sterna.delta_columns(root.oid, false) d),
    'merge', (select p.merge_function from sterna.policy p, root where p.table_oid = root.oid and p.policy = 'merge'),
    'manual', (select coalesce(jsonb_agg(p.conflict_type order by p.conflict_type), '[]')
                 from sterna.policy p, root where p.table_oid = root.oid and p.policy = 'manual'),
    'oneWay', (select p.policy from sterna.policy p, root
                where p.table_oid = root.oid and p.policy in ('apply_remote', 'keep_local')),
    'uniques', (select coalesce(jsonb_agg(jsonb_build_object('name', o.name, 'columns', o.columns, 'nullsCollide', o.nulls_collide)
                                          order by o.name), '[]')
                  from other_index o where o.plain),
    'otherUniques', (select coalesce(jsonb_agg(o.name order by o.name), '[]') from other_index o where not o.plain))
$$;

------------------------------------------------------------------------------------------------------------------------
-- What can be declared.

-- Why a table's old rows cannot be sent whole, or null if they can.
create function sterna.full_rows_problem(relation oid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    case when c.relkind is null then 'there is no such table' end,
    sterna.table_unsupported(c.oid),
    case when c.relispartition then format('it is a partition: name %s, the table above it', sterna.root_table(c.oid)::regclass) end,
    sterna.table_key_problem(c.oid),
    case
      when exists (select from sterna.partition_family(c.oid) f join pg_class p on p.oid = f.relid where p.relreplident = 'i')
        then 'its replica identity is an index; it has to be its primary key ("alter table ... replica identity default")'
      when not exists (select from unnest(sterna.table_sets(c.oid)) t(name) join sterna.replication_set s on s.set_name = t.name
                        where s.replicate_insert and s.replicate_update and s.replicate_delete)
        then 'it is in no replication set that replicates inserts, updates and deletes'
      when exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
                    where r.prrelid in (select f.relid from sterna.partition_family(c.oid) f) and r.prattrs is not null
                      and p.pubname like 'sterna\_%')
        then 'a replication set has a list of its columns'
      -- PostgreSQL 18 refuses the application's UPDATE then.
      when current_setting('server_version_num')::integer >= 180000
           and exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated <> '' and not a.attisdropped)
        then 'it has generated columns, and PostgreSQL 18 does not send whole old rows of such a table'
    end)
    from (select) one left join pg_class c on c.oid = relation
$$;

-- Why a column cannot be a delta column, or null if it can. A numeric needs a declared scale: without one, the same sum is 1.5
-- or 1.50, depending on which contributions the application had read when it wrote.
create function sterna.delta_problem(relation oid, column_name name) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_problem text := sterna.full_rows_problem(relation);
  a record;
  v_found boolean;
begin
  if v_problem is not null then
    return v_problem;
  end if;
  select c.attnum, c.atttypid, c.atttypmod, c.attnotnull, c.attgenerated, c.attidentity into a
    from pg_attribute c where c.attrelid = relation and c.attname = column_name and c.attnum > 0 and not c.attisdropped;
  v_problem := case
    when a.attnum is null then 'there is no such column'
    when a.atttypid in ('real'::regtype, 'double precision'::regtype)
      then format('%s is not added up exactly: sums would depend on the order; make it numeric with a scale', format_type(a.atttypid, null))
    when a.atttypid not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'numeric'::regtype, 'money'::regtype)
      then format('it is %s; a delta column is smallint, integer, bigint, numeric or money', format_type(a.atttypid, null))
    when a.atttypid = 'numeric'::regtype and a.atttypmod = -1
      then 'it is numeric without a scale: the same sum could be 1.5 on one node and 1.50 on another; make it numeric(precision, scale)'
    when not a.attnotnull then 'it can be null'
    when column_name = any (sterna.key_columns(relation)) then 'it belongs to the key'
    when a.attgenerated <> '' or a.attidentity <> '' then 'it is generated'
    when exists (select from pg_index i where i.indrelid = relation and i.indisunique and a.attnum = any (i.indkey::smallint[]))
      then 'it belongs to a unique index'
    when exists (select from pg_partitioned_table p where p.partrelid = relation and a.attnum = any (p.partattrs::smallint[]))
      then 'rows are partitioned by it'
    when exists (select from pg_publication_rel r
                  where r.prrelid = relation and r.prqual is not null
                    and exists (select from regexp_matches(r.prqual::text, ':varattno (\d+)', 'g') m where m[1]::int = a.attnum))
      then 'a replication set filters rows by it'
  end;
  if v_problem is null and a.atttypid = 'numeric'::regtype then
    execute format('select exists (select from %s where %I = ''NaN'')', relation::regclass, column_name) into v_found;
    if v_found then
      return 'it holds NaN, from which nothing can be taken away';
    end if;
  end if;
  return v_problem;
end $$;

-- Why a function cannot merge rows of a table, or null if it can. It runs with the rights of Sterna wherever a row is applied.
create function sterna.merge_problem(relation oid, merge_function regprocedure) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when merge_function is null then 'a function is needed: merge_function(row, row), both of the type of the table'
    when p.oid is null then format('function %s does not exist', merge_function::oid)
    when p.prokind <> 'f' or p.proretset or p.prorettype <> c.reltype or p.pronargs <> 2 or p.proargtypes[0] <> c.reltype or p.proargtypes[1] <> c.reltype
      then format('function %s is not (%s, %2$s) returning %2$s', p.proname, c.relname)
    when p.provolatile <> 'i' then format('function %s is not immutable', p.proname)
    when not sterna.trusted_role(p.proowner)
      then format('function %s belongs to "%s": it will be called with the rights of Sterna, so it has to belong to "%s" or a superuser',
                  p.proname, pg_get_userbyid(p.proowner), current_user)
    when exists (select from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
                    and not sterna.type_trusted(a.atttypid))
      then 'a column has a type with code of an ordinary role'
  end
    from pg_class c left join pg_proc p on p.oid = merge_function
   where c.oid = relation
$$;

-- What is wrong with a merge function, tried on mixtures of rows of the table; null: nothing. Order and number of arrivals are
-- not the same on all nodes, so these must not matter.
create function sterna.merge_test(relation oid, merge_function regprocedure) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_name constant text := (select format('%I.%I', n.nspname, p.proname) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                            where p.oid = merge_function);
  v_deltas constant text[] := coalesce((select array_agg(d.name::text) from sterna.delta_columns(relation, false) d), '{}');
  v_key constant text := quote_literal(sterna.key_columns(relation)) || '::name[]';
  v_mixed text;
  v_empty text;
  v_problem text;
  v_detail text;
begin
  select string_agg(case when a.attname = any (sterna.key_columns(relation)) then format('(select (r.t).%I from r where r.n = 1)', a.attname)
                         else format('(select (r.t).%I from r where r.n = 1 + (i + i / 3 * %s) %% (select count(*) from r))', a.attname, a.attnum) end,
                    ', ' order by a.attnum),
         string_agg(case when a.attname = any (sterna.key_columns(relation)) or a.attnotnull
                         then format('(select (r.t).%I from r where r.n = 1)', a.attname) else 'null' end, ', ' order by a.attnum)
    into v_mixed, v_empty
    from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;
  begin
    execute format($f$
      with r as materialized (select row_number() over () as n, t from (select (t.*)::%1$s from only %1$s t limit 6) s(t)),
      sample as materialized (
        select row(%2$s)::%1$s as v from generate_series(0, 8) i where exists (select from r)
        union all select row(%3$s)::%1$s where exists (select from r)),
      pair as materialized (select a.v as a, b.v as b, %4$s(a.v, b.v) as ab, %4$s(b.v, a.v) as ba from sample a, sample b)
      select case
        when exists (select from pair p where sterna.row_texts(p.ab) - %5$L::text[] is distinct from sterna.row_texts(p.ba) - %5$L::text[])
          then 'it is not commutative: merge(a, b) and merge(b, a) differ'
        when exists (select from sample s where sterna.row_texts(%4$s(s.v, s.v)) - %5$L::text[] is distinct from sterna.row_texts(s.v) - %5$L::text[])
          then 'it is not idempotent: merge(a, a) is not a'
        when exists (select from pair p, sample c where sterna.row_texts(%4$s(p.ab, c.v)) - %5$L::text[] is distinct from
                                                        sterna.row_texts(%4$s(p.a, %4$s(p.b, c.v))) - %5$L::text[])
          then 'it is not associative: merge(merge(a, b), c) and merge(a, merge(b, c)) differ'
        when exists (select from pair p, unnest(%6$s) k where sterna.row_texts(p.ab) ->> k is distinct from sterna.row_texts(p.a) ->> k)
          then 'it changes the key'
        when not exists (select from sample) then 'untested' end
      $f$, relation::regclass, v_mixed, v_empty, v_name, v_deltas, v_key) into v_problem;
  exception when others then
    get stacked diagnostics v_detail = message_text;
    return 'it fails on rows of the table: ' || v_detail;
  end;
  if v_problem = 'untested' then
    raise notice 'the table is empty: the merge function has not been tried';
    return null;
  end if;
  return v_problem;
end $$;

-- The types of conflict that are recorded.
create function sterna.conflict_types() returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select '{insert_exists,insert_deleted,update_origin_differs,update_exists,update_missing,update_deleted,delete_origin_differs,delete_missing,multiple_unique_conflicts}'::text[]
$$;

-- Why a policy cannot be set, or null if it can.
create function sterna.policy_problem(relation oid, conflict_type text, policy text, merge_function regprocedure) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when policy is null or policy not in ('last_update_wins', 'manual', 'merge', 'apply_remote', 'keep_local')
      then format('"%s" is no policy; there are last_update_wins, manual, merge, apply_remote, keep_local', policy)
    when conflict_type is not null and conflict_type <> all (sterna.conflict_types())
      then format('"%s" is no type of conflict; there are %s', conflict_type, array_to_string(sterna.conflict_types(), ', '))
    when conflict_type is not null and policy in ('merge', 'apply_remote', 'keep_local')
      then format('%s is a policy for all types of conflict: leave the type out', policy)
    when merge_function is not null and policy <> 'merge' then format('%s takes no function', policy)
    when c.oid is null then 'there is no such table'
    when sterna.table_unsupported(c.oid) is not null then sterna.table_unsupported(c.oid)
    when c.relispartition then format('it is a partition: name %s, the table above it', sterna.root_table(c.oid)::regclass)
    when policy = 'merge' then coalesce(
      sterna.full_rows_problem(c.oid),
      case when c.relkind = 'p' then 'it is partitioned, and a merge function takes rows of one type' end,
      sterna.merge_problem(c.oid, merge_function))
    when policy in ('apply_remote', 'keep_local') then case
      when cardinality(sterna.table_sets(c.oid)) > 0
        then format('it is replicated in both directions: this node publishes it in replication set "%s"', (sterna.table_sets(c.oid))[1])
      when not exists (select from sterna.subscription) then 'this node follows no other' end
  end
    from (select) one left join pg_class c on c.oid = relation
$$;

-- The function of that name, schema.name, that takes two rows of the table.
create function sterna.merge_function_of(relation oid, name text) returns regprocedure
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p.oid::regprocedure
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace join pg_class c on c.oid = relation
   where format('%I.%I', n.nspname, p.proname) = merge_function_of.name and p.pronargs = 2 and p.proargtypes[0] = c.reltype and p.proargtypes[1] = c.reltype
$$;

-- Why a definition cannot be carried out here, or null if it can.
create function sterna.definition_problem(d sterna.definition) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_root constant oid := to_regclass(format('%I.%I', d.schema_name, d.table_name));
begin
  if v_root is null then
    return 'there is no such table';
  end if;
  return case d.kind
    when 'delta_add' then sterna.delta_problem(v_root, d.body ->> 'column')
    when 'policy' then sterna.policy_problem(v_root, d.body ->> 'conflictType', d.body ->> 'policy',
                                             sterna.merge_function_of(v_root, d.body ->> 'function'))
  end;
end $$;

------------------------------------------------------------------------------------------------------------------------
-- Declaring.

-- Begins a definition, and returns its id. Alone, or where nodes need not agree on a moment, it is in force at once.
create function sterna.definition_open(kind text, relation oid, body jsonb, fenced boolean) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_node constant integer := sterna.local_node_id();
  v_members constant integer[] := (select array_agg(n.node_id order by n.node_id) from sterna.node n);
  v_fenced constant boolean := fenced and cardinality(v_members) > 1;
  v_id uuid;
begin
  if exists (select from sterna.subscription s where s.provider_node_id is null) then
    raise exception 'subscription % has not been in contact with its provider yet',
        (select quote_ident(s.sub_name) from sterna.subscription s where s.provider_node_id is null order by 1 limit 1)
      using errcode = 'ST167', hint = 'Wait until sterna.status shows that it replicates, or drop it.';
  end if;
  if exists (select from sterna.definition d join pg_class c on c.oid = definition_open.relation
               join pg_namespace n on n.oid = c.relnamespace and d.schema_name = n.nspname and d.table_name = c.relname
              where sterna.definition_outcome(d.definition_id) is null) then
    raise exception 'another definition of table % is under way', relation::regclass
      using errcode = 'ST167', hint = 'Try again in a moment; sterna.definitions shows it.';
  end if;
  insert into sterna.definition as d (node_id, kind, schema_name, table_name, body, state)
  select v_node, definition_open.kind, n.nspname, c.relname,
         jsonb_strip_nulls(definition_open.body) || jsonb_build_object('members', v_members, 'fenced', v_fenced),
         case when v_fenced then 'fencing' else 'active' end
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = definition_open.relation
  returning d.definition_id into v_id;
  if not v_fenced then
    perform sterna.definition_settle(v_id);
  end if;
  return v_id;
end $$;

-- Makes the values of a column sums of what all nodes contribute. Returns the id of the definition (see definition_wait), or
-- null where it is one already. Raises ST160.
create function sterna.delta_add(relation regclass, column_name name) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_problem text;
begin
  perform sterna.local_node_id();
  if exists (select from sterna.delta_columns(relation, false) d where d.name = column_name) then
    return null;
  end if;
  v_problem := sterna.delta_problem(relation, column_name);
  if v_problem is not null then
    raise exception 'column % of table % cannot be a delta column: %', quote_ident(column_name), relation, v_problem
      using errcode = 'ST160', hint = 'Delta columns are described in docs/policies.md.';
  end if;
  return sterna.definition_open('delta_add', relation, jsonb_build_object('column', column_name), true);
end $$;

-- The newer row wins in this column again. Returns the id of the definition, or null where it is no delta column.
create function sterna.delta_remove(relation regclass, column_name name) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.local_node_id();
  if not exists (select from sterna.delta_columns(relation, false) d where d.name = column_name) then
    return null;
  end if;
  return sterna.definition_open('delta_remove', relation, jsonb_build_object('column', column_name), true);
end $$;

-- Says how conflicts of a table are decided, those of one type or (null) all. Returns the id of the definition, or null where
-- nothing changes or the policy is of this node only (apply_remote, keep_local). Raises ST161, ST162.
create function sterna.policy_set(relation regclass, conflict_type text, policy text, merge_function regprocedure default null)
returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_problem text;
  v_present text;
  v_function text;
begin
  perform sterna.local_node_id();
  v_problem := sterna.policy_problem(relation, policy_set.conflict_type, policy_set.policy, policy_set.merge_function);
  if v_problem is not null then
    raise exception 'policy % cannot be set for table %: %', policy_set.policy, relation, v_problem
      using errcode = 'ST161', hint = 'Policies are described in docs/policies.md.';
  end if;
  select p.policy || coalesce(' ' || p.merge_function, '') into v_present
    from sterna.policy p where p.table_oid = relation and p.policy in ('merge', 'apply_remote', 'keep_local');
  if policy_set.policy = 'last_update_wins' and policy_set.conflict_type is null and v_present ~ '^(apply_remote|keep_local)' then
    delete from sterna.policy p where p.table_oid = relation and p.conflict_type is null;
    update sterna.careful_state set epoch = epoch + 1;
    return null;
  end if;
  if policy_set.policy = 'last_update_wins' then
    if not exists (select from sterna.policy p where p.table_oid = relation
                      and (policy_set.conflict_type is null or p.conflict_type = policy_set.conflict_type)) then
      return null;
    end if;
  elsif policy_set.policy in ('merge', 'apply_remote', 'keep_local') then
    select format('%I.%I', n.nspname, p.proname) into v_function
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = policy_set.merge_function;
    if v_present = policy_set.policy || coalesce(' ' || v_function, '') then
      return null;
    elsif v_present is not null then
      -- What is written while nodes change over from one function to another would fit neither.
      raise exception 'table % has policy % already', relation, v_present
        using errcode = 'ST161', hint = format('Take that back first: select sterna.policy_unset(%L).', relation);
    end if;
  end if;
  if policy_set.policy = 'merge' then
    v_problem := sterna.merge_test(relation, policy_set.merge_function);
    if v_problem is not null then
      raise exception 'function % cannot merge rows of table %: %', v_function, relation, v_problem
        using errcode = 'ST162', hint = 'Whatever the order in which rows arrive, and however often, the result must be the same.';
    end if;
  elsif policy_set.policy in ('apply_remote', 'keep_local') then
    insert into sterna.policy (table_oid, conflict_type, policy) values (relation, null, policy_set.policy);
    perform sterna.careful_mark(relation);
    update sterna.careful_state set epoch = epoch + 1;
    return null;
  end if;
  return sterna.definition_open(
    'policy', relation,
    jsonb_build_object('conflictType', policy_set.conflict_type, 'policy', policy_set.policy, 'function', v_function),
    policy_set.policy = 'merge'
      or policy_set.policy = 'last_update_wins' and policy_set.conflict_type is null and v_present is not null);
end $$;

-- Back to last_update_wins, for one type of conflict or (null) all.
create function sterna.policy_unset(relation regclass, conflict_type text default null) returns uuid
language sql set search_path = pg_catalog, pg_temp as $$
  select sterna.policy_set(relation, conflict_type, 'last_update_wins')
$$;

-- Waits until a definition is in force on all nodes. Not in the transaction that made it. Raises ST164, ST167.
create procedure sterna.definition_wait(definition_id uuid, timeout integer default 60)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_deadline constant timestamptz := clock_timestamp() + make_interval(secs => timeout);
  d record;
begin
  if definition_id is null then
    return;
  end if;
  loop
    select s.state, s.reason, s.waiting_for into d from sterna.definitions s where s.definition_id = definition_wait.definition_id;
    if not found then
      raise exception 'there is no definition %', definition_id
        using errcode = 'ST167', hint = 'Definitions of this cluster are in sterna.definitions.';
    elsif d.state = 'refused' then
      raise exception 'the definition was refused: %', d.reason
        using errcode = 'ST164', hint = 'Nothing has changed on any node. Remove the cause, then declare it again.';
    elsif d.state = 'active' and cardinality(d.waiting_for) = 0 then
      return;
    elsif clock_timestamp() > v_deadline then
      raise exception 'the definition is not in force on all nodes yet; it waits for %', array_to_string(d.waiting_for, ', ')
        using errcode = 'ST167', hint = 'It goes on by itself: see sterna.definitions, and whether the agents of these nodes run.';
    end if;
    perform pg_sleep(0.05);
  end loop;
end $$;

-- What has become of a definition, as far as it is known here: `active`, `refused`, or null. One step `refused` says it all, since
-- who writes it was not ready; and a step `active` is written only behind the decision.
create function sterna.definition_outcome(id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when d.state <> 'fencing' then d.state
    when exists (select from sterna.definition_step s where s.definition_id = id and s.step = 'refused') then 'refused'
    when exists (select from sterna.definition_step s where s.definition_id = id and s.step = 'active') then 'active' end
    from sterna.definition d where d.definition_id = id
$$;

-- The nodes that have not taken the next step of a definition: what it waits for.
create function sterna.definition_waiting_for(id uuid) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array(
    select coalesce(n.node_name::text, i::text) from unnest(m.ids) i left join sterna.node n on n.node_id = i
     where not exists (select from sterna.definition_step s where s.definition_id = id and s.node_id = i and s.step in (next.step, 'refused'))
     order by 1)
    from sterna.definition d
    cross join lateral (select array(select (x #>> '{}')::integer from jsonb_array_elements(d.body -> 'members') x) as ids) m
    cross join lateral (
      select case when sterna.definition_outcome(id) is not null then sterna.definition_outcome(id) else coalesce(
               (select t.step from unnest('{seen,closed,ready}'::text[]) with ordinality as t(step, position)
                 where (select count(*) from sterna.definition_step s where s.definition_id = id and s.step = t.step and s.node_id = any (m.ids))
                         < cardinality(m.ids)
                 order by t.position limit 1), 'active') end as step) next
   where d.definition_id = id
$$;

-- What is in force on this node.
create view sterna.rules as
  select r.table_oid::regclass as table_name, r.rule, r.column_name, r.conflict_type, r.policy, r.merge_function
    from (select d.table_oid, 'delta column' as rule, coalesce(a.attname, d.column_name) as column_name, null::text as conflict_type,
                 null::text as policy, null::text as merge_function
            from sterna.delta_column d
            left join pg_catalog.pg_attribute a on a.attrelid = d.table_oid and a.attnum = d.column_number
          union all
          select p.table_oid, 'policy', null, p.conflict_type, p.policy, p.merge_function from sterna.policy p) r
   where exists (select from pg_catalog.pg_class c where c.oid = r.table_oid)
   order by r.table_oid::regclass::text, r.rule, r.column_name, r.conflict_type;

-- What was declared on any node, and how far it is.
create view sterna.definitions as
  select d.definition_id, n.node_name, pg_catalog.format('%I.%I', d.schema_name, d.table_name) as table_name,
         case d.kind when 'delta_add' then 'delta column ' || (d.body ->> 'column')
                     when 'delta_remove' then 'no delta column ' || (d.body ->> 'column')
                     else pg_catalog.concat_ws(' ', 'policy', d.body ->> 'policy', d.body ->> 'function', 'for ' || (d.body ->> 'conflictType')) end
           as definition,
         coalesce(sterna.definition_outcome(d.definition_id), d.state) as state,
         coalesce(d.reason, (select s.detail from sterna.definition_step s
                              where s.definition_id = d.definition_id and s.step = 'refused' and s.detail is not null
                              order by s.done_at limit 1)) as reason,
         d.created_at,
         sterna.definition_waiting_for(d.definition_id) as waiting_for
    from sterna.definition d left join sterna.node n on n.node_id = d.node_id
   order by d.created_at;

------------------------------------------------------------------------------------------------------------------------
-- The fence, as the agent goes through it.

-- Key of the advisory lock that the agent holds while a table's gate is shut, and writers share.
create function sterna.gate_lock(root oid) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select (9217::bigint << 32) | root::bigint
$$;

-- Definitions that this node has not carried out yet.
create function sterna.definitions_open()
returns table (id uuid, relation oid, is_member boolean, is_coordinator boolean, age_ms float8, seen boolean, closed boolean, ready boolean,
               all_seen boolean, all_closed boolean, all_ready boolean, outcome text, missing text[])
language sql stable set search_path = pg_catalog, pg_temp as $$
  select d.definition_id, to_regclass(format('%I.%I', d.schema_name, d.table_name))::oid, l.node_id = any (m.ids), d.node_id = l.node_id,
         (extract(epoch from clock_timestamp() - d.created_at) * 1000)::float8,
         coalesce('seen' = any (w.own), false), coalesce('closed' = any (w.own), false), coalesce('ready' = any (w.own), false),
         w.seen = cardinality(m.ids), w.closed = cardinality(m.ids), w.ready = cardinality(m.ids),
         sterna.definition_outcome(d.definition_id), sterna.definition_waiting_for(d.definition_id)
    from sterna.definition d cross join sterna.local_node l
    cross join lateral (select array(select (x #>> '{}')::integer from jsonb_array_elements(d.body -> 'members') x) as ids) m
    cross join lateral (
      select array_agg(s.step) filter (where s.node_id = l.node_id) as own, count(*) filter (where s.step = 'seen') as seen,
             count(*) filter (where s.step = 'closed') as closed, count(*) filter (where s.step = 'ready') as ready
        from sterna.definition_step s where s.definition_id = d.definition_id and s.node_id = any (m.ids)) w
   where not exists (select from sterna.definition_step s where s.definition_id = d.definition_id and s.node_id = l.node_id
                        and s.step in ('active', 'refused'))
      or d.node_id = l.node_id and d.state = 'fencing'
   order by d.created_at, d.definition_id
$$;

-- Says that this node is there, and that nothing stands in the way. Waits (does nothing) while another definition is on its way
-- through this node. Of two that began on two nodes at once the later one makes way. Raises ST160.
create function sterna.definition_see(id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d sterna.definition;
  v_other record;
  v_problem text;
begin
  select f.* into strict d from sterna.definition f where f.definition_id = id;
  select o.schema_name, o.table_name, o.node_id, (o.created_at, o.definition_id) < (d.created_at, d.definition_id) as is_earlier into v_other
    from sterna.definition o
   where o.definition_id <> id and (o.body -> 'fenced')::boolean
     and exists (select from sterna.definitions_open() p where p.id = o.definition_id and (p.seen or p.outcome is null))
   order by o.created_at, o.definition_id limit 1;
  if v_other.is_earlier and v_other.node_id <> d.node_id then
    raise exception 'another definition, of table %.%, is under way', quote_ident(v_other.schema_name), quote_ident(v_other.table_name)
      using errcode = 'ST160';
  elsif v_other.is_earlier
        or exists (select from sterna.definitions_open() p where p.id <> definition_see.id and p.seen) then
    return;
  end if;
  v_problem := sterna.definition_problem(d);
  if v_problem is not null then
    raise exception '%', v_problem using errcode = 'ST160';
  end if;
  insert into sterna.definition_step (definition_id, node_id, step) values (id, sterna.local_node_id(), 'seen');
end $$;

-- Shuts the gate of a table, for an agent's session that holds the lock of the gate: from here on whole old rows are sent and
-- changes of other nodes are decided in the careful lane. Raises 55P03 where the table is in use for longer than lock_timeout,
-- ST160 if the definition cannot be carried out here.
create function sterna.definition_close(id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  d sterna.definition;
  v_root oid;
  v_problem text;
begin
  select f.* into strict d from sterna.definition f where f.definition_id = id;
  v_root := to_regclass(format('%I.%I', d.schema_name, d.table_name));
  v_problem := coalesce(
    sterna.definition_problem(d),
    case when exists (select from sterna.definitions_pending(v_root)) then 'another definition of this table is under way'
         when exists (select from sterna.exception e where e.table_oid = v_root) then 'changes to it wait in sterna.exception' end);
  if v_problem is not null then
    raise exception '%', v_problem using errcode = 'ST160';
  end if;
  execute format('lock table %s in access exclusive mode', v_root::regclass);
  insert into sterna.definition_step (definition_id, node_id, step) values (id, sterna.local_node_id(), 'closed');
  perform sterna.rules_attach(v_root);
  perform sterna.careful_mark(v_root);
end $$;

-- Raises ST160 unless the calling session holds the gate of a definition's table.
create function sterna.gate_held(id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from pg_locks k join sterna.definition d on d.definition_id = id
                  where k.locktype = 'advisory' and k.pid = pg_backend_pid() and k.mode = 'ExclusiveLock' and k.granted and k.objsubid = 1
                    and (k.classid::bigint << 32 | k.objid::bigint) = sterna.gate_lock(to_regclass(format('%I.%I', d.schema_name, d.table_name)))) then
    raise exception 'the gate was not shut all the time' using errcode = 'ST160';
  end if;
end $$;

-- Says that this node has everything that was written before the fence. Raises ST160 unless the calling session has held the
-- gate since it shut it.
create function sterna.definition_ready(id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_root oid;
begin
  perform sterna.gate_held(id);
  select to_regclass(format('%I.%I', d.schema_name, d.table_name)) into strict v_root from sterna.definition d where d.definition_id = id;
  if exists (select from sterna.exception e where e.table_oid = v_root) then
    raise exception 'changes to it wait in sterna.exception' using errcode = 'ST160';
  elsif exists (select from sterna.given_up g where g.table_oid = v_root) then
    raise exception 'newer changes to it are on their way' using errcode = 'ST160';
  end if;
  insert into sterna.definition_step (definition_id, node_id, step) values (id, sterna.local_node_id(), 'ready');
end $$;

-- The decision, on the node where the definition was made. `reason`: why it is refused; null: all are ready. Raises ST160 unless they
-- are, and the calling session has held the gate since it shut it.
create function sterna.definition_decide(id uuid, reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if definition_decide.reason is null then
    perform sterna.gate_held(id);
    if not exists (select from sterna.definitions_open() o where o.id = definition_decide.id and o.all_ready and o.outcome is null) then
      raise exception 'not all nodes are ready' using errcode = 'ST160';
    end if;
  end if;
  update sterna.definition d set state = case when definition_decide.reason is null then 'active' else 'refused' end, reason = definition_decide.reason
   where d.definition_id = id and d.state = 'fencing';
end $$;

-- Says that this node cannot carry out a definition. Only while it has not said that it is ready.
create function sterna.definition_refuse(id uuid, reason text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into sterna.definition_step (definition_id, node_id, step, detail)
  select id, l.node_id, 'refused', n.node_name || ': ' || reason from sterna.local_node l join sterna.node n using (node_id)
   where not exists (select from sterna.definition_step s where s.definition_id = id and s.node_id = l.node_id and s.step in ('ready', 'active', 'refused'))
$$;

-- Carries out what has become of a definition. Returns the outcome, or null while that is not known.
create function sterna.definition_settle(id uuid) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_node constant integer := sterna.local_node_id();
  v_outcome constant text := sterna.definition_outcome(id);
  -- The first node that refused says why; the others pass that on.
  v_reason constant text := (select s.detail from sterna.definition_step s
                              where s.definition_id = id and s.step = 'refused' and s.detail is not null order by s.done_at limit 1);
  d sterna.definition;
  v_root oid;
begin
  select f.* into d from sterna.definition f where f.definition_id = id;
  v_root := to_regclass(format('%I.%I', d.schema_name, d.table_name));
  if v_outcome = 'refused' and d.node_id = v_node and d.state = 'fencing' then
    perform sterna.definition_decide(id, coalesce(v_reason, 'for a reason that is not known'));
  end if;
  if v_outcome is null
     or exists (select from sterna.definition_step s where s.definition_id = id and s.node_id = v_node and s.step in ('active', 'refused')) then
    return v_outcome;
  end if;
  if v_outcome = 'active' and v_root is not null then
    perform sterna.rule_apply(v_root, d.kind, d.body);
  end if;
  insert into sterna.definition_step (definition_id, node_id, step, detail) values (id, v_node, v_outcome, coalesce(v_reason, d.reason));
  if v_outcome = 'active' and v_root is not null
     and not exists (select from sterna.definition_step s where s.definition_id = id and s.node_id = v_node and s.step = 'closed') then
    perform sterna.rules_attach(v_root);
  end if;
  -- Sessions that apply read the rules again, also those that wait for the outcome.
  update sterna.careful_state set epoch = epoch + 1;
  return v_outcome;
end $$;

-- Changes the rules in force.
create function sterna.rule_apply(root oid, kind text, body jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_column constant name := body ->> 'column';
  v_type constant text := body ->> 'conflictType';
begin
  if kind = 'delta_add' then
    insert into sterna.delta_column (table_oid, column_name, column_number)
    select root, a.attname, a.attnum from pg_attribute a where a.attrelid = root and a.attname = v_column
    on conflict do nothing;
    perform sterna.careful_mark(root);
  elsif kind = 'delta_remove' then
    delete from sterna.delta_column d using pg_attribute a
     where d.table_oid = root and a.attrelid = root and a.attname = v_column
       and (d.column_number = a.attnum or d.column_number is null and d.column_name = a.attname);
    -- The version is that of xmin unless it is stored, and xmin changes now.
    update sterna.tombstone s
       set version = coalesce(s.version, sterna.version_of_xmin(s.xmin, null)), remainder = nullif(s.remainder - v_column::text, '{}')
     where s.table_oid = root and s.remainder ? v_column::text;
    update sterna.review r set closed_at = clock_timestamp(), resolution = 'no delta column any more'
     where r.table_oid = root and r.reason = 'remainder' and r.closed_at is null
       and not exists (select from sterna.tombstone s where s.table_oid = root and s.key_hash = r.key_hash and s.remainder is not null);
  elsif body ->> 'policy' = 'merge' then
    insert into sterna.policy (table_oid, conflict_type, policy, merge_function) values (root, null, 'merge', body ->> 'function');
    perform sterna.careful_mark(root);
  elsif body ->> 'policy' = 'manual' then
    insert into sterna.policy (table_oid, conflict_type, policy)
    select root, t, 'manual' from unnest(sterna.conflict_types()) t where v_type is null or t = v_type
    on conflict (table_oid, conflict_type) do update set policy = 'manual';
  else
    delete from sterna.policy p where p.table_oid = root and (v_type is null or p.conflict_type = v_type);
  end if;
end $$;

------------------------------------------------------------------------------------------------------------------------
-- Triggers of tables with delta columns or a merge function. Not in sessions that apply.

-- Key of the advisory lock between local inserts, which share it, and the one who writes down sums or rows that no row shows.
create function sterna.unseen_lock(root oid) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select (9216::bigint << 32) | root::bigint
$$;

-- The values of the delta columns among these, as decimal numbers.
create function sterna.delta_amounts(root oid, row_values jsonb) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp set lc_monetary = 'C' as $$
begin
  return (select coalesce(jsonb_object_agg(d.name, case when d.type = 'money'::regtype then (row_values ->> d.name)::money::numeric::text
                                                        else row_values ->> d.name end), '{}')
            from sterna.delta_columns(root, true) d where row_values ->> d.name is not null);
end $$;

-- A local row takes the place of sums, or of a row set aside, that nobody sees: these are taken off everywhere, so that the
-- row has the values that it was given.
create function sterna.unseen_cancel(root oid, hash bigint, row_key jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_amounts jsonb;
  v_aside jsonb;
begin
  delete from sterna.tombstone s where s.table_oid = root and s.key_hash = hash and s.remainder is not null returning s.remainder into v_amounts;
  delete from sterna.aside a where a.table_oid = root and a.key_hash = hash returning a.row_values into v_aside;
  v_amounts := sterna.delta_amounts(root, coalesce(v_aside, v_amounts));
  update sterna.review r set closed_at = clock_timestamp(), resolution = 'a row was inserted in its place'
   where r.table_oid = root and r.key_hash = hash and r.closed_at is null and r.reason in ('set_aside', 'remainder');
  if exists (select from jsonb_each_text(v_amounts) a where a.value::numeric <> 0) then
    insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts)
    select l.node_id, n.nspname, c.relname, 'cancel', row_key, v_amounts
      from sterna.local_node l, pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root;
  end if;
end $$;

-- A transaction with an old snapshot does not see what was written down meanwhile: it fails with 40001, and is tried again.
create function sterna.unseen_probe(root oid, hash bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_new boolean;
begin
  insert into sterna.tombstone (table_oid, key_hash, key) values (root, hash, '[]') on conflict do nothing;
  v_new := found;
  if v_new then
    delete from sterna.tombstone s where s.table_oid = root and s.key_hash = hash;
  end if;
  insert into sterna.aside (table_oid, key_hash, table_name, key, row_values) values (root, hash, '', '{}', '{}') on conflict do nothing;
  v_new := found;
  if v_new then
    delete from sterna.aside a where a.table_oid = root and a.key_hash = hash;
  end if;
end $$;

-- Local writers wait while the agent holds the gate. Argument: the key of its lock.
create function sterna.gate() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_xact_lock_shared(tg_argv[0]::bigint);
  return null;
end $$;

create function sterna.refuse_nan() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'table % has delta columns, which cannot be NaN', tg_relid::regclass
    using errcode = 'ST165', hint = 'Write a number: from NaN nothing can be taken away again.';
end $$;

create function sterna.refuse_removal() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception '% on table % is refused: it has a merge function', case tg_op when 'UPDATE' then 'changing the key' else tg_op end, tg_relid::regclass
    using errcode = 'ST163', detail = 'A merge cannot tell a row that was deleted from one that has not arrived yet.',
          hint = format('Mark rows as deleted in a column, or take the function back: select sterna.policy_unset(%L).', tg_relid::regclass);
end $$;

-- TRUNCATE of a table with delta columns: peers receive deletes, because sums of which this node does not know must stay. No
-- other trigger fires at these deletes, as none does at a TRUNCATE. Argument: the table at the top.
create function sterna.truncate_as_delete() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set session_replication_role = replica as $$
declare
  v_root constant oid := tg_argv[0]::oid;
  v_key constant name[] := sterna.key_columns(v_root);
  v_aside record;
begin
  if exists (select from pg_trigger t where t.tgrelid = tg_relid and t.tgenabled in ('A', 'R') and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid))
     or exists (select from pg_rewrite r where r.ev_class = tg_relid and r.ev_enabled in ('A', 'R')) then
    raise exception 'table % has delta columns and cannot be truncated', tg_relid::regclass
      using errcode = 'ST166', detail = 'TRUNCATE is replicated as deletes then, and a trigger or rule of the table would fire at each of them.',
            hint = 'Delete the rows, or disable triggers and rules that are ENABLE ALWAYS or ENABLE REPLICA.';
  end if;
  if (select c.relkind from pg_class c where c.oid = tg_relid) = 'r' then
    execute format('with o as (delete from only %s t returning %s)
                    insert into sterna.tombstone as s (table_oid, key_hash, key) select %s, %s, jsonb_build_array(%s) from o
                    on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null',
                   tg_relid::regclass, (select string_agg('t.' || quote_ident(k), ', ') from unnest(v_key) k), v_root,
                   sterna.key_hash_sql(v_root, (select array_agg('o.' || quote_ident(k)) from unnest(v_key) k)),
                   (select string_agg('format(''%s'', o.' || quote_ident(k) || ')', ', ') from unnest(v_key) k));
  end if;
  if tg_relid = v_root then
    perform pg_advisory_xact_lock_shared(sterna.unseen_lock(v_root));
    for v_aside in
      delete from sterna.aside a where a.table_oid = v_root returning a.key_hash, a.key, a.row_values
    loop
      insert into sterna.tombstone as s (table_oid, key_hash, key)
      values (v_root, v_aside.key_hash, (select jsonb_agg(v_aside.key -> k::text order by p) from unnest(v_key) with ordinality u(k, p)))
      on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null;
      insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts)
      select l.node_id, n.nspname, c.relname, 'delete', v_aside.key, sterna.delta_amounts(v_root, v_aside.row_values)
        from sterna.local_node l, pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = v_root;
    end loop;
    update sterna.review r set closed_at = clock_timestamp(), resolution = 'the table was truncated'
     where r.table_oid = v_root and r.closed_at is null and r.reason = 'set_aside';
  end if;
  return null;
end $$;

-- After sterna_truncate has noted the truncate: each row has a tombstone already, and sums from elsewhere must still come in.
create function sterna.forget_truncate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from sterna.truncation u where u.table_oid = tg_argv[0]::oid;
  return null;
end $$;

-- What the rules of a table need at local writes.
create function sterna.rules_wanted(root oid) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'deltas', (select coalesce(jsonb_agg(d.name), '[]') from sterna.delta_columns(root, true) d),
    'merge', coalesce((select p.merge_function from sterna.policy p where p.table_oid = root and p.policy = 'merge'),
                      (select p.body ->> 'function' from sterna.definitions_pending(root) p where p.body ->> 'policy' = 'merge' limit 1)),
    'gate', exists (select from sterna.definitions_pending(root)))
$$;

-- Makes, or makes anew, or removes what the rules of a table need. Idempotent; locks the table only if something changes. Names of
-- columns, tables and functions are anybody's: they stand in the functions made here quoted, the bodies as literals.
create function sterna.rules_attach(relid oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
declare
  v_root constant oid := sterna.root_table(relid);
  v_key constant name[] := sterna.key_columns(v_root);
  v_wanted constant jsonb := sterna.rules_wanted(v_root);
  v_deltas constant name[] := array(select jsonb_array_elements_text(v_wanted -> 'deltas'));
  v_merge constant text := v_wanted ->> 'merge';
  v_full constant boolean := cardinality(v_deltas) > 0 or v_merge is not null;
  v_shape text;
  v_leaf record;
  v_trigger record;
  v_key_changed text;
  v_body text;
  v_settings text := 'set search_path = pg_catalog, pg_temp';
  v_unfit name;
begin
  select d.name into v_unfit
    from sterna.delta_columns(v_root, false) d join pg_attribute a on a.attrelid = v_root and a.attname = d.name
   where not a.attnotnull or d.type <> all ('{smallint,integer,bigint,numeric,money}'::regtype[]) or d.type = 'numeric'::regtype and a.atttypmod = -1;
  if v_unfit is not null or v_key is null and v_full then
    raise exception 'table % has delta columns or a merge function', v_root::regclass
      using errcode = 'ST160',
            detail = case when v_unfit is null then 'It would lose its key.' else format('Column %I would not be fit to be a delta column.', v_unfit) end,
            hint = 'Take these back first: sterna.delta_remove, sterna.policy_unset; declare them again afterwards.';
  end if;
  if not v_full and not (v_wanted -> 'gate')::boolean then
    if exists (select from sterna.ruled_table r where r.table_oid = v_root) then
      perform sterna.rules_detach(v_root);
    end if;
    return;
  end if;
  v_shape := concat_ws(' ', v_wanted::text, v_key::text,
                       (select string_agg(a.atttypid::text, ',' order by k.position)
                          from unnest(v_key) with ordinality as k(name, position)
                          join pg_attribute a on a.attrelid = v_root and a.attname = k.name),
                       (select array_agg(p.relid::oid order by p.relid) from pg_partition_tree(v_root) p)::text);
  if exists (select from sterna.ruled_table r where r.table_oid = v_root and r.shape = v_shape) then
    return;
  end if;
  insert into sterna.ruled_table as r (table_oid, shape) values (v_root, v_shape)
    on conflict (table_oid) do update set shape = excluded.shape;
  v_key_changed := (select string_agg(format('not (old.%1$I%2$s %3$s new.%1$I%2$s)', e.name, '::' || e.type, e.operator), ' or ')
                      from sterna.key_equality(v_root) e);

  if v_full then
    if sterna.key_hash_sql(v_root, '{x}') like 'pg_catalog.hashtextextended%' then
      v_settings := v_settings || ' set timezone = ''UTC'' set datestyle = ''ISO'' set intervalstyle = ''postgres'' set bytea_output = ''hex''';
    end if;
    v_body := format($f$
      declare
        v_hash constant bigint := %2$s;
      begin
        perform pg_advisory_xact_lock_shared(%3$s);
        if current_setting('transaction_isolation') <> 'read committed' then
          perform sterna.unseen_probe(%1$s, v_hash);
        end if;
        if exists (select from sterna.tombstone s where s.table_oid = %1$s and s.key_hash = v_hash and s.remainder is not null)
           or exists (select from sterna.aside a where a.table_oid = %1$s and a.key_hash = v_hash) then
          perform sterna.unseen_cancel(%1$s, v_hash, jsonb_object(%4$L::text[], array[%5$s]));
        end if;
        return null;
      end $f$,
      v_root, sterna.key_hash_sql(v_root, (select array_agg('new.' || quote_ident(k)) from unnest(v_key) k)),
      sterna.unseen_lock(v_root), v_key::text,
      (select string_agg('format(''%s'', new.' || quote_ident(k) || ')', ', ') from unnest(v_key) k));
    execute format('create or replace function sterna.unseen_%s() returns trigger language plpgsql security definer %s as %L',
                   v_root, v_settings, v_body);
    execute format('revoke all on function sterna.unseen_%s() from public', v_root);
  end if;
  if v_merge is not null then
    -- The key, and delta columns, are what the statement says.
    v_body := format($f$
      declare
        v_row %2$s := new;
        v_other %2$s;
        v_aside jsonb;
      begin
        if tg_op = 'INSERT' then
          select a.row_values into v_aside from sterna.aside a where a.table_oid = %1$s and a.key_hash = %3$s;
          if v_aside is null then
            return new;
          end if;
          v_other := jsonb_populate_record(null::%2$s, v_aside);
        else
          v_other := old;
        end if;
        v_row := %4$s(v_other, new);
        %5$s
        return v_row;
      end $f$,
      v_root, v_root::regclass, sterna.key_hash_sql(v_root, (select array_agg('new.' || quote_ident(k)) from unnest(v_key) k)),
      (select format('%I.%I', n[1], n[2]) from parse_ident(v_merge) n),
      (select string_agg(format('v_row.%1$I := new.%1$I;', k), ' ') from unnest(v_key || v_deltas) k));
    execute format('create or replace function sterna.merging_%s() returns trigger language plpgsql security definer %s as %L',
                   v_root, v_settings, v_body);
    execute format('revoke all on function sterna.merging_%s() from public', v_root);
  end if;

  for v_leaf in
    select c.oid, c.oid::regclass as name, c.relkind, c.relreplident from pg_class c
     where c.oid = v_root or c.oid in (select p.relid from pg_partition_tree(v_root) p)
  loop
    if v_full and v_leaf.relreplident <> 'f' then
      execute format('alter table only %s replica identity full', v_leaf.name);
      update sterna.ruled_table r set made_full = r.made_full || v_leaf.oid where r.table_oid = v_root;
    end if;
    for v_trigger in
      select t.name, t.wanted, t.definition
        from (values
          ('sterna_gate', (v_wanted -> 'gate')::boolean,
           format('before insert or update or delete or truncate on %s for each statement execute function sterna.gate(%s)',
                  v_leaf.name, sterna.gate_lock(v_root))),
          ('sterna_unseen', v_full and v_leaf.relkind = 'r',
           format('after insert on %s for each row execute function sterna.unseen_%s()', v_leaf.name, v_root)),
          ('sterna_unseen_key', v_full and v_leaf.relkind = 'r',
           format('after update of %s on %s for each row when (%s) execute function sterna.unseen_%s()',
                  (select string_agg(quote_ident(k), ', ') from unnest(v_key) k), v_leaf.name, v_key_changed, v_root)),
          ('sterna_nan', v_leaf.relkind = 'r' and exists (select from sterna.delta_columns(v_root, true) d where d.type = 'numeric'::regtype),
           format('before insert or update of %s on %s for each row when (%s) execute function sterna.refuse_nan()',
                  (select string_agg(quote_ident(d.name), ', ') from sterna.delta_columns(v_root, true) d where d.type = 'numeric'::regtype),
                  v_leaf.name,
                  (select string_agg(format('new.%I = ''NaN''::numeric', d.name), ' or ')
                     from sterna.delta_columns(v_root, true) d where d.type = 'numeric'::regtype))),
          ('sterna_truncate_rows', cardinality(v_deltas) > 0 and v_merge is null,
           format('before truncate on %s for each statement execute function sterna.truncate_as_delete(%s)', v_leaf.name, v_root)),
          -- Fires behind sterna_truncate: triggers fire in the order of their names.
          ('sterna_truncate_undo', cardinality(v_deltas) > 0 and v_merge is null,
           format('after truncate on %s for each statement execute function sterna.forget_truncate(%s)', v_leaf.name, v_root)),
          ('sterna_keep_rows', v_merge is not null and v_leaf.relkind = 'r',
           format('before delete on %s for each row execute function sterna.refuse_removal()', v_leaf.name)),
          ('sterna_keep_table', v_merge is not null,
           format('before truncate on %s for each statement execute function sterna.refuse_removal()', v_leaf.name)),
          ('sterna_keep_key', v_merge is not null and v_leaf.relkind = 'r',
           format('before update of %s on %s for each row when (%s) execute function sterna.refuse_removal()',
                  (select string_agg(quote_ident(k), ', ') from unnest(v_key) k), v_leaf.name, v_key_changed)),
          -- Behind the table's own triggers.
          ('zzz_sterna_merge', v_merge is not null and v_leaf.relkind = 'r',
           format('before insert or update on %s for each row execute function sterna.merging_%s()', v_leaf.name, v_root))
        ) as t(name, wanted, definition)
    loop
      if v_trigger.wanted then
        execute format('create or replace trigger %I %s', v_trigger.name, v_trigger.definition);
      elsif exists (select from pg_trigger t where t.tgrelid = v_leaf.oid and t.tgname = v_trigger.name) then
        execute format('drop trigger %I on %s', v_trigger.name, v_leaf.name);
      end if;
    end loop;
  end loop;
end $$;

-- Removes triggers and functions that the rules of a table needed, and the replica identity that it was given.
create function sterna.rules_detach(root oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
declare
  v_made record;
begin
  for v_made in
    select c.oid::regclass as name from sterna.ruled_table r, unnest(r.made_full) m join pg_class c on c.oid = m and c.relreplident = 'f'
     where r.table_oid = root
  loop
    execute format('alter table only %s replica identity default', v_made.name);
  end loop;
  for v_made in
    select t.tgname, t.tgrelid::regclass as name from pg_trigger t
     where t.tgrelid in (select root union select p.relid from pg_partition_tree(root) p)
       and t.tgname in ('sterna_gate', 'sterna_unseen', 'sterna_unseen_key', 'sterna_nan', 'sterna_truncate_rows', 'sterna_truncate_undo',
                        'sterna_keep_rows', 'sterna_keep_table', 'sterna_keep_key', 'zzz_sterna_merge')
  loop
    execute format('drop trigger %I on %s', v_made.tgname, v_made.name);
  end loop;
  execute format('drop function if exists sterna.unseen_%s() cascade', root);
  execute format('drop function if exists sterna.merging_%s() cascade', root);
  delete from sterna.ruled_table r where r.table_oid = root;
end $$;

-- Takes off what a table does not need any more, as far as that is possible without making anybody wait; forgets tables that are
-- gone. For the agent, now and then.
create function sterna.rules_tidy() returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
  v_root oid;
begin
  for v_root in
    select r.table_oid from sterna.ruled_table r where not exists (select from sterna.definitions_pending(r.table_oid))
  loop
    begin
      if exists (select from pg_class c where c.oid = v_root) then
        perform sterna.rules_attach(v_root);
      else
        perform sterna.rules_detach(v_root);
        delete from sterna.delta_column d where d.table_oid = v_root;
        delete from sterna.policy p where p.table_oid = v_root;
      end if;
    exception when lock_not_available then
      null;
    end;
  end loop;
end $$;

select sterna.hide_functions('^(delta|policy|merge|definition|definitions|rule|rules|unseen|table_rules|refuse|gate)(_|$)');
select sterna.hide_functions('^(full_rows_problem|conflict_types|truncate_as_delete|forget_truncate)$');

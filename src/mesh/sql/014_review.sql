-- What people do with conflicts: look at them, settle entries of the review queue, retry or drop changes that were parked.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST150  there is no such entry          ST151  the entry is closed already
-- ST152  the choice does not fit it      ST153  the given columns do not fit the table
-- ST154  the table is gone               ST155  code of an ordinary role would run with the rights of the caller

-- What kind of entries a closure settles, and up to which time of their versions; of which times the versions were that the
-- person was shown. (Not versions: composites would make the stream go in text.)
alter table sterna.review_closure add column reason text not null, add column up_to timestamptz not null,
  add column seen timestamptz[] not null default '{}';

-- Raises ST135 unless it is a mode. Called by sub_create too.
create function sterna.check_on_exception(subscription_name name, mode text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  if mode is null or mode not in ('park', 'transdiscard', 'stop') then
    raise exception 'subscription "%": "%" is no way to treat exceptions', subscription_name, mode
      using errcode = 'ST135', hint = 'Choose park, transdiscard or stop.';
  end if;
end $$;

-- What a subscription does with changes that cannot be applied, from now on: park them one by one, park their whole
-- transactions, or stop.

create function sterna.sub_set_on_exception(subscription_name name, mode text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_subscription(subscription_name);
  perform sterna.check_on_exception(subscription_name, mode);
  update sterna.subscription s set on_exception = sub_set_on_exception.mode
   where s.sub_name = subscription_name and s.on_exception <> sub_set_on_exception.mode;
  return true;
end $$;

-- The hash of a key given as texts, as tombstones and the rest know it. Null: the table has no key any more, or reading its
-- values would run code of an ordinary role.
create function sterna.key_hash_of_texts(relation oid, row_key jsonb) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  v_key constant name[] := sterna.key_columns(relation);
  v_values text[];
  v_hash bigint;
begin
  select array_agg(format('%L::%s', row_key ->> k.name, format_type(sterna.base_type(a.atttypid), null)) order by k.position)
    into v_values
    from unnest(v_key) with ordinality as k(name, position)
    join pg_attribute a on a.attrelid = relation and a.attname = k.name
   where row_key ->> k.name is not null and sterna.type_trusted(sterna.base_type(a.atttypid));
  if v_values is null or cardinality(v_values) <> cardinality(v_key) then
    return null;
  end if;
  execute 'select ' || sterna.key_hash_sql(relation, v_values) into v_hash;
  return v_hash;
exception when data_exception then
  -- The type of the key has changed since.
  return null;
end $$;

-- An entry whose conflict was settled before it arrived here is closed at once.
create function sterna.on_review() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_closure record;
begin
  new.key_hash := coalesce(new.key_hash, sterna.key_hash_of_texts(new.table_oid, new.key));
  if new.closed_at is not null then
    return new;
  end if;
  select c.resolution, c.closed_at into v_closure
    from sterna.review_closure c
    join pg_namespace n on n.nspname = c.schema_name
    join pg_class r on r.relnamespace = n.oid and r.relname = c.table_name
   where r.oid = new.table_oid and c.reason = new.reason
     and (c.key = new.key or sterna.key_hash_of_texts(r.oid, c.key) = new.key_hash)
     and greatest((new.local_version).at, (new.remote_version).at) <= c.up_to
   order by c.up_to desc limit 1;
  if found then
    new.closed_at := v_closure.closed_at;
    new.resolution := v_closure.resolution;
  end if;
  return new;
end $$;
create trigger settled_before before insert on sterna.review for each row execute function sterna.on_review();
alter table sterna.review enable always trigger settled_before;

-- Closes what a resolution settles: the open entries of the key whose versions are not newer. Here and on every node where
-- the closure arrives.
create function sterna.on_review_closure() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_table constant oid := (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                            where n.nspname = new.schema_name and c.relname = new.table_name);
  v_hash constant bigint := sterna.key_hash_of_texts(v_table, new.key);
begin
  update sterna.review r set closed_at = new.closed_at, resolution = new.resolution
   where r.table_oid = v_table and r.closed_at is null and r.reason = new.reason
     and (r.key = new.key or r.key_hash = v_hash)
     and (greatest((r.local_version).at, (r.remote_version).at, '-infinity') <= new.up_to
          -- What the resolution wrote may just have met what it was written over: no heartbeat told yet that it was known.
          or (r.remote_version).node_id = new.node_id and (r.remote_version).at > new.closed_at
             and (r.local_version).at = any (new.seen));
  return null;
end $$;
create trigger settles after insert on sterna.review_closure for each row execute function sterna.on_review_closure();
alter table sterna.review_closure enable always trigger settles;

-- What is to be executed for a choice, with which rights, and how the row came to be as it will be then.
create type sterna.review_plan as (
  -- Each is tried until one finds its row; none: nothing is written.
  statements text[],
  -- The function that executes them with the rights of the table's owner; null: the caller does.
  owner_function text,
  discards_aside boolean
);

-- SQL that writes a row. Values are literals without a type, so that the columns' own input reads them. Null: nothing to update.
create function sterna.review_update_sql(relation oid, columns jsonb, condition text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when count(*) > 0
         then format('update %s t set %s where %s', relation::regclass, string_agg(format('%I = %L', c.key, c.value), ', '), condition) end
    from jsonb_each_text(columns) c
$$;
create function sterna.review_insert_sql(relation oid, columns jsonb) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('insert into %s (%s) overriding system value values (%s)', relation::regclass,
                string_agg(format('%I', c.key), ', '), string_agg(format('%L', c.value), ', '))
    from jsonb_each_text(columns) c
$$;

-- Whether a write to a table by an ordinary session runs code of an ordinary role, which a caller with Sterna's rights must
-- not run with them.
create function sterna.review_runs_code(relation oid, written name[]) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select not sterna.table_trusted(relation, written) or exists (
    select from sterna.partition_family(relation) f
     where not sterna.trusted_role(f.relowner)
       and (exists (select from pg_trigger t where t.tgrelid = f.relid and t.tgenabled <> 'D'
                       and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid))
            or exists (select from pg_rewrite r where r.ev_class = f.relid and r.ev_enabled <> 'D')))
$$;

-- The columns of a row that can be written: those that the table has and that are not computed. `replaced`: by an update,
-- which leaves alone the key, identities, and sums unless they are given.
create function sterna.review_columns(relation oid, texts jsonb, replaced boolean, given jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_object_agg(a.attname, texts -> a.attname::text), '{}')
    from pg_attribute a
   where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and texts ? a.attname::text
     and not (replaced and (a.attname = any (sterna.key_columns(relation)) or a.attidentity = 'a'
                            or not given ? a.attname::text
                               and exists (select from sterna.delta_column d
                                            where d.table_oid = relation and d.column_name = a.attname)))
$$;

-- Plans a resolution; the entry stays locked. `caller`: the role that will execute it.
create function sterna.review_prepare(id bigint, choice text, given jsonb, caller name) returns sterna.review_plan
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
declare
  r record;
  v_key name[];
  v_condition text;
  v_rewrite text;
  v_given jsonb;
  v_base jsonb;
  v_plan sterna.review_plan := row('{}'::text[], null, false);
  v_trigger record;
  v_bad text;
begin
  perform sterna.local_node_id();
  select v.reason, v.conflict_type, v.table_oid, v.table_name, v.key, v.local_row, v.remote_row, v.closed_at, v.resolution
    into r from sterna.review v where v.id = review_prepare.id for update;
  if not found then
    raise exception 'there is no review entry % on this node', id
      using errcode = 'ST150', hint = 'Each node counts its own: select id, table_name, key from sterna.review_list.';
  elsif r.closed_at is not null then
    raise exception 'review entry % is closed: %', id, r.resolution
      using errcode = 'ST151', hint = 'Nothing is left to do. To change the row, write it.';
  elsif choice is null or choice not in ('local', 'remote', 'row', 'dismiss') then
    raise exception '"%" is no choice', choice
      using errcode = 'ST152', hint = 'Choose local, remote, row or dismiss.';
  elsif (choice = 'row') <> (given is not null) then
    raise exception 'choice "%" %', choice, case choice when 'row' then 'needs columns' else 'takes no columns' end
      using errcode = 'ST152', hint = 'Give them so: sterna.review_resolve(id, ''row'', ''{"column": "value"}'').';
  end if;
  if choice = 'dismiss' then
    return v_plan;
  end if;

  if r.reason = 'set_aside' and choice = 'remote' then
    raise exception 'the row of entry % cannot stand beside the one that has its unique value', id
      using errcode = 'ST152',
            hint = 'Give this row another value (choice row), or change or delete the other row: then this one comes back by itself.';
  elsif r.reason = 'remainder' and choice <> 'row' then
    raise exception 'entry % is about sums of a deleted row: there is no row to keep', id
      using errcode = 'ST152', hint = 'Choose dismiss: the sums stay with the key; or row: a row with what you give.';
  elsif r.reason = 'orphan' and choice = 'remote'
        or choice = 'remote' and r.remote_row is null and r.conflict_type not like 'delete%' then
    raise exception 'entry % has no other row to choose', id
      using errcode = 'ST152', hint = 'Choose local, row or dismiss.';
  end if;

  v_key := sterna.key_columns(r.table_oid);
  if v_key is null then
    raise exception 'table % is gone, or has no key any more', r.table_name
      using errcode = 'ST154', hint = 'Choose dismiss.';
  end if;
  v_condition := sterna.key_is_sql(r.table_oid, (select array_agg(quote_literal(r.key ->> k.name) order by k.position)
                                                   from unnest(v_key) with ordinality as k(name, position)));
  if v_condition is null then
    raise exception 'the key of table % is another one now', r.table_name
      using errcode = 'ST154', hint = 'Choose dismiss, and write the row yourself where needed.';
  end if;

  -- The row as it is, with a new version. An identity that is always generated cannot be set, not even to itself; of a
  -- table that has nothing else, all rows of a key are equal.
  select format('update %s t set %2$I = t.%2$I where %3$s', r.table_oid::regclass, a.attname, v_condition) into v_rewrite
    from pg_attribute a
   where a.attrelid = r.table_oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity <> 'a'
   order by a.attname = any (v_key) desc, a.attnum limit 1;

  if choice = 'local' and r.reason = 'set_aside' then
    v_plan.discards_aside := true;
    return v_plan;
  elsif choice = 'local' then
    v_plan.statements := array_remove(array[v_rewrite], null);
  elsif choice = 'remote' and r.remote_row is null then
    v_plan.statements := array[format('delete from %s t where %s', r.table_oid::regclass, v_condition)];
  else
    if choice = 'row' then
      v_given := sterna.review_given(r.table_oid, r.key, given);
      v_base := case r.reason when 'remainder' then '{}' else coalesce(r.remote_row, r.local_row, '{}') end;
    else
      v_given := r.remote_row;
      v_base := '{}';
    end if;
    v_given := v_given - v_key::text[];
    v_plan.statements := array_remove(array[
      coalesce(sterna.review_update_sql(r.table_oid,
                 sterna.review_columns(r.table_oid, v_given, true, coalesce(given, '{}')), v_condition),
               v_rewrite),
      sterna.review_insert_sql(r.table_oid, sterna.review_columns(r.table_oid, v_base || v_given || r.key, false, '{}'))], null);
  end if;

  if sterna.trusted_role((select o.oid from pg_roles o where o.rolname = caller))
     and sterna.review_runs_code(r.table_oid, array(select jsonb_object_keys(coalesce(v_base || v_given || r.key, '{}')))::name[]) then
    v_bad := sterna.code_refusal(r.table_oid);
    select t.tgname, t.tgrelid into v_trigger
      from sterna.partition_family(r.table_oid) f join pg_trigger t on t.tgrelid = f.relid
     where t.tgdeferrable and t.tgenabled <> 'D' and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid) limit 1;
    if found then
      v_bad := format('trigger %I of table %s is deferrable: it would run at the end of the transaction', v_trigger.tgname,
                      v_trigger.tgrelid::regclass);
    end if;
    if v_bad is not null then
      raise exception 'code of an ordinary role would run with the rights of "%": %', caller, v_bad
        using errcode = 'ST155', hint = 'Write the row as the owner of the table, then choose dismiss.';
    end if;
    v_plan.owner_function := sterna.review_owner_function(id, r.table_oid, v_plan.statements);
  end if;
  return v_plan;
end $$;

-- The columns that a person gave, as texts. Raises ST153 where they do not fit.
create function sterna.review_given(relation oid, row_key jsonb, given jsonb) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
  v_problem text;
begin
  if jsonb_typeof(given) <> 'object' or given = '{}' then
    raise exception 'no columns are given' using errcode = 'ST153', hint = 'Give an object: {"column": "value"}.';
  end if;
  select g.key, case when a.attname is null then 'the table has no such column'
                     when a.attgenerated <> '' then 'it is computed from others'
                     else 'it belongs to the key' end
    into v_name, v_problem
    from jsonb_each_text(given) g
    left join pg_attribute a on a.attrelid = relation and a.attname::text = g.key and a.attnum > 0 and not a.attisdropped
   where a.attname is null or a.attgenerated <> ''
      or (a.attname = any (sterna.key_columns(relation)) and g.value is distinct from row_key ->> g.key)
   limit 1;
  if found then
    raise exception 'column "%" of table % cannot be given: %', v_name, relation::regclass, v_problem
      using errcode = 'ST153', hint = 'Give those columns that are to change, and leave the others out.';
  end if;
  return (select jsonb_object_agg(g.key, g.value) from jsonb_each_text(given) g);
end $$;

-- Makes the function that executes the statements as the owner of the table, in which PostgreSQL refuses to become another
-- role. It has the caller's search_path, on which triggers of an application may count.
create function sterna.review_owner_function(id bigint, relation oid, statements text[]) returns text
language plpgsql set search_path = pg_catalog, pg_temp set check_function_bodies = off as $$
declare
  v_name constant text := format('sterna_apply.review_%s', id);
begin
  execute format('drop function if exists %s()', v_name);
  execute format('create function %s() returns integer language plpgsql security definer as %L', v_name,
    'declare c bigint; begin '
    || (select string_agg(format('%s; get diagnostics c = row_count; if c > 0 then return %s; end if; ', s.statement, s.position), ''
                          order by s.position)
          from unnest(statements) with ordinality as s(statement, position))
    || 'return 0; end');
  execute format('alter function %s() owner to %I', v_name,
                 (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = relation));
  execute format('revoke all on function %s() from public', v_name);
  return v_name;
end $$;

-- After code of an ordinary role was called: nothing of it may be left for the commit. Settings go back to what they were
-- when the session began.
create function sterna.review_guard(owner_function text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on as $$
begin
  execute format('drop function %s()', owner_function::regproc);
  if exists (select from pg_cursors c where c.is_holdable)
     or exists (select from pg_trigger t join pg_class c on c.oid = t.tgrelid
                  join pg_locks l on l.relation = t.tgrelid and l.locktype = 'relation' and l.mode = 'RowExclusiveLock'
                                 and l.pid = pg_backend_pid()
                 where t.tgdeferrable and t.tgenabled <> 'D'
                   and not sterna.trusted_role(c.relowner) and not sterna.trigger_trusted(t.tgisinternal, t.tgfoid)) then
    raise exception 'code of an ordinary role left something that would run with the rights of the caller'
      using errcode = 'ST155', hint = 'Write the row as the owner of the table, then choose dismiss.';
  end if;
  perform sterna.apply_guard(0, null);
end $$;

-- Deletes a row that stands aside, on every node: no application can, since it is not in its table.
create function sterna.review_discard(id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  r record;
  v_row jsonb;
begin
  select v.table_oid, v.key, v.key_hash, c.relname, n.nspname into r
    from sterna.review v join pg_class c on c.oid = v.table_oid join pg_namespace n on n.oid = c.relnamespace
   where v.id = review_discard.id;
  -- Sessions that apply must not create the row meanwhile.
  perform pg_advisory_xact_lock(sterna.tombstone_lock(r.table_oid));
  delete from sterna.aside a where a.table_oid = r.table_oid and a.key_hash = r.key_hash returning a.row_values into v_row;
  if not found then
    raise exception 'the row of entry % does not stand aside any more', id
      using errcode = 'ST152', hint = 'It has come back, or is gone: choose dismiss.';
  end if;
  insert into sterna.tombstone as s (table_oid, key_hash, key)
  select r.table_oid, r.key_hash, jsonb_agg(r.key -> k.name::text order by k.position)
    from unnest(sterna.key_columns(r.table_oid)) with ordinality as k(name, position)
  on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null;
  insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts)
  select sterna.local_node_id(), r.nspname, r.relname, 'delete', r.key,
         coalesce(jsonb_object_agg(d.column_name, v_row -> d.column_name::text) filter (where d.column_name is not null), '{}')
    from (values (true)) one left join sterna.delta_column d on d.table_oid = r.table_oid;
end $$;

-- Forgets a row set aside whose key has a row in its table.
create function sterna.review_aside_gone(relation oid, row_key jsonb, hash bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_is_there boolean;
begin
  if sterna.key_hash_of_texts(relation, row_key) is null then
    return;
  end if;
  execute format('select exists (select from %s t where %s)', relation::regclass,
                 sterna.key_is_sql(relation, (select array_agg(quote_literal(row_key ->> k.name) order by k.position)
                                                from unnest(sterna.key_columns(relation)) with ordinality as k(name, position))))
    into v_is_there;
  if v_is_there then
    delete from sterna.aside a where a.table_oid = relation and a.key_hash = hash;
  end if;
end $$;

-- Closes an entry here and on every node.
create function sterna.review_close(id bigint, choice text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  r record;
  -- What this transaction writes gets a greater timestamp than that.
  v_now constant timestamptz := clock_timestamp();
  v_newest timestamptz;
begin
  select v.table_oid, v.reason, v.key, v.key_hash, v.local_version, v.remote_version, c.relname, n.nspname
    into r from sterna.review v
    left join pg_class c on c.oid = v.table_oid left join pg_namespace n on n.oid = c.relnamespace
   -- Or closed in this transaction: by triggers, when its cause went with what was written.
   where v.id = review_close.id and (v.closed_at is null or v.closed_at >= now()) for update of v;
  if not found then
    raise exception 'there is no open review entry % on this node', id
      using errcode = 'ST150', hint = 'Each node counts its own: select id, table_name, key from sterna.review_list.';
  end if;
  update sterna.review v set closed_at = v_now, resolution = choice where v.id = review_close.id;
  if r.relname is null then
    return;
  end if;
  if r.reason = 'set_aside' and choice = 'row' then
    -- It was written into its table again, so it does not stand aside.
    perform sterna.review_aside_gone(r.table_oid, r.key, r.key_hash);
  end if;
  v_newest := greatest((r.local_version).at, (r.remote_version).at);
  insert into sterna.review_closure (node_id, schema_name, table_name, reason, key, resolution, closed_at, up_to, seen)
  values (sterna.local_node_id(), r.nspname, r.relname, r.reason, r.key, choice, v_now,
          -- Nobody looked at anything newer where nothing was written over it.
          case choice when 'dismiss' then coalesce(v_newest, v_now) else greatest(v_newest, v_now) end,
          array_remove(array[(r.local_version).at, (r.remote_version).at], null));
end $$;

-- In a word, what a plan did; `done`: which of its statements found its row, from 1 on, or 0.
create function sterna.review_outcome(plan sterna.review_plan, done integer) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when plan.discards_aside then 'discarded'
              else coalesce((array['updated', 'inserted', 'deleted'])[
                     array_position(array['update', 'insert', 'delete'], split_part((plan.statements)[done], ' ', 1))], 'nothing') end
$$;

-- Settles an entry of the review queue, and closes it on every node. `local`: the row stays as it is now on this node;
-- `remote`: the other row; `row`: the given columns; `dismiss`: nothing is written. The row is written with the rights of the
-- caller, or of the table's owner where code of his would run with more, and replicates as any write. Returns what was done:
-- updated, inserted, deleted, discarded, nothing. Without a search_path of its own, which would hide the caller's from the
-- application's triggers.
create function sterna.review_resolve(id bigint, choice text, given jsonb default null) returns text
language plpgsql as $$
declare
  v_plan sterna.review_plan;
  v_done pg_catalog.int4 := 0;
  v_count pg_catalog.int8;
begin
  v_plan := sterna.review_prepare(id, choice, given, current_user);
  if v_plan.discards_aside then
    perform sterna.review_discard(id);
  elsif v_plan.owner_function is not null then
    execute pg_catalog.format('select %s()', v_plan.owner_function) into v_done;
    perform sterna.review_guard(v_plan.owner_function);
  else
    for v_position in 1 .. pg_catalog.cardinality(v_plan.statements) loop
      execute v_plan.statements[v_position];
      get diagnostics v_count = row_count;
      if v_count operator(pg_catalog.>) 0 then
        v_done := v_position;
        exit;
      end if;
    end loop;
  end if;
  perform sterna.review_close(id, choice);
  return sterna.review_outcome(v_plan, v_done);
end $$;

-- Asks the agent to try parked changes again now: all, or one and what it waits for. Returns how many. Raises ST150.
create function sterna.exception_retry(id bigint default null) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_count bigint;
begin
  if exception_retry.id is not null and not exists (select from sterna.exception e where e.id = exception_retry.id) then
    raise exception 'there is no exception % on this node', id
      using errcode = 'ST150', hint = 'Each node counts its own: select id, table_name, message from sterna.exception_list.';
  end if;
  with recursive wanted as (
    select e.id, e.origin_node_id, e.table_oid, e.table_name, e.key_hashes from sterna.exception e
     where exception_retry.id is null or e.id = exception_retry.id
    union
    select e.id, e.origin_node_id, e.table_oid, e.table_name, e.key_hashes
      from wanted w join sterna.exception e
        on exception_retry.id is not null and e.id < w.id and e.origin_node_id = w.origin_node_id
       and (e.table_oid = w.table_oid or e.table_name = w.table_name)
       and (e.key_hashes is null or w.key_hashes is null or e.key_hashes && w.key_hashes)
  )
  update sterna.exception e set next_retry_at = clock_timestamp() where e.id in (select w.id from wanted w);
  get diagnostics v_count = row_count;
  perform pg_notify('sterna', 'exception');
  return v_count;
end $$;

-- Gives up a parked change for good. What is parked behind it stays, in order, and is tried next. Returns it. Raises ST150.
create function sterna.exception_drop(id bigint) returns setof sterna.exception
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  r sterna.exception;
begin
  delete from sterna.exception e where e.id = exception_drop.id returning e.* into r;
  if not found then
    raise exception 'there is no exception % on this node', id
      using errcode = 'ST150', hint = 'Each node counts its own: select id, table_name, message from sterna.exception_list.';
  end if;
  update sterna.exception e set next_retry_at = clock_timestamp()
   where e.origin_node_id = r.origin_node_id and e.id > r.id and (e.table_oid = r.table_oid or e.table_name = r.table_name)
     and (e.key_hashes is null or r.key_hashes is null or e.key_hashes && r.key_hashes);
  perform pg_notify('sterna', 'exception');
  return next r;
end $$;

-- The tables above, with names of nodes. They show row data: to Sterna's role, and whom it grants.
create view sterna.review_list as
  select r.id, r.opened_at, r.reason, r.conflict_type, r.table_name, r.key, r.local_row, r.remote_row,
         l.node_name as local_node, (r.local_version).node_id as local_node_id, (r.local_version).at as local_at,
         m.node_name as remote_node, (r.remote_version).node_id as remote_node_id, (r.remote_version).at as remote_at,
         r.detail, r.closed_at, r.resolution, r.table_oid
    from sterna.review r
    left join sterna.node l on l.node_id = (r.local_version).node_id
    left join sterna.node m on m.node_id = (r.remote_version).node_id;

-- History and review queue as one. A conflict that was queued too stands here once, with the id of its entry.
create view sterna.conflict_list as
  select 'history' as kind, h.id, h.recorded_at, h.conflict_type, h.table_name, h.key, h.local_row, h.remote_row,
         l.node_name as local_node, (h.local_version).node_id as local_node_id, (h.local_version).at as local_at,
         m.node_name as remote_node, (h.remote_version).node_id as remote_node_id, (h.remote_version).at as remote_at,
         h.resolution, h.policy, h.concurrent, null::text as reason, null::text as detail,
         r.id as review_id, r.id is not null and r.closed_at is null as review_open, r.closed_at, r.resolution as closed_by, h.table_oid
    from sterna.conflict_history h
    left join lateral (
      select v.id, v.closed_at, v.resolution from sterna.review v
       where v.table_oid = h.table_oid and v.conflict_type = h.conflict_type and v.key = h.key
         and v.local_version is not distinct from h.local_version and v.remote_version is not distinct from h.remote_version
       order by v.id desc limit 1) r on true
    left join sterna.node l on l.node_id = (h.local_version).node_id
    left join sterna.node m on m.node_id = (h.remote_version).node_id
  union all
  select 'review', r.id, r.opened_at, r.conflict_type, r.table_name, r.key, r.local_row, r.remote_row,
         r.local_node, r.local_node_id, r.local_at, r.remote_node, r.remote_node_id, r.remote_at,
         null, null, null, r.reason, r.detail, r.id, r.closed_at is null, r.closed_at, r.resolution, r.table_oid
    from sterna.review_list r
   where not exists (
     select from sterna.conflict_history h join sterna.review v on v.id = r.id
      where h.table_oid = v.table_oid and h.conflict_type = v.conflict_type and h.key = v.key
        and h.local_version is not distinct from v.local_version and h.remote_version is not distinct from v.remote_version);

create view sterna.exception_list as
  select e.id, e.parked_at, e.reason, n.node_name as origin_node, e.origin_node_id, e.table_name, e.operation, e.key,
         e.old_row, e.new_row, e.sqlstate, e.message, e.detail, (e.version).at as written_at, e.lsn, e.change_number, e.retries,
         e.last_retry_at, e.next_retry_at, e.table_oid
    from sterna.exception e left join sterna.node n on n.node_id = e.origin_node_id;

-- Rows set aside, for a person: why each is there, and what would bring it back.
create view sterna.rows_aside as
  select a.table_name, a.key, a.row_values as "row", n.node_name as written_by, (a.version).at as written_at, a.since,
         format('%s is also that of the row with %s, which is newer', coalesce(u.taken, 'a unique value'), coalesce(o.words, 'another key')) as why,
         format('it returns when the row with %s is deleted or gets another %s; or give it another one itself: select sterna.review_resolve(%s, ''row'', %L)',
                coalesce(o.words, 'the other key'), coalesce(u.columns, 'value'), coalesce(r.id::text, '<review id>'),
                jsonb_build_object(coalesce(u.first, 'column'), '...'))
           as comes_back,
         a.constraints, a.in_favour_of, r.id as review_id
    from sterna.aside a
    left join sterna.node n on n.node_id = (a.version).node_id
    left join lateral (select string_agg(format('%s = %s', k.key, k.value), ', ') as words from jsonb_each_text(a.in_favour_of) k) o on true
    left join lateral (
      select string_agg(format('%s = %s', t.attname, coalesce(a.row_values ->> t.attname::text, 'null')), ', ' order by c.position, k.position) as taken,
             string_agg(t.attname::text, ', ' order by c.position, k.position) as columns,
             (array_agg(t.attname order by c.position, k.position))[1] as first
        from unnest(a.constraints) with ordinality as c(name, position)
        join pg_class x on x.relname = c.name::name
        join pg_index i on i.indexrelid = x.oid and i.indrelid = a.table_oid
        join unnest(i.indkey::smallint[]) with ordinality as k(attnum, position) on k.position <= i.indnkeyatts
        join pg_attribute t on t.attrelid = i.indrelid and t.attnum = k.attnum) u on true
    left join lateral (
      select v.id from sterna.review v
       where v.reason = 'set_aside' and v.table_oid = a.table_oid and v.key_hash = a.key_hash and v.closed_at is null
       order by v.id desc limit 1) r on true;

select sterna.hide_functions('^(review|exception)_');
select sterna.hide_functions('^(check_on_exception|sub_set_on_exception|key_hash_of_texts|on_review|on_review_closure)$');

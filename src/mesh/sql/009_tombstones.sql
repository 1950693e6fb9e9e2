-- Tombstones: what was deleted, and when, so that an older change that arrives later does not bring the row back. Each node
-- keeps its own. A tombstone's version is that of its own xmin: it is written in the deleting transaction itself.
--
-- Each table with a key has one guard function, made for its key, behind four triggers: local deletes, local updates of the
-- key and local truncates leave tombstones; rows that apply creates are looked up among them. Partitions share the guard,
-- and so the tombstones, of the table at the top. Names of columns are anybody's: they stand in these functions quoted, the bodies
-- as literals.

create table sterna.tombstone (
  table_oid oid not null,
  -- Hash of the key by the equality of its types: 1.0 and 1.00 are one numeric key.
  key_hash bigint not null,
  -- For people; never compared.
  key jsonb not null,
  primary key (table_oid, key_hash)
);

-- The last truncate of a table, or of a single partition; its version is that of xmin.
create table sterna.truncation (
  table_oid oid primary key,
  times bigint not null
);

-- For which shape of a table (key, columns with their types, partitions) its functions were made.
create table sterna.guarded (
  table_oid oid primary key,
  shape text not null
);

-- When the last heartbeat was begun: what had a transaction id by then may have an older timestamp.
create unlogged table sterna.heartbeat_mark (
  singleton boolean primary key default true check (singleton),
  marked_at timestamptz not null,
  next_xid xid8 not null
);

-- Everything that this node committed with a timestamp up to here stands before the heartbeat in its WAL.
alter table sterna.heartbeat add column complete_until timestamptz;

-- The table at the top of a partition tree, or the table itself.
create function sterna.root_table(relid oid) returns oid
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select max(a.relid::oid) filter (where not c.relispartition)
                     from pg_partition_ancestors(root_table.relid) a join pg_class c on c.oid = a.relid), root_table.relid)
$$;

-- SQL for the hash of a key given as an expression list: by the types' own hash where every column has one, else of the text.
create function sterna.key_hash_sql(relid oid, expressions text[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when bool_and(exists (
           select from pg_opclass o join pg_am m on m.oid = o.opcmethod and m.amname = 'hash'
             join pg_amproc p on p.amprocfamily = o.opcfamily and p.amprocnum = 2 and p.amproclefttype = o.opcintype
            where o.opcdefault and (o.opcintype = b.oid or (b.typtype = 'e' and o.opcintype = 'anyenum'::regtype)
                                    or exists (select from pg_cast t where t.castsource = b.oid and t.casttarget = o.opcintype
                                                                       and t.castmethod = 'b'))))
         then 'pg_catalog.hash_record_extended(row(' || array_to_string(expressions, ', ') || '), 0)'
         else 'pg_catalog.hashtextextended(row(' || array_to_string(expressions, ', ') || ')::text, 0)' end
    from unnest(sterna.key_columns(relid)) k
    join pg_attribute a on a.attrelid = relid and a.attname = k
    join pg_type t on t.oid = a.atttypid
    join pg_type b on b.oid = case when t.typtype = 'd' then t.typbasetype else t.oid end
$$;

-- Key of the advisory lock between apply sessions: shared by those that create rows of a table, exclusive for one that deletes
-- a row which is not there (or not there yet).
create function sterna.tombstone_lock(table_oid oid) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select (9215::bigint << 32) | table_oid::bigint
$$;

-- Whether the change being applied is older than what wrote a tombstone. The change's version is announced only in sessions
-- that met a tombstone before; elsewhere the transaction is refused and comes again announced (ST004).
create function sterna.change_is_older(tombstone_xmin xid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_time constant text := current_setting('sterna.change_time', true);
begin
  if pg_xact_commit_timestamp(tombstone_xmin) is null then
    return false;
  elsif coalesce(v_time, '') = '' then
    raise exception 'the key has a tombstone' using errcode = 'ST004';
  end if;
  return not sterna.version_not_greater(tombstone_xmin, v_time::timestamptz, current_setting('sterna.change_node')::integer);
end $$;

-- Makes, or makes anew, guard function and triggers of a table and its partitions. Idempotent.
create function sterna.tombstone_attach(relid oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
declare
  v_root constant oid := sterna.root_table(relid);
  v_key constant name[] := sterna.key_columns(v_root);
  v_guard constant text := 'sterna.guard_' || v_root;
  v_bury constant text := 'sterna.bury_' || v_root;
  v_leaf record;
  v_types text;
  v_columns text;
  v_shape text;
  -- The condition that t has the key $1, $2, ..., within a format.
  v_key_is text;
  v_body text;
  v_settings text := 'set search_path = pg_catalog, pg_temp';
begin
  if to_regprocedure('sterna.rules_attach(oid)') is not null then
    perform sterna.rules_attach(v_root);
  end if;
  if v_key is null or sterna.table_key_problem(v_root) is not null then
    perform sterna.tombstone_detach(v_root);
    return;
  end if;
  -- Not the domains: a call would check the value with the rights of Sterna.
  select string_agg(format_type(sterna.base_type(a.atttypid), null), ', ' order by k.position) into v_types
    from unnest(v_key) with ordinality as k(name, position)
    join pg_attribute a on a.attrelid = v_root and a.attname = k.name;
  select string_agg(format('%I %s', a.attname, a.atttypid), ', ' order by a.attnum) into v_columns
    from pg_attribute a where a.attrelid = v_root and a.attnum > 0 and not a.attisdropped;
  v_shape := concat_ws(' ', v_key::text, v_types, v_columns,
                       (select array_agg(p.relid::oid order by p.relid) from pg_partition_tree(v_root) p)::text);
  if exists (select from sterna.guarded g where g.table_oid = v_root and g.shape = v_shape) then
    return;
  end if;
  insert into sterna.guarded as g (table_oid, shape) values (v_root, v_shape)
    on conflict (table_oid) do update set shape = excluded.shape;
  if sterna.key_hash_sql(v_root, '{x}') like 'pg_catalog.hashtextextended%' then
    v_settings := v_settings || ' set timezone = ''UTC'' set datestyle = ''ISO'' set intervalstyle = ''postgres'' set bytea_output = ''hex''';
  end if;
  v_body := format($f$
    begin
      if tg_op = 'INSERT' then
        perform pg_advisory_xact_lock_shared(%1$s);
        if exists (select from sterna.tombstone s where s.table_oid = %2$s and s.key_hash = %3$s)
           or exists (select from sterna.truncation u where u.table_oid in (tg_relid, %2$s)) then
          if exists (select from sterna.tombstone s where s.table_oid = %2$s and s.key_hash = %3$s and sterna.change_is_older(s.xmin))
             or exists (select from sterna.truncation u where u.table_oid in (tg_relid, %2$s) and sterna.change_is_older(u.xmin)) then
            if sterna.table_trusted(tg_relid, null) then
              execute format(%4$L, tg_relid::regclass) using new;
            else
              -- Code of the table's owner would run with the rights of Sterna: whoever inserts as the owner removes the row.
              perform set_config('sterna.too_old', tg_relid::text, true);
            end if;
            perform sterna.met_tombstone(tg_relid, sterna.row_texts(new), %2$s, %3$s);
          end if;
        end if;
      elsif tg_op = 'DELETE' then
        insert into sterna.tombstone as s (table_oid, key_hash, key)
        select %2$s, %5$s, jsonb_build_array(%6$s) from old_rows o
        on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null;
      elsif tg_op = 'UPDATE' then
        insert into sterna.tombstone as s (table_oid, key_hash, key)
        values (%2$s, %7$s, jsonb_build_array(%8$s))
        on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null;
      else
        insert into sterna.truncation as u (table_oid, times) values (tg_relid, 1)
        on conflict (table_oid) do update set times = u.times + 1;
        perform sterna.truncate_aside(%2$s, tg_relid);
      end if;
      return null;
    end $f$,
    sterna.tombstone_lock(v_root), v_root,
    sterna.key_hash_sql(v_root, (select array_agg('new.' || quote_ident(k)) from unnest(v_key) k)),
    'delete from only %s t where '
      || replace(sterna.key_is_sql(v_root, (select array_agg(format('($1).%I', k)) from unnest(v_key) k)), '%', '%%'),
    sterna.key_hash_sql(v_root, (select array_agg('o.' || quote_ident(k)) from unnest(v_key) k)),
    (select string_agg('format(''%s'', o.' || quote_ident(k) || ')', ', ') from unnest(v_key) k),
    sterna.key_hash_sql(v_root, (select array_agg('old.' || quote_ident(k)) from unnest(v_key) k)),
    (select string_agg('format(''%s'', old.' || quote_ident(k) || ')', ', ') from unnest(v_key) k));
  execute format('create or replace function %s() returns trigger language plpgsql security definer %s as %L', v_guard, v_settings, v_body);
  execute format('revoke all on function %s() from public', v_guard);

  -- For deletes that apply: `gone` says whether the row has been deleted already.
  perform sterna.tombstone_drop_bury(v_root);
  v_key_is := replace(sterna.key_is_sql(v_root, (select array_agg('$' || p) from generate_series(1, cardinality(v_key)) p)), '%', '%%');
  v_body := format($f$
    #variable_conflict use_column
    declare
      v_gone boolean := gone;
      v_count bigint;
    begin
      if not v_gone then
        -- A session that applies an older change may have created the row just now, unseen: wait for it, and look again.
        perform pg_advisory_xact_lock(%3$s);
        execute format(%1$L,
                       (select case c.relkind when 'r' then 'only ' end from pg_class c where c.oid = relation), relation::regclass)
          using %6$s, ts, node;
        get diagnostics v_count = row_count;
        v_gone := v_count > 0;
      end if;
      if not v_gone then
        execute format(%2$L,
                       (select case c.relkind when 'r' then 'only ' end from pg_class c where c.oid = relation), relation::regclass)
          into v_count using %6$s;
        if v_count = 0 then
          perform sterna.record_conflict('delete_missing', relation, jsonb_object(%8$s::text[], array[%7$s]), null, null, null,
                                         row(ts, node)::sterna.row_version, 'skip');
        end if;
      end if;
      insert into sterna.tombstone as s (table_oid, key_hash, key) values (%4$s, %5$s, jsonb_build_array(%7$s))
      on conflict (table_oid, key_hash) do update set key = excluded.key, version = null, remainder = null
        where sterna.version_not_greater(s.xmin, ts, node);
      return v_gone;
    end $f$,
    format('delete from %%s%%s t where %s and sterna.version_not_greater(t.xmin, $%s, $%s)'
             ' and sterna.apply_trusted(case when false then t.* end, null)',
           v_key_is, cardinality(v_key) + 1, cardinality(v_key) + 2),
    format('select count(*) from (select from %%s%%s t where %s limit 1) t', v_key_is),
    sterna.tombstone_lock(v_root), v_root,
    sterna.key_hash_sql(v_root, (select array_agg('$' || p) from generate_series(1, cardinality(v_key)) p)),
    (select string_agg('$' || p, ', ') from generate_series(1, cardinality(v_key)) p),
    -- As text by the types' own output: a conversion to json would call casts that anybody can make.
    (select string_agg('format(''%s'', $' || p || ')', ', ') from generate_series(1, cardinality(v_key)) p),
    quote_literal(v_key));
  execute format('create function %s(%s, relation oid, gone boolean, ts timestamptz, node integer) returns boolean language plpgsql %s as %L',
                 v_bury, v_types, v_settings, v_body);
  execute format('revoke all on function %s(%s, oid, boolean, timestamptz, integer) from public', v_bury, v_types);

  -- A row of the table or of a partition as an object of texts, like row_texts. Whoever writes as the table's owner calls it, with
  -- its own rights: it does nothing but that.
  execute format('create or replace function sterna.texts_%s(r anyelement) returns jsonb language plpgsql stable set search_path = pg_catalog, pg_temp as %L',
    v_root,
    (select format('begin return jsonb_object(array[%s]::text[], array[%s]::text[]); end',
                   string_agg(quote_literal(a.attname), ', ' order by a.attnum),
                   string_agg(format('case num_nulls(r.%1$I) when 0 then format(''%%s'', r.%1$I%2$s) end', a.attname,
                                     case when sterna.base_type(a.atttypid) = 'money'::regtype then '::numeric' else '' end), ', ' order by a.attnum))
       from pg_attribute a where a.attrelid = v_root and a.attnum > 0 and not a.attisdropped));

  for v_leaf in
    select c.oid::regclass as name, c.relkind from pg_class c
     where c.oid = v_root or c.oid in (select p.relid from pg_partition_tree(v_root) p)
  loop
    execute format('create or replace trigger sterna_delete after delete on %s referencing old table as old_rows
                    for each statement execute function %s()', v_leaf.name, v_guard);
    execute format('create or replace trigger sterna_truncate after truncate on %s for each statement execute function %s()',
                   v_leaf.name, v_guard);
    if v_leaf.relkind = 'r' then
      execute format('create or replace trigger sterna_rekey after update of %s on %s for each row when (%s) execute function %s()',
                     (select string_agg(quote_ident(k), ', ') from unnest(v_key) k), v_leaf.name,
                     (select string_agg(format('not (old.%1$I%2$s %3$s new.%1$I%2$s)', e.name, '::' || e.type, e.operator), ' or ')
                        from sterna.key_equality(v_root) e), v_guard);
      -- Only in sessions that announce timestamps; others look once for each transaction (second_look).
      execute format('create or replace trigger sterna_revive after insert on %s for each row
                      when (coalesce(pg_catalog.current_setting(''sterna.change_time'', true), '''') <> '''') execute function %s()', v_leaf.name, v_guard);
      execute format('alter table %s enable replica trigger sterna_revive', v_leaf.name);
    end if;
  end loop;
end $$;

create function sterna.tombstone_drop_bury(table_oid oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'sterna'::regnamespace and p.proname = 'bury_' || table_oid
  loop
    execute format('drop function %s', v_function);
  end loop;
end $$;

-- Removes guard, triggers and tombstones of a table; the table itself may be gone.
create function sterna.tombstone_detach(table_oid oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
begin
  perform sterna.tombstone_drop_bury(table_oid);
  execute format('drop function if exists sterna.guard_%s() cascade', table_oid);
  execute format('drop function if exists sterna.texts_%s(anyelement)', table_oid);
  delete from sterna.tombstone s where s.table_oid = tombstone_detach.table_oid;
  delete from sterna.truncation u where u.table_oid = tombstone_detach.table_oid;
  delete from sterna.guarded g where g.table_oid = tombstone_detach.table_oid;
end $$;

-- PostgreSQL refuses to change the type of a column that a trigger names, and sterna_rekey names the key. So a statement that may
-- change a type takes that trigger off first; tombstone_attach puts it back at the end of the statement.
create function sterna.rekey_unhook(command text, caller_path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
set sterna.ddl_replication = off set sterna.bookkeeping = on set client_min_messages = error as $$
declare
  v_skeleton constant text := sterna.ddl_skeleton(command);
  v_name text;
  v_table oid;
  v_leaf record;
begin
  if v_skeleton !~* '\malter\s+table\M' or v_skeleton !~* '\mtype\M' then
    return;
  end if;
  for v_name in
    select m[1] from regexp_matches(v_skeleton,
      '\malter\s+table\s+(?:if\s+exists\s+)?(?:only\s+)?((?:"(?:[^"]|"")+"|[^\s".;*]+)(?:\s*\.\s*(?:"(?:[^"]|"")+"|[^\s".;*]+))?)', 'gi') m
  loop
    perform set_config('search_path', replace(caller_path, '"$user"', quote_ident(session_user)), true);
    v_table := pg_catalog.to_regclass(v_name);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    continue when v_table is null or not exists (select from sterna.guarded g where g.table_oid = sterna.root_table(v_table));
    for v_leaf in
      select t.tgname, t.tgrelid::regclass as name from pg_trigger t
       where t.tgname in ('sterna_rekey', 'sterna_unseen_key', 'sterna_keep_key')
         and t.tgrelid in (select sterna.root_table(v_table) union select p.relid from pg_partition_tree(sterna.root_table(v_table)) p)
    loop
      execute format('drop trigger %I on %s', v_leaf.tgname, v_leaf.name);
    end loop;
    delete from sterna.guarded g where g.table_oid = sterna.root_table(v_table);
    update sterna.ruled_table r set shape = '' where r.table_oid = sterna.root_table(v_table);
  end loop;
end $$;

-- Without a search_path of its own, which would hide the caller's.
create function sterna.on_alter_table() returns event_trigger language plpgsql security definer as $$
begin
  perform sterna.rekey_unhook(pg_catalog.current_query(), pg_catalog.current_setting('search_path'));
end $$;

-- Tables of nodes that were made before.
do $$
begin
  if exists (select from sterna.local_node) then
    perform sterna.tombstone_attach(r.prrelid)
       from (select distinct r.prrelid from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
              where p.pubname like 'sterna\_%' and p.pubname not in ('sterna_internal', 'sterna_ddl_sql')) r;
  end if;
end $$;

revoke all on function sterna.root_table(oid) from public;
revoke all on function sterna.key_hash_sql(oid, text[]) from public;
revoke all on function sterna.rekey_unhook(text, text) from public;
revoke all on function sterna.on_alter_table() from public;
revoke all on function sterna.tombstone_lock(oid) from public;
revoke all on function sterna.change_is_older(xid) from public;
revoke all on function sterna.tombstone_attach(oid) from public;
revoke all on function sterna.tombstone_drop_bury(oid) from public;
revoke all on function sterna.tombstone_detach(oid) from public;

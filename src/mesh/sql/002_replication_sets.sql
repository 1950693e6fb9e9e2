-- Replication sets, each realised as publication sterna_<set>. What belongs to a set is what its publication lists.

create table sterna.replication_set (
  set_name name primary key,
  replicate_insert boolean not null default true,
  replicate_update boolean not null default true,
  replicate_delete boolean not null default true,
  replicate_truncate boolean not null default true,
  -- Where in this node's WAL the set was made, or got its first table: before, nothing of it is in the WAL, and a
  -- decoder does not know it.
  created_lsn pg_lsn not null default pg_catalog.pg_current_wal_insert_lsn()
);

create trigger notify_agent after insert or update or delete or truncate on sterna.replication_set
  for each statement execute function sterna.notify_agent();

-- Tables that were taken out of the default sets by hand: they do not come back by themselves.
create table sterna.table_exclusion (
  relid oid primary key
);

-- Why a table cannot replicate updates and deletes, or null if it can: its key must find one row, at once. For a
-- partitioned table the partitions count, since it is their changes that are decoded.
-- Source: PostgreSQL docs, "Publication", replica identity; relcache.c, RelationGetIndexList.
create function sterna.table_key_problem(relid oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_identity "char";
  v_primary record;
  v_leaf record;
  v_problem text;
begin
  select c.relreplident into v_identity from pg_catalog.pg_class c where c.oid = relid and c.relkind in ('r', 'p');
  if v_identity is null then
    return 'it is no table';
  end if;
  if v_identity = 'n' then
    return 'its replica identity is nothing';
  end if;
  if v_identity = 'i' then
    if not exists (select from pg_catalog.pg_index i
                    where i.indrelid = relid and i.indisreplident and i.indisvalid and i.indimmediate) then
      return 'its replica identity is an index that is gone';
    end if;
  else
    select i.indimmediate, i.indisvalid into v_primary
      from pg_catalog.pg_index i where i.indrelid = relid and i.indisprimary;
    if v_primary is null then
      return case when v_identity = 'f' then 'it has no primary key; replica identity full does not find rows'
                  else 'it has no primary key' end;
    elsif not v_primary.indimmediate then
      return 'its primary key is deferrable';
    elsif not v_primary.indisvalid then
      return 'its primary key is not valid yet: a partition lacks it';
    end if;
  end if;
  for v_leaf in
    select t.relid as leaf from pg_catalog.pg_partition_tree(relid) t where t.isleaf and t.relid <> table_key_problem.relid
  loop
    v_problem := sterna.table_key_problem(v_leaf.leaf);
    if v_problem is not null then
      return format('partition %s: %s', v_leaf.leaf::regclass, v_problem);
    end if;
  end loop;
  return null;
end $$;

-- Why a relation cannot be replicated at all, or null if it can.
create function sterna.table_unsupported(relid oid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
    when c.relkind = 'v' then 'it is a view'
    when c.relkind = 'm' then 'it is a materialized view: refresh it on each node'
    when c.relkind = 'f' then 'it is a foreign table'
    when c.relkind = 'S' then 'it is a sequence: sequences are interleaved between the nodes instead'
    when c.relkind not in ('r', 'p') then 'it is no table'
    when c.relpersistence = 't' then 'it is a temporary table'
    when c.relpersistence = 'u' then 'it is unlogged: its changes are not in the WAL'
    when n.nspname = 'sterna' or n.nspname = 'information_schema' or n.nspname ~ '^pg_' then 'it belongs to the system'
    when exists (select from pg_catalog.pg_depend d
                  where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
      then 'it belongs to an extension'
  end
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.oid = relid
$$;

-- The sets that list a table itself, not through a partitioned one above it.
create function sterna.table_sets(relid oid) returns name[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(s.set_name order by s.set_name), '{}')
    from pg_catalog.pg_publication_rel r
    join pg_catalog.pg_publication p on p.oid = r.prpubid
    join sterna.replication_set s on p.pubname = 'sterna_' || s.set_name
   where r.prrelid = relid
$$;

-- The operations that a set replicates, as CREATE PUBLICATION takes them.
create function sterna.publish_list(replicate_insert boolean, replicate_update boolean, replicate_delete boolean,
                                    replicate_truncate boolean) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select concat_ws(', ', case when replicate_insert then 'insert' end, case when replicate_update then 'update' end,
                   case when replicate_delete then 'delete' end, case when replicate_truncate then 'truncate' end)
$$;

-- Raises ST120 unless there is such a set.
create function sterna.check_repset(set_name name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from sterna.replication_set s where s.set_name = check_repset.set_name) then
    raise exception 'there is no replication set "%"', set_name
      using errcode = 'ST120', hint = format('Create it: select sterna.repset_create(%L).', set_name);
  end if;
end $$;

-- Creates a set without tables. Returns the oid of its publication.
create function sterna.repset_create(set_name name, replicate_insert boolean default true,
                                     replicate_update boolean default true, replicate_delete boolean default true,
                                     replicate_truncate boolean default true) returns oid
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_publication text := 'sterna_' || repset_create.set_name;
begin
  perform sterna.local_node_id();
  if repset_create.set_name is null or repset_create.set_name !~ '^[a-z0-9_]{1,40}$' or repset_create.set_name = 'internal' then
    raise exception '"%" is no name for a replication set', repset_create.set_name
      using errcode = 'ST128', hint = 'Use up to 40 lower-case letters, digits or "_"; "internal" is reserved.';
  end if;
  if exists (select from sterna.replication_set s where s.set_name = repset_create.set_name) then
    raise exception 'there is a replication set "%" already', repset_create.set_name
      using errcode = 'ST121', hint = 'Change it with sterna.repset_alter, or choose another name.';
  end if;
  insert into sterna.replication_set (set_name, replicate_insert, replicate_update, replicate_delete, replicate_truncate)
  values (repset_create.set_name, coalesce(repset_create.replicate_insert, true), coalesce(repset_create.replicate_update, true),
          coalesce(repset_create.replicate_delete, true), coalesce(repset_create.replicate_truncate, true));
  execute format('create publication %I with (publish = %L, publish_via_partition_root = false)', v_publication,
    (select sterna.publish_list(s.replicate_insert, s.replicate_update, s.replicate_delete, s.replicate_truncate)
       from sterna.replication_set s where s.set_name = repset_create.set_name));
  return (select p.oid from pg_catalog.pg_publication p where p.pubname = v_publication);
end $$;

-- Changes what a set replicates; null leaves a kind of change as it is. Raises ST123 if a table in it has no usable key
-- for updates or deletes. Returns the oid of its publication.
create function sterna.repset_alter(set_name name, replicate_insert boolean default null,
                                    replicate_update boolean default null, replicate_delete boolean default null,
                                    replicate_truncate boolean default null) returns oid
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_publication text := 'sterna_' || repset_alter.set_name;
  v_set record;
  v_table regclass;
begin
  perform sterna.check_repset(repset_alter.set_name);
  if repset_alter.set_name in ('default', 'default_insert_only', 'ddl_sql') then
    raise exception 'replication set "%" is built in', repset_alter.set_name
      using errcode = 'ST122', detail = 'Tables move between the default sets by whether they have a key.',
            hint = 'Create a set of your own: select sterna.repset_create(...).';
  end if;
  update sterna.replication_set s
     set replicate_insert = coalesce(repset_alter.replicate_insert, s.replicate_insert),
         replicate_update = coalesce(repset_alter.replicate_update, s.replicate_update),
         replicate_delete = coalesce(repset_alter.replicate_delete, s.replicate_delete),
         replicate_truncate = coalesce(repset_alter.replicate_truncate, s.replicate_truncate)
   where s.set_name = repset_alter.set_name
  returning s.replicate_update or s.replicate_delete as needs_key,
            sterna.publish_list(s.replicate_insert, s.replicate_update, s.replicate_delete, s.replicate_truncate) as publish
       into v_set;
  if v_set.needs_key then
    for v_table in
      select r.prrelid from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
       where p.pubname = v_publication
    loop
      perform sterna.check_key(repset_alter.set_name, v_table);
      perform sterna.check_published_columns(repset_alter.set_name, v_table);
    end loop;
  end if;
  execute format('alter publication %I set (publish = %L)', v_publication, v_set.publish);
  return (select p.oid from pg_catalog.pg_publication p where p.pubname = v_publication);
end $$;

-- Drops a set; its tables stay in other sets that list them. False where there is none and `ifexists` is set.
create function sterna.repset_drop(set_name name, ifexists boolean default false) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
begin
  if ifexists and not exists (select from sterna.replication_set s where s.set_name = repset_drop.set_name) then
    return false;
  end if;
  perform sterna.check_repset(repset_drop.set_name);
  if repset_drop.set_name in ('default', 'default_insert_only', 'ddl_sql') then
    raise exception 'replication set "%" is built in', repset_drop.set_name
      using errcode = 'ST122', hint = 'Take its tables out instead: select sterna.repset_remove_table(...).';
  end if;
  delete from sterna.replication_set s where s.set_name = repset_drop.set_name;
  execute format('drop publication if exists %I', 'sterna_' || repset_drop.set_name);
  return true;
end $$;

-- Raises ST123 unless the table has a usable key.
create function sterna.check_key(set_name name, relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_problem text := sterna.table_key_problem(relation);
begin
  if v_problem is not null then
    raise exception 'table % cannot be in replication set "%": %', relation, set_name, v_problem
      using errcode = 'ST123',
            detail = 'The set replicates updates or deletes, and these find their row by a key that is checked at once.',
            hint = format('Give it a primary key (not deferrable), or put it into a set that replicates inserts only: '
                          'select sterna.repset_add_table(''default_insert_only'', %L).', relation);
  end if;
end $$;

-- The columns of the key that identifies a row of a table that has a usable one.
create function sterna.key_columns(relid oid) returns name[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(a.attname order by k.position)
    from pg_catalog.pg_class c
    join pg_catalog.pg_index i on i.indrelid = c.oid
     and ((c.relreplident = 'i' and i.indisreplident) or (c.relreplident <> 'i' and i.indisprimary)),
         unnest(i.indkey) with ordinality as k(attnum, position)
    join pg_catalog.pg_attribute a on a.attrelid = relid and a.attnum = k.attnum
   where c.oid = relid and k.position <= i.indnkeyatts
$$;

-- Raises ST126 or ST127 if the column list lacks a key column, or the row filter uses others: PostgreSQL accepts that
-- when it is declared, and then refuses the application's UPDATE and DELETE.
create function sterna.check_published_columns(set_name name, relation regclass) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_entry record;
  v_full boolean := (select c.relreplident = 'f' from pg_catalog.pg_class c where c.oid = relation);
  v_missing text;
begin
  select r.oid, r.prattrs, r.prqual::text as qual into v_entry
    from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
   where p.pubname = 'sterna_' || check_published_columns.set_name and r.prrelid = relation;
  if v_entry.prattrs is not null then
    if v_full then
      raise exception 'table % cannot have a column list: its replica identity is full', relation
        using errcode = 'ST126', detail = 'PostgreSQL would refuse every UPDATE and DELETE on it.',
              hint = format('alter table %s replica identity default; then try again.', relation);
    end if;
    select string_agg(quote_ident(k.name), ', ') into v_missing
      from unnest(sterna.key_columns(relation)) as k(name)
     where not exists (select from pg_catalog.pg_attribute a
                        where a.attrelid = relation and a.attname = k.name and a.attnum = any (v_entry.prattrs::int2[]));
    if v_missing is not null then
      raise exception 'the column list of table % lacks key column %', relation, v_missing
        using errcode = 'ST126', detail = 'Updates and deletes find their row by the key.', hint = 'Add it to the list.';
    end if;
  end if;
  if v_entry.qual is not null and not v_full then
    select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_missing
      from pg_catalog.pg_attribute a
     where a.attrelid = relation and not a.attname = any (sterna.key_columns(relation))
       and a.attnum in (select m.found[1]::int2 from regexp_matches(v_entry.qual, ':varattno (\d+)', 'g') as m(found));
    if v_missing is not null then
      raise exception 'the row filter of table % uses column %, which is not in its key', relation, v_missing
        using errcode = 'ST127',
              detail = 'Whether a deleted row belongs to the set must be told from its key alone; PostgreSQL would refuse every UPDATE and DELETE.',
              hint = 'Filter by key columns, or use a set that replicates inserts only.';
    end if;
  end if;
end $$;

-- Puts a table into a set. False where it is in already. A column list or row filter replaces the one it had there.
create function sterna.repset_add_table(set_name name, relation regclass, synchronize_data boolean default false,
                                        columns text[] default null, row_filter text default null,
                                        include_partitions boolean default true) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_set record;
  v_publication text := 'sterna_' || repset_add_table.set_name;
  v_problem text := sterna.table_unsupported(relation);
  v_listed boolean;
  v_columns text;
  v_other name;
  v_message text;
begin
  perform sterna.check_repset(repset_add_table.set_name);
  if relation is null or v_problem is not null then
    raise exception 'table % cannot be replicated: %', relation, coalesce(v_problem, 'there is none')
      using errcode = 'ST124', hint = 'Only ordinary and partitioned tables can be in a replication set.';
  end if;
  if synchronize_data then
    raise exception 'copying the rows that table % has already is not supported yet', relation
      using errcode = 'ST125', hint = 'Bring the rows to all nodes yourself, then add the table without synchronize_data.';
  end if;
  if not include_partitions and exists (select from pg_catalog.pg_class c where c.oid = relation and c.relkind = 'p') then
    raise exception 'table % cannot be in a set without its partitions', relation
      using errcode = 'ST124', hint = 'Add the partitions that you want one by one.';
  end if;
  if row_filter is not null and btrim(row_filter) = '' then
    raise exception 'the row filter of table % is empty', relation
      using errcode = 'ST127', hint = 'Leave it out to replicate all rows.';
  end if;
  if columns is not null then
    v_columns := sterna.column_list(relation, columns);
  end if;

  select s.replicate_update or s.replicate_delete as needs_key into v_set
    from sterna.replication_set s where s.set_name = repset_add_table.set_name;
  v_listed := repset_add_table.set_name = any (sterna.table_sets(relation));
  if v_listed and columns is null and row_filter is null then
    return false;
  end if;
  if v_set.needs_key then
    perform sterna.check_key(repset_add_table.set_name, relation);
  end if;
  -- PostgreSQL stops decoding for a subscription that gets one table with two column lists.
  select s.name into v_other
    from unnest(sterna.table_sets(relation)) as s(name)
    join pg_catalog.pg_publication p on p.pubname = 'sterna_' || s.name
    join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = relation
   where s.name <> repset_add_table.set_name and (columns is not null or r.prattrs is not null)
   limit 1;
  if v_other is not null then
    raise exception 'table % is in replication set "%" with another list of columns', relation, v_other
      using errcode = 'ST126', detail = 'PostgreSQL does not decode a table with two lists of columns for one subscription.',
            hint = format('Take it out there first: select sterna.repset_remove_table(%L, %L).', v_other, relation);
  end if;

  if v_listed then
    execute format('alter publication %I drop table only %s', v_publication, relation);
  elsif not exists (select from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
                     where p.pubname = v_publication) then
    update sterna.replication_set s set created_lsn = pg_current_wal_insert_lsn()
     where s.set_name = repset_add_table.set_name;
  end if;
  begin
    execute format('alter publication %I add table only %s %s %s', v_publication, relation, v_columns,
                   'where (' || row_filter || ')');
  exception when syntax_error or undefined_column or undefined_function or ambiguous_column or invalid_text_representation
              or datatype_mismatch or feature_not_supported or invalid_parameter_value or invalid_column_reference
              or cannot_coerce or undefined_object or object_not_in_prerequisite_state then
    get stacked diagnostics v_message = message_text;
    raise exception 'PostgreSQL does not accept that for table %: %', relation, v_message
      using errcode = case when row_filter is null then 'ST126' else 'ST127' end,
            hint = 'Row filters are simple expressions over columns of the table, without functions of your own.';
  end;
  if v_set.needs_key then
    perform sterna.check_published_columns(repset_add_table.set_name, relation);
  end if;
  perform sterna.tombstone_attach(relation);
  delete from sterna.table_exclusion e
   where repset_add_table.set_name in ('default', 'default_insert_only') and e.relid = relation;
  return true;
end $$;

-- A column list as SQL. Raises ST126 for names that cannot be in one.
create function sterna.column_list(relation regclass, columns text[]) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_problem text;
begin
  if cardinality(columns) = 0 then
    raise exception 'the column list of table % is empty', relation
      using errcode = 'ST126', hint = 'Leave it out to replicate all columns.';
  end if;
  select case when a.attname is null then format('there is no column %I', c.name)
              when a.attgenerated <> '' then format('column %I is generated: each node computes it', c.name)
              else format('column %I is listed twice', c.name) end
    into v_problem
    from (select u.name, count(*) as times from unnest(columns) as u(name) group by u.name) c
    left join pg_catalog.pg_attribute a
      on a.attrelid = relation and a.attname = c.name and a.attnum > 0 and not a.attisdropped
   where a.attname is null or a.attgenerated <> '' or c.times > 1
   limit 1;
  if v_problem is not null then
    raise exception 'the column list of table % is not valid: %', relation, v_problem
      using errcode = 'ST126', hint = 'Correct the list.';
  end if;
  return (select '(' || string_agg(quote_ident(u.name), ', ') || ')' from unnest(columns) as u(name));
end $$;

-- Puts all tables of some schemas into a set that are in none yet. Those without a usable key go to default_insert_only
-- where the set is `default`, and are left out of other sets that need one; both are said. Tables that were taken out by
-- hand stay out.
create function sterna.repset_add_all_tables(set_name name, schema_names text[], synchronize_data boolean default false)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_table record;
  v_needs_key boolean;
  v_schema text;
begin
  perform sterna.check_repset(repset_add_all_tables.set_name);
  if synchronize_data then
    raise exception 'copying the rows that tables have already is not supported yet'
      using errcode = 'ST125', hint = 'Bring the rows to all nodes yourself, then add the tables without synchronize_data.';
  end if;
  select u.name into v_schema from unnest(schema_names) as u(name)
   where not exists (select from pg_catalog.pg_namespace n where n.nspname = u.name) limit 1;
  if v_schema is not null then
    raise exception 'there is no schema "%"', v_schema using errcode = 'ST129', hint = 'Correct the list of schemas.';
  end if;
  select s.replicate_update or s.replicate_delete into v_needs_key
    from sterna.replication_set s where s.set_name = repset_add_all_tables.set_name;
  for v_table in
    select c.oid, c.oid::regclass as name, sterna.table_key_problem(c.oid) as problem
      from pg_catalog.pg_class c
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where n.nspname = any (schema_names) and c.relkind in ('r', 'p') and not c.relispartition
       and sterna.table_unsupported(c.oid) is null
       and not exists (select from sterna.table_exclusion e where e.relid = c.oid)
     order by n.nspname, c.relname
  loop
    if repset_add_all_tables.set_name in ('default', 'default_insert_only') then
      perform sterna.table_auto_join(v_table.oid);
      if v_table.problem is not null then
        raise notice 'table % goes to default_insert_only: %', v_table.name, v_table.problem;
      end if;
    elsif v_needs_key and v_table.problem is not null then
      raise notice 'table % is left out: %', v_table.name, v_table.problem;
    else
      perform sterna.repset_add_table(repset_add_all_tables.set_name, v_table.oid);
    end if;
  end loop;
  return true;
end $$;

-- Takes a table out of a set. False where it is not in. Out of both default sets, it does not come back by itself.
create function sterna.repset_remove_table(set_name name, relation regclass, include_partitions boolean default true)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_table regclass;
  v_removed boolean := false;
  v_above regclass;
begin
  perform sterna.check_repset(repset_remove_table.set_name);
  for v_table in
    select r.prrelid
      from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
     where p.pubname = 'sterna_' || repset_remove_table.set_name
       and (r.prrelid = relation
            or include_partitions and r.prrelid in (select t.relid from pg_catalog.pg_partition_tree(relation) t))
  loop
    execute format('alter publication %I drop table only %s', 'sterna_' || repset_remove_table.set_name, v_table);
    v_removed := true;
  end loop;
  if not v_removed then
    select a.relid into v_above
      from pg_catalog.pg_partition_ancestors(relation) a
     where a.relid <> relation and repset_remove_table.set_name = any (sterna.table_sets(a.relid)) limit 1;
    if v_above is not null then
      raise exception 'table % is in replication set "%" as a partition of %', relation, repset_remove_table.set_name, v_above
        using errcode = 'ST124', hint = format('Take %s out, then add the partitions that you want one by one.', v_above);
    end if;
  end if;
  if repset_remove_table.set_name in ('default', 'default_insert_only')
     and not sterna.table_sets(relation) && '{default,default_insert_only}' then
    insert into sterna.table_exclusion (relid) values (relation) on conflict do nothing;
  end if;
  delete from sterna.table_exclusion e where not exists (select from pg_catalog.pg_class c where c.oid = e.relid);
  return v_removed;
end $$;

-- Puts a table into `default` or `default_insert_only`, whichever fits, and moves it when its key came or went; does
-- nothing for tables that cannot be replicated or were taken out by hand. Partitions follow the table above them.
-- Called for every table that is created or altered, by whoever did that: hence security definer.
create function sterna.table_auto_join(relid oid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_root oid := coalesce((select max(a.relid::oid) filter (where not c.relispartition)
                            from pg_catalog.pg_partition_ancestors(table_auto_join.relid) a
                            join pg_catalog.pg_class c on c.oid = a.relid), table_auto_join.relid);
  v_sets name[] := sterna.table_sets(v_root);
  v_set name;
  v_problem text;
begin
  if not exists (select from sterna.local_node) or not exists (select from pg_catalog.pg_class c where c.oid = v_root)
     or exists (select from sterna.table_exclusion e where e.relid = v_root) then
    return;
  end if;
  if sterna.table_unsupported(v_root) is not null then
    -- An unlogged table cannot be in a publication; PostgreSQL itself refuses to make it so while it is in one.
    return;
  end if;
  v_problem := sterna.table_key_problem(v_root);
  v_set := case when v_problem is null then 'default' else 'default_insert_only' end;
  if v_problem is not null and 'default' = any (v_sets) then
    execute format('alter publication sterna_default drop table only %s', v_root::regclass);
  elsif v_problem is null and 'default_insert_only' = any (v_sets) then
    execute format('alter publication sterna_default_insert_only drop table only %s', v_root::regclass);
  end if;
  if not v_set = any (v_sets) then
    execute format('alter publication %I add table only %s', 'sterna_' || v_set, v_root::regclass);
  end if;
  if v_problem is not null then
    for v_set in
      select s.set_name from sterna.replication_set s
       where s.set_name = any (v_sets) and s.set_name <> 'default' and (s.replicate_update or s.replicate_delete)
    loop
      raise warning 'table % is in replication set "%", but %', v_root::regclass, v_set, v_problem
        using hint = 'PostgreSQL refuses UPDATE and DELETE on it until it has a primary key or has been taken out.';
    end loop;
  end if;
  perform sterna.tombstone_attach(v_root);
end $$;

-- Every user table that can be replicated joins a default set.
create function sterna.repset_add_existing_tables() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_table oid;
begin
  for v_table in
    select c.oid from pg_catalog.pg_class c
     where c.relkind in ('r', 'p') and not c.relispartition and sterna.table_unsupported(c.oid) is null
     order by c.oid
  loop
    perform sterna.table_auto_join(v_table);
  end loop;
end $$;

-- Every user table: what of it travels, and why not all of it. Readable by everyone.
create view sterna.tables as
  select t.schema_name, t.table_name, t.sets, t.problem is null as has_key,
         case when t.unsupported is not null or cardinality(t.sets) = 0 then 'no'
              when not exists (select from sterna.replication_set s
                                where s.set_name = any (t.sets) and (s.replicate_update or s.replicate_delete))
                then 'insert only'
              when exists (select from sterna.replication_set s
                            where s.set_name = any (t.sets)
                              and s.replicate_insert and s.replicate_update and s.replicate_delete) then 'all'
              else 'partly' end as replicates,
         case when t.unsupported is not null then t.unsupported
              when t.excluded then 'it was taken out of the default sets'
              when cardinality(t.sets) = 0 then 'it is in no replication set'
              else t.problem end as reason
    from (
      select n.nspname as schema_name, c.relname as table_name,
             (select coalesce(pg_catalog.array_agg(distinct s.set_name order by s.set_name), '{}')
                from sterna.replication_set s
                join pg_catalog.pg_publication p on p.pubname = 'sterna_' || s.set_name
                join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
               where r.prrelid = c.oid
                  or c.relispartition and r.prrelid in (select a.relid from pg_catalog.pg_partition_ancestors(c.oid) a)) as sets,
             sterna.table_key_problem(c.oid) as problem,
             sterna.table_unsupported(c.oid) as unsupported,
             exists (select from sterna.table_exclusion e where e.relid = c.oid) as excluded
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
       where c.relkind in ('r', 'p') and c.relpersistence <> 't'
         and n.nspname not in ('sterna', 'information_schema') and n.nspname !~ '^pg_'
         and not exists (select from pg_catalog.pg_depend d
                          where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = c.oid and d.deptype = 'e')
    ) t;
grant select on sterna.tables to public;

-- table_key_problem and table_unsupported read nothing but what everyone may read; the view needs them.
revoke all on function sterna.table_sets(oid) from public;
revoke all on function sterna.publish_list(boolean, boolean, boolean, boolean) from public;
revoke all on function sterna.check_repset(name) from public;
revoke all on function sterna.repset_create(name, boolean, boolean, boolean, boolean) from public;
revoke all on function sterna.repset_alter(name, boolean, boolean, boolean, boolean) from public;
revoke all on function sterna.repset_drop(name, boolean) from public;
revoke all on function sterna.check_key(name, regclass) from public;
revoke all on function sterna.key_columns(oid) from public;
revoke all on function sterna.check_published_columns(name, regclass) from public;
revoke all on function sterna.repset_add_table(name, regclass, boolean, text[], text, boolean) from public;
revoke all on function sterna.column_list(regclass, text[]) from public;
revoke all on function sterna.repset_add_all_tables(name, text[], boolean) from public;
revoke all on function sterna.repset_remove_table(name, regclass, boolean) from public;
revoke all on function sterna.table_auto_join(oid) from public;
revoke all on function sterna.repset_add_existing_tables() from public;

-- What apply calls on the rare paths: comparing versions when the cheap test does not decide, describing a local table.

-- Whether the version of a row, given by its xmin, is not greater than (ts, node): the change (ts, node) may replace it.
-- Unknown timestamps (own transaction, or older than track_commit_timestamp) count as older than everything.
create function sterna.version_not_greater(row_xmin xid, ts timestamptz, node integer) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_time timestamptz;
  v_origin oid;
  v_node integer;
begin
  select c.timestamp, c.roident into v_time, v_origin from pg_catalog.pg_xact_commit_timestamp_origin(row_xmin) c;
  if v_time is null or v_time < ts then
    return true;
  elsif v_time > ts then
    return false;
  end if;
  if v_origin = 0 then
    select l.node_id into v_node from sterna.local_node l;
  else
    select substring(o.roname from '^sterna_\d+_(\d+)')::integer into v_node
      from pg_catalog.pg_replication_origin o where o.roident = v_origin;
  end if;
  return coalesce(v_node, 0) <= node;
end $$;

-- Whether the binary form of a type holds object ids of the server it came from, which mean something else elsewhere:
-- reg* types, composites, arrays of user-defined types, and what is built on them.
create function sterna.binary_unsafe(type_oid oid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  t record;
begin
  select p.typtype, p.typelem, p.typcategory, p.typbasetype, p.typname, p.typsubscript
    into t from pg_catalog.pg_type p where p.oid = type_oid;
  if t.typtype = 'c' or t.typtype = 'p' then
    return true;
  elsif t.typtype = 'd' then
    return sterna.binary_unsafe(t.typbasetype);
  elsif t.typtype in ('r', 'm') then
    return sterna.binary_unsafe((select r.rngsubtype from pg_catalog.pg_range r where type_oid in (r.rngtypid, r.rngmultitypid)));
  elsif t.typelem <> 0 and t.typcategory = 'A' then
    return t.typelem >= 16384 or sterna.binary_unsafe(t.typelem);
  end if;
  return t.typname in ('regclass', 'regproc', 'regprocedure', 'regoper', 'regoperator', 'regtype', 'regrole',
                       'regnamespace', 'regconfig', 'regdictionary', 'regcollation');
end $$;

-- What a type is where no domain is put around it.
create function sterna.base_type(type_oid oid) returns oid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_type oid := type_oid;
  v_base oid;
begin
  loop
    select p.typbasetype into v_base from pg_catalog.pg_type p where p.oid = v_type and p.typtype = 'd';
    exit when v_base is null;
    v_type := v_base;
  end loop;
  return v_type;
end $$;

-- By which operators the columns of an index are equal, which for types from extensions are in no search_path of ours. `type`: to which
-- both sides are cast, so that no other operator of that name fits better; null: none.
create function sterna.index_equality(index oid) returns table (index_position bigint, name name, operator text, type text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select k.position, a.attname, format('operator(%I.%s)', n.nspname, o.oprname),
         case when n.nspname <> 'pg_catalog' and t.typtype <> 'p' then format_type(t.oid, null) end
    from pg_index i,
         unnest(i.indkey::smallint[], i.indclass::oid[]) with ordinality as k(attnum, class, position)
    join pg_opclass c on c.oid = k.class
    join pg_amop m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype and m.amoprighttype = c.opcintype
                  and m.amopstrategy = 3
    join pg_operator o on o.oid = m.amopopr
    join pg_namespace n on n.oid = o.oprnamespace
    join pg_type t on t.oid = c.opcintype,
         pg_attribute a
   where i.indexrelid = index and k.position <= i.indnkeyatts and a.attrelid = i.indrelid and a.attnum = k.attnum
$$;

-- The same for a table's key: its replica identity index, else its primary key.
create function sterna.key_equality(relid oid) returns table (key_position bigint, name name, operator text, type text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select e.index_position, e.name, e.operator, e.type
    from (select i.indexrelid
            from pg_index i join pg_class c on c.oid = i.indrelid
           where i.indrelid = key_equality.relid and i.indimmediate and i.indisvalid
             and ((c.relreplident = 'i' and i.indisreplident) or (c.relreplident <> 'i' and i.indisprimary))
           limit 1) k,
         sterna.index_equality(k.indexrelid) e
$$;

-- SQL for: the key of row `t` is these values.
create function sterna.key_is_sql(relid oid, expressions text[]) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select string_agg(format('t.%I%s %s (%s)%s', e.name, '::' || e.type, e.operator, expressions[e.key_position], '::' || e.type),
                    ' and ' order by e.key_position)
    from sterna.key_equality(relid) e
$$;

-- A local table as apply needs it, or null if there is none: its columns, its key (replica identity index, else primary key;
-- deferrable keys do not count), and with whose rights it is written. `written`: the columns that come from the provider.
create function sterna.describe_table(schema_name text, table_name text, written name[] default null) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (select jsonb_build_object(
    'oid', c.oid::bigint,
    'kind', c.relkind,
    'runAs', case when u.untrusted then c.relowner::bigint end,
    'refusal', case when u.untrusted then sterna.code_refusal(c.oid) end,
    'keyEquality', (
      select jsonb_agg(jsonb_build_object('operator', e.operator, 'type', e.type) order by e.key_position)
        from sterna.key_equality(c.oid) e),
    'guardOid', (select g.table_oid::bigint from sterna.guarded g where g.table_oid = sterna.root_table(c.oid)),
    'columns', (
      select jsonb_agg(jsonb_build_object(
        'name', a.attname, 'typeOid', a.atttypid::bigint, 'generated', a.attgenerated <> '',
        'identityAlways', a.attidentity = 'a', 'binaryUnsafe', sterna.binary_unsafe(a.atttypid),
        -- A value of a type with code is read by the one with whose rights the row is written, not when it is bound.
        'parameterOid', (case when not v.coded then a.atttypid when v.base_coded then 'text'::regtype::oid
                              else sterna.base_type(a.atttypid) end)::bigint,
        'cast', case when v.base_coded then format_type(a.atttypid, a.atttypmod) end) order by a.attnum)
      from pg_catalog.pg_attribute a
      cross join lateral (select u.untrusted and not sterna.type_trusted(a.atttypid) as coded,
                                 u.untrusted and not sterna.type_trusted(sterna.base_type(a.atttypid)) as base_coded) v
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
    'key', (
      select (
        select jsonb_agg(a.attname order by k.position)
        from unnest(i.indkey) with ordinality as k(attnum, position)
        join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
        where k.position <= i.indnkeyatts)
      from pg_catalog.pg_index i
      where i.indrelid = c.oid and i.indimmediate and i.indisvalid
        and ((c.relreplident = 'i' and i.indisreplident) or (c.relreplident <> 'i' and i.indisprimary))
      limit 1),
    'looseKey', (
      select coalesce(jsonb_agg(a.attname order by k.position), '[]')
      from pg_catalog.pg_index i
      cross join lateral unnest(i.indkey, i.indclass, i.indcollation) with ordinality as k(attnum, opclass, collation_oid, position)
      join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
      join pg_catalog.pg_opclass o on o.oid = k.opclass
      where i.indrelid = c.oid and i.indimmediate and i.indisvalid and k.position <= i.indnkeyatts
        and ((c.relreplident = 'i' and i.indisreplident) or (c.relreplident <> 'i' and i.indisprimary))
        -- A btree support function 4 says that equal values are the same bytes, under a deterministic collation.
        and (not exists (select from pg_catalog.pg_amproc p
                          where p.amprocfamily = o.opcfamily and p.amproclefttype = o.opcintype
                            and p.amprocrighttype = o.opcintype and p.amprocnum = 4)
             or exists (select from pg_catalog.pg_collation l where l.oid = k.collation_oid and not l.collisdeterministic))))
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  cross join lateral (select not sterna.table_trusted(c.oid, written) as untrusted) u
  where n.nspname = schema_name and c.relname = table_name and c.relkind in ('r', 'p'));
end $$;

revoke all on function sterna.version_not_greater(xid, timestamptz, integer) from public;
revoke all on function sterna.binary_unsafe(oid) from public;
revoke all on function sterna.base_type(oid) from public;
revoke all on function sterna.index_equality(oid) from public;
revoke all on function sterna.key_equality(oid) from public;
revoke all on function sterna.key_is_sql(oid, text[]) from public;
revoke all on function sterna.describe_table(text, text, name[]) from public;

-- Restarts the sequences that belong to a table's columns, as TRUNCATE ... RESTART IDENTITY did at the origin.
create function sterna.apply_restart_identity(schema_name text, table_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  s regclass;
begin
  for s in
    select d.objid::regclass
      from pg_catalog.pg_depend d
      join pg_catalog.pg_class q on q.oid = d.objid and q.relkind = 'S'
      join pg_catalog.pg_class c on c.oid = d.refobjid
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
       and n.nspname = schema_name and c.relname = table_name
  loop
    execute format('alter sequence %s restart', s);
  end loop;
end $$;
revoke all on function sterna.apply_restart_identity(text, text) from public;

-- Raised by the last statement of each remote transaction when it must not be committed: the local clock is not past its
-- timestamp (ST001), it is not the one that follows what was applied last (ST002), or other tables need care than its
-- session knew (ST007).
create function sterna.apply_refused(lsn pg_lsn, ts timestamptz, previous pg_lsn, epoch bigint) returns pg_lsn
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if clock_timestamp() <= ts then
    raise exception 'the clock of this server is not past the timestamp of transaction %', lsn using errcode = 'ST001';
  end if;
  if not exists (select from sterna.careful_state c where c.epoch = apply_refused.epoch) then
    raise exception 'other tables need care' using errcode = 'ST007';
  end if;
  raise exception 'transaction % follows %, but the last one applied is %', lsn, previous,
    pg_replication_origin_session_progress(false) using errcode = 'ST002';
end $$;
revoke all on function sterna.apply_refused(pg_lsn, timestamptz, pg_lsn, bigint) from public;

-- Whether a transaction of this origin with this commit timestamp has been committed here. Searched from the newest
-- transaction id backwards: it is asked only about a transaction that was applied, or failed, moments ago.
create function sterna.was_applied(origin_name text, ts timestamptz) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_origin constant oid := (select o.roident from pg_replication_origin o where o.roname = origin_name);
  v_high bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1;
  v_low bigint;
  v_oldest constant bigint := greatest(3, v_high - 2000000000);
begin
  while v_high >= v_oldest loop
    v_low := greatest(v_high - 9999, v_oldest);
    if exists (select from generate_series(v_low, v_high) g,
                      pg_xact_commit_timestamp_origin((g % 4294967296)::text::xid) c
                where c.timestamp = ts and c.roident = v_origin) then
      return true;
    end if;
    v_high := v_low - 1;
  end loop;
  return false;
end $$;
revoke all on function sterna.was_applied(text, timestamptz) from public;

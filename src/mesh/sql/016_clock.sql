-- A clock that steps back. Local commits then get timestamps older than those of the rows that they replace, and lose everywhere
-- else. Once the clock has passed everything seen before, the keys that were written meanwhile are written again: rows as they
-- stand, with every value, deletes as deletes. See clock.ts and rewriteOf in local-write.ts, whose rules these are.
--
-- Which keys: not only those whose replaced version was newer (it is gone), but all that local transactions wrote in doubt:
-- committed with a timestamp that is not greater than what the clock had shown, by a transaction that had not ended at the last
-- check at which all was well. Rows are found by their xmin, deletes by their tombstones; a table is scanned only in that case.

create table sterna.clock_state (
  singleton boolean primary key default true check (singleton),
  -- The last time that all was well: the clock, and the oldest transaction that had not ended.
  checked_at timestamptz not null,
  oldest_xid xid8 not null,
  -- In doubt: local commits of these transactions with timestamps in this range. All null: none.
  doubt_xid xid8,
  doubt_from timestamptz,
  doubt_until timestamptz,
  -- How far it stepped back, the greatest of several.
  stepped_back interval,
  -- What became of the last doubt.
  settled_at timestamptz,
  rows_rewritten bigint,
  deletes_rewritten bigint
);

-- Truncates in doubt: which rows they took is not known any more, so that a person has to compare the table with other nodes.
create table sterna.clock_truncate (
  table_oid oid primary key,
  table_name text not null,
  truncated_at timestamptz not null
);

-- Whether the clock has stepped back, as the timestamps of commits and of the last check tell, and the agent: by its monotonic
-- clock it is `at_least`, and about `expected` (both null: it does not know). Called with each heartbeat. `thorough`: nobody has
-- watched the clock until now. In doubt, `may_rewrite` says whether it has passed everything seen.
create function sterna.clock_check(at_least timestamptz, expected timestamptz, thorough boolean,
                                   out now timestamptz, out doubt_until timestamptz, out stepped_back interval,
                                   out may_rewrite boolean, out truncated text[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  s sterna.clock_state;
  v_seen timestamptz;
  v_oldest constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
begin
  select c.* into s from sterna.clock_state c for update;
  -- What was applied is older than the clock was then. Read before the clock: more is applied meanwhile.
  select greatest(max(pg_xact_commit_timestamp(h.xmin)), s.checked_at) into v_seen from sterna.heartbeat h;
  if thorough and s.oldest_xid is not null then
    v_seen := greatest(v_seen, sterna.clock_seen(s.oldest_xid));
  end if;
  now := clock_timestamp();
  if s.oldest_xid is null then
    insert into sterna.clock_state (checked_at, oldest_xid) values (now, v_oldest);
    may_rewrite := false;
    truncated := '{}';
    return;
  end if;
  if now < at_least or now < v_seen and (s.doubt_until is null or s.doubt_until < v_seen) then
    v_seen := greatest(v_seen, expected, sterna.clock_seen(s.oldest_xid));
    stepped_back := greatest(s.stepped_back, v_seen - now);
    doubt_until := greatest(s.doubt_until, v_seen);
    update sterna.clock_state c
       set doubt_xid = coalesce(s.doubt_xid, s.oldest_xid),
           -- The clock was not lower than now less the time since the last check, if that is known.
           doubt_from = case when expected is not null and (s.doubt_until is null or s.doubt_from is not null)
                             then least(s.doubt_from, clock_check.now - (expected - s.checked_at) - interval '1 s') end,
           doubt_until = clock_check.doubt_until, stepped_back = clock_check.stepped_back, checked_at = now;
    may_rewrite := false;
  elsif s.doubt_until is not null then
    doubt_until := s.doubt_until;
    stepped_back := s.stepped_back;
    -- A commit has its timestamp a while before it can be seen.
    may_rewrite := now > s.doubt_until + interval '1 s'
      and not exists (select from pg_snapshot_xip(pg_current_snapshot()) x where pg_xact_commit_timestamp(x::xid) <= s.doubt_until);
    update sterna.clock_state c set checked_at = clock_check.now;
  else
    may_rewrite := false;
    update sterna.clock_state c set checked_at = clock_check.now, oldest_xid = v_oldest;
  end if;
  truncated := array(select t.table_name from sterna.clock_truncate t order by 1);
end $$;

-- The greatest timestamp of a commit, local or applied, of the transactions from `oldest` on, of the last million at most.
create function sterna.clock_seen(oldest xid8) returns timestamptz
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select max(pg_xact_commit_timestamp((g % 4294967296)::text::xid))
    from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as next) s,
         generate_series(greatest(oldest::text::bigint, s.next - 1000000, 3), s.next - 1) g
$$;

-- Whether a transaction is one of those in doubt. The condition of clock_rewrite_sql, for other tables.
create function sterna.clock_doubts(row_xmin xid) returns boolean
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from sterna.clock_state s, pg_xact_commit_timestamp_origin(row_xmin) c
     where s.doubt_until is not null and age(row_xmin) <= age(s.doubt_xid::xid) and c.roident = 0
       and c.timestamp between coalesce(s.doubt_from, '-infinity') and s.doubt_until)
$$;

-- The tables that may hold rows in doubt, with their size in pages.
create function sterna.clock_tables() returns table (relation oid, root oid, pages bigint)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select c.oid, g.table_oid, pg_relation_size(c.oid) / current_setting('block_size')::bigint
    from sterna.guarded g
    cross join lateral (select g.table_oid as relid union select p.relid from pg_partition_tree(g.table_oid) p) f
    join pg_class c on c.oid = f.relid and c.relkind = 'r'
   order by 1
$$;

-- SQL that writes the rows in doubt again that stand on some pages of a table. A row that is taken from a subquery as a whole
-- has its large values in it, and so they are stored and sent again. Null: no column can be set.
create function sterna.clock_rewrite_sql(relation oid, first_page bigint, end_page bigint) returns text
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select format($f$
    update only %1$s t set %2$s
      from (select (x.*)::%1$s as whole, x.ctid as place, x.xmin as version from only %1$s x
             where x.ctid >= '(%3$s,0)' and x.ctid < '(%4$s,0)' and pg_catalog.age(x.xmin) <= pg_catalog.age(%5$L::pg_catalog.xid)
               and exists (select from pg_catalog.pg_xact_commit_timestamp_origin(x.xmin) c
                            where c.roident = 0 and c.timestamp between %6$L and %7$L)
             offset 0) r
     where t.ctid = r.place and t.xmin = r.version $f$,
    relation::regclass,
    string_agg(format('%1$I = (r.whole).%1$I', a.attname), ', ' order by a.attnum), first_page, end_page,
    s.doubt_xid::xid, coalesce(s.doubt_from, '-infinity'), s.doubt_until)
    from pg_attribute a, sterna.clock_state s
   where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and a.attidentity <> 'a'
   group by s.doubt_xid, s.doubt_from, s.doubt_until
$$;

-- Writes again the rows in doubt of some pages; the session is in replica mode. Returns how many there were.
create function sterna.clock_rewrite_rows(relation oid, first_page bigint, end_page bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set check_function_bodies = off as $$
declare
  v_sql text;
  v_function constant text := 'sterna_apply.clock_' || relation;
  v_count bigint;
begin
  if not exists (select from pg_class c where c.oid = relation) then
    return 0;
  end if;
  v_sql := sterna.clock_rewrite_sql(relation, first_page, end_page);
  if v_sql is null then
    return 0;
  end if;
  if sterna.table_trusted(relation, null) then
    execute v_sql || ' and sterna.apply_trusted(case when false then t.* end, null)';
    get diagnostics v_count = row_count;
    return v_count;
  end if;
  -- Code of an ordinary role runs with that role's rights.
  execute format('create function %s() returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
                 v_function, format('declare c bigint; begin %s; get diagnostics c = row_count; return c; end', v_sql));
  execute format('alter function %s() owner to %I', v_function,
                 (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = relation));
  execute format('revoke all on function %s() from public', v_function);
  execute format('select %s()', v_function) into v_count;
  execute format('drop function %s()', v_function);
  perform sterna.apply_guard(v_count, null);
  perform sterna.apply_guard_commit();
  return v_count;
end $$;

-- Sends deletes in doubt of a table again, of keys that have no row now, and gives their tombstones the version of this
-- transaction. Returns how many were looked at; 0: none is left.
create function sterna.clock_rewrite_deletes(root oid) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
  v_key constant name[] := sterna.key_columns(root);
  v_types constant text[] := array(select format_type(sterna.base_type(a.atttypid), null)
                                     from unnest(v_key) with ordinality as k(name, position)
                                     join pg_attribute a on a.attrelid = root and a.attname = k.name order by k.position);
  v_count bigint := 0;
  v_tombstone record;
  v_present boolean;
begin
  if not exists (select from sterna.tombstone s where s.table_oid = root and sterna.clock_doubts(s.xmin)) then
    return 0;
  end if;
  -- So that no row is there, or comes, until this delete has its timestamp.
  execute format('lock table %s in share mode', root::regclass);
  perform pg_advisory_xact_lock(sterna.tombstone_lock(root));
  for v_tombstone in
    select s.key_hash, s.key, (select array_agg(format('%L::%s', e.value, v_types[e.position]) order by e.position)
                                 from jsonb_array_elements_text(s.key) with ordinality as e(value, position)) as key_values
      from sterna.tombstone s where s.table_oid = root and sterna.clock_doubts(s.xmin) limit 200
  loop
    execute format('select exists (select from %s t where %s)', root::regclass, sterna.key_is_sql(root, v_tombstone.key_values)) into v_present;
    if not v_present then
      insert into sterna.row_message (node_id, schema_name, table_name, operation, key, amounts)
      select sterna.local_node_id(), n.nspname, c.relname, 'delete',
             (select jsonb_object_agg(k.name, v_tombstone.key -> (k.position - 1)::integer)
                from unnest(v_key) with ordinality as k(name, position)), '{}'
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root;
    end if;
    update sterna.tombstone s set version = null where s.table_oid = root and s.key_hash = v_tombstone.key_hash;
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- All has been written again.
create function sterna.clock_settle(rows_rewritten bigint, deletes_rewritten bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into sterna.clock_truncate as t (table_oid, table_name, truncated_at)
  select u.table_oid, u.table_oid::regclass::text, pg_xact_commit_timestamp(u.xmin)
    from sterna.truncation u join pg_class c on c.oid = u.table_oid where sterna.clock_doubts(u.xmin)
  on conflict (table_oid) do update set truncated_at = excluded.truncated_at;
  update sterna.clock_state
     set checked_at = clock_timestamp(), oldest_xid = pg_snapshot_xmin(pg_current_snapshot()), doubt_xid = null, doubt_from = null,
         doubt_until = null, stepped_back = null, settled_at = clock_timestamp(),
         rows_rewritten = clock_settle.rows_rewritten, deletes_rewritten = clock_settle.deletes_rewritten;
end $$;

-- A person has compared a table whose truncate was in doubt with other nodes. False: there is none.
create function sterna.clock_truncate_checked(relation regclass) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from sterna.clock_truncate t where t.table_oid = relation;
  return found;
end $$;

select sterna.hide_functions('^clock_');

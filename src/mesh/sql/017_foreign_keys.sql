-- Foreign keys. Apply does not enforce them: a row whose parent another node deleted meanwhile must be the same on all nodes, and be
-- there at all. Such orphans are found after the transaction, shown in the review queue, and settled by a policy where one is set.
--
-- How they are found without reading tables over and over: where the parent was visible when the child was written, the delete of
-- the parent arrives at the child's node later, and leaves a tombstone there. So each node looks for children of the keys in tombstones
-- that apply has left, before these are dropped. What that misses (truncates, parents that came aside or were parked, keys of types that
-- belong to ordinary roles) a full comparison finds, which is made at long intervals.
--
-- Who carries out a policy: the node that wrote the orphan last. All nodes agree about who that is, and it is the one that has
-- found it. It waits until all other nodes' streams are past the moment at which it was found: a parent that is on its way is no
-- reason to act.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST611  there is no such foreign key
-- ST612  there is no such policy, or it does not fit

-- Replicated. Named, not by oid: the same constraint has another oid on each node. `report`: no policy.
create table sterna.fk_policy (
  schema_name name,
  table_name name,
  constraint_name name,
  policy text not null check (policy in ('report', 'recreate_parent', 'delete_child', 'set_null')),
  set_at timestamptz not null default clock_timestamp(),
  primary key (schema_name, table_name, constraint_name)
);

-- Orphans that were found and are still ones, with their entry of the review queue.
create table sterna.orphan (
  constraint_oid oid not null,
  key_hash bigint not null,
  key jsonb not null,
  review_id bigint not null,
  found_at timestamptz not null default clock_timestamp(),
  checked_at timestamptz not null default clock_timestamp(),
  -- Why its policy could not be carried out.
  failure text,
  primary key (constraint_oid, key_hash)
);

-- How far the search has come.
create table sterna.fk_mark (
  singleton boolean primary key default true check (singleton),
  -- Tombstones of older transactions have been looked at.
  oldest_xid xid8 not null,
  -- When whole tables were compared last, and whether that is wanted soon.
  compared_at timestamptz not null default clock_timestamp(),
  wanted boolean not null default false
);

insert into sterna.setting (name, value) values ('fk_compare_minutes', '60');

-- The foreign keys between replicated tables, in parts of SQL where `t` is the child and `p` the parent. What names functions of
-- ordinary roles is left out: operators belong to the parent's unique index, and both sides have the same type, or PostgreSQL's own.
create function sterna.fk_watched() returns table (
  constraint_oid oid, constraint_name name, child oid, parent oid, child_root oid, parent_root oid,
  -- Whether the child refers at all.
  refers text,
  -- Whether `p` is the parent of `t`.
  matches text,
  -- The child's key as a jsonb object, and its hash.
  child_key text, child_hash text,
  -- By the parent's columns: from a tombstone `s` of the parent, or null where it does not refer to the parent's key.
  tombstone_values text, tombstone_matches text)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select k.oid, k.conname, k.conrelid, k.confrelid, gc.table_oid, gp.table_oid, x.refers, x.matches,
         (select format('jsonb_object(array[%s], array[%s])', string_agg(quote_literal(n), ', ' order by o),
                        string_agg(format('format(''%%s'', t.%I)', n), ', ' order by o))
            from unnest(sterna.key_columns(gc.table_oid)) with ordinality as u(n, o)),
         sterna.key_hash_sql(gc.table_oid, (select array_agg('t.' || quote_ident(n)) from unnest(sterna.key_columns(gc.table_oid)) n)),
         case when x.plain and x.names <@ sterna.key_columns(gp.table_oid) and sterna.key_columns(gp.table_oid) <@ x.names
              then x.tombstone_values end,
         x.tombstone_matches
    from pg_constraint k
    join sterna.guarded gc on gc.table_oid = sterna.root_table(k.conrelid)
    join sterna.guarded gp on gp.table_oid = sterna.root_table(k.confrelid)
    cross join lateral (
      select string_agg(format('t.%I is not null', ca.attname), ' and ' order by u.position) as refers,
             string_agg(format('p.%I operator(%I.%s) t.%I', pa.attname, n.nspname, o.oprname, ca.attname), ' and ' order by u.position) as matches,
             string_agg(format('d.v%s operator(%I.%s) t.%I', u.position, n.nspname, o.oprname, ca.attname), ' and ' order by u.position)
               as tombstone_matches,
             string_agg(format('(s.key ->> %s)::%s as v%s', array_position(sterna.key_columns(gp.table_oid), pa.attname) - 1,
                               format_type(sterna.base_type(pa.atttypid), null), u.position), ', ' order by u.position) as tombstone_values,
             array_agg(pa.attname) as names,
             bool_and(sterna.base_type(pa.atttypid) < 16384) as plain,
             bool_and(sterna.base_type(pa.atttypid) = sterna.base_type(ca.atttypid)
                      or sterna.base_type(pa.atttypid) < 16384 and sterna.base_type(ca.atttypid) < 16384) as harmless
        from unnest(k.conkey, k.confkey, k.conpfeqop) with ordinality as u(child, parent, operator, position)
        join pg_attribute ca on ca.attrelid = k.conrelid and ca.attnum = u.child
        join pg_attribute pa on pa.attrelid = k.confrelid and pa.attnum = u.parent
        join pg_operator o on o.oid = u.operator
        join pg_namespace n on n.oid = o.oprnamespace) x
   where k.contype = 'f' and k.conparentid = 0 and k.convalidated and pg_get_constraintdef(k.oid) !~ ' NOT ENFORCED$' and x.harmless
$$;

-- Notes the orphans of a foreign key that a query finds, and opens entries for them. `source`: SQL after `from`, of children `t`.
create function sterna.fk_note(foreign_key oid, source text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  k record;
  f record;
  v_id bigint;
  v_count bigint := 0;
begin
  select * into k from sterna.fk_watched() w where w.constraint_oid = foreign_key;
  for f in execute format(
    'select distinct on (2) %s as key, %s as hash, t.xmin as version, %s as row_values from %s and %s and not exists (select from %s p where %s) limit 1000',
    k.child_key, k.child_hash, case when sterna.table_trusted(k.child, null) then 'sterna.row_texts(t.*)' else 'null::jsonb' end,
    source, k.refers, k.parent::regclass, k.matches)
  loop
    continue when exists (select from sterna.orphan o where o.constraint_oid = foreign_key and o.key_hash = f.hash);
    insert into sterna.review (reason, table_oid, table_name, key_hash, key, local_row, local_version, detail)
    values ('orphan', k.child_root, k.child_root::regclass::text, f.hash, f.key, f.row_values,
            sterna.version_of_row(k.child_root, f.hash, f.version, null),
            format('its parent in %s is gone (foreign key %I)', k.parent::regclass, k.constraint_name))
    returning id into v_id;
    insert into sterna.orphan (constraint_oid, key_hash, key, review_id) values (foreign_key, f.hash, f.key, v_id);
    v_count := v_count + 1;
  end loop;
  return v_count;
end $$;

-- Whether apply wrote this, by a transaction that has not been looked at. (Local deletes are checked by PostgreSQL.)
create function sterna.fk_arrived(row_xmin xid, since xid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select age(row_xmin) <= age(since) and exists (select from pg_xact_commit_timestamp_origin(row_xmin) c where c.roident <> 0)
$$;

-- The last look took too long, for want of an index on the child's columns: whole tables are compared instead, beside.
create function sterna.fk_give_up() returns void
language sql volatile set search_path = pg_catalog, pg_temp as $$
  update sterna.fk_mark set oldest_xid = pg_snapshot_xmin(pg_current_snapshot()), wanted = true
$$;

-- Looks for children of what was deleted since the last time. Returns how many orphans are new.
create function sterna.fk_look() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  k record;
  v_since xid;
  v_next constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_count bigint := 0;
begin
  select m.oldest_xid::xid into v_since from sterna.fk_mark m for update;
  if not found then
    insert into sterna.fk_mark (oldest_xid) values (v_next);
    return 0;
  end if;
  if exists (select from sterna.tombstone s where sterna.fk_arrived(s.xmin, v_since)) then
    for k in select * from sterna.fk_watched() w where w.tombstone_values is not null loop
      if exists (select from sterna.tombstone s where s.table_oid = k.parent_root and sterna.fk_arrived(s.xmin, v_since)) then
        v_count := v_count + sterna.fk_note(k.constraint_oid, format(
          '(select %s from sterna.tombstone s where s.table_oid = %s and sterna.fk_arrived(s.xmin, %L)) d join %s t on %s where true',
          k.tombstone_values, k.parent_root, v_since, k.child::regclass, k.tombstone_matches));
      end if;
    end loop;
  end if;
  if exists (select from sterna.truncation u where sterna.fk_arrived(u.xmin, v_since)) then
    update sterna.fk_mark set wanted = true;
  end if;
  update sterna.fk_mark set oldest_xid = v_next;
  return v_count;
end $$;

-- The foreign keys that are due for a comparison of the whole tables: none, or all of them.
create function sterna.fk_due() returns setof oid
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update sterna.fk_mark m set compared_at = clock_timestamp(), wanted = false
   where m.compared_at < clock_timestamp() - make_interval(mins => case when m.wanted then 1
                                                                   else sterna.setting_number('fk_compare_minutes', 60) end);
  if found then
    return query select w.constraint_oid from sterna.fk_watched() w order by 1;
  end if;
end $$;

-- Compares the whole tables of a foreign key. Returns how many orphans are new.
create function sterna.fk_compare(foreign_key oid) returns bigint
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select sterna.fk_note(w.constraint_oid, format('%s t where true', w.child::regclass))
    from sterna.fk_watched() w where w.constraint_oid = foreign_key
$$;

-- Looks at orphans again, those first that have waited longest: closes the entries of those that are none any more, and carries
-- out policies. Returns how many were settled.
create function sterna.fk_settle() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set lock_timeout = '2s' as $$
declare
  o record;
  k record;
  v_is boolean;
  v_version sterna.row_version;
  v_where text;
  v_policy text;
  v_done boolean;
  v_claim constant timestamptz := sterna.stream_claim();
  v_count bigint := 0;
begin
  for o in select * from sterna.orphan r order by r.checked_at limit 100 for update skip locked loop
    select * into k from sterna.fk_watched() w where w.constraint_oid = o.constraint_oid;
    v_is := false;
    if found then
      v_where := format('%s and %s and not exists (select from %s p where %s)',
        (select sterna.key_is_sql(k.child_root, array_agg(format('%L::%s', o.key ->> n::text, format_type(sterna.base_type(a.atttypid), null)) order by u.position))
           from unnest(sterna.key_columns(k.child_root)) with ordinality as u(n, position)
           join pg_attribute a on a.attrelid = k.child_root and a.attname = u.n),
        k.refers, k.parent::regclass, k.matches);
      execute format('select true, (sterna.version_of_row(%s, %s, t.xmin, null)).* from %s t where %s', k.child_root, o.key_hash,
                     k.child::regclass, v_where) into v_is, v_version.at, v_version.node_id;
    end if;
    if v_is is distinct from true then
      update sterna.review r set closed_at = clock_timestamp(), resolution = 'gone' where r.id = o.review_id and r.closed_at is null;
      delete from sterna.orphan r where r.constraint_oid = o.constraint_oid and r.key_hash = o.key_hash;
      v_count := v_count + 1;
      continue;
    end if;
    select p.policy into v_policy
      from sterna.fk_policy p join pg_class c on c.oid = k.child join pg_namespace n on n.oid = c.relnamespace
     where p.schema_name = n.nspname and p.table_name = c.relname and p.constraint_name = k.constraint_name;
    v_done := false;
    if v_policy <> 'report' and o.found_at + interval '2 s' < v_claim and sterna.fk_in_charge(v_version) then
      begin
        perform sterna.fk_act(k.constraint_oid, v_policy, v_where, o.review_id);
        update sterna.review r set closed_at = clock_timestamp(), resolution = v_policy where r.id = o.review_id and r.closed_at is null;
        delete from sterna.orphan r where r.constraint_oid = o.constraint_oid and r.key_hash = o.key_hash;
        v_done := true;
        v_count := v_count + 1;
      exception when others then
        if sqlstate ~ '^(08|40|53|57P0|58)' or sqlstate = '55P03' then
          raise;
        end if;
        update sterna.review r set detail = format('its parent in %s is gone (foreign key %I); policy %s failed: %s',
                                                   k.parent::regclass, k.constraint_name, v_policy, sqlerrm) where r.id = o.review_id;
        update sterna.orphan r set failure = sqlerrm where r.constraint_oid = o.constraint_oid and r.key_hash = o.key_hash;
      end;
    end if;
    if not v_done then
      update sterna.orphan r set checked_at = clock_timestamp() where r.constraint_oid = o.constraint_oid and r.key_hash = o.key_hash;
    end if;
  end loop;
  return v_count;
end $$;

-- Whether this node carries out the policy for a row: it wrote it last, or, where that one is no node of ours any more, it has the
-- lowest id.
create function sterna.fk_in_charge(version sterna.row_version) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when exists (select from sterna.node n where n.node_id = (version).node_id) then (version).node_id = l.node_id
              else l.node_id = (select min(n.node_id) from sterna.node n) end
    from sterna.local_node l
$$;

-- Carries out a policy for one orphan `t`, by an ordinary write, with the rights of the table's owner where his code would run.
create function sterna.fk_act(foreign_key oid, policy text, condition text, review_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  k record;
  v_names record;
  v_target oid;
  v_statement text;
  v_function text;
begin
  select * into k from pg_constraint c where c.oid = foreign_key;
  select string_agg(format('%I = null', ca.attname), ', ' order by u.position) as nulls,
         string_agg(quote_ident(pa.attname), ', ' order by u.position) as parents,
         string_agg('t.' || quote_ident(ca.attname), ', ' order by u.position) as children
    into v_names
    from unnest(k.conkey, k.confkey) with ordinality as u(child, parent, position)
    join pg_attribute ca on ca.attrelid = k.conrelid and ca.attnum = u.child
    join pg_attribute pa on pa.attrelid = k.confrelid and pa.attnum = u.parent;
  v_target := case policy when 'recreate_parent' then k.confrelid else k.conrelid end;
  v_statement := case policy
    when 'delete_child' then format('delete from %s t where %s', k.conrelid::regclass, condition)
    when 'set_null' then format('update %s t set %s where %s', k.conrelid::regclass, v_names.nulls, condition)
    when 'recreate_parent' then format('insert into %s (%s) overriding system value select %s from %s t where %s on conflict do nothing',
                                       k.confrelid::regclass, v_names.parents, v_names.children, k.conrelid::regclass, condition)
  end;
  if not sterna.review_runs_code(v_target, null) then
    execute v_statement;
    return;
  end if;
  v_function := sterna.review_owner_function(review_id, v_target, array[v_statement]);
  execute format('select %s()', v_function);
  perform sterna.review_guard(v_function);
end $$;

-- What is done with orphans of a foreign key, on all nodes: report (nothing but an entry of the review queue), recreate_parent (a
-- row of nothing but the referenced columns and defaults), delete_child, set_null. Raises ST611, ST612.
create function sterna.fk_policy_set(relation regclass, constraint_name name, policy text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  k record;
  v_column name;
begin
  select c.conkey, c.conrelid, n.nspname, r.relname into k
    from pg_constraint c join pg_class r on r.oid = c.conrelid join pg_namespace n on n.oid = r.relnamespace
   where c.conrelid = fk_policy_set.relation and c.conname = fk_policy_set.constraint_name and c.contype = 'f';
  if not found then
    raise exception 'table % has no foreign key "%"', relation, constraint_name
      using errcode = 'ST611', hint = format('It has: %s.', coalesce((select string_agg(quote_ident(c.conname), ', ' order by c.conname)
        from pg_constraint c where c.conrelid = fk_policy_set.relation and c.contype = 'f'), 'none'));
  end if;
  if policy is null or policy not in ('report', 'recreate_parent', 'delete_child', 'set_null') then
    raise exception 'there is no policy "%" for foreign keys', policy
      using errcode = 'ST612', hint = 'Use report, recreate_parent, delete_child or set_null.';
  end if;
  select a.attname into v_column from pg_attribute a where a.attrelid = k.conrelid and a.attnum = any (k.conkey) and a.attnotnull limit 1;
  if policy = 'set_null' and found then
    raise exception 'column "%" of table % cannot be null', v_column, relation
      using errcode = 'ST612', hint = 'Use recreate_parent or delete_child, or let the column be null.';
  end if;
  insert into sterna.fk_policy as p (schema_name, table_name, constraint_name, policy)
  values (k.nspname, k.relname, fk_policy_set.constraint_name, fk_policy_set.policy)
  on conflict on constraint fk_policy_pkey do update set policy = excluded.policy, set_at = excluded.set_at;
end $$;

select sterna.hide_functions('^fk_');

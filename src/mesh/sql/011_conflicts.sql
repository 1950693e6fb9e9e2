-- Conflicts: what is recorded of them, and what a node knows besides its tables: rows set aside, versions that xmin cannot
-- express, changes that wait. These tables hold row data; they are not replicated, and only Sterna's role reads them.
--
-- Rows and keys stand in them as jsonb objects from column to text, as the types' own output functions give it.

-- Who wrote a row last: commit timestamp at its origin, and the origin's node id.
create type sterna.row_version as (at timestamptz, node_id integer);

create table sterna.conflict_history (
  id bigint generated always as identity primary key,
  recorded_at timestamptz not null default clock_timestamp(),
  -- PostgreSQL 18's names; insert_deleted (an insert older than the delete of its key) is ours.
  conflict_type text not null,
  table_oid oid not null,
  table_name text not null,
  key jsonb not null,
  -- Null: there was none.
  local_row jsonb,
  remote_row jsonb,
  local_version sterna.row_version,
  remote_version sterna.row_version not null,
  -- apply_remote, keep_local, merged, set_aside, skip
  resolution text not null,
  policy text not null default 'last_update_wins',
  -- Whether neither writer knew what the other had written. Null: heartbeats do not tell (yet).
  concurrent boolean
);
create index on sterna.conflict_history (recorded_at);

-- What a person should look at. An entry is closed, not deleted: by a resolution, or when its cause has gone.
create table sterna.review (
  id bigint generated always as identity primary key,
  opened_at timestamptz not null default clock_timestamp(),
  -- manual: policy of the table; set_aside: a unique value is taken; remainder: deltas of a deleted row; orphan: a foreign key
  reason text not null check (reason in ('manual', 'set_aside', 'remainder', 'orphan')),
  conflict_type text,
  table_oid oid not null,
  table_name text not null,
  key_hash bigint,
  key jsonb not null,
  local_row jsonb,
  remote_row jsonb,
  local_version sterna.row_version,
  remote_version sterna.row_version,
  detail text,
  closed_at timestamptz,
  resolution text
);
create index on sterna.review (table_oid, key_hash) where closed_at is null;

-- Changes that could not be applied, in the order of their origin's stream, until a retry or a person settles them.
create table sterna.exception (
  id bigint generated always as identity primary key,
  parked_at timestamptz not null default clock_timestamp(),
  -- failed: its own error; behind: an earlier change to its key is parked; transaction: another change of its transaction failed
  reason text not null check (reason in ('failed', 'behind', 'transaction')),
  origin_node_id integer not null,
  -- Of the commit at the origin, and which change of that transaction, from 1 on.
  lsn pg_lsn not null,
  change_number integer not null,
  table_oid oid,
  table_name text not null,
  operation text not null check (operation in ('insert', 'update', 'delete', 'truncate', 'cancel')),
  -- Hashes of the keys that it touches; null: all keys.
  key_hashes bigint[],
  key jsonb,
  old_row jsonb,
  new_row jsonb,
  version sterna.row_version not null,
  sqlstate text,
  message text,
  detail text,
  retries integer not null default 0,
  last_retry_at timestamptz,
  next_retry_at timestamptz
);
create index on sterna.exception (origin_node_id, id);
create index on sterna.exception (table_oid);

-- Rows that stand back for a newer row with which they share a unique value.
create table sterna.aside (
  table_oid oid not null,
  key_hash bigint not null,
  table_name text not null,
  key jsonb not null,
  row_values jsonb not null,
  -- Null: older than everything.
  version sterna.row_version,
  -- The row that is in the way, by key, and by which constraints. It comes back when that row frees the values.
  in_favour_of jsonb,
  constraints text[] not null default '{}',
  since timestamptz not null default clock_timestamp(),
  primary key (table_oid, key_hash)
);

-- Versions that rows have and their xmin cannot express; valid only while that is the row's xmin.
create table sterna.row_clock (
  table_oid oid not null,
  key_hash bigint not null,
  row_xmin xid not null,
  version sterna.row_version,
  primary key (table_oid, key_hash)
);

-- Keys at which a change was given up since its origin has something newer, which is on its way.
create table sterna.given_up (
  table_oid oid not null,
  key_hash bigint not null,
  version sterna.row_version not null,
  primary key (table_oid, key_hash)
);

-- Columns whose values are sums of contributions, and policies; the same on every node.
create table sterna.delta_column (
  table_oid oid not null,
  column_name name not null,
  primary key (table_oid, column_name)
);
create table sterna.policy (
  table_oid oid not null,
  -- Null: of all types (merge).
  conflict_type text,
  policy text not null check (policy in ('last_update_wins', 'manual', 'merge', 'apply_remote', 'keep_local')),
  merge_function text,
  unique nulls not distinct (table_oid, conflict_type)
);

-- What travels as rows of Sterna's own, because no change of the table itself says it. Written by triggers and functions of
-- the node that they name, in the transaction that they belong to.
create table sterna.row_message (
  node_id integer not null,
  message_id bigint generated always as identity,
  schema_name name not null,
  table_name name not null,
  -- cancel: take `amounts` away from the sums of this key; delete: the row with this key, and with it the sums in `amounts`
  operation text not null check (operation in ('cancel', 'delete')),
  key jsonb not null,
  amounts jsonb not null,
  sent_at timestamptz not null default clock_timestamp(),
  primary key (node_id, message_id)
);
-- An entry of the review queue was settled on one node: those of the same key go everywhere.
create table sterna.review_closure (
  node_id integer not null,
  closure_id bigint generated always as identity,
  schema_name name not null,
  table_name name not null,
  key jsonb not null,
  resolution text not null,
  closed_at timestamptz not null default clock_timestamp(),
  primary key (node_id, closure_id)
);
-- Definitions that must take effect on all nodes at one point of every stream, and which nodes have come how far with them.
create table sterna.definition (
  definition_id uuid primary key default gen_random_uuid(),
  node_id integer not null,
  kind text not null,
  schema_name name not null,
  table_name name not null,
  body jsonb not null,
  -- fencing, active, refused
  state text not null default 'fencing',
  reason text,
  created_at timestamptz not null default clock_timestamp()
);
create table sterna.definition_step (
  definition_id uuid not null,
  node_id integer not null,
  step text not null,
  done_at timestamptz not null default clock_timestamp(),
  detail text,
  primary key (definition_id, node_id, step)
);

-- What a subscription does with a change that cannot be applied.
alter table sterna.subscription add column on_exception text not null default 'park'
  check (on_exception in ('park', 'transdiscard', 'stop'));

-- Tombstones of tables with delta columns: a version of its own where it was rewritten, and what is left of the sums.
alter table sterna.tombstone add column version sterna.row_version, add column remainder jsonb;

-- Tables whose changes are decided one by one, in the careful lane of apply: because of delta columns or a merge function, or
-- as long as one of their rows has an entry above. A session that applies knows them by the epoch, and refuses to commit
-- under another one (ST007).
create table sterna.careful_table (
  table_oid oid primary key,
  since timestamptz not null default clock_timestamp()
);
create table sterna.careful_state (
  singleton boolean primary key default true check (singleton),
  epoch bigint not null
);
insert into sterna.careful_state (epoch) values (1);

-- Puts a table on the list. The new epoch; null: it was on it.
create function sterna.careful_mark(relation oid) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_epoch bigint;
begin
  insert into sterna.careful_table (table_oid) values (sterna.root_table(relation)) on conflict do nothing;
  if found then
    update sterna.careful_state set epoch = epoch + 1 returning epoch into v_epoch;
  end if;
  return v_epoch;
end $$;

-- Takes tables off the list that have nothing any more that needs care.
create function sterna.careful_clean() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from sterna.careful_table c
   where not exists (select from sterna.aside a where a.table_oid = c.table_oid)
     and not exists (select from sterna.row_clock r where r.table_oid = c.table_oid)
     and not exists (select from sterna.given_up g where g.table_oid = c.table_oid)
     and not exists (select from sterna.exception e where e.table_oid = c.table_oid)
     and not exists (select from sterna.tombstone s where s.table_oid = c.table_oid and s.remainder is not null)
     and not exists (select from sterna.delta_column d where d.table_oid = c.table_oid)
     and not exists (select from sterna.policy p where p.table_oid = c.table_oid and p.policy <> 'manual')
     and not sterna.definition_pending(c.table_oid);
  if found then
    update sterna.careful_state set epoch = epoch + 1;
  end if;
end $$;

-- Timestamps as apply computes with them: microseconds since 2000-01-01.
create function sterna.pg_time(at timestamptz) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select (extract(epoch from at) * 1000000)::bigint - 946684800000000
$$;
create function sterna.time_of(pg_time bigint) returns timestamptz
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select timestamptz '2000-01-01 00:00:00+00' + pg_time * interval '1 microsecond'
$$;

-- A version as apply reads it: time in microseconds since 2000, as text. Of none: nulls.
create function sterna.version_json(version sterna.row_version) returns jsonb
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('at', sterna.pg_time((version).at)::text, 'node', (version).node_id)
$$;

-- The node behind a replication origin; of origin 0, this one.
create function sterna.node_of_origin(origin oid) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if origin = 0 then
    return (select l.node_id from sterna.local_node l);
  end if;
  return (select substring(o.roname from '^sterna_\d+_(\d+)')::integer from pg_replication_origin o where o.roident = origin);
end $$;

-- The version that a row's xmin gives it. Null: none is known, which counts as older than everything. A row that the
-- transaction itself wrote has the version of the change being applied.
create function sterna.version_of_xmin(row_xmin xid, own sterna.row_version) returns sterna.row_version
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  c record;
begin
  select x.timestamp as at, x.roident into c from pg_xact_commit_timestamp_origin(row_xmin) x;
  if c.at is null then
    return case when age(row_xmin) <= age(pg_current_xact_id_if_assigned()::xid) then own end;
  end if;
  return row(c.at, coalesce(sterna.node_of_origin(c.roident), 0))::sterna.row_version;
end $$;

-- The version of a row: that of its row_clock entry while that is valid, else that of xmin.
create function sterna.version_of_row(relation oid, hash bigint, row_xmin xid, own sterna.row_version) returns sterna.row_version
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_clock record;
begin
  select r.version, r.row_xmin into v_clock from sterna.row_clock r where r.table_oid = relation and r.key_hash = hash;
  if v_clock.row_xmin = version_of_row.row_xmin then
    return v_clock.version;
  end if;
  return sterna.version_of_xmin(row_xmin, own);
end $$;

-- In PL/pgSQL, since an index calls it: a function in SQL would be planned for each row.
create function sterna.version_greater(a sterna.row_version, b sterna.row_version) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when a is null then false when b is null then true else ((a).at, (a).node_id) > ((b).at, (b).node_id) end;
end $$;

-- A row as an object of texts, by the types' own output: casts to text or json can be anybody's.
create function sterna.row_texts(r anyelement) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_texts jsonb;
begin
  if r is not distinct from null then
    return null;
  end if;
  execute (
    select format('select jsonb_object(array[%s]::text[], array[%s]::text[]) from (select ($1).*) t',
                  string_agg(quote_literal(a.attname), ', ' order by a.attnum),
                  string_agg(format('case num_nulls(t.%1$I) when 0 then format(''%%s'', t.%1$I%2$s) end', a.attname,
                                    case when sterna.base_type(a.atttypid) = 'money'::regtype then '::numeric' else '' end), ', ' order by a.attnum))
      from pg_type y join pg_attribute a on a.attrelid = y.typrelid and a.attnum > 0 and not a.attisdropped
     where y.oid = pg_typeof(r)::oid)
    into v_texts using r;
  return v_texts;
end $$;

create function sterna.key_of_texts(relation oid, texts jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_object_agg(k, texts -> k) from unnest(sterna.key_columns(relation)::text[]) k
$$;

-- For functions that owners of tables must be able to call while apply writes as them, and nobody else.
create function sterna.require_apply_session() returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not has_table_privilege(session_user, 'sterna.exception', 'insert') then
    raise exception 'permission denied: only sessions of Sterna may call this' using errcode = '42501';
  end if;
end $$;

-- Writes down a conflict and queues it for review where the policy is manual. Says its type to the session that applies, which
-- counts. `root`: the table at the top of the relation's partition tree. `is_concurrent`: null: unknown.
create function sterna.write_conflict(kind text, root oid, relation oid, row_key jsonb, local_texts jsonb, remote_texts jsonb,
                                      local_version sterna.row_version, remote_version sterna.row_version, outcome text,
                                      is_concurrent boolean)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  v_name constant text := relation::regclass::text;
  v_policy text;
begin
  insert into sterna.conflict_history (conflict_type, table_oid, table_name, key, local_row, remote_row, local_version,
                                       remote_version, resolution, policy, concurrent)
  values (kind, root, v_name, coalesce(row_key, '{}'), local_texts, remote_texts, local_version, remote_version, outcome,
          coalesce((select p.policy from sterna.policy p where p.table_oid = root and (p.conflict_type = kind or p.conflict_type is null)
                     order by p.conflict_type nulls last limit 1), 'last_update_wins'),
          is_concurrent)
  returning policy into v_policy;
  if v_policy = 'manual' and is_concurrent is distinct from false then
    insert into sterna.review (reason, conflict_type, table_oid, table_name, key, local_row, remote_row, local_version, remote_version)
    values ('manual', kind, root, v_name, coalesce(row_key, '{}'), local_texts, remote_texts, local_version, remote_version);
  end if;
  raise notice '%', kind using errcode = 'ST011';
end $$;

-- Records a conflict, unless the writer of the newer version knew the older one.
create function sterna.record_conflict(kind text, relation oid, row_key jsonb, local_texts jsonb, remote_texts jsonb,
                                       local_version sterna.row_version, remote_version sterna.row_version, outcome text)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_root oid := relation;
  v_relation text;
begin
  if local_version is not null then
    v_relation := case when sterna.version_greater(local_version, remote_version)
                       then sterna.version_relation(local_version, remote_version)
                       else sterna.version_relation(remote_version, local_version) end;
    if v_relation = 'ordered' and kind !~ '_(missing|deleted)$' then
      return;
    end if;
  end if;
  if (select c.relispartition from pg_class c where c.oid = relation) then
    v_root := sterna.root_table(relation);
  end if;
  perform sterna.write_conflict(kind, v_root, relation, row_key, local_texts, remote_texts, local_version, remote_version, outcome,
                                case v_relation when 'concurrent' then true when 'ordered' then false end);
end $$;

-- The fast lane's question about a row that another node wrote last, or that is newer: whether the change (ts, node) may
-- replace it. 1: yes; 0: no. Else there is something to record (record_meeting): 2 and 3: yes, 4 and 5: no; 3 and 5: the two
-- are concurrent. Remembers its last answer in the transaction: a bulk change meets the rows of another one.
create function sterna.meeting(row_xmin xid, ts timestamptz, node integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_question constant text := concat_ws(' ', row_xmin, node, ts, '');
  v_met constant text := current_setting('sterna.met', true);
  v_writer record;
  v_node integer;
  v_wins boolean;
  v_relation text;
  v_answer integer := 1;
begin
  if session_user <> current_user then
    perform sterna.require_apply_session();
  end if;
  if v_met ^@ v_question then
    return right(v_met, 1);
  end if;
  v_writer := pg_xact_commit_timestamp_origin(row_xmin);
  if v_writer.timestamp is not null then
    v_node := coalesce(sterna.node_of_origin(v_writer.roident), 0);
    v_wins := (v_writer.timestamp, v_node) <= (ts, node);
    v_relation := case when v_node = node then 'ordered'
                       when v_wins then sterna.version_relation(row(ts, node), row(v_writer.timestamp, v_node))
                       else sterna.version_relation(row(v_writer.timestamp, v_node), row(ts, node)) end;
    v_answer := case when v_relation = 'ordered' then 0 when v_relation = 'concurrent' then 3 else 2 end;
    v_answer := case when v_wins then greatest(v_answer, 1) when v_answer > 0 then v_answer + 2 else 0 end;
  end if;
  perform set_config('sterna.met', v_question || v_answer, true);
  return v_answer;
end $$;

-- Records what `meeting` found, with both rows as texts; a delete brings none. Whether the change may replace the row.
create function sterna.record_meeting(local_texts jsonb, remote_texts jsonb, key_columns text[], relation oid, root oid,
                                      row_xmin xid, ts timestamptz, node integer, operation text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_answer constant integer := sterna.meeting(row_xmin, ts, node);
  v_wins constant boolean := v_answer in (1, 2, 3);
begin
  if session_user <> current_user then
    perform sterna.require_apply_session();
  end if;
  if v_answer > 1 then
    perform sterna.write_conflict(
      case operation when 'insert' then 'insert_exists' else operation || '_origin_differs' end, root, relation,
      case cardinality(key_columns) when 1 then jsonb_build_object(key_columns[1], local_texts -> key_columns[1])
           else (select jsonb_object_agg(k, local_texts -> k) from unnest(key_columns) k) end,
      local_texts, remote_texts, sterna.version_of_xmin(row_xmin, null), row(ts, node),
      case when v_wins then 'apply_remote' else 'keep_local' end, case when v_answer in (3, 5) then true end);
  end if;
  return v_wins;
end $$;

-- Both in one, for a table without tombstones, which has no function that makes its rows texts. `arriving`: the new row; null: a
-- delete.
create function sterna.met_row(present anyelement, arriving anyelement, row_xmin xid, ts timestamptz, node integer, operation text)
returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_answer constant integer := sterna.meeting(row_xmin, ts, node);
  v_relation oid;
begin
  if v_answer <= 1 then
    return v_answer = 1;
  end if;
  perform sterna.require_apply_session();
  v_relation := (select t.typrelid from pg_type t where t.oid = pg_typeof(present)::oid);
  return sterna.record_meeting(sterna.row_texts(present), sterna.row_texts(arriving), sterna.key_columns(v_relation)::text[], v_relation,
                               sterna.root_table(v_relation), row_xmin, ts, node, operation);
end $$;

-- An update created its row, which was not here. A deleter must not slip past unseen.
create function sterna.met_none(created anyelement, guard oid, ts timestamptz, node integer) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_relation constant oid := (select t.typrelid from pg_type t where t.oid = pg_typeof(created)::oid);
  v_texts constant jsonb := sterna.row_texts(created);
begin
  perform sterna.require_apply_session();
  perform sterna.second_look(guard, ts, node);
  perform sterna.record_conflict('update_missing', v_relation, sterna.key_of_texts(v_relation, v_texts), null, v_texts, null,
                                 row(ts, node)::sterna.row_version, 'apply_remote');
  return true;
end $$;

-- A row that was just created is older than what took its key away, and goes again. An update has recorded before that it
-- met no row (met_none): that is what it was.
create function sterna.met_tombstone(relation oid, texts jsonb, guard oid, hash bigint) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_key constant jsonb := sterna.key_of_texts(relation, texts);
  v_local sterna.row_version;
  v_truncated sterna.row_version;
  v_last record;
begin
  perform sterna.require_apply_session();
  -- Assigned, since SELECT INTO would take the version for the first of its fields.
  v_local := (select coalesce(s.version, sterna.version_of_xmin(s.xmin, null))
                from sterna.tombstone s where s.table_oid = guard and s.key_hash = hash);
  v_truncated := sterna.truncated(guard, relation, null);
  if sterna.version_greater(v_truncated, v_local) then
    v_local := v_truncated;
  end if;
  select h.id, h.conflict_type, h.key, h.table_oid into v_last from sterna.conflict_history h order by h.id desc limit 1;
  if v_last.conflict_type = 'update_missing' and v_last.key = v_key and v_last.table_oid = guard then
    update sterna.conflict_history h set conflict_type = 'update_deleted', local_version = v_local, resolution = 'keep_local' where h.id = v_last.id;
    raise notice 'update_deleted' using errcode = 'ST011';
  else
    perform sterna.record_conflict('insert_deleted', relation, v_key, null, texts, v_local,
      row(current_setting('sterna.change_time')::timestamptz, current_setting('sterna.change_node')::integer)::sterna.row_version, 'keep_local');
  end if;
end $$;

-- Before the commit of a transaction that created rows in a table: whether anything was deleted there that is newer than the
-- transaction. Sessions that announce timestamps have compared row by row (the trigger sterna_revive); the others come again
-- announced (ST004), also where there is too much to look through.
create function sterna.second_look(guard oid, ts timestamptz, node integer) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_found record;
begin
  perform sterna.require_apply_session();
  if guard is null or coalesce(current_setting('sterna.change_time', true), '') <> '' then
    return true;
  end if;
  perform pg_advisory_xact_lock_shared(sterna.tombstone_lock(guard));
  select count(*) as looked_at, bool_or(not sterna.version_not_greater(d.writer, ts, node)) as is_newer into v_found
    from ((select s.xmin as writer from sterna.tombstone s where s.table_oid = guard limit 1001)
          union all (select u.xmin from sterna.truncation u where sterna.root_table(u.table_oid) = guard)) d;
  if v_found.looked_at > 1000 or v_found.is_newer then
    raise exception 'the table has tombstones' using errcode = 'ST004';
  end if;
  return true;
end $$;

-- What the careful lane must know of a table besides what describe_table says: its columns with the types of parameters for
-- them, the hash of its key (of $1, $2, ...; of the columns of t), and its plain unique constraints besides the key.
create function sterna.describe_careful(relation oid) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_rules constant jsonb := sterna.table_rules(relation);
begin
  return jsonb_build_object(
    'name', (select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation),
    'columns', (select jsonb_agg(jsonb_build_object('name', a.attname, 'typeOid', sterna.base_type(a.atttypid)::bigint,
                                                    'generated', a.attgenerated <> '') order by a.attnum)
                  from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped),
    'hash', sterna.key_hash_sql(relation, (select array_agg('$' || p) from generate_series(1, cardinality(sterna.key_columns(relation))) p)),
    'rowHash', sterna.key_hash_sql(relation, (select array_agg('t.' || quote_ident(k)) from unnest(sterna.key_columns(relation)) k)),
    'uniques', (
      select coalesce(jsonb_agg(u || jsonb_build_object('columns', (
               select jsonb_agg(jsonb_build_object('name', e.name, 'operator', e.operator, 'type', e.type) order by e.index_position)
                 from sterna.index_equality(i.oid) e)) order by i.relname), '[]')
        from jsonb_array_elements(v_rules -> 'uniques') u
        join pg_class i on i.relname = u ->> 'name' and i.relnamespace = (select c.relnamespace from pg_class c where c.oid = relation)),
    'rules', v_rules);
end $$;

-- The version of the last truncate of a table, or of one of its partitions; null: none is known.
create function sterna.truncated(guard oid, relation oid, own sterna.row_version) returns sterna.row_version
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_writer xid;
  v_version sterna.row_version;
  v_newest sterna.row_version;
begin
  for v_writer in select u.xmin from sterna.truncation u where u.table_oid in (guard, relation) loop
    v_version := sterna.version_of_xmin(v_writer, own);
    if v_newest is null or sterna.version_greater(v_version, v_newest) then
      v_newest := v_version;
    end if;
  end loop;
  return v_newest;
end $$;

-- What is known of a key besides its row, for the careful lane. `own`: version of the change that is being applied.
create function sterna.side_facts(guard oid, relation oid, hash bigint, own sterna.row_version) returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'tombstone', (select sterna.version_json(coalesce(s.version, sterna.version_of_xmin(s.xmin, own))) || jsonb_build_object('remainder', s.remainder)
                    from sterna.tombstone s where s.table_oid = guard and s.key_hash = hash),
    'aside', (select sterna.version_json(a.version) || jsonb_build_object('values', a.row_values)
                from sterna.aside a where a.table_oid = guard and a.key_hash = hash),
    'truncated', (select sterna.version_json(t.version) from (select sterna.truncated(guard, relation, own) as version) t where t.version is not null),
    'parked', exists (select from sterna.exception e where e.table_oid = guard and (e.key_hashes is null or hash = any (e.key_hashes))),
    'parkedOfOrigin', exists (select from sterna.exception e where e.table_oid = guard and e.origin_node_id = (own).node_id
                                 and (e.key_hashes is null or hash = any (e.key_hashes))),
    'givenUp', (select sterna.version_json(g.version) from sterna.given_up g where g.table_oid = guard and g.key_hash = hash))
$$;

-- A row of this node, in its table or aside, with its version, for a node that was not sent all its values. Null: no such row.
-- `key`: column to text.
create function sterna.fetch_row(schema_name name, table_name name, key jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_relation constant oid := (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                               where n.nspname = schema_name and c.relname = table_name and c.relkind in ('r', 'p'));
  v_root constant oid := sterna.root_table(v_relation);
  v_values text[];
  v_hash bigint;
  v_row jsonb;
begin
  select array_agg(format('%L::%s', key ->> a.attname, format_type(sterna.base_type(a.atttypid), null)) order by k.position) into v_values
    from unnest(sterna.key_columns(v_relation)) with ordinality as k(name, position)
    join pg_attribute a on a.attrelid = v_relation and a.attname = k.name;
  execute 'select ' || sterna.key_hash_sql(v_relation, v_values) into v_hash;
  execute format($f$select jsonb_build_object('values', sterna.row_texts(t.*)) || sterna.version_json(sterna.version_of_row(%s, %s, t.xmin, null))
                      from %s t where %s$f$, v_root, v_hash, v_relation::regclass, sterna.key_is_sql(v_relation, v_values)) into v_row;
  return coalesce(v_row, (select sterna.version_json(a.version) || jsonb_build_object('values', a.row_values)
                            from sterna.aside a where a.table_oid = v_root and a.key_hash = v_hash));
end $$;

-- Whether the row here is what the origin of a change updated: what the origin had applied by its last heartbeat, and up to where
-- all that other nodes made has arrived here. See BaseAnswer.
create function sterna.base_facts(origin_node integer, local sterna.row_version) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return jsonb_build_object(
    'hadLocal', coalesce((select (h.applied ->> (local).node_id::text)::bigint > sterna.pg_time((local).at)
                            from sterna.heartbeat h where h.node_id = origin_node), false),
    'isAlone', not exists (select from sterna.subscription s where s.provider_node_id <> origin_node or s.provider_node_id is null),
    'receivedUpTo', (select case when count(*) = count(h.complete_until) then sterna.pg_time(min(h.complete_until))::text end
                       from sterna.subscription s left join sterna.heartbeat h on h.node_id = s.provider_node_id
                      where s.provider_node_id is distinct from origin_node));
end $$;

-- Makes a function by which the careful lane writes a row: it returns null, or the error that the row met. Such a function belongs to
-- the owner of a table that has code of ordinary roles; see apply_function.
create function sterna.careful_function(node integer, name text, fresh boolean, owner oid, parameter_types oid[], statement text)
returns void
language plpgsql set search_path = pg_catalog, pg_temp set check_function_bodies = off as $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'sterna_apply'::regnamespace
       and (p.proname = careful_function.name or fresh and p.proname ^@ format('c%s_', node))
  loop
    execute format('drop function %s', v_function);
  end loop;
  execute format('create function sterna_apply.%I(%s) returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
    name, (select string_agg(format_type(p.type, null), ', ' order by p.position) from unnest(parameter_types) with ordinality as p(type, position)),
    format($body$
#variable_conflict use_column
declare
  sterna_state text; sterna_message text; sterna_detail text; sterna_constraint text; sterna_column text; sterna_admitted boolean;
begin
  %s;
  return null;
exception when others then
  get stacked diagnostics sterna_state = returned_sqlstate, sterna_message = message_text, sterna_detail = pg_exception_detail,
    sterna_constraint = constraint_name, sterna_column = column_name;
  if sterna_state ~ '^(08|40|53|57P0|58|ST)' or sterna_state = '55P03' then
    raise;
  end if;
  return json_build_object('sqlstate', sterna_state, 'message', sterna_message, 'detail', nullif(sterna_detail, ''),
                           'constraint', nullif(sterna_constraint, ''), 'column', nullif(sterna_column, ''))::text;
end $body$, statement));
  select p.oid::regprocedure into strict v_function from pg_proc p
   where p.pronamespace = 'sterna_apply'::regnamespace and p.proname = careful_function.name;
  if owner is not null then
    execute format('alter function %s owner to %I', v_function, pg_get_userbyid(owner));
  end if;
  execute format('revoke all on function %s from public', v_function);
end $$;

-- A local truncate is newer than everything: rows aside go with it.
create function sterna.truncate_aside(guard oid, relation oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  delete from sterna.aside a where a.table_oid = guard and to_regclass(a.table_name) = relation;
  if found then
    update sterna.review r set closed_at = clock_timestamp(), resolution = 'the table was truncated'
     where r.table_oid = guard and to_regclass(r.table_name) = relation and r.reason = 'set_aside' and r.closed_at is null;
  end if;
end $$;

-- The history as users of Spock know it.
create view sterna.resolutions as
  select h.id, (select n.node_name from sterna.local_node l join sterna.node n using (node_id)) as node_name,
         h.recorded_at as log_time, h.table_name as relname, null::name as idxname, h.conflict_type,
         h.resolution as conflict_resolution,
         (h.local_version).node_id as local_origin, h.local_row as local_tuple, null::xid as local_xid,
         (h.local_version).at as local_timestamp,
         (h.remote_version).node_id as remote_origin, h.remote_row as remote_tuple, null::xid as remote_xid,
         (h.remote_version).at as remote_timestamp, null::pg_lsn as remote_lsn
    from sterna.conflict_history h;

select sterna.hide_functions(
  '^(careful_mark|careful_clean|pg_time|time_of|node_of_origin|version_of_xmin|version_of_row|'
  'version_greater|row_texts|key_of_texts|record_conflict|write_conflict|side_facts|'
  'require_apply_session|describe_careful|truncated|truncate_aside|met_tombstone|'
  'version_json|fetch_row|base_facts|careful_function)$');

-- Called where apply writes with the rights of a table's owner: met_none, met_row, meeting and record_meeting, which record only in sessions of Sterna.

-- Heartbeats tell how far each node has come with the changes of every other one: so any node can say of two versions of a row
-- whether the writer of the newer one knew the older one, and what can be forgotten. The rules are those of heartbeat.ts and
-- retention.ts.

alter table sterna.heartbeat
  -- By origin, in microseconds since 2000: everything of that origin that is older than this is applied at this node.
  add column applied jsonb not null default '{}',
  -- By origin: nothing of that origin that is newer than this was applied or parked at this node by seen_at.
  add column seen jsonb not null default '{}',
  add column seen_at timestamptz;

-- The last heartbeats of each node, in the order of its own stream. The time of one is the commit timestamp of its row here,
-- which is that of its commit at its node.
create table sterna.heard_heartbeat (
  node_id integer not null,
  beats bigint not null,
  applied jsonb not null,
  seen jsonb not null,
  seen_at timestamptz not null,
  primary key (node_id, beats)
);
create index on sterna.heard_heartbeat (node_id, seen_at, beats);

create function sterna.heartbeat_heard() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  -- A node that is made anew under an old id counts from one again.
  delete from sterna.heard_heartbeat h where h.node_id = new.node_id and h.beats >= new.beats;
  insert into sterna.heard_heartbeat (node_id, beats, applied, seen, seen_at)
  values (new.node_id, new.beats, new.applied, new.seen, coalesce(new.seen_at, new.beat_at));
  return null;
end $$;
create trigger heard after insert or update on sterna.heartbeat for each row execute function sterna.heartbeat_heard();
alter table sterna.heartbeat enable always trigger heard;

-- What this node has applied, and at most seen, of every other one. `seen`: as the agent knows it, by node id; null at a node: it
-- does not know (yet); null: it has just begun.
create function sterna.heartbeat_vector(seen jsonb, clock timestamptz, out applied jsonb, out seen_until jsonb)
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_object_agg(n.node_id, sterna.pg_time(v.applied)) filter (where v.applied is not null), '{}'),
         coalesce(jsonb_object_agg(n.node_id, v.seen) filter (where v.seen is not null), '{}')
    from sterna.local_node l
    join sterna.node n on n.node_id <> l.node_id
    left join sterna.heartbeat h on h.node_id = n.node_id
    left join sterna.heartbeat own on own.node_id = l.node_id
    cross join lateral (
      select case when h.complete_until is not null
                  then least(h.complete_until, (select min((e.version).at) from sterna.exception e where e.origin_node_id = n.node_id))
             end as applied,
             -- Nothing is applied before the clock here is past it: so that of the beat was certainly not exceeded.
             greatest((own.seen ->> n.node_id::text)::bigint,
                      case when heartbeat_vector.seen is null or heartbeat_vector.seen ? n.node_id::text
                           then coalesce((heartbeat_vector.seen ->> n.node_id::text)::bigint, sterna.pg_time(clock)) end) as seen) v
$$;

-- Called by the agent once a second. Nothing where this database is no node. `seen` was true at `seen_at`, by the clock of this
-- server.
drop function sterna.heartbeat_write(text);
create function sterna.heartbeat_write(sterna_version text, seen jsonb default null, seen_at timestamptz default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  -- The clock is read before the transaction ids: commit timestamps are not in the order of commits. What has an older timestamp
  -- has a smaller id than this transaction; and a snapshot does not tell of running ones that began after the last that ended,
  -- so its xmax would not do.
  v_now constant timestamptz := clock_timestamp();
  v_xid constant xid8 := pg_current_xact_id();
  v_running_from xid8;
  v_mark record;
  v_complete timestamptz;
begin
  v_running_from := pg_snapshot_xmin(pg_current_snapshot());
  select m.marked_at, m.next_xid into v_mark from sterna.heartbeat_mark m;
  if v_running_from >= v_xid then
    v_complete := v_now;
  elsif v_running_from >= v_mark.next_xid then
    v_complete := v_mark.marked_at;
  end if;
  if v_mark is null or v_complete is not null then
    insert into sterna.heartbeat_mark as m (marked_at, next_xid) values (v_now, v_xid)
      on conflict (singleton) do update set marked_at = excluded.marked_at, next_xid = excluded.next_xid;
  end if;
  insert into sterna.heartbeat as h (node_id, beat_at, beats, wal_lsn, sterna_version, complete_until, applied, seen, seen_at)
  select l.node_id, v_now, 1, pg_current_wal_insert_lsn(), heartbeat_write.sterna_version, v_complete, v.applied, v.seen_until,
         least(heartbeat_write.seen_at, v_now)
    from sterna.local_node l, sterna.heartbeat_vector(heartbeat_write.seen, v_now) v
  on conflict (node_id) do update
    set beat_at = excluded.beat_at, beats = h.beats + 1, wal_lsn = excluded.wal_lsn, sterna_version = excluded.sterna_version,
        complete_until = greatest(h.complete_until, excluded.complete_until), applied = excluded.applied, seen = excluded.seen,
        seen_at = excluded.seen_at;
end $$;

-- How two versions of a row stand to each other: ordered, concurrent, or unknown, which may become another one with the next
-- heartbeat of the newer one's node. Called for each change of a row that another node wrote last.
create or replace function sterna.version_relation(newer sterna.row_version, older sterna.row_version) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_node constant text := older.node_id;
  -- sterna.pg_time, which costs more than all the rest.
  v_time constant bigint := (extract(epoch from older.at) * 1000000)::bigint - 946684800000000;
  v_known bigint;
begin
  if newer.node_id = older.node_id then
    return 'ordered';
  elsif newer.at = older.at then
    -- A node applies nothing whose timestamp its own clock has not passed.
    return 'concurrent';
  end if;
  select (h.applied ->> v_node)::bigint into v_known from sterna.heard_heartbeat h
   where h.node_id = newer.node_id and h.seen_at < newer.at and pg_xact_commit_timestamp(h.xmin) < newer.at
   order by h.seen_at desc, h.beats desc limit 1;
  if v_known > v_time
     -- A subscription begins with equal data: what stood on one of the two before was known to the other.
     or exists (select from sterna.subscription s where s.provider_node_id = newer.node_id and s.initialized_at > older.at) then
    return 'ordered';
  end if;
  -- What it had seen by a moment after the newer one. The moment is that at which it was read, not that of the commit.
  select coalesce((h.seen ->> v_node)::bigint, -9223372036854775808) into v_known from sterna.heard_heartbeat h
   where h.node_id = newer.node_id and h.seen_at > newer.at
   order by h.seen_at, h.beats limit 1;
  if v_known < v_time then
    return 'concurrent';
  end if;
  return 'unknown';
end $$;

-- Entries of which heartbeats do not tell yet whether they are conflicts, by node and time of the newer version.
alter table sterna.conflict_history add column settled boolean not null default false;
create index conflict_history_unsettled on sterna.conflict_history (
  (case when sterna.version_greater(local_version, remote_version) then (local_version).node_id else (remote_version).node_id end),
  (greatest((local_version).at, (remote_version).at))
) where concurrent is null and not settled and local_version is not null;

-- Judges entries again of which was not known whether they are conflicts, as soon as a heartbeat is past them: then it is known,
-- or will never be. What was a mere change of writer goes, unless the change did not take effect. Returns how many were judged.
create function sterna.conflict_settle() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
  v_node record;
  v_count bigint;
  v_sum bigint := 0;
begin
  for v_node in select h.node_id, coalesce(h.seen_at, h.beat_at) as until from sterna.heartbeat h order by h.node_id loop
    with picked as materialized (
      select h.id, h.conflict_type, h.table_oid, h.key, h.local_version, h.remote_version
        from sterna.conflict_history h
       where case when sterna.version_greater(h.local_version, h.remote_version) then (h.local_version).node_id
                  else (h.remote_version).node_id end = v_node.node_id
         and greatest((h.local_version).at, (h.remote_version).at) < v_node.until
         and h.concurrent is null and not h.settled and h.local_version is not null
       order by greatest((h.local_version).at, (h.remote_version).at) limit 1000
         for update skip locked
    ), judged as materialized (
      select p.id, p.conflict_type, p.table_oid, p.key, p.local_version, p.remote_version,
             case when sterna.version_greater(p.local_version, p.remote_version)
                  then sterna.version_relation(p.local_version, p.remote_version)
                  else sterna.version_relation(p.remote_version, p.local_version) end as relation,
             p.conflict_type ~ '_(missing|deleted)$' as stays
        from picked p
    ), gone as (
      delete from sterna.conflict_history h using judged j where h.id = j.id and j.relation = 'ordered' and not j.stays
    ), closed as (
      update sterna.review r set closed_at = clock_timestamp(), resolution = 'no_conflict'
        from judged j
       where j.relation = 'ordered' and r.closed_at is null and r.reason = 'manual' and r.table_oid = j.table_oid
         and r.conflict_type = j.conflict_type and r.key = j.key
         and r.local_version = j.local_version and r.remote_version = j.remote_version
    ), kept as (
      update sterna.conflict_history h
         set settled = true, concurrent = case j.relation when 'ordered' then false when 'concurrent' then true end
        from judged j where h.id = j.id and (j.relation <> 'ordered' or j.stays)
    )
    select count(*) into v_count from judged;
    v_sum := v_sum + v_count;
  end loop;
  return v_sum;
end $$;

-- What every provider claims in its own stream, as applied here: nothing older can come any more. Null: not known of each.
create function sterna.stream_claim() returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when count(*) = count(h.complete_until) and count(*) > 0 then min(h.complete_until) end
    from sterna.subscription s left join sterna.heartbeat h on h.node_id = s.provider_node_id
$$;

-- Whether a change to this table that is not newer is parked, to this key if one is given: its retry needs what is known now.
create function sterna.older_is_parked(relation oid, hash bigint, version sterna.row_version) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from sterna.exception e
     where e.table_oid = relation and not sterna.version_greater(e.version, older_is_parked.version)
       and (hash is null or e.key_hashes is null or hash = any (e.key_hashes)))
$$;

-- Up to where tombstones have been looked through.
create unlogged table sterna.tombstone_mark (
  singleton boolean primary key default true check (singleton),
  cleaned_until timestamptz not null
);

-- Drops tombstones, of which nothing may be left over, that nothing older can meet any more: neither from a stream nor from a
-- change that is parked. Also what is left of dropped tables. Returns how many tombstones went, in one batch.
create function sterna.tombstone_clean() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
  v_batch constant integer := 10000;
  v_oid oid;
  v_until constant timestamptz := sterna.stream_claim();
  v_count bigint := 0;
begin
  for v_oid in
    select g.table_oid from sterna.guarded g where not exists (select from pg_class c where c.oid = g.table_oid)
  loop
    perform sterna.tombstone_detach(v_oid);
  end loop;
  if v_until is null or exists (select from sterna.tombstone_mark m where m.cleaned_until >= v_until)
     -- Deletes that the clock dated too early are to be sent again.
     or exists (select from sterna.clock_state c where c.doubt_until is not null) then
    return 0;
  end if;
  delete from sterna.tombstone s
   where s.ctid = any (array(
     select t.ctid from sterna.tombstone t
      where coalesce(coalesce((t.version).at, pg_xact_commit_timestamp(t.xmin)) < v_until, true)
        and (t.remainder is null or sterna.nothing_left(t.remainder))
        and (not exists (select from sterna.exception e where e.table_oid = t.table_oid)
             or not sterna.older_is_parked(t.table_oid, t.key_hash, coalesce(t.version, sterna.version_of_xmin(t.xmin, null))))
      limit v_batch for update skip locked));
  get diagnostics v_count = row_count;
  delete from sterna.truncation u
   where coalesce(pg_xact_commit_timestamp(u.xmin) < v_until, true)
     and not sterna.older_is_parked(u.table_oid, null, sterna.version_of_xmin(u.xmin, null));
  if v_count < v_batch then
    insert into sterna.tombstone_mark as m (cleaned_until) values (v_until)
    on conflict (singleton) do update set cleaned_until = excluded.cleaned_until;
  end if;
  return v_count;
end $$;

-- Whether all sums of a remainder are zero, whatever they look like.
create function sterna.nothing_left(remainder jsonb) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select not exists (select from jsonb_each_text(remainder) r where r.value ~ '[1-9[:alpha:]]')
$$;

-- When a change was given up, by the clock of this server.
alter table sterna.given_up add column since timestamptz not null default clock_timestamp();
create function sterna.given_up_again() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.since := clock_timestamp();
  return new;
end $$;
create trigger again before update on sterna.given_up for each row execute function sterna.given_up_again();
alter table sterna.given_up enable always trigger again;

-- Forgets versions of rows that xmin may express from now on, changes that were given up and are made up for, and what is left of
-- dropped tables; takes tables off the list of careful ones. Returns how many entries went, in one batch.
create function sterna.side_clean() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
  v_batch constant integer := 10000;
  -- By how much clocks may differ at most.
  v_skew constant interval := '5 min';
  v_until constant timestamptz := sterna.stream_claim();
  v_count bigint := 0;
  v_sum bigint := 0;
begin
  if v_until is not null then
    delete from sterna.row_clock c
     where c.ctid = any (array(
       select r.ctid
         from sterna.row_clock r
         cross join lateral (select sterna.version_of_xmin(r.row_xmin, null) as written) w
         cross join lateral (select case when sterna.version_greater(w.written, r.version) then w.written else r.version end as greater) g
        where coalesce((g.greater).at < v_until, true)
          -- Rows set aside are compared with those that stand in their way.
          and not exists (select from sterna.aside a where a.table_oid = r.table_oid)
          and not exists (
            select from sterna.subscription s left join sterna.heartbeat h on h.node_id = s.provider_node_id
             where s.provider_node_id <> (r.version).node_id
               and not coalesce((h.applied ->> (r.version).node_id::text)::bigint > sterna.pg_time((r.version).at), false))
          and not sterna.older_is_parked(r.table_oid, null, g.greater)
        limit v_batch for update of r skip locked));
    get diagnostics v_sum = row_count;
    -- What superseded it was committed when it was given up: it has arrived when all streams are past that moment.
    delete from sterna.given_up c
     where c.ctid = any (array(
       select g.ctid from sterna.given_up g
        where greatest((g.version).at, g.since + v_skew) < v_until
          and not exists (select from sterna.exception e
                           where e.table_oid = g.table_oid and (e.key_hashes is null or g.key_hash = any (e.key_hashes)))
        limit v_batch for update skip locked));
    get diagnostics v_count = row_count;
    v_sum := v_sum + v_count;
  end if;

  update sterna.review r set closed_at = clock_timestamp(), resolution = 'table_dropped'
   where r.closed_at is null and not exists (select from pg_class c where c.oid = r.table_oid);
  delete from sterna.row_clock r where not exists (select from pg_class c where c.oid = r.table_oid);
  delete from sterna.given_up g where not exists (select from pg_class c where c.oid = g.table_oid);
  delete from sterna.aside a where not exists (select from pg_class c where c.oid = a.table_oid);
  delete from sterna.delta_column d where not exists (select from pg_class c where c.oid = d.table_oid);
  delete from sterna.policy p where not exists (select from pg_class c where c.oid = p.table_oid);

  if exists (select from sterna.careful_table) then
    begin
      -- Whoever has put a table on the list, or found it there, holds on to it until its entries can be seen.
      lock table sterna.careful_table in share row exclusive mode nowait;
      delete from sterna.careful_table t where not exists (select from pg_class c where c.oid = t.table_oid);
      perform sterna.careful_clean();
    exception when lock_not_available then
      null;
    end;
  end if;
  return v_sum;
end $$;

-- Equal on all nodes or not, as one likes: how long conflicts and settled entries of queues are kept, and how many conflicts.
insert into sterna.setting (name, value) values ('conflict_history_days', '30'), ('conflict_history_rows', '100000');

-- A setting that is a whole number; what is none counts as the given one.
create function sterna.setting_number(name text, default_value integer) returns integer
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((select s.value::integer from sterna.setting s where s.name = setting_number.name and s.value ~ '^\d{1,9}$'),
                  default_value)
$$;

-- Drops what is too old or too much of the history, closed reviews, messages that have done their work, and heartbeats that nobody
-- compares with any more. Returns how many rows went, in one batch of each.
create function sterna.conflict_clean() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
declare
  v_batch constant integer := 5000;
  v_old constant timestamptz := clock_timestamp() - make_interval(days => least(sterna.setting_number('conflict_history_days', 30), 36500));
  -- What nodes tell each other is kept for those that are away.
  v_told constant timestamptz := least(v_old, clock_timestamp() - interval '30 days');
  v_rows constant integer := sterna.setting_number('conflict_history_rows', 100000);
  v_first bigint;
  v_count bigint;
  v_sum bigint := 0;
begin
  delete from sterna.conflict_history c
   where c.id = any (array(select h.id from sterna.conflict_history h where h.recorded_at < v_old
                            order by h.recorded_at limit v_batch for update skip locked));
  get diagnostics v_sum = row_count;
  -- Ids have gaps: whether there are too many is counted only where there can be.
  if (select max(h.id) - min(h.id) from sterna.conflict_history h) >= v_rows then
    select h.id into v_first from sterna.conflict_history h order by h.id desc offset v_rows limit 1;
    delete from sterna.conflict_history c
     where c.id = any (array(select h.id from sterna.conflict_history h where h.id <= v_first
                              order by h.id limit v_batch for update skip locked));
    get diagnostics v_count = row_count;
    v_sum := v_sum + v_count;
  end if;

  delete from sterna.review c
   where c.id = any (array(select r.id from sterna.review r where r.closed_at < v_old limit v_batch for update skip locked));
  get diagnostics v_count = row_count;
  v_sum := v_sum + v_count;

  -- Each node drops its own copies: deletes of these tables do not replicate. What a message asks for was done, or parked with
  -- all that it says, in the transaction that brought it.
  delete from sterna.row_message c
   where c.ctid = any (array(select m.ctid from sterna.row_message m where m.sent_at < clock_timestamp() - interval '1 day'
                              limit v_batch for update skip locked));
  get diagnostics v_count = row_count;
  v_sum := v_sum + v_count;
  delete from sterna.review_closure c
   where c.ctid = any (array(select r.ctid from sterna.review_closure r where r.closed_at < v_told limit v_batch for update skip locked));
  get diagnostics v_count = row_count;
  v_sum := v_sum + v_count;
  delete from sterna.definition_step s using sterna.definition d
   where d.definition_id = s.definition_id and d.state in ('active', 'refused') and s.done_at < v_told;

  -- Ten minutes of heartbeats at the usual interval; of a day one of each minute, for changes that arrive late.
  delete from sterna.heard_heartbeat h
   using (select b.node_id, b.beats from sterna.heartbeat b) b
   where b.node_id = h.node_id and h.beats <= b.beats - 600 and (h.beats % 60 <> 0 or h.beats <= b.beats - 86400);
  delete from sterna.heard_heartbeat h where not exists (select from sterna.heartbeat b where b.node_id = h.node_id);
  return v_sum;
end $$;

select sterna.hide_functions(
  '^(heartbeat_heard|heartbeat_vector|heartbeat_write|version_relation|conflict_settle|stream_claim|'
  'older_is_parked|tombstone_clean|nothing_left|given_up_again|side_clean|setting_number|conflict_clean)$');

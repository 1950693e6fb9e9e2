-- Waiting until changes have arrived.

-- Marks this moment in the stream. Whoever waits for the LSN that it returns, there or here, sees everything that was
-- committed here before.
create function sterna.sync_event() returns pg_lsn
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  insert into sterna.sync_event as e (node_id, requests, requested_at)
  values (sterna.local_node_id(), 1, clock_timestamp())
  on conflict (node_id) do update set requests = e.requests + 1, requested_at = excluded.requested_at;
  return pg_current_wal_insert_lsn();
end $$;

-- How far the changes of a node have been applied here; null before the first one.
create function sterna.applied_lsn(node_id integer) returns pg_lsn
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select case
    when applied_lsn.node_id = (select l.node_id from sterna.local_node l) then pg_current_wal_insert_lsn()
    else (select pg_replication_origin_progress(o.roname, false)
            from pg_catalog.pg_replication_origin o where o.roname = sterna.origin_name(applied_lsn.node_id)) end
$$;

-- Waits until what a node had committed at `lsn` is applied here. False after `timeout` seconds; 0 waits for ever. On a
-- node that has no subscription to it, nothing arrives.
create procedure sterna.wait_for_sync_event(out result boolean, in origin_id oid, in lsn pg_lsn, in timeout integer default 0)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_deadline timestamptz := clock_timestamp() + make_interval(secs => timeout);
begin
  if not exists (select from sterna.node n where n.node_id::oid = origin_id) then
    raise exception 'there is no node with id %', origin_id
      using errcode = 'ST108', hint = 'Known nodes are in sterna.nodes; a provider is known after the first contact.';
  end if;
  if lsn is null then
    raise exception 'the LSN to wait for is null'
      using errcode = 'ST135', hint = 'Give what sterna.sync_event() returned on the other node.';
  end if;
  loop
    result := coalesce(sterna.applied_lsn(origin_id::integer) >= lsn, false);
    exit when result or (timeout > 0 and clock_timestamp() >= v_deadline);
    perform pg_sleep(0.02);
  end loop;
end $$;

create procedure sterna.wait_for_sync_event(out result boolean, in origin name, in lsn pg_lsn, in timeout integer default 0)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_id integer;
begin
  select n.node_id into v_id from sterna.node n where n.node_name = origin;
  if v_id is null then
    raise exception 'there is no node "%"', origin
      using errcode = 'ST108', hint = 'Known nodes are in sterna.nodes; a provider is known after the first contact.';
  end if;
  call sterna.wait_for_sync_event(result, v_id::oid, lsn, timeout);
end $$;

-- Waits until subscribers of this node have confirmed everything up to `target` (null: up to now), which then is durable
-- there. `slotname` null means all subscriptions to this database. Waits for ever; use statement_timeout.
create function sterna.wait_slot_confirm_lsn(slotname name, target pg_lsn) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_target pg_lsn := coalesce(target, pg_current_wal_insert_lsn());
begin
  if slotname is not null and not exists (select from pg_catalog.pg_replication_slots r where r.slot_name = slotname) then
    raise exception 'there is no replication slot "%"', slotname
      using errcode = 'ST140', hint = 'Slots of this server are in pg_replication_slots; null waits for all of Sterna.';
  end if;
  while exists (select from pg_catalog.pg_replication_slots r
                 where (r.slot_name = slotname
                        or slotname is null and r.slot_name ~ '^sterna_' and r.plugin = 'pgoutput'
                           and r.database = current_database() and not r.temporary)
                   and r.confirmed_flush_lsn < v_target)
  loop
    perform pg_sleep(0.02);
  end loop;
end $$;

revoke all on function sterna.sync_event() from public;
revoke all on function sterna.applied_lsn(integer) from public;
revoke all on procedure sterna.wait_for_sync_event(oid, pg_lsn, integer) from public;
revoke all on procedure sterna.wait_for_sync_event(name, pg_lsn, integer) from public;
revoke all on function sterna.wait_slot_confirm_lsn(name, pg_lsn) from public;

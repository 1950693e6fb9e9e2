-- Repair mode: a session's writes stay on this node. Its commits carry a replication origin that no subscription follows, so
-- providers from 16 on leave them out of the stream, and subscribers of 15 skip them as they skip all that has an origin.
--
-- A session keeps its origin until it gives it back: through commit, rollback, even DISCARD ALL. And a commit under an origin
-- takes the timestamp that was set up last, so that a transaction without pg_replication_origin_xact_setup gets that of another
-- one. Hence a session in repair mode is read-only by default: a transaction that does not ask for it with
--   begin read write; select sterna.repair_mode(true); ...
-- fails at its first write, whatever happened before. The timestamp is set up at the very end of the transaction, like that of an
-- ordinary commit, so that the rows are newer than those that they replace.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST601  repair mode begins or ends in a transaction that has written
-- ST602  a transaction in repair mode that is read-only
-- ST603  the session's default_transaction_read_only is off, which guards the transactions that do not ask for repair mode
-- ST604  the server has no room for another replication origin

-- Every transaction in repair mode, in it and by whom: what was written so is on no other node.
create table sterna.repair_log (
  id bigint generated always as identity primary key,
  repaired_at timestamptz not null default clock_timestamp(),
  xid xid8 not null default pg_current_xact_id(),
  role_name name not null default session_user,
  origin_name text not null
);

create function sterna.repair_stamp() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not pg_replication_origin_session_is_setup() then
    raise exception 'the replication origin of this session was reset within its transaction'
      using errcode = 'ST603', hint = 'Roll back, and begin again with select sterna.repair_mode(true).';
  end if;
  perform pg_replication_origin_xact_setup(pg_current_wal_insert_lsn(), clock_timestamp());
  return null;
end $$;

create constraint trigger repair_stamp after insert on sterna.repair_log
  deferrable initially deferred for each row execute function sterna.repair_stamp();

-- Key of the advisory lock on one origin of the pool: held by the session, and by each of its transactions too, since PREPARE
-- TRANSACTION refuses that. (A prepared transaction would be committed by another session, without the origin.)
create function sterna.repair_lock(origin_number integer) returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select (9216::bigint << 32) | origin_number
$$;

-- A number that no other session has, with its origin made where there is none yet.
create function sterna.repair_reserve() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_number integer := 0;
  v_origin text;
begin
  loop
    v_number := v_number + 1;
    continue when not pg_try_advisory_lock(sterna.repair_lock(v_number));
    v_origin := sterna.repair_origin(v_number);
    begin
      if not exists (select from pg_replication_origin o where o.roname = v_origin) then
        perform pg_replication_origin_create(v_origin);
      end if;
      -- A session that lost its lock by DISCARD ALL may still have the origin.
      perform pg_replication_origin_session_setup(v_origin);
      perform pg_replication_origin_session_reset();
      return v_number;
    exception
      when object_in_use then
        perform pg_advisory_unlock(sterna.repair_lock(v_number));
      when configuration_limit_exceeded then
        perform pg_advisory_unlock(sterna.repair_lock(v_number));
        raise exception 'this server has no room for another replication origin'
          using errcode = 'ST604',
                detail = 'Each session in repair mode at the same time needs one, and it stays for the next.',
                hint = 'Raise max_active_replication_origins (before 18: max_replication_slots), or use a session that has repair mode.';
    end;
  end loop;
end $$;

create function sterna.repair_origin(origin_number integer) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select 'sterna_' || d.oid || '_repair_' || origin_number from pg_database d where d.datname = current_database()
$$;

-- true: the first call puts the session into repair mode, from its next transaction on, and returns false. In that mode a
-- transaction can write only if it begins with `begin read write; select sterna.repair_mode(true)`, which returns true; what
-- it writes stays on this node. false: the session is an ordinary one again.
create function sterna.repair_mode(enabled boolean) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_number constant text := nullif(current_setting('sterna.repair_number', true), '');
  v_read_only constant boolean := current_setting('transaction_read_only')::boolean;
  v_origin text;
begin
  if enabled is null then
    raise exception 'repair_mode is true or false, not null' using errcode = 'ST135', hint = 'select sterna.repair_mode(true)';
  end if;
  if enabled and v_number is not null then
    if not current_setting('default_transaction_read_only')::boolean then
      raise exception 'default_transaction_read_only was switched off in this session'
        using errcode = 'ST603',
              detail = 'In repair mode it makes transactions fail that do not begin with select sterna.repair_mode(true).',
              hint = 'set default_transaction_read_only = on; or leave repair mode: select sterna.repair_mode(false).';
    elsif v_read_only then
      raise exception 'this transaction is read-only, as all are in repair mode that do not say otherwise'
        using errcode = 'ST602', hint = 'begin read write; select sterna.repair_mode(true); ... commit;';
    elsif not pg_replication_origin_session_is_setup() then
      if pg_current_xact_id_if_assigned() is not null then
        raise exception 'this transaction has written before it asked for repair mode'
          using errcode = 'ST601', hint = 'Begin each transaction with: begin read write; select sterna.repair_mode(true).';
      end if;
      perform pg_replication_origin_session_setup(sterna.repair_origin(v_number::integer));
    end if;
    perform pg_advisory_xact_lock(sterna.repair_lock(v_number::integer));
    perform pg_replication_origin_xact_setup(pg_current_wal_insert_lsn(), clock_timestamp());
    insert into sterna.repair_log (origin_name) values (sterna.repair_origin(v_number::integer));
    return true;
  end if;

  if pg_current_xact_id_if_assigned() is not null then
    raise exception 'repair mode cannot % in a transaction that has written', case when enabled then 'begin' else 'end' end
      using errcode = 'ST601', hint = 'Commit or roll back first, and call it in a transaction of its own.';
  end if;
  -- DISCARD ALL forgets the number, but not the origin.
  if pg_replication_origin_session_is_setup() then
    perform pg_replication_origin_session_reset();
  end if;
  if enabled then
    if v_read_only then
      raise exception 'this transaction is read-only'
        using errcode = 'ST602', hint = 'Call sterna.repair_mode(true) in a transaction that may write.';
    end if;
    perform set_config('sterna.repair_number', sterna.repair_reserve()::text, false);
    -- What fails here fails before anything is written. Only a later transaction knows that these settings are committed.
    perform set_config('default_transaction_read_only', 'on', false), set_config('transaction_read_only', 'on', true);
    raise notice 'this session is in repair mode'
      using hint = 'Begin each transaction that writes with: begin read write; select sterna.repair_mode(true);';
    return false;
  end if;
  if v_number is not null then
    perform pg_advisory_unlock(sterna.repair_lock(v_number::integer));
    perform set_config('sterna.repair_number', '', false), set_config('default_transaction_read_only', 'off', false);
  end if;
  return false;
end $$;

select sterna.hide_functions('^repair_');

-- Subscriptions of this node, and what is left to clean up at providers.

create table sterna.subscription (
  sub_name name primary key,
  provider_dsn text not null,
  -- Null until the agent has been in contact with the provider.
  provider_node_id integer,
  provider_node_name name,
  provider_system_id text,
  provider_database_oid bigint,
  slot_name name,
  origin_name text,
  replication_sets text[] not null,
  forward_origins text[] not null default '{}',
  apply_delay interval not null default '0',
  force_text_transfer boolean not null default false,
  enabled boolean not null default true,
  -- Why it has disabled itself (on_exception is stop): code, message, hint. Null: it has not.
  stopped jsonb,
  initialized_at timestamptz,
  -- Where the provider was when it was found to be behind what is applied here. It stays refused, even when its WAL has
  -- grown past that again.
  rewound_lsn pg_lsn,
  created_at timestamptz not null default pg_catalog.now()
);

-- Slots and origins of dropped subscriptions. The agent drops them, and tries again while a provider is away: a slot
-- that stays keeps WAL there for ever.
create table sterna.slot_cleanup (
  id bigint generated always as identity primary key,
  provider_dsn text not null,
  slot_name name,
  origin_name text,
  provider_node_name name,
  requested_at timestamptz not null default pg_catalog.now(),
  last_error text
);

create trigger notify_agent after insert or update or delete or truncate on sterna.subscription
  for each statement execute function sterna.notify_agent();
create trigger notify_agent after insert or update or delete or truncate on sterna.slot_cleanup
  for each statement execute function sterna.notify_agent();

-- What the agent knows of each subscription; written about once a second. Null: not known yet.
create unlogged table sterna.subscription_state (
  sub_name name primary key,
  status text not null,
  received_lsn pg_lsn,
  applied_lsn pg_lsn,
  confirmed_lsn pg_lsn,
  provider_lsn pg_lsn,
  lag_bytes bigint,
  lag_seconds float8,
  retained_wal_bytes bigint,
  transactions bigint not null default 0,
  changes bigint not null default 0,
  conflicts jsonb not null default '{}',
  exceptions bigint not null default 0,
  last_error_code text,
  last_error text,
  last_error_hint text,
  last_error_at timestamptz,
  retry_at timestamptz,
  updated_at timestamptz not null default pg_catalog.clock_timestamp()
);

-- The slot of a subscription at its provider: sterna_<database>_<subscription>, in the characters that slots may have.
-- A name that is too long is cut, with a hash so that it stays unlike others.
create function sterna.slot_name_for(provider_database name, sub_name name) returns name
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select case when length(n.wanted) <= 63 then n.wanted else left(n.wanted, 54) || '_' || left(md5(n.given), 8) end::name
    from (select 'sterna_' || provider_database || '_' || sub_name as given,
                 regexp_replace(lower('sterna_' || provider_database || '_' || sub_name), '[^a-z0-9_]', '_', 'g') as wanted) n
$$;

-- Raises ST130 unless there is such a subscription.
create function sterna.check_subscription(subscription_name name) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from sterna.subscription s where s.sub_name = subscription_name) then
    raise exception 'there is no subscription "%"', subscription_name
      using errcode = 'ST130', hint = 'Subscriptions of this node are in sterna.status.';
  end if;
end $$;

-- Lets this node follow a provider. The agent does the work; sub_show_status() says how far it is. Returns a number that
-- follows from the name.
create function sterna.sub_create(subscription_name name, provider_dsn text,
                                  replication_sets text[] default '{default,default_insert_only,ddl_sql}',
                                  synchronize_structure boolean default false, synchronize_data boolean default false,
                                  forward_origins text[] default '{}', apply_delay interval default '0',
                                  force_text_transfer boolean default false, enabled boolean default true,
                                  skip_schema text[] default '{}', on_exception text default 'park') returns oid
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_other name;
  v_option text;
begin
  perform sterna.local_node_id();
  lock table sterna.subscription in share row exclusive mode;
  if subscription_name is null or subscription_name !~ '^[a-z0-9_-]{1,63}$' then
    raise exception '"%" is no name for a subscription', subscription_name
      using errcode = 'ST132', hint = 'Use up to 63 lower-case letters, digits, "_" or "-".';
  end if;
  if exists (select from sterna.subscription s where s.sub_name = subscription_name) then
    raise exception 'there is a subscription "%" already', subscription_name
      using errcode = 'ST131', hint = 'Choose another name, or drop it first with sterna.sub_drop.';
  end if;
  if coalesce(btrim(sub_create.provider_dsn), '') = '' then
    raise exception 'the connection string of subscription "%" is empty', subscription_name
      using errcode = 'ST113', hint = 'Give the one of the provider''s database.';
  end if;
  if exists (select from sterna.local_node l join sterna.node n on n.node_id = l.node_id
              where btrim(n.dsn) = btrim(sub_create.provider_dsn)) then
    raise exception 'subscription "%" would follow its own node', subscription_name
      using errcode = 'ST133', hint = 'Give the connection string of another node.';
  end if;
  select s.sub_name into v_other from sterna.subscription s where btrim(s.provider_dsn) = btrim(sub_create.provider_dsn);
  if v_other is not null then
    raise exception 'subscription "%" follows that provider already', v_other
      using errcode = 'ST131', hint = 'Add replication sets to it: select sterna.sub_add_repset(...).';
  end if;
  v_option := case
    when synchronize_structure then 'synchronize_structure'
    when synchronize_data then 'synchronize_data'
    when cardinality(sub_create.forward_origins) > 0 then 'forward_origins'
    when cardinality(skip_schema) > 0 then 'skip_schema'
  end;
  if v_option is not null then
    raise exception 'option % of subscription "%" is not supported yet', v_option, subscription_name
      using errcode = case when v_option = 'synchronize_data' then 'ST125' else 'ST134' end,
            detail = 'A subscription takes over changes from now on, those that were made at its provider.',
            hint = 'Leave it out; have the same tables and rows on both nodes beforehand.';
  end if;
  if sub_create.replication_sets is null or cardinality(sub_create.replication_sets) = 0
     or exists (select from unnest(sub_create.replication_sets) as r(set_name)
                 where r.set_name is null or r.set_name !~ '^[a-z0-9_]{1,40}$') then
    raise exception 'subscription "%": % are no replication sets', subscription_name, sub_create.replication_sets
      using errcode = 'ST135', hint = 'Leave replication_sets out for the default sets.';
  end if;
  if coalesce(sub_create.apply_delay, '0') < interval '0' then
    raise exception 'subscription "%": the delay % is negative', subscription_name, sub_create.apply_delay
      using errcode = 'ST135', hint = 'Give an interval such as ''1 hour''.';
  end if;
  perform sterna.check_on_exception(subscription_name, sub_create.on_exception);
  insert into sterna.subscription (sub_name, provider_dsn, replication_sets, apply_delay, force_text_transfer, enabled, on_exception)
  values (subscription_name, sub_create.provider_dsn,
          (select array_agg(d.set_name order by d.position)
             from (select r.set_name, min(r.position) as position
                     from unnest(sub_create.replication_sets) with ordinality as r(set_name, position) group by r.set_name) d),
          coalesce(sub_create.apply_delay, '0'), coalesce(sub_create.force_text_transfer, false),
          coalesce(sub_create.enabled, true), sub_create.on_exception);
  return sterna.subscription_id(subscription_name);
end $$;

-- A number for a subscription, where Spock has an oid.
create function sterna.subscription_id(subscription_name name) returns oid
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select greatest(1, sterna.stable_hash(subscription_name::text))::oid
$$;

-- Another name for sub_create.
create function sterna.subscription_create(subscription_name name, provider_dsn text,
                                           replication_sets text[] default '{default,default_insert_only,ddl_sql}',
                                           synchronize_structure boolean default false,
                                           synchronize_data boolean default false,
                                           forward_origins text[] default '{}', apply_delay interval default '0',
                                           force_text_transfer boolean default false, enabled boolean default true,
                                           skip_schema text[] default '{}', on_exception text default 'park') returns oid
language sql set search_path = pg_catalog, pg_temp as $$
  select sterna.sub_create(subscription_name, provider_dsn, replication_sets, synchronize_structure, synchronize_data,
                           forward_origins, apply_delay, force_text_transfer, enabled, skip_schema, on_exception)
$$;

-- Ends a subscription; the agent drops its slot at the provider. Null where there is none and `ifexists` is set.
create function sterna.sub_drop(subscription_name name, ifexists boolean default false) returns oid
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if ifexists and not exists (select from sterna.subscription s where s.sub_name = subscription_name) then
    return null;
  end if;
  perform sterna.check_subscription(subscription_name);
  with dropped as (
    delete from sterna.subscription s where s.sub_name = subscription_name
    returning s.provider_dsn, s.slot_name, s.origin_name, s.provider_node_name
  )
  insert into sterna.slot_cleanup (provider_dsn, slot_name, origin_name, provider_node_name)
  select d.provider_dsn, d.slot_name, d.origin_name, d.provider_node_name from dropped d
   where d.slot_name is not null or d.origin_name is not null;
  delete from sterna.subscription_state s where s.sub_name = subscription_name;
  return sterna.subscription_id(subscription_name);
end $$;

-- Lets a subscription go on from where it was. The agent reacts at once; `immediate` is there for Spock's signature.
create function sterna.sub_enable(subscription_name name, immediate boolean default false) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_subscription(subscription_name);
  update sterna.subscription s set enabled = true, stopped = null where s.sub_name = subscription_name and not s.enabled;
  return true;
end $$;

-- Stops a subscription; its slot stays, and holds WAL at the provider meanwhile.
create function sterna.sub_disable(subscription_name name, immediate boolean default false) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_subscription(subscription_name);
  update sterna.subscription s set enabled = false where s.sub_name = subscription_name and s.enabled;
  return true;
end $$;

-- Ends the session in which a subscription is applied. The agent opens another one, which waits while the subscription's
-- row is locked and takes notice of what it says then.
create function sterna.end_apply(subscription_name name) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select pg_terminate_backend(a.pid, 10000)
    from sterna.local_node l join sterna.node n on n.node_id = l.node_id,
         pg_catalog.pg_stat_activity a
   where a.datname = current_database()
     and a.application_name = left(format('sterna %s %s apply', n.node_name, end_apply.subscription_name), 63)
$$;
revoke all on function sterna.end_apply(name) from public;

-- Adds one of the provider's sets to a subscription, for all changes that are committed at the provider after this. False
-- where it has it already.
create function sterna.sub_add_repset(subscription_name name, replication_set name) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_subscription(subscription_name);
  if replication_set is null or replication_set !~ '^[a-z0-9_]{1,40}$' then
    raise exception '"%" is no name for a replication set', replication_set
      using errcode = 'ST128', hint = 'Give the name of a set of the provider.';
  end if;
  update sterna.subscription s set replication_sets = s.replication_sets || sub_add_repset.replication_set::text
   where s.sub_name = subscription_name and not sub_add_repset.replication_set::text = any (s.replication_sets);
  if not found then
    return false;
  end if;
  perform sterna.end_apply(subscription_name);
  return true;
end $$;

-- Takes a set out of a subscription. False where it does not have it. Raises ST135 for the last one.
create function sterna.sub_remove_repset(subscription_name name, replication_set name) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_subscription(subscription_name);
  if exists (select from sterna.subscription s
              where s.sub_name = subscription_name and s.replication_sets = array[sub_remove_repset.replication_set::text]) then
    raise exception '"%" is the last replication set of subscription "%"', replication_set, subscription_name
      using errcode = 'ST135', hint = 'Drop the subscription, or disable it.';
  end if;
  update sterna.subscription s set replication_sets = array_remove(s.replication_sets, sub_remove_repset.replication_set::text)
   where s.sub_name = subscription_name and sub_remove_repset.replication_set::text = any (s.replication_sets);
  return found;
end $$;

revoke all on function sterna.slot_name_for(name, name) from public;
revoke all on function sterna.check_subscription(name) from public;
revoke all on function sterna.sub_create(name, text, text[], boolean, boolean, text[], interval, boolean, boolean, text[], text) from public;
revoke all on function sterna.subscription_id(name) from public;
revoke all on function sterna.subscription_create(name, text, text[], boolean, boolean, text[], interval, boolean, boolean, text[], text) from public;
revoke all on function sterna.sub_drop(name, boolean) from public;
revoke all on function sterna.sub_enable(name, boolean) from public;
revoke all on function sterna.sub_disable(name, boolean) from public;
revoke all on function sterna.sub_add_repset(name, name) from public;
revoke all on function sterna.sub_remove_repset(name, name) from public;

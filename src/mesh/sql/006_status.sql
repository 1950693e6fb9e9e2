-- What everybody may see: the state of subscriptions and nodes, without passwords.

-- A connection string with its passwords replaced. Rather too much than too little.
create function sterna.mask_dsn(dsn text) returns text
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select case
    when dsn ~* '^\s*postgres(ql)?://' then case
      -- Without an @ there is no log-in, unless it is a broken one.
      when dsn ~ '@' or dsn ~ '^\s*\w+://[^:/?]*(:\d*)?([/?].*)?$' then
        regexp_replace(regexp_replace(dsn, '(://[^:/@]*):.*@', '\1:********@'), '([?&](ssl)?password=)[^&]*', '\1********', 'gi')
      else '********' end
    when m.masked ~ '^\s*(\w+\s*=\s*(''([^''\\]|\\.)*''|(\\.|[^\s''\\])*)\s*)*$' then m.masked
    else '********' end
  from regexp_replace(dsn, '((ssl)?password\s*=\s*)(''([^''\\]|\\.)*(''|$)|(\\.|\S)+)', '\1********', 'gi') as m(masked)
$$;

-- Subscriptions and how they are. Security definer: an ordinary role may see this, but not the tables behind it.
create function sterna.sub_show_status(subscription_name name default null)
returns table (subscription_name text, status text, provider_node text, provider_dsn text, slot_name text,
               replication_sets text[], forward_origins text[], lag_bytes bigint, lag_seconds float8, received_lsn pg_lsn,
               applied_lsn pg_lsn, confirmed_lsn pg_lsn, transactions bigint, changes bigint, conflicts jsonb,
               exceptions bigint, last_error_code text, last_error text, hint text, updated_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select s.sub_name::text,
         case when not s.enabled then 'disabled'
              when t.fresh then t.status
              when s.initialized_at is null then 'initializing'
              else 'down' end,
         s.provider_node_name::text, sterna.mask_dsn(s.provider_dsn), s.slot_name::text, s.replication_sets, s.forward_origins,
         case when t.fresh then t.lag_bytes end, case when t.fresh then t.lag_seconds end,
         t.received_lsn, t.applied_lsn, t.confirmed_lsn,
         coalesce(t.transactions, 0), coalesce(t.changes, 0), coalesce(t.conflicts, '{}'), coalesce(t.exceptions, 0),
         case when a.absent then 'AGENT_NOT_RUNNING' when s.enabled then t.last_error_code else s.stopped ->> 'code' end,
         case when a.absent then 'the agent of this node is not running' when s.enabled then t.last_error else s.stopped ->> 'message' end,
         case when a.absent then 'Start it: sterna agent --node ' || coalesce(l.node_name, '...') || ' --dsn ...'
              when s.enabled then t.last_error_hint else s.stopped ->> 'hint' end,
         t.updated_at
    from sterna.subscription s
    left join (select n.node_name from sterna.local_node ln join sterna.node n on n.node_id = ln.node_id) l on true
    left join (select x.sub_name, x.status, x.lag_bytes, x.lag_seconds, x.received_lsn, x.applied_lsn, x.confirmed_lsn,
                      x.transactions, x.changes, x.conflicts, x.exceptions, x.last_error_code, x.last_error,
                      x.last_error_hint, x.updated_at, x.updated_at > clock_timestamp() - interval '15 seconds' as fresh
                 from sterna.subscription_state x) t on t.sub_name = s.sub_name
    -- A subscription that was made just now has no state yet.
    cross join lateral (select s.enabled and not coalesce(t.fresh, false)
                               and s.created_at < clock_timestamp() - interval '15 seconds' as absent) a
   where sub_show_status.subscription_name is null or s.sub_name = sub_show_status.subscription_name
   order by s.sub_name
$$;

create view sterna.status as
  select s.subscription_name, s.status, s.provider_node, s.provider_dsn, s.slot_name, s.replication_sets, s.forward_origins,
         s.lag_bytes, s.lag_seconds, s.received_lsn, s.applied_lsn, s.confirmed_lsn, s.transactions, s.changes, s.conflicts,
         s.exceptions, s.last_error_code, s.last_error, s.hint, s.updated_at
    from sterna.sub_show_status() s;

-- How far this node is behind each provider, and how much WAL that makes the provider keep.
create view sterna.lag as
  select s.subscription_name, s.provider_node, s.status, s.lag_bytes, s.lag_seconds, s.applied_lsn, t.provider_lsn,
         t.retained_wal_bytes, s.updated_at
    from sterna.sub_show_status() s
    left join sterna.subscription_state t on t.sub_name = s.subscription_name::pg_catalog.name;

-- The nodes known here. heartbeat_at is the node's own clock, as far as its changes have arrived here.
create view sterna.nodes as
  select n.node_id, n.node_name, l.node_id is not null as is_local, n.location, n.country, sterna.mask_dsn(n.dsn) as dsn,
         h.beat_at as heartbeat_at, h.sterna_version, n.created_at
    from sterna.node n
    left join sterna.local_node l on l.node_id = n.node_id
    left join sterna.heartbeat h on h.node_id = n.node_id;

-- mask_dsn and sub_show_status are for everyone, which is what a new function is.
grant select on sterna.status, sterna.lag, sterna.nodes to public;

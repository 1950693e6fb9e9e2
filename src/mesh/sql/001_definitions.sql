-- Nodes, settings, what the agent reports, and the rows that travel between nodes.
--
-- Errors that the functions of this schema raise, by ERRCODE:
-- ST101  this database is a node already
-- ST102  the name is taken by another node
-- ST103  the node id is taken by another node
-- ST104  the name of the node is malformed
-- ST105  wal_level is not logical
-- ST106  track_commit_timestamp is off
-- ST107  the server is older than PostgreSQL 15
-- ST108  there is no such node
-- ST109  the node is in use by a subscription
-- ST110  this database is no node
-- ST111  a peer presents itself with a name or id that is known as another node's
-- ST112  the node id is not a number from 1 to 1023
-- ST113  the connection string is empty
-- ST120  there is no such replication set
-- ST121  the replication set exists already
-- ST122  a built-in replication set cannot be dropped
-- ST123  the table has no usable key, and the set replicates updates or deletes
-- ST124  the relation cannot be replicated
-- ST125  copying existing data is not supported yet
-- ST126  the column list is not valid
-- ST127  the row filter is not valid
-- ST128  the name of the replication set is malformed or reserved
-- ST129  there is no such schema
-- ST130  there is no such subscription
-- ST131  the subscription exists already
-- ST132  the name of the subscription is malformed
-- ST133  the subscription would follow its own node
-- ST134  the option is not supported yet
-- ST135  the option has a value that it cannot have
-- ST140  there is no such replication slot

create schema sterna;
revoke all on schema sterna from public;
grant usage on schema sterna to public;

-- Takes the functions of this schema whose names match away from ordinary roles, which may call any new one.
create function sterna.hide_functions(pattern text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_routine regprocedure;
begin
  for v_routine in
    select p.oid::regprocedure from pg_proc p where p.pronamespace = 'sterna'::regnamespace and p.proname ~ pattern
  loop
    execute format('revoke all on routine %s from public', v_routine);
  end loop;
end $$;
select sterna.hide_functions('^hide_functions$');

-- The default search_path begins with the schema of the role's own name, and a role "sterna" would have all its tables in
-- this schema, where they are not replicated. It gets the same path without that, unless it has one of its own.
do $$
declare
  v_path text;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = 'sterna')
     or not exists (select from pg_catalog.pg_roles r where r.rolname = current_user and (r.rolsuper or r.rolname = 'sterna'))
     or exists (select from pg_catalog.pg_db_role_setting s, unnest(s.setconfig) as c(entry)
                 where s.setrole = (select r.oid from pg_catalog.pg_roles r where r.rolname = 'sterna') and c.entry like 'search_path=%'
                   and s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))) then
    return;
  end if;
  select substr(c.entry, length('search_path=') + 1) into v_path
    from pg_catalog.pg_db_role_setting s, unnest(s.setconfig) as c(entry)
   where s.setrole = 0 and c.entry like 'search_path=%'
     and s.setdatabase = (select d.oid from pg_catalog.pg_database d where d.datname = current_database());
  v_path := coalesce(v_path, '"$user", public');
  if position('$user' in v_path) = 0 then
    return;
  end if;
  select string_agg(format('%I', btrim(e.name, ' "')), ', ' order by e.position) into v_path
    from unnest(string_to_array(v_path, ',')) with ordinality as e(name, position)
   where btrim(e.name, ' "') not in ('$user', '');
  execute format('alter role sterna in database %I set search_path = %s', current_database(), coalesce(v_path, 'public'));
end $$;

create table sterna.schema_migration (
  version integer primary key,
  name text not null,
  applied_at timestamptz not null default pg_catalog.now(),
  sha text not null
);

-- Every node known here, this one included.
create table sterna.node (
  node_id integer primary key check (node_id between 1 and 1023),
  node_name name not null unique,
  dsn text not null,
  location text,
  country text,
  info jsonb,
  created_at timestamptz not null default pg_catalog.now()
);

-- Which of them this database is.
create table sterna.local_node (
  singleton boolean primary key default true check (singleton),
  node_id integer not null references sterna.node
);

create table sterna.setting (
  name text primary key,
  value text not null
);
insert into sterna.setting (name, value) values ('sequence_stride', '16');

-- Replicated: one row per node, each written by the node's own agent, so that lag is known on an idle system too.
create table sterna.heartbeat (
  node_id integer primary key,
  beat_at timestamptz not null,
  beats bigint not null,
  wal_lsn pg_lsn not null,
  sterna_version text
);

-- Replicated: one row per node, touched by sync_event().
create table sterna.sync_event (
  node_id integer primary key,
  requests bigint not null,
  requested_at timestamptz not null
);

-- Replicated: captured DDL, in its place among the changes.
create table sterna.ddl_queue (
  node_id integer,
  ddl_id bigint,
  role_name text not null,
  search_path text not null,
  command_tag text not null,
  command text not null,
  queued_at timestamptz not null default pg_catalog.clock_timestamp(),
  primary key (node_id, ddl_id)
);

create unlogged table sterna.agent_state (
  singleton boolean primary key default true check (singleton),
  pid integer,
  sterna_version text,
  host text,
  http_address text,
  clock_offset_ms float8,
  started_at timestamptz,
  updated_at timestamptz
);

-- Wakes the agent up. The payload is the table that changed.
create function sterna.notify_agent() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_notify('sterna', tg_table_name);
  return null;
end $$;

create trigger notify_agent after insert or update or delete or truncate on sterna.node
  for each statement execute function sterna.notify_agent();

-- A number from 0 to 2^32 - 1 that a text has on every server and every version.
create function sterna.stable_hash(value text) returns bigint
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select ('x' || substr(md5(value), 1, 8))::bit(32)::bigint
$$;

-- The id of this node. Raises ST110 where there is none.
create function sterna.local_node_id() returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_id integer;
begin
  select l.node_id into v_id from sterna.local_node l;
  if v_id is null then
    raise exception 'database "%" is no node', current_database()
      using errcode = 'ST110', hint = 'Make it one first: select sterna.node_create(''n1'', ''host=... dbname=...'').';
  end if;
  return v_id;
end $$;

-- The replication origin under which changes of a node are applied in this database. Origins belong to the whole
-- server, hence the oid of the database.
create function sterna.origin_name(node_id integer) returns text
language sql stable strict set search_path = pg_catalog, pg_temp as $$
  select 'sterna_' || d.oid || '_' || origin_name.node_id from pg_catalog.pg_database d where d.datname = current_database()
$$;

-- Raises what stands between this server and being a node: ST105, ST106, ST107.
create function sterna.check_server() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if current_setting('server_version_num')::integer < 150000 then
    raise exception 'PostgreSQL % is too old', current_setting('server_version')
      using errcode = 'ST107', hint = 'Use PostgreSQL 15 or later.';
  end if;
  if current_setting('wal_level') <> 'logical' then
    raise exception 'wal_level is "%", not "logical"', current_setting('wal_level')
      using errcode = 'ST105', detail = 'Changes are read from the WAL by logical decoding.',
            hint = 'alter system set wal_level = logical; then restart the server.';
  end if;
  if not current_setting('track_commit_timestamp')::boolean then
    raise exception 'track_commit_timestamp is off'
      using errcode = 'ST106', detail = 'Which of two writes to a row is newer is told by their commit timestamps.',
            hint = 'alter system set track_commit_timestamp = on; then restart the server.';
  end if;
end $$;

-- Makes this database a node. The id is info ->> 'node_id' where that is given, else it follows from the name. Existing
-- tables join the replication sets. Returns the id.
create function sterna.node_create(node_name name, dsn text, location text default null, country text default null,
                                   info jsonb default null) returns oid
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_id integer;
  v_other name;
begin
  perform sterna.check_server();
  lock table sterna.node in share row exclusive mode;
  select n.node_name into v_other from sterna.local_node l join sterna.node n on n.node_id = l.node_id;
  if v_other is not null then
    raise exception 'database "%" is node "%" already', current_database(), v_other
      using errcode = 'ST101', hint = format('To give it another name: select sterna.node_drop(%L) first.', v_other);
  end if;
  if node_create.node_name is null or node_create.node_name !~ '^[a-z][a-z0-9_-]{0,30}$' then
    raise exception '"%" is no name for a node', node_create.node_name
      using errcode = 'ST104', hint = 'Use a lower-case letter, then up to 30 lower-case letters, digits, "_" or "-".';
  end if;
  if coalesce(btrim(node_create.dsn), '') = '' then
    raise exception 'the connection string of node "%" is empty', node_create.node_name
      using errcode = 'ST113', hint = 'Give the one by which other nodes reach this database.';
  end if;
  if exists (select from sterna.node n where n.node_name = node_create.node_name) then
    raise exception 'the name "%" is taken by another node', node_create.node_name
      using errcode = 'ST102', hint = 'Choose another name. Taken ones are in sterna.nodes.';
  end if;
  if coalesce(node_create.info ->> 'node_id', '1') !~ '^[0-9]{1,4}$'
     or (node_create.info ->> 'node_id')::integer not between 1 and 1023 then
    raise exception 'node id "%" is not a number from 1 to 1023', node_create.info ->> 'node_id'
      using errcode = 'ST112', hint = 'Give another "node_id" in info, or none.';
  end if;
  v_id := coalesce((node_create.info ->> 'node_id')::integer, 1 + sterna.stable_hash(node_create.node_name::text) % 1023);
  select n.node_name into v_other from sterna.node n where n.node_id = v_id;
  if v_other is not null then
    raise exception 'the node id % is taken by node "%"', v_id, v_other
      using errcode = 'ST103', hint = 'Choose one: info => ''{"node_id": 1}''. Taken ones are in sterna.nodes.';
  end if;

  insert into sterna.node (node_id, node_name, dsn, location, country, info)
  values (v_id, node_create.node_name, node_create.dsn, node_create.location, node_create.country, node_create.info);
  insert into sterna.local_node (node_id) values (v_id);

  -- Deletes are kept here: forgetting a node on one database must not take its rows away on others.
  create publication sterna_internal for table sterna.heartbeat, sterna.sync_event, sterna.row_message, sterna.review_closure,
    sterna.definition, sterna.definition_step, sterna.fk_policy with (publish = 'insert, update');
  perform sterna.repset_create('default');
  perform sterna.repset_create('default_insert_only', replicate_update => false, replicate_delete => false);
  perform sterna.repset_create('ddl_sql', replicate_update => false, replicate_delete => false, replicate_truncate => false);
  alter publication sterna_ddl_sql add table sterna.ddl_queue;
  perform sterna.repset_add_existing_tables();
  if to_regprocedure('sterna.node_attach()') is not null then
    execute 'select sterna.node_attach()';
  end if;
  return v_id::oid;
end $$;

-- Forgets a node; where it is this one, the database is an ordinary database afterwards (schema sterna stays). False
-- where it is not known and `ifexists` is set. Raises ST109 while a subscription uses it.
create function sterna.node_drop(node_name name, ifexists boolean default false) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set sterna.ddl_replication = off as $$
#variable_conflict use_column
declare
  v_id integer;
  v_local boolean;
  v_subscriptions text;
  v_publication name;
begin
  lock table sterna.node in share row exclusive mode;
  select n.node_id, exists (select from sterna.local_node l where l.node_id = n.node_id)
    into v_id, v_local from sterna.node n where n.node_name = node_drop.node_name;
  if v_id is null then
    if ifexists then
      return false;
    end if;
    raise exception 'there is no node "%"', node_drop.node_name
      using errcode = 'ST108', hint = 'Known nodes are in sterna.nodes.';
  end if;
  select string_agg(quote_ident(s.sub_name), ', ' order by s.sub_name) into v_subscriptions
    from sterna.subscription s
   where v_local or s.provider_node_id = v_id or s.provider_node_name = node_drop.node_name;
  if v_subscriptions is not null then
    raise exception 'node "%" is in use by subscription %', node_drop.node_name, v_subscriptions
      using errcode = 'ST109', hint = 'Drop these first: select sterna.sub_drop(...).';
  end if;
  if not v_local then
    delete from sterna.heartbeat h where h.node_id = v_id;
    delete from sterna.sync_event e where e.node_id = v_id;
    delete from sterna.node n where n.node_id = v_id;
    return true;
  end if;
  if to_regprocedure('sterna.node_detach()') is not null then
    execute 'select sterna.node_detach()';
  end if;
  for v_publication in select p.pubname from pg_catalog.pg_publication p where p.pubname ~ '^sterna_' loop
    execute format('drop publication %I', v_publication);
  end loop;
  delete from sterna.replication_set;
  delete from sterna.table_exclusion;
  delete from sterna.local_node;
  delete from sterna.heartbeat;
  delete from sterna.sync_event;
  delete from sterna.node;
  return true;
end $$;

-- Takes down what a provider says about itself. Raises ST111 where that contradicts what is known here: two nodes with
-- one id would overwrite each other's versions, and with one name each other's sequences and origins.
create function sterna.peer_upsert(node_id integer, node_name name, dsn text, location text, country text, info jsonb)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_other record;
begin
  lock table sterna.node in share row exclusive mode;
  select n.node_id, n.node_name into v_other from sterna.node n
   where (n.node_id = peer_upsert.node_id) <> (n.node_name = peer_upsert.node_name);
  if found then
    raise exception 'a peer says that it is node "%" with id %, but node "%" with id % is known here',
        peer_upsert.node_name, peer_upsert.node_id, v_other.node_name, v_other.node_id
      using errcode = 'ST111', hint = 'Names and ids are unique in a cluster: drop one of the two and create it with another name or id.';
  end if;
  if exists (select from sterna.local_node l where l.node_id = peer_upsert.node_id) then
    raise exception 'a peer says that it is node "%" with id %, which is this node', peer_upsert.node_name, peer_upsert.node_id
      using errcode = 'ST111', hint = 'The connection string leads to this database itself, or to a copy of it.';
  end if;
  insert into sterna.node (node_id, node_name, dsn, location, country, info)
  values (peer_upsert.node_id, peer_upsert.node_name, peer_upsert.dsn, peer_upsert.location, peer_upsert.country, peer_upsert.info)
  on conflict (node_id) do update
    set dsn = excluded.dsn, location = excluded.location, country = excluded.country, info = excluded.info
  where (node.dsn, node.location, node.country, node.info)
        is distinct from (excluded.dsn, excluded.location, excluded.country, excluded.info);
end $$;

-- Called by the agent once a second. Nothing where this database is no node.
create function sterna.heartbeat_write(sterna_version text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into sterna.heartbeat as h (node_id, beat_at, beats, wal_lsn, sterna_version)
  select l.node_id, clock_timestamp(), 1, pg_current_wal_insert_lsn(), heartbeat_write.sterna_version from sterna.local_node l
  on conflict (node_id) do update
    set beat_at = excluded.beat_at, beats = h.beats + 1, wal_lsn = excluded.wal_lsn, sterna_version = excluded.sterna_version
$$;

revoke all on function sterna.notify_agent() from public;
revoke all on function sterna.stable_hash(text) from public;
revoke all on function sterna.local_node_id() from public;
revoke all on function sterna.origin_name(integer) from public;
revoke all on function sterna.check_server() from public;
revoke all on function sterna.node_create(name, text, text, text, jsonb) from public;
revoke all on function sterna.node_drop(name, boolean) from public;
revoke all on function sterna.peer_upsert(integer, name, text, text, text, jsonb) from public;
revoke all on function sterna.heartbeat_write(text) from public;

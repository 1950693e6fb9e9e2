-- DDL: captured at its place in the transaction by event triggers (origin mode only: apply runs in replica mode), executed
-- on the other nodes by ddl_apply(). What exists because of DDL, by whoever it was done, is looked after by bookkeeping
-- triggers (always): tables join the replication sets, sequences are interleaved.
--
-- Errors that the functions of this file raise, by ERRCODE:
-- ST201  several statements in one string
-- ST202  DDL inside a function, a procedure or a DO block
-- ST203  CREATE TABLE AS and SELECT INTO
-- ST204  CONCURRENTLY
-- ST205  a new column whose default gives existing rows other values on every node
-- ST206  DDL that cannot be replicated, such as DROP OWNED
-- ST207  the role of a replicated statement is missing on this node
-- ST208  a replicated statement tampered with the session that applies it
-- ST209  temporary and permanent objects dropped by one statement
-- ST210  the statement depends on standard_conforming_strings = off

-- Numbers the statements of this node. Not interleaved: the key of ddl_queue starts with the node.
create sequence sterna.ddl_id;

-- The statement with comments as a space, string constants as '' and quoted identifiers whole: what is left can be cut
-- into words without looking inside of anything. Source: PostgreSQL docs, Lexical Structure.
create function sterna.ddl_skeleton(command text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_rest text := command;
  v_done text := '';
  v_before text;
  v_token text;
  v_depth integer;
begin
  loop
    v_before := substring(v_rest from '^[^''"$/-]*');
    v_done := v_done || v_before;
    v_rest := substr(v_rest, length(v_before) + 1);
    exit when v_rest = '';
    if v_rest like '''%' then
      if right(v_done, 2) ~* '(^|[^[:alnum:]_$\u0080-\uffff])e$' then
        v_token := substring(v_rest from '^''(?:[^''\\]|''''|\\.)*(?:''\s*\n\s*''(?:[^''\\]|''''|\\.)*)*''?');
      else
        v_token := substring(v_rest from '^''[^'']*''?');
      end if;
      v_done := v_done || '''''';
    elsif v_rest like '"%' then
      v_token := substring(v_rest from '^"(?:[^"]|"")*"?');
      v_done := v_done || v_token;
    elsif v_rest like '--%' then
      v_token := substring(v_rest from '^--[^\n\r]*');
      v_done := v_done || ' ';
    elsif v_rest like '/*%' then
      v_depth := 0;
      loop
        v_token := substring(v_rest from '^(?:[^*/]|\*(?!/)|/(?!\*))*(?:/\*|\*/)?');
        v_rest := substr(v_rest, length(v_token) + 1);
        v_depth := v_depth + case when v_token like '%/*' then 1 else -1 end;
        exit when v_depth <= 0 or v_rest = '';
      end loop;
      v_token := '';
      v_done := v_done || ' ';
    elsif v_rest ~ '^\$(?:[[:alpha:]_\u0080-\uffff][[:alnum:]_\u0080-\uffff]*)?\$'
          and right(v_done, 1) !~ '[[:alnum:]_$\u0080-\uffff]' then
      v_token := substring(v_rest from '^\$[^$]*\$');
      if strpos(substr(v_rest, length(v_token) + 1), v_token) = 0 then
        v_token := v_rest;
      else
        v_token := left(v_rest, 2 * length(v_token) - 1 + strpos(substr(v_rest, length(v_token) + 1), v_token));
      end if;
      v_done := v_done || '''''';
    else
      v_token := left(v_rest, 1);
      v_done := v_done || v_token;
    end if;
    v_rest := substr(v_rest, length(v_token) + 1);
  end loop;
  return v_done;
end $$;

-- The words of a statement: key words and plain identifiers in upper case, quoted identifiers with their quotes, every
-- other character by itself.
create function sterna.ddl_words(command text) returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(case when m.word[1] like '"%' then m.word[1] else upper(m.word[1]) end order by m.position), '{}')
    from regexp_matches(sterna.ddl_skeleton(command), '"(?:[^"]|"")*"|[[:alpha:]_\u0080-\uffff][[:alnum:]_$\u0080-\uffff]*|[^\s]', 'g')
         with ordinality as m(word, position)
$$;

-- Whether the words are one statement. A semicolon in parentheses (CREATE RULE) or in an SQL-standard function body
-- (BEGIN ATOMIC ... END) does not end it, nor does one at its very end.
create function sterna.ddl_is_single(words text[]) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_word text;
  v_previous text := '';
  v_parentheses integer := 0;
  v_blocks integer := 0;
  v_ended boolean := false;
begin
  foreach v_word in array words loop
    if v_word = ';' and v_parentheses = 0 and v_blocks = 0 then
      v_ended := true;
    elsif v_ended then
      return false;
    elsif v_word = '(' then
      v_parentheses := v_parentheses + 1;
    elsif v_word = ')' then
      v_parentheses := greatest(v_parentheses - 1, 0);
    elsif v_word = 'ATOMIC' and v_previous = 'BEGIN' or v_word = 'CASE' and v_blocks > 0 then
      v_blocks := v_blocks + 1;
    elsif v_word = 'END' and v_blocks > 0 then
      v_blocks := v_blocks - 1;
    end if;
    v_previous := v_word;
  end loop;
  return true;
end $$;

-- Whether the words begin a statement of this command tag; if not, it is executed by something that the text calls.
create function sterna.ddl_matches_tag(words text[], tag text) returns boolean
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_tag text[] := string_to_array(case when tag = 'CREATE TABLE AS' then 'CREATE TABLE' else tag end, ' ');
  v_at integer := 2;
begin
  if words[1] is distinct from v_tag[1] then
    return false;
  end if;
  if v_tag[1] = 'CREATE' then
    while words[v_at] in ('OR', 'REPLACE', 'UNIQUE', 'LOCAL', 'GLOBAL', 'TEMP', 'TEMPORARY', 'UNLOGGED', 'RECURSIVE',
                          'CONSTRAINT', 'TRUSTED', 'PROCEDURAL', 'DEFAULT') loop
      v_at := v_at + 1;
    end loop;
  end if;
  return words[v_at : v_at + cardinality(v_tag) - 2] = v_tag[2:];
end $$;

-- The names of columns that an ALTER TABLE adds.
create function sterna.ddl_added_columns(words text[]) returns name[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(case when a.name like '"%' then replace(substr(a.name, 2, length(a.name) - 2), '""', '"')
                                 else lower(a.name) end::name), '{}')
    from (
      select words[n.position + case when words[n.position] = 'COLUMN' then 1 else 0 end
                   + case when words[n.position + case when words[n.position] = 'COLUMN' then 1 else 0 end] = 'IF' then 3 else 0 end] as name
        from (select i + 1 as position from generate_subscripts(words, 1) as i where words[i] = 'ADD') n
    ) a
   where a.name is not null
$$;

create function sterna.ddl_by_hand() returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 'By hand: "set sterna.ddl_replication = off" in the session, run it, and do the same on every node.'
$$;

-- Whether DDL of this session is to be captured.
create function sterna.ddl_captured() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select lower(coalesce(nullif(current_setting('sterna.ddl_replication', true), ''), 'on'))
           not in ('off', 'of', 'false', 'fals', 'fal', 'fa', 'f', 'no', 'n', '0')
     and exists (select from sterna.local_node)
$$;

-- Raises ST205 if a column that the statement adds to the table has a default that is evaluated for existing rows and is
-- not the same on every node. A rewrite by it would not even be decoded.
create function sterna.ddl_refuse_unequal_defaults(relation oid, words text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_column record;
  v_has_rows boolean;
begin
  for v_column in
    select a.attname, a.attidentity
      from pg_catalog.pg_attribute a
      join pg_catalog.pg_type t on t.oid = a.atttypid
      left join pg_catalog.pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
      cross join lateral coalesce(f.adbin, t.typdefaultbin) as d(expression)
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
       and a.attname = any (sterna.ddl_added_columns(words))
       and age(a.xmin) <= age(pg_current_xact_id()::xid)
       and (a.attidentity <> ''
            or d.expression::text ~ 'SQLVALUEFUNCTION|NEXTVALUEEXPR'
            or exists (select from regexp_matches(d.expression::text, ':(?:funcid|opfuncid) (\d+)', 'g') m
                         join pg_catalog.pg_proc p on p.oid = m[1]::oid where p.provolatile <> 'i'))
  loop
    -- Before a rewrite the index of a new key is known but not built, and the planner would look into it.
    if exists (select from pg_catalog.pg_index i join pg_catalog.pg_class k on k.oid = i.indexrelid
                where i.indrelid = relation and k.relkind = 'i' and pg_relation_size(k.oid) = 0) then
      v_has_rows := pg_relation_size(relation) > 0;
    else
      execute format('select exists (select from %s)', relation::regclass) into v_has_rows;
    end if;
    if v_has_rows then
      raise exception 'column % of table % would get other values in the existing rows on every node',
          quote_ident(v_column.attname), relation::regclass
        using errcode = 'ST205',
              detail = 'Its default is not a constant, and each node evaluates it for itself.',
              hint = case when 'default_insert_only' = any (sterna.table_sets(relation)) then
                'Updates of a table without a key are not replicated, so: create a table with the column, insert the rows into it, drop this one, rename.'
              when v_column.attidentity = '' then
                'Add the column without the default, then "alter column ... set default ...", then update the rows: that is all replicated.'
              else 'Add the column without identity, fill it by an update, make it not null, then "alter column ... add generated ...".' end;
    end if;
  end loop;
end $$;

-- Before the work is done: nothing that runs concurrently can be replicated, and its end would be too late to refuse.
create function sterna.ddl_starts(tag text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
begin
  if sterna.ddl_captured() and position('CONCURRENTLY' in upper(current_query())) > 0
     and 'CONCURRENTLY' = any (sterna.ddl_words(current_query())) then
    raise exception '% CONCURRENTLY is not replicated', tag
      using errcode = 'ST204', hint = 'Leave out CONCURRENTLY. ' || sterna.ddl_by_hand();
  end if;
end $$;

-- During ALTER TABLE, before the table is written anew.
create function sterna.ddl_rewrites(relation oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
begin
  if sterna.ddl_captured() then
    perform sterna.ddl_refuse_unequal_defaults(relation, sterna.ddl_words(current_query()));
  end if;
end $$;

-- Captures the statement that is executing, or refuses it, or leaves it alone.
create function sterna.ddl_capture(event text, tag text, search_path text, standard_strings text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
declare
  v_objects integer;
  v_temporary integer := 0;
  v_command text := coalesce(current_query(), '');
  v_words text[];
  v_role text := current_setting('role');
  v_table oid;
begin
  if not sterna.ddl_captured() or (event = 'sql_drop') <> (tag ~ '^DROP ')
     or tag ~ ' (PUBLICATION|SUBSCRIPTION|EVENT TRIGGER)$'
     or tag in ('REFRESH MATERIALIZED VIEW', 'REINDEX', 'LOGIN') then
    return;
  end if;
  if event = 'sql_drop' then
    select count(*) filter (where not o.is_temporary), count(*) filter (where o.is_temporary)
      into v_objects, v_temporary
      from pg_event_trigger_dropped_objects() o
     where o.original and o.schema_name is distinct from 'sterna' and o.object_identity !~ ' on sterna\.'
       and not (o.object_type = 'schema' and o.object_identity = 'sterna')
       and o.object_type !~ '^(publication|subscription|event trigger)';
  else
    select count(*) into v_objects
      from pg_event_trigger_ddl_commands() c
     where not c.in_extension and c.schema_name is distinct from 'sterna' and c.schema_name is distinct from 'pg_temp'
       and coalesce(c.object_identity, '') !~ '( on |^)(sterna|pg_temp(_\d+)?)(\.|$)'
       and coalesce(c.object_type, '') !~ '^(publication|subscription|event trigger)';
  end if;
  if v_objects = 0 then
    return;
  end if;

  v_words := sterna.ddl_words(v_command);
  if v_words[2] = 'EXTENSION' and v_words[1] in ('CREATE', 'ALTER', 'DROP') and tag not like '% EXTENSION' then
    return;
  end if;
  if tag in ('GRANT', 'REVOKE', 'ALTER DEFAULT PRIVILEGES', 'SECURITY LABEL', 'IMPORT FOREIGN SCHEMA')
     or tag ~ ' (FOREIGN DATA WRAPPER|SERVER|USER MAPPING|FOREIGN TABLE|LANGUAGE|ACCESS METHOD|TRANSFORM)$' then
    raise warning '% is not replicated: run it on each node too', tag;
    return;
  end if;
  if not sterna.ddl_is_single(v_words) then
    raise exception '% is one of several statements in one string, and is not replicated', tag
      using errcode = 'ST201', hint = 'Send every statement by itself. ' || sterna.ddl_by_hand();
  end if;
  if tag in ('CREATE TABLE AS', 'SELECT INTO') then
    raise exception '% is not replicated', tag
      using errcode = 'ST203', detail = 'Each node would compute rows of its own.',
            hint = 'Create the table first, then insert into it: both are replicated. ' || sterna.ddl_by_hand();
  end if;
  -- The text is the client's: it says what to do on other nodes only if it is itself the statement that is executing.
  -- It is so once: what was queued for the same statement of this transaction (no commit timestamp yet) was nested in it.
  if not sterna.ddl_matches_tag(v_words, tag)
     or exists (select from (select q.command, q.queued_at, q.xmin as version
                               from sterna.local_node l join sterna.ddl_queue q on q.node_id = l.node_id
                              order by q.ddl_id desc limit 20) q
                 where q.command = v_command and q.queued_at >= statement_timestamp()
                   and pg_xact_commit_timestamp(q.version) is null) then
    raise exception '% inside of another statement is not replicated', tag
      using errcode = 'ST202', detail = 'It was executed by a function, a procedure or a DO block.',
            hint = 'Run it as a statement of its own. ' || sterna.ddl_by_hand();
  end if;
  if tag !~ '^(CREATE|ALTER|DROP) ' and tag <> 'COMMENT' or tag = 'DROP OWNED' then
    raise exception '% is not replicated', tag
      using errcode = 'ST206', hint = sterna.ddl_by_hand();
  end if;
  if v_temporary > 0 then
    raise exception '% of temporary and other objects at once is not replicated', tag
      using errcode = 'ST209', hint = 'Drop the temporary ones by a statement of their own.';
  end if;
  if standard_strings <> 'on' and strpos(v_command, '\') > 0 then
    raise exception '% with a backslash is not replicated while standard_conforming_strings is off', tag
      using errcode = 'ST210', hint = 'set standard_conforming_strings = on; write E''...'' where backslashes escape.';
  end if;
  if tag = 'ALTER TABLE' then
    for v_table in
      select c.objid from pg_event_trigger_ddl_commands() c
       where c.classid = 'pg_class'::regclass and c.object_type = 'table'
      union
      select t.relid from pg_event_trigger_ddl_commands() c, pg_partition_tree(c.objid) t
       where c.classid = 'pg_class'::regclass and c.object_type = 'table'
    loop
      perform sterna.ddl_refuse_unequal_defaults(v_table, v_words);
    end loop;
  end if;

  insert into sterna.ddl_queue (node_id, ddl_id, role_name, search_path, command_tag, command)
  select l.node_id, nextval('sterna.ddl_id'), case when v_role = 'none' then session_user::text else v_role end,
         ddl_capture.search_path, tag, v_command
    from sterna.local_node l;
end $$;

-- Looks after what a statement created or changed: tables join the set that fits their key, sequences are interleaved.
create function sterna.ddl_bookkeeping(tag text) returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on set sterna.bookkeeping = on set sterna.ddl_replication = off as $$
declare
  v_relation record;
begin
  for v_relation in
    with commands as (
      select distinct c.objid from pg_event_trigger_ddl_commands() c
       where c.classid = 'pg_class'::regclass and c.objid is not null and not c.in_extension
    ), touched as (
      select c.objid as relid from commands c
      union select i.indrelid from commands c join pg_catalog.pg_index i on i.indexrelid = c.objid
    ), tables as (
      select t.relid from touched t
      union select p.relid from touched t, pg_partition_tree(t.relid) p
      union select a.relid from touched t, pg_partition_ancestors(t.relid) a
      -- A detached partition is not named by the event; it is in no set.
      union
      select c.oid from pg_catalog.pg_class c
       where tag = 'ALTER TABLE' and c.relkind in ('r', 'p') and not c.relispartition
         and not exists (select from pg_catalog.pg_publication_rel r where r.prrelid = c.oid)
    ), all_relations as (
      select t.relid from tables t
      union
      select d.objid from tables t
        join pg_catalog.pg_depend d on d.refobjid = t.relid and d.classid = 'pg_class'::regclass
                                   and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
    )
    select c.oid, c.relkind from all_relations r join pg_catalog.pg_class c on c.oid = r.relid
      join pg_catalog.pg_namespace n on n.oid = c.relnamespace
     where c.relkind in ('r', 'p', 'S') and c.relpersistence = 'p'
       and n.nspname not in ('sterna', 'information_schema') and n.nspname !~ '^pg_'
       and not exists (select from pg_catalog.pg_depend d
                        where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')
     order by c.oid
  loop
    if v_relation.relkind = 'S' then
      perform sterna.sequence_interleave(v_relation.oid);
    else
      perform sterna.table_auto_join(v_relation.oid);
    end if;
  end loop;
  -- A table that became a partition is published with the table above it; by itself it would stay behind when that one's
  -- key goes, and refuse updates.
  for v_relation in
    select r.prrelid, p.pubname
      from pg_catalog.pg_publication p
      join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
      join pg_catalog.pg_class c on c.oid = r.prrelid and c.relispartition
     where tag = 'ALTER TABLE' and p.pubname in ('sterna_default', 'sterna_default_insert_only')
       and exists (select from pg_partition_ancestors(c.oid) a
                     join pg_catalog.pg_publication_rel o on o.prrelid = a.relid
                     join pg_catalog.pg_publication q on q.oid = o.prpubid
                    where a.relid <> c.oid and q.pubname in ('sterna_default', 'sterna_default_insert_only'))
  loop
    execute format('alter publication %I drop table only %s', v_relation.pubname, v_relation.prrelid::regclass);
  end loop;
end $$;

-- The same after something was dropped. The table whose key went with an index or a column is not named by the event:
-- all tables that are published with updates and lost their key are looked at.
create function sterna.ddl_drop_bookkeeping() returns void
language plpgsql set search_path = pg_catalog, pg_temp set standard_conforming_strings = on set sterna.bookkeeping = on set sterna.ddl_replication = off as $$
declare
  v_table oid;
begin
  delete from sterna.sequence_layout l using pg_event_trigger_dropped_objects() o
   where o.classid = 'pg_class'::regclass and o.objid = l.relid;
  if not exists (select from pg_event_trigger_dropped_objects() o
                  where not o.is_temporary and o.object_type in ('index', 'table column', 'table constraint')) then
    return;
  end if;
  for v_table in
    select distinct r.prrelid
      from pg_catalog.pg_publication p join pg_catalog.pg_publication_rel r on r.prpubid = p.oid
     where p.pubname = 'sterna_default' and sterna.table_key_problem(r.prrelid) is not null
  loop
    perform sterna.table_auto_join(v_table);
  end loop;
  -- A column may go with its type, or with that of a parent table; functions made for the table name it.
  perform sterna.tombstone_attach(g.table_oid) from sterna.guarded g
    where g.table_oid in (select sterna.root_table(o.objid) from pg_event_trigger_dropped_objects() o where o.object_type = 'table column')
      and exists (select from pg_catalog.pg_class c where c.oid = g.table_oid);
end $$;

-- The event trigger functions. What they call has standard_conforming_strings set as well, since the constants in a function
-- are read under the setting of the session that first calls it.
create function sterna.on_ddl_start() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.ddl_starts(tg_tag);
end $$;

-- No search_path of its own, which would hide the one of the caller: so it does nothing but call, every name qualified, no
-- operator and no type that the caller could replace.
create function sterna.on_ddl_end() returns event_trigger language plpgsql security definer as $$
begin
  perform sterna.ddl_capture(tg_event, tg_tag, pg_catalog.current_setting('search_path'),
                             pg_catalog.current_setting('standard_conforming_strings'));
end $$;

create function sterna.on_table_rewrite() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.ddl_rewrites(pg_event_trigger_table_rewrite_oid());
end $$;

create function sterna.on_ddl_end_always() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(current_setting('sterna.bookkeeping', true), '') <> 'on' then
    perform sterna.ddl_bookkeeping(tg_tag);
  end if;
end $$;

create function sterna.on_drop_always() returns event_trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(current_setting('sterna.bookkeeping', true), '') <> 'on' then
    perform sterna.ddl_drop_bookkeeping();
  end if;
end $$;

-- Creates the event triggers that are not there yet.
create function sterna.ddl_attach() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger record;
begin
  for v_trigger in
    select t.name, t.event, t.condition, t.routine, t.always
      from (values
        ('sterna_ddl_start', 'ddl_command_start', 'when tag in (''CREATE INDEX'', ''DROP INDEX'', ''ALTER TABLE'')', 'on_ddl_start', false),
        ('sterna_alter_start', 'ddl_command_start', 'when tag in (''ALTER TABLE'')', 'on_alter_table', true),
        ('sterna_ddl_end', 'ddl_command_end', '', 'on_ddl_end', false),
        ('sterna_ddl_drop', 'sql_drop', '', 'on_ddl_end', false),
        ('sterna_ddl_rewrite', 'table_rewrite', '', 'on_table_rewrite', false),
        ('sterna_always_end', 'ddl_command_end', 'when tag in (''CREATE TABLE'', ''CREATE TABLE AS'', ''SELECT INTO'', '
           '''CREATE SCHEMA'', ''ALTER TABLE'', ''CREATE INDEX'', ''CREATE SEQUENCE'', ''ALTER SEQUENCE'')', 'on_ddl_end_always', true),
        ('sterna_always_drop', 'sql_drop', '', 'on_drop_always', true)
      ) as t(name, event, condition, routine, always)
     where not exists (select from pg_catalog.pg_event_trigger e where e.evtname = t.name)
  loop
    execute format('create event trigger %I on %s %s execute function sterna.%I()', v_trigger.name, v_trigger.event,
                   v_trigger.condition, v_trigger.routine);
    if v_trigger.always then
      execute format('alter event trigger %I enable always', v_trigger.name);
    end if;
  end loop;
end $$;

create function sterna.ddl_detach() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger name;
begin
  for v_trigger in
    select e.evtname from pg_catalog.pg_event_trigger e
      join pg_catalog.pg_proc p on p.oid = e.evtfoid
     where p.pronamespace = 'sterna'::regnamespace
  loop
    execute format('drop event trigger %I', v_trigger);
  end loop;
end $$;

-- What code that a statement calls could change in the session, to take effect after it: settings, prepared statements
-- (apply has its own) and cursors, of which one WITH HOLD would be run at commit with the rights of Sterna.
create function sterna.session_settings() returns jsonb
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select jsonb_object_agg(s.name, current_setting(s.name)) from pg_catalog.pg_settings s
   where s.context in ('user', 'superuser') and s.name not in ('search_path', 'in_hot_standby')
     and s.name !~ '^transaction_'
$$;

create function sterna.session_objects() returns text
language sql volatile set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_array(
    (select jsonb_agg(jsonb_build_array(p.name, p.statement, p.from_sql, p.prepare_time) order by p.name)
       from pg_catalog.pg_prepared_statements p),
    (select jsonb_agg(jsonb_build_array(c.name, c.statement, c.creation_time) order by c.name, c.creation_time)
       from pg_catalog.pg_cursors c))::text
$$;

create function sterna.ddl_execute(role_name text, search_path text, command text, session_path text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_function text;
  v_settings jsonb;
  v_objects text;
  v_replication text := coalesce(current_setting('sterna.ddl_replication', true), '');
  v_setting record;
begin
  if not exists (select from pg_catalog.pg_roles r where r.rolname = role_name) then
    raise exception 'role "%" does not exist here, and a replicated statement is to be executed by it', role_name
      using errcode = 'ST207', hint = format('create role %I, with the same rights as on the node that the statement came from.', role_name);
  end if;
  v_settings := sterna.session_settings();
  v_objects := sterna.session_objects();
  perform set_config('check_function_bodies', 'off', true);

  -- A security definer function of that role: within it, PostgreSQL refuses SET ROLE, RESET ROLE and SET SESSION
  -- AUTHORIZATION, so what the statement calls (defaults, constraints, functions) cannot become Sterna's role again.
  v_function := format('pg_temp.%I', 'sterna_ddl_' || md5(gen_random_uuid()::text));
  execute format($f$
    create function %s(command pg_catalog.text) returns pg_catalog.void language plpgsql security definer as $b$
    begin
      execute command;
      set constraints all immediate;
    end $b$ $f$, v_function);
  execute format('alter function %s(text) owner to %I', v_function, role_name);
  perform set_config('search_path', search_path, true);
  perform sterna.rekey_unhook(command, search_path);
  execute pg_catalog.format('select %s($1)', v_function) using command;
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  execute format('drop function %s(text)', v_function);

  if sterna.session_objects() is distinct from v_objects then
    raise exception 'a replicated statement of role "%" prepared a statement or opened a cursor in the session that applies it', role_name
      using errcode = 'ST208', detail = 'Those would have been executed with the rights of Sterna.',
            hint = 'See what the statement calls: ' || left(command, 200);
  end if;
  for v_setting in
    select b.key as name, b.value as old_value
      from jsonb_each_text(v_settings) b
     where current_setting(b.key, true) is distinct from b.value
  loop
    perform set_config(v_setting.name, v_setting.old_value, false);
  end loop;
  perform set_config('sterna.bookkeeping', '', false), set_config('sterna.ddl_replication', v_replication, false),
          set_config('search_path', session_path, false);
end $$;

-- Executes a captured statement as the role that ran it at its origin, with its search_path. For apply: in a session with
-- session_replication_role = replica, inside the transaction that it came in. Raises ST207, ST208, and what the statement raises.
create function sterna.ddl_apply(role_name text, search_path text, command text) returns void
language plpgsql as $$
begin
  perform sterna.ddl_execute(role_name, search_path, command, pg_catalog.current_setting('search_path'));
end $$;

select sterna.hide_functions('^(on_)?ddl_');
select sterna.hide_functions('^(on_drop_always|on_table_rewrite|session_settings|session_objects)$');

-- Sequences: each node takes values of its own, so that serial and identity columns do not collide. With increment i,
-- start s and c = s mod |i|, the values that the original sequence can take are c + i * m; a node takes those with
-- m mod stride = its node id mod stride. With the usual 1, 1 and stride 16: node 1 has 1, 17, 33, ...; node 2 has 2, 18, ...
--
-- Errors: ST220  two nodes have the same residue; ST221  the stride is not a number from 1 to 1023.

create table sterna.sequence_layout (
  relid oid primary key,
  original_increment bigint not null,
  original_start bigint not null,
  stride integer not null,
  residue integer not null
);

-- The setting sequence_stride; 1 leaves sequences alone. Security definer because view sequences is for everyone.
create function sterna.sequence_stride() returns integer
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set standard_conforming_strings = on as $$
declare
  v_stride text := (select s.value from sterna.setting s where s.name = 'sequence_stride');
begin
  if coalesce(v_stride, '16') !~ '^\d{1,4}$' or v_stride::integer not between 1 and 1023 then
    raise exception 'setting sequence_stride is "%", not a number from 1 to 1023', v_stride
      using errcode = 'ST221', hint = 'update sterna.setting set value = ''16'' where name = ''sequence_stride'', equal on all nodes.';
  end if;
  return coalesce(v_stride, '16')::integer;
end $$;

-- The first value of the residue at or after (in the direction of the increment) `at_or_after`.
create function sterna.sequence_value(original_increment numeric, original_start numeric, stride integer, residue integer,
                                      at_or_after numeric) returns numeric
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  i constant numeric := original_increment;
  c constant numeric := mod(mod(original_start, abs(i)) + abs(i), abs(i));
  m numeric := div(at_or_after - c, i);
begin
  if mod(at_or_after - c, i) <> 0 and (at_or_after - c) * i > 0 then
    m := m + 1;
  end if;
  return c + i * (m + mod(mod(residue - m, stride) + stride, stride));
end $$;

-- Why a sequence is not interleaved, or null if it is to be.
create function sterna.sequence_unfit(original_increment bigint, original_start bigint, minimum bigint, maximum bigint,
                                      cycles boolean, stride integer) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case
    when stride = 1 then 'sequence_stride is 1'
    when cycles then 'it cycles'
    when abs(original_increment::numeric) * stride > 9223372036854775807
      or div(case when original_increment > 0 then maximum::numeric - original_start else original_start::numeric - minimum end,
             abs(original_increment::numeric)) + 1 < stride
      then 'its range has no value for every node'
  end
$$;

-- Lays a sequence out for this node, or anew after it was altered, or gives it back its own increment where it is unfit.
-- Does nothing where all is in order, so it can be called at any time.
create function sterna.sequence_interleave(relation oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp set sterna.bookkeeping = on set sterna.ddl_replication = off as $$
declare
  v_stride integer := sterna.sequence_stride();
  v_residue integer := (select l.node_id % v_stride from sterna.local_node l);
  v_sequence record;
  v_layout sterna.sequence_layout;
  v_state record;
  v_increment bigint;
  v_start bigint;
  v_old_start numeric;
  v_new_start numeric;
  v_next numeric;
begin
  select q.seqincrement, q.seqstart, q.seqmin, q.seqmax, q.seqcycle into v_sequence
    from pg_catalog.pg_sequence q join pg_catalog.pg_class k on k.oid = q.seqrelid
   where q.seqrelid = relation and k.relpersistence = 'p';
  if not found or v_residue is null then
    return;
  end if;
  select l.relid, l.original_increment, l.original_start, l.stride, l.residue into v_layout
    from sterna.sequence_layout l where l.relid = relation;
  v_increment := v_sequence.seqincrement;
  v_start := v_sequence.seqstart;
  if v_layout.relid is not null then
    -- What is not as we left it was altered by the user; the rest is still theirs from before.
    if v_increment = v_layout.original_increment * v_layout.stride then
      v_increment := v_layout.original_increment;
    end if;
    v_old_start := sterna.sequence_value(v_layout.original_increment, v_layout.original_start, v_layout.stride,
                                         v_layout.residue, v_layout.original_start);
    if v_start = v_old_start then
      v_start := v_layout.original_start;
    end if;
  end if;
  if sterna.sequence_unfit(v_increment, v_start, v_sequence.seqmin, v_sequence.seqmax, v_sequence.seqcycle, v_stride) is not null then
    perform sterna.sequence_restore(relation);
    return;
  end if;

  v_new_start := sterna.sequence_value(v_increment, v_start, v_stride, v_residue, v_start);
  execute format('select s.last_value, s.is_called from %s s', relation::regclass) into v_state;
  if v_sequence.seqincrement <> v_increment * v_stride or v_sequence.seqstart <> v_new_start
     or sterna.sequence_value(v_increment, v_start, v_stride, v_residue, v_state.last_value) <> v_state.last_value then
    -- This also locks out nextval(), so that no value is given out between reading last_value and the restart.
    execute format('alter sequence %s increment by %s start with %s', relation::regclass, v_increment * v_stride, v_new_start);
    execute format('select s.last_value, s.is_called from %s s', relation::regclass) into v_state;
    v_next := sterna.sequence_value(v_increment, v_start, v_stride, v_residue,
                                    v_state.last_value + case when v_state.is_called then sign(v_increment)::integer else 0 end);
    if sterna.sequence_value(v_increment, v_start, v_stride, v_residue, v_state.last_value) = v_state.last_value then
      null;
    elsif v_next between v_sequence.seqmin and v_sequence.seqmax then
      execute format('alter sequence %s restart with %s', relation::regclass, v_next);
      if v_state.is_called and v_next - v_increment::numeric * v_stride between v_sequence.seqmin and v_sequence.seqmax then
        -- Still in use, so that last_value is shown. After RESTART this is undone by a rollback as well.
        perform setval(relation::regclass, (v_next - v_increment * v_stride)::bigint, true);
      end if;
    else
      -- No value is left for this node: the next call says so.
      perform setval(relation::regclass, v_state.last_value, true);
    end if;
  end if;
  if (v_increment, v_start, v_stride, v_residue) is distinct from
     (v_layout.original_increment, v_layout.original_start, v_layout.stride, v_layout.residue) then
    insert into sterna.sequence_layout (relid, original_increment, original_start, stride, residue)
    values (relation, v_increment, v_start, v_stride, v_residue)
    on conflict (relid) do update
      set original_increment = excluded.original_increment, original_start = excluded.original_start,
          stride = excluded.stride, residue = excluded.residue;
  end if;
end $$;

-- Gives a sequence its own increment and start back, as far as the user has not altered them since.
create function sterna.sequence_restore(relation oid) returns void
language plpgsql set search_path = pg_catalog, pg_temp set sterna.bookkeeping = on set sterna.ddl_replication = off as $$
declare
  v_layout record;
  v_state record;
  v_start numeric;
begin
  select l.original_increment, l.original_start, l.stride, l.residue, q.seqincrement, q.seqstart into v_layout
    from sterna.sequence_layout l join pg_catalog.pg_sequence q on q.seqrelid = l.relid where l.relid = relation;
  if not found then
    return;
  end if;
  v_start := sterna.sequence_value(v_layout.original_increment, v_layout.original_start, v_layout.stride, v_layout.residue,
                                   v_layout.original_start);
  if v_layout.seqincrement = v_layout.original_increment * v_layout.stride then
    execute format('alter sequence %s increment by %s', relation::regclass, v_layout.original_increment);
  end if;
  if v_layout.seqstart = v_start then
    execute format('alter sequence %s start with %s', relation::regclass, v_layout.original_start);
    execute format('select s.last_value, s.is_called from %s s', relation::regclass) into v_state;
    if not v_state.is_called and v_state.last_value = v_start then
      execute format('alter sequence %s restart', relation::regclass);
    end if;
  end if;
  delete from sterna.sequence_layout l where l.relid = relation;
end $$;

-- User sequences of this database, with the column that owns them. `limit_value` is the last value that both the sequence
-- and the column can hold.
create view sterna.user_sequence as
  select k.oid as relid, n.nspname as schema_name, k.relname as sequence_name, q.seqtypid, q.seqincrement, q.seqstart,
         q.seqmin, q.seqmax, q.seqcycle, d.refobjid as owner_relid, a.attnum as owner_attnum, a.attname as owner_column,
         case when q.seqincrement > 0
              then least(q.seqmax, case a.atttypid when 'int4'::pg_catalog.regtype then 2147483647 when 'int2'::pg_catalog.regtype then 32767 end)
              else greatest(q.seqmin, case a.atttypid when 'int4'::pg_catalog.regtype then -2147483648 when 'int2'::pg_catalog.regtype then -32768 end)
         end as limit_value,
         coalesce(a.atttypid, q.seqtypid) as value_type
    from pg_catalog.pg_sequence q
    join pg_catalog.pg_class k on k.oid = q.seqrelid
    join pg_catalog.pg_namespace n on n.oid = k.relnamespace
    left join pg_catalog.pg_depend d
      on d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = k.oid and d.deptype in ('a', 'i')
     and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjsubid > 0
    left join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
   where k.relpersistence = 'p' and n.nspname not in ('sterna', 'information_schema') and n.nspname !~ '^pg_'
     and not exists (select from pg_catalog.pg_depend e
                      where e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and e.objid = k.oid and e.deptype = 'e');
comment on view sterna.user_sequence is 'internal';

-- Every user sequence. last_value and used_percent are null where it was never used or the reader may not see it.
create view sterna.sequences as
  select v.schema_name, v.sequence_name, v.owned_by, v.type, v.increment, v.last_value, v.used_percent, v.interleaved,
         case
           when v.interleaved and v.off_residue then 'it was set to a value of another node and will collide: select sterna.sequences_realign()'
           when v.reason is not null then 'not interleaved, nodes can give out the same values: ' || v.reason
           when v.used_percent > 50 then pg_catalog.format('%s %% of %s are used; interleaving takes %s values for one. Make it bigint.',
                                                           v.used_percent, v.type, v.stride)
         end as warning
    from (
      select s.schema_name, s.sequence_name,
             s.owner_relid::pg_catalog.regclass::text || '.' || pg_catalog.quote_ident(s.owner_column) as owned_by,
             pg_catalog.format_type(s.value_type, null) as type, s.seqincrement as increment, s.last_value,
             pg_catalog.round(100 * case when s.seqincrement > 0
               then (s.last_value::numeric - s.seqmin) / nullif(s.limit_value::numeric - s.seqmin, 0)
               else (s.seqmax::numeric - s.last_value) / nullif(s.seqmax::numeric - s.limit_value, 0) end, 1) as used_percent,
             l.relid is not null as interleaved, l.stride,
             sterna.sequence_value(l.original_increment, l.original_start, l.stride, l.residue, s.last_value) <> s.last_value as off_residue,
             case when l.relid is null and exists (select from sterna.local_node)
                  then sterna.sequence_unfit(s.seqincrement, s.seqstart, s.seqmin, s.seqmax, s.seqcycle, sterna.sequence_stride()) end as reason
        from (select u.schema_name, u.sequence_name, u.owner_relid, u.owner_column, u.value_type, u.relid, u.seqincrement,
                     u.seqstart, u.seqmin, u.seqmax, u.seqcycle, u.limit_value,
                     case when pg_catalog.has_sequence_privilege(u.relid, 'select, usage')
                          then pg_catalog.pg_sequence_last_value(u.relid) end as last_value
                from sterna.user_sequence u) s
        left join sterna.sequence_layout l on l.relid = s.relid
    ) v;
grant select on sterna.sequences to public;

-- Owned sequences of which a later value is in the table already, on this node's residue: an insert will fail. At most
-- 10,000 rows after the last value and as many at the end of the table are looked at, by an index; columns without one are left out.
-- Remedy: select sterna.sequences_skip_taken().
create function sterna.sequence_collisions(out schema_name name, out sequence_name name, out owned_by text,
                                           out last_value bigint, out taken_value bigint, out last_taken bigint) returns setof record
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  v_sequence record;
  v_state record;
  v_ascending text;
  v_descending text;
begin
  for v_sequence in
    select s.relid, s.schema_name, s.sequence_name, s.owner_relid, s.owner_column, s.seqincrement, s.seqstart
      from sterna.user_sequence s
     where s.owner_relid is not null
       and s.value_type in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
       and exists (select from pg_catalog.pg_index i join pg_catalog.pg_class k on k.oid = i.indexrelid
                     join pg_catalog.pg_am m on m.oid = k.relam
                    where i.indrelid = s.owner_relid and i.indisvalid and i.indpred is null and m.amname = 'btree'
                      and i.indkey[0] = s.owner_attnum)
     order by s.schema_name, s.sequence_name
  loop
    execute format('select s.last_value, s.is_called from %s s', v_sequence.relid::regclass) into v_state;
    v_ascending := case when v_sequence.seqincrement > 0 then 'asc' else 'desc' end;
    v_descending := case when v_sequence.seqincrement > 0 then 'desc' else 'asc' end;
    execute format($q$
      select (array_agg(c.value order by c.value %4$s))[1], (array_agg(c.value order by c.value %5$s))[1]
        from ((select t.%2$I as value from %1$s t where t.%2$I %3$s $1 order by t.%2$I %4$s limit 10000)
              union all
              (select t.%2$I from %1$s t where t.%2$I %3$s $1 order by t.%2$I %5$s limit 10000)) c
       where mod(c.value - $1::numeric, $2::numeric) = 0 $q$,
      v_sequence.owner_relid::regclass, v_sequence.owner_column,
      case when v_sequence.seqincrement > 0 then '>' else '<' end || case when v_state.is_called then '' else '=' end,
      v_ascending, v_descending)
      into taken_value, last_taken using v_state.last_value, v_sequence.seqincrement;
    if taken_value is not null then
      schema_name := v_sequence.schema_name;
      sequence_name := v_sequence.sequence_name;
      owned_by := v_sequence.owner_relid::regclass || '.' || quote_ident(v_sequence.owner_column);
      last_value := v_state.last_value;
      return next;
    end if;
  end loop;
end $$;

-- Lays out every user sequence that is not as it should be: setval() takes one off its residue unseen. Cheap where all is
-- in order. Returns how many it changed.
create function sterna.sequences_realign() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_sequence oid;
  v_state record;
  v_after record;
  v_changed integer := 0;
begin
  for v_sequence in select s.relid from sterna.user_sequence s order by s.relid loop
    execute format('select s.last_value, q.seqincrement, q.seqstart from %s s, pg_sequence q where q.seqrelid = $1',
                   v_sequence::regclass) into v_state using v_sequence;
    perform sterna.sequence_interleave(v_sequence);
    execute format('select s.last_value, q.seqincrement, q.seqstart from %s s, pg_sequence q where q.seqrelid = $1',
                   v_sequence::regclass) into v_after using v_sequence;
    if v_state is distinct from v_after then
      v_changed := v_changed + 1;
    end if;
  end loop;
  return v_changed;
end $$;

-- Moves every sequence that sequence_collisions() finds past the values in its table.
create function sterna.sequences_skip_taken(interleave boolean default true) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_collision record;
begin
  for v_collision in
    select format('%I.%I', c.schema_name, c.sequence_name)::regclass as sequence, c.last_taken from sterna.sequence_collisions() c
  loop
    begin
      perform setval(v_collision.sequence, v_collision.last_taken::bigint);
    exception when numeric_value_out_of_range then
      -- The sequence ends before what the table has: it stays a collision.
      continue;
    end;
    if interleave then
      perform sterna.sequence_interleave(v_collision.sequence);
    end if;
  end loop;
end $$;

-- Raises ST220 where this node and another known one would take the same values.
create function sterna.check_residues() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_stride integer := sterna.sequence_stride();
  v_other record;
begin
  select n.node_name, n.node_id, l.node_id as local_id into v_other
    from sterna.local_node l join sterna.node n on n.node_id <> l.node_id and n.node_id % v_stride = l.node_id % v_stride
   where v_stride > 1
   order by n.node_id limit 1;
  if found then
    raise exception 'node id % gives sequences the same values as node id % of node "%"', v_other.local_id, v_other.node_id, v_other.node_name
      using errcode = 'ST220', detail = format('Both have the remainder %s by sequence_stride %s.', v_other.local_id % v_stride, v_stride),
            hint = 'Choose a node id with another remainder (info => ''{"node_id": 2}''), or a larger sequence_stride, equal on all nodes.';
  end if;
end $$;

-- Called when this database becomes a node.
create function sterna.node_attach() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform sterna.check_residues();
  perform sterna.ddl_attach();
  perform sterna.sequences_realign();
  perform sterna.sequences_skip_taken();
end $$;

-- Called before this database stops being one.
create function sterna.node_detach() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_sequence oid;
begin
  perform sterna.ddl_detach();
  for v_sequence in select l.relid from sterna.sequence_layout l loop
    perform sterna.sequence_restore(v_sequence);
  end loop;
  delete from sterna.sequence_layout;
  -- The tables have values of all nodes, the sequences know their own.
  perform sterna.sequences_skip_taken(interleave => false);
end $$;

select sterna.hide_functions(
  '^(sequence_interleave|sequence_restore|sequence_collisions|sequences_realign|sequences_skip_taken|'
  'check_residues|node_attach|node_detach)$');

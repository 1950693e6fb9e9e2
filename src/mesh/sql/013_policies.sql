-- Delta columns and policies of tables.

-- How conflicts of a table are decided, for apply:
-- deltas     columns whose values are sums of contributions
-- merge      schema.function(row, row) that takes the place of the newer row, or null
-- manual     types of conflict that are queued for review as well
-- oneWay     apply_remote or keep_local, or null
-- uniques    plain unique indexes besides the key
-- otherUniques  names of the rest: partial ones, those over expressions, exclusion constraints, deferrable and invalid ones
create function sterna.table_rules(relation oid) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  with root as (select sterna.root_table(table_rules.relation) as oid),
  other_index as (
    select k.relname as name, i.indexrelid, i.indnullsnotdistinct as nulls_collide,
           i.indisunique and i.indimmediate and i.indisvalid and i.indpred is null and i.indexprs is null and not i.indisexclusion as plain,
           (select jsonb_agg(a.attname order by u.position)
              from unnest(i.indkey::smallint[]) with ordinality as u(attnum, position)
              join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.attnum
             where u.position <= i.indnkeyatts) as columns
      from pg_index i join pg_class k on k.oid = i.indexrelid join pg_class c on c.oid = i.indrelid
     where i.indrelid = table_rules.relation and (i.indisunique or i.indisexclusion) and i.indisready
       and not (case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end)
  )
  select jsonb_build_object(
    'deltas', (select coalesce(jsonb_agg(d.column_name order by d.column_name), '[]')
                 from sterna.delta_column d, root where d.table_oid = root.oid),
    'merge', (select p.merge_function from sterna.policy p, root where p.table_oid = root.oid and p.policy = 'merge'),
    'manual', (select coalesce(jsonb_agg(p.conflict_type order by p.conflict_type), '[]')
                 from sterna.policy p, root where p.table_oid = root.oid and p.policy = 'manual'),
    'oneWay', (select p.policy from sterna.policy p, root
                where p.table_oid = root.oid and p.policy in ('apply_remote', 'keep_local')),
    'uniques', (select coalesce(jsonb_agg(jsonb_build_object('name', o.name, 'columns', o.columns, 'nullsCollide', o.nulls_collide)
                                          order by o.name), '[]')
                  from other_index o where o.plain),
    'otherUniques', (select coalesce(jsonb_agg(o.name order by o.name), '[]') from other_index o where not o.plain))
$$;
revoke all on function sterna.table_rules(oid) from public;

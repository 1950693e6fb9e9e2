-- How two versions of a row stand to each other: whether the writer of the newer one knew the older one.

-- ordered, concurrent, or unknown.
create function sterna.version_relation(newer sterna.row_version, older sterna.row_version) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when (newer).node_id = (older).node_id then 'ordered' else 'unknown' end
$$;
revoke all on function sterna.version_relation(sterna.row_version, sterna.row_version) from public;

/** Values of one type, as SQL expressions. Every table also gets a null. */
export interface TypeFamily {
  readonly table: string
  readonly type: string
  readonly values: readonly string[]
  /** Its binary form holds oids of the server's own: such tables travel as text. */
  readonly holdsOids?: true
  /** Extension that the type comes from. */
  readonly extension?: string
  /** Expression that fails where the server was built without the type. */
  readonly probe?: string
}

/** User-defined types that the families use; created on every node, with other oids on each. */
export const USER_TYPES = `
  do $$ begin
    -- Oids of types differ between the nodes: what travels by oid would show.
    for i in 1..10 + inet_server_port() % 50 loop
      execute format('create table burnt (a int)');
      drop table burnt;
    end loop;
  end $$;
  create type mood as enum ('sad', 'it''s ok', 'Very "happy"');
  create domain positive as int check (value > 0);
  create domain short as varchar(5);
  create domain moods as mood[];
  create type pair as (a int, "B c" text);
  create type nested as (p pair, m mood, l pair[]);
  create type float_range as range (subtype = float8);
  create type mood_range as range (subtype = mood);
  create domain pair_with_a as pair check ((value).a is distinct from 0);`

const family = (table: string, type: string, ...values: string[]): TypeFamily => ({ table, type, values })

const withOids = (table: string, type: string, ...values: string[]): TypeFamily => ({
  ...family(table, type, ...values),
  holdsOids: true,
})

export const TYPE_FAMILIES: readonly TypeFamily[] = [
  family('t_smallint', 'smallint', '0', '-32768', '32767'),
  family('t_int', 'int', '0', '-2147483648', '2147483647'),
  family('t_bigint', 'bigint', '0', '-9223372036854775808', '9223372036854775807'),
  family('t_bool', 'boolean', 'true', 'false'),
  family(
    't_numeric',
    'numeric',
    `'NaN'`,
    `'Infinity'`,
    `'-Infinity'`,
    '0',
    '0.000',
    '1.0',
    '1.00',
    `'-12345678901234567890.123456789012345678901234567890'`,
    '10::numeric ^ 1000 + 0.1',
    `('0.' || repeat('123456789', 1500))::numeric`,
  ),
  family(
    't_numeric_scaled',
    'numeric(30, 10)',
    '1',
    '-0.0000000001',
    '99999999999999999999.9999999999',
    `'NaN'`,
  ),
  family('t_numeric_negative', 'numeric(3, -2)', '12345', '-99900'),
  family(
    't_float4',
    'float4',
    `'NaN'`,
    `'Infinity'`,
    `'-Infinity'`,
    `'-0'`,
    '0.1',
    '1.17549435e-38',
    '3.4028235e38',
    '1.4e-45',
  ),
  family(
    't_float8',
    'float8',
    `'NaN'`,
    `'Infinity'`,
    `'-Infinity'`,
    `'-0'`,
    '0.1',
    'pi()',
    '4.9406564584124654e-324',
    '1.7976931348623157e308',
    '0.1::float8 + 0.2',
  ),
  family('t_money', 'money', '0::money', `'-92233720368547758.08'`, `'1234567.89'`),
  family(
    't_text',
    'text',
    `''`,
    `' '`,
    `'NULL'`,
    `'it''s "quoted", {braced} and \\ slashed'`,
    `E'line\\nbreak\\ttab\\r\\x01'`,
    `'žluťoučký kůň 日本語 ✓ 𝒳 e\u0301 \u202e'`,
    `'\\N'`,
    `(select string_agg(md5(i::text), '') from generate_series(1, 160000) i)`,
    `repeat('compressible ', 400000)`,
  ),
  family('t_varchar', 'varchar(10)', `''`, `'ten chars!'`, `'日本語日本語日本語日'`),
  family('t_char', 'char(5)', `''`, `'ab'`, `'ab   '`),
  family('t_internal_char', '"char"', `''`, `'x'`, `'\\'`),
  family('t_name', 'name', `''`, `'Some "Name"'`, `repeat('n', 63)`),
  family(
    't_bytea',
    'bytea',
    `''`,
    `'\\x00'`,
    `'\\x5c78deadbeef00ff'`,
    `(select string_agg(decode(md5(i::text), 'hex'), '') from generate_series(1, 330000) i)`,
  ),
  family('t_bit', 'bit(10)', `B'0000000000'`, `B'1010101011'`),
  family('t_varbit', 'varbit', `B''`, `B'1'`, `repeat('10', 5000)::varbit`),
  family(
    't_date',
    'date',
    `'infinity'`,
    `'-infinity'`,
    `'4713-01-01 BC'`,
    `'5874897-12-31'`,
    `'2000-02-29'`,
    `'2026-03-04'`,
  ),
  family('t_time', 'time', `'00:00'`, `'24:00'`, `'12:34:56.789012'`),
  family('t_timetz', 'timetz', `'00:00+14'`, `'23:59:59.999999-12:34:56'`),
  family(
    't_timestamp',
    'timestamp',
    `'infinity'`,
    `'-infinity'`,
    `'4713-01-01 00:00:00 BC'`,
    `'294276-12-31 23:59:59.999999'`,
    `'2026-03-04 05:06:07.000001'`,
  ),
  family(
    't_timestamptz',
    'timestamptz',
    `'infinity'`,
    `'-infinity'`,
    `'4713-01-02 00:00:00+00 BC'`,
    `'294276-12-30 23:59:59.999999+00'`,
    `'2026-03-29 02:30:00+01'`,
    `'1883-11-18 12:03:58-04:56:02'`,
  ),
  family('t_timestamptz0', 'timestamptz(0)', `'2026-03-04 05:06:07.6+00'`),
  family(
    't_interval',
    'interval',
    `'0'`,
    `'1 year -2 mons +3 days -04:05:06.789'`,
    `'-1 day +00:00:00.000001'`,
    `'178000000 years'`,
    `'-00:00:01'`,
  ),
  family(
    't_uuid',
    'uuid',
    `'00000000-0000-0000-0000-000000000000'`,
    `'ffffffff-ffff-4fff-bfff-ffffffffffff'`,
  ),
  family('t_inet', 'inet', `'0.0.0.0/0'`, `'192.168.1.5/24'`, `'::ffff:1.2.3.4'`, `'2001:db8::1/64'`),
  family('t_cidr', 'cidr', `'10.0.0.0/8'`, `'2001:db8::/32'`),
  family('t_macaddr', 'macaddr', `'08:00:2b:01:02:03'`),
  family('t_macaddr8', 'macaddr8', `'08:00:2b:01:02:03:04:05'`),
  family('t_json', 'json', `'{"b" : 1,  "a":[ ]}'`, `'null'`, `'"\\u00e9\\ud83d\\ude00"'`, `'{"a":1,"a":2}'`),
  family(
    't_jsonb',
    'jsonb',
    `'{"b" : 1.0,  "a":[ ], "c": 1.00}'`,
    `'null'`,
    `'{}'`,
    `'1e400'`,
    `jsonb_build_object('big', (select string_agg(md5(i::text), '') from generate_series(1, 20000) i))`,
  ),
  family('t_jsonpath', 'jsonpath', `'$.a[*] ? (@ > 1)'`),
  {
    table: 't_xml',
    type: 'xml',
    values: [`'<a b="c">é</a>'`, `'text <b/> more'`, `''`],
    probe: `'<a/>'::xml`,
  },
  family('t_tsvector', 'tsvector', `''`, `'''it''''s'':1A,2B fat:3 cat'`, `to_tsvector('simple', 'a b c a')`),
  family('t_tsquery', 'tsquery', `'fat & (cat | !dog:AB*)'`, `'a <2> b'`),
  family('t_point', 'point', `'(0.1,-1e300)'`, `'(NaN,Infinity)'`),
  family('t_line', 'line', `'{1,-1,0.3}'`),
  family('t_lseg', 'lseg', `'[(0,0),(1,1)]'`),
  family('t_box', 'box', `'(1,1),(0,0)'`),
  family('t_path', 'path', `'[(0,0),(1,1),(2,0)]'`, `'((0,0),(1,1))'`),
  family('t_polygon', 'polygon', `'((0,0),(1,1),(2,0))'`),
  family('t_circle', 'circle', `'<(1,2),3.3>'`),
  family('t_oid', 'oid', '0', '4294967295'),
  family('t_xid8', 'xid8', `'18446744073709551615'`),
  family('t_tid', 'tid', `'(4294967295,65535)'`),
  family('t_pg_lsn', 'pg_lsn', `'0/0'`, `'FFFFFFFF/FFFFFFFF'`),
  family('t_oidvector', 'oidvector', `'1 2 3'`),
  family('t_int2vector', 'int2vector', `'1 -2 3'`),
  withOids('t_regclass', 'regclass', `'t_text'`, `'pg_catalog.pg_class'`, `'"Odd ""schema"".x"."Table, 1"'`),
  withOids('t_regtype', 'regtype', `'mood'`, `'int4'`, `'pair[]'`, `'numeric'`),
  withOids('t_regrole', 'regrole', `'"reader ""x"""'`, `'sterna'`),
  withOids('t_regnamespace', 'regnamespace', `'pg_catalog'`, `'"Odd ""schema"".x"'`),
  withOids('t_regproc', 'regproc', `'now'`, `'odd_function'`),
  withOids('t_regprocedure', 'regprocedure', `'odd_function(mood, pair[])'`, `'abs(numeric)'`),
  withOids('t_regoper', 'regoperator', `'+(int4,int4)'`),
  withOids('t_regconfig', 'regconfig', `'simple'`, `'english'`),
  withOids('t_regdictionary', 'regdictionary', `'english_stem'`),
  withOids('t_regcollation', 'regcollation', `'"C"'`),
  family('t_enum', 'mood', `'sad'`, `'it''s ok'`, `'Very "happy"'`),
  family('t_domain', 'positive', '1', '2147483647'),
  family('t_domain_text', 'short', `''`, `'abcde'`),
  withOids('t_domain_array', 'moods', `'{}'`, `array['sad', null, 'it''s ok']::mood[]`),
  withOids('t_domain_composite', 'pair_with_a', `row(1, null)::pair`),
  withOids('t_composite', 'pair', `row(1, 'x')`, `row(null, null)`, `row(-1, '"(,) \\ '''' ')`, `row(0, '')`),
  withOids(
    't_nested',
    'nested',
    `row(row(1, 'x'), 'it''s ok', array[row(1, null), null, row(2, '{,}')]::pair[])`,
    `row(null, null, '{}')`,
  ),
  family('t_int_array', 'int[]', `'{}'`, `'{1,NULL,3}'`, `'[0:1]={5,6}'`, `'{{1,2},{3,4}}'`),
  family('t_text_array', 'text[]', `'{}'`, `array['', 'NULL', null, '{"a,b"}', 'back\\slash']`),
  family('t_bool_array', 'bool[]', `'{t,f,NULL}'`),
  family('t_numeric_array', 'numeric[]', `'{NaN,1.0,1.00,-Infinity}'`),
  family(
    't_float4_array',
    'float4[]',
    `'{NaN,0.1,-0,Infinity}'`,
    `array(select sin(i)::float4 from generate_series(1, 1536) i)`,
  ),
  family('t_float8_array', 'float8[]', `'{NaN,0.1,-0,-Infinity,4.94e-324}'`),
  family('t_timestamptz_array', 'timestamptz[]', `'{infinity,"2026-03-04 05:06:07.000001+05:30",NULL}'`),
  family('t_bytea_array', 'bytea[]', `array['\\x00ff', '', null]::bytea[]`),
  withOids('t_enum_array', 'mood[]', `'{}'`, `array['sad', null, 'Very "happy"']::mood[]`),
  withOids('t_domain_element_array', 'positive[]', `'{1,2,NULL}'`),
  withOids('t_composite_array', 'pair[]', `'{}'`, `array[row(1, 'x'), null, row(null, '"')]::pair[]`),
  family('t_range_array', 'int4range[]', `array['[1,5)', 'empty', null, '(,)']::int4range[]`),
  family('t_int4range', 'int4range', `'empty'`, `'(,)'`, `'[1,10)'`, `'(,5]'`),
  family('t_numrange', 'numrange', `'[1.0,1.10]'`, `'(-Infinity,NaN]'`),
  family('t_tsrange', 'tsrange', `'[2026-01-01,infinity)'`, `'empty'`),
  family('t_tstzrange', 'tstzrange', `'[2026-01-01 00:00+00,2026-01-02 00:00+05:30)'`, `'(,infinity]'`),
  family('t_daterange', 'daterange', `'[2026-01-01,2026-02-01)'`),
  family('t_float_range', 'float_range', `'[0.1,0.30000000000000004)'`),
  family('t_enum_range', 'mood_range', `'[sad,"Very \\"happy\\""]'`, `'empty'`),
  family('t_int4multirange', 'int4multirange', `'{}'`, `'{[1,3),[5,7)}'`, `'{(,)}'`),
  family('t_tstzmultirange', 'tstzmultirange', `'{[2026-01-01 00:00+00,2026-01-02 00:00+00)}'`),
  family('t_nummultirange', 'nummultirange', `'{[1.0,1.5],(2,3)}'`),
  {
    table: 't_hstore',
    type: 'hstore',
    values: [`''`, `'a=>1, "b c"=>NULL, "q\\""=>"NULL"'`],
    extension: 'hstore',
  },
  { table: 't_citext', type: 'citext', values: [`''`, `'MiXed Case'`, `'ŽLUŤ'`], extension: 'citext' },
  {
    table: 't_hstore_array',
    type: 'hstore[]',
    values: [`array['a=>1', null, '']::hstore[]`],
    holdsOids: true,
    extension: 'hstore',
  },
]

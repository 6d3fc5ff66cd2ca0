-- Ids: 48 bits of milliseconds | version 7 | 12 bits tag (0, reserved for placement) | variant |
-- 46 bits that increase within a batch | 16 bits attempt (0 in a task id). Layout: RFC 9562, section 5.7.

-- Purpose: the p_ordinal-th id of a batch minted at p_now; p_base comes from id_base(), one a batch.
create or replace function absurd.mint_id(p_now timestamptz, p_base bigint, p_ordinal bigint)
  returns uuid language sql immutable parallel safe
  return (lpad(to_hex(greatest(0, floor(extract(epoch from p_now) * 1000))::bigint), 12, '0')
          || '7000'
          || to_hex((1::bigint << 47) | (p_base + p_ordinal))
          || '0000')::uuid;

-- Purpose: 45 random bits: the start of a batch, with room above so that ordinals never carry over.
create or replace function absurd.id_base()
  returns bigint language sql volatile parallel safe
  return ('x' || right(gen_random_uuid()::text, 12))::bit(48)::bigint & ((1::bigint << 45) - 1);

create or replace function absurd.portable_uuidv7()
  returns uuid language sql volatile parallel safe
  return absurd.mint_id(absurd.current_time(), absurd.id_base(), 0);

-- Purpose: the run of a task's n-th attempt, and back.
create or replace function absurd.run_id_of(p_task_id uuid, p_attempt integer)
  returns uuid language sql immutable strict parallel safe
  return (left(p_task_id::text, 32) || lpad(to_hex(p_attempt), 4, '0'))::uuid;

create or replace function absurd.task_id_of(p_run_id uuid)
  returns uuid language sql immutable strict parallel safe
  return (left(p_run_id::text, 32) || '0000')::uuid;

create or replace function absurd.attempt_of(p_run_id uuid)
  returns integer language sql immutable strict parallel safe
  return ('x' || right(p_run_id::text, 4))::bit(16)::int;

-- Purpose: first id of a moment; range error outside 48 bits of milliseconds.
create or replace function absurd.uuidv7_floor(p_ts timestamptz)
  returns uuid language plpgsql immutable strict parallel safe
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_ms numeric := floor(extract(epoch from p_ts) * 1000);
begin
  if v_ms < 0 or v_ms >= 281474976710656 then
    raise exception 'timestamp % is outside the range of a version 7 uuid', p_ts
      using errcode = '22003', hint = 'Use a moment between 1970-01-01 and 10889-08-02 (UTC).';
  end if;
  return (lpad(to_hex(v_ms::bigint), 12, '0') || '70008000000000000000')::uuid;
end
$$;

create or replace function absurd.uuidv7_timestamp(p_id uuid)
  returns timestamptz language sql immutable strict parallel safe
  return case when substr(p_id::text, 15, 1) = '7' then
    'epoch'::timestamptz + make_interval(secs =>
      (('x' || left(replace(p_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)::double precision) end;

-- Purpose: whether an id has the shape of a task id: version 7, RFC variant, attempt bits zero. By its bytes: 20 times as
-- fast as by its text.
create or replace function absurd.usable_id(p_id uuid)
  returns boolean language sql immutable parallel safe
  return (get_byte(uuid_send(p_id), 6) & 240) = 112 and (get_byte(uuid_send(p_id), 8) & 192) = 128
         and get_byte(uuid_send(p_id), 14) = 0 and get_byte(uuid_send(p_id), 15) = 0;

-- Purpose: the moment in a version 7 uuid, in milliseconds since 1970.
create or replace function absurd.id_millis(p_id uuid)
  returns bigint language sql immutable parallel safe
  return (get_byte(uuid_send(p_id), 0)::bigint << 40) + (get_byte(uuid_send(p_id), 1)::bigint << 32)
         + (get_byte(uuid_send(p_id), 2)::bigint << 24) + (get_byte(uuid_send(p_id), 3)::bigint << 16)
         + (get_byte(uuid_send(p_id), 4)::bigint << 8) + get_byte(uuid_send(p_id), 5);

-- Purpose: a task id minted by a client, checked. SQLSTATE 22023 unless version 7, attempt bits zero and
-- within a day of the wall clock (never the fake one: a far-off id would land far off in every index).
create or replace function absurd.check_client_id(p_id uuid)
  returns uuid language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if substr(p_id::text, 15, 1) <> '7' or right(p_id::text, 4) <> '0000'
     or substr(p_id::text, 20, 1) not in ('8', '9', 'a', 'b') then
    raise exception 'task id "%" is not usable', p_id
      using errcode = '22023', hint = 'Mint a version 7 uuid whose last 16 bits are zero, or send none.';
  end if;
  if abs(extract(epoch from absurd.uuidv7_timestamp(p_id) - clock_timestamp())) > 86400 then
    raise exception 'task id "%" is more than a day off the server''s clock', p_id
      using errcode = '22023', hint = 'Set the client''s clock, or let the server mint the id.';
  end if;
  return p_id;
end
$$;

-- Purpose: a client's task id given as text. SQLSTATE 22023.
create or replace function absurd.read_client_id(p_id text)
  returns uuid language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  return p_id::uuid;
exception when invalid_text_representation then
  raise exception 'task id "%" is not usable', p_id
    using errcode = '22023', hint = 'Mint a version 7 uuid whose last 16 bits are zero, or send none.';
end
$$;

-- Purpose: partition helpers of the public contract. Monday 00:00 UTC; last digit of ISO year + ISO week.
create or replace function absurd.week_bucket_utc(p_ts timestamptz)
  returns timestamptz language sql immutable strict parallel safe
  return date_trunc('week', p_ts at time zone 'UTC') at time zone 'UTC';

create or replace function absurd.partition_week_tag(p_ts timestamptz)
  returns text language sql immutable strict parallel safe
  return right(to_char(p_ts at time zone 'UTC', 'IYYY'), 1) || to_char(p_ts at time zone 'UTC', 'IW');

-- Spawn: a request becomes a row of tasks and a row of live. Locks: idempotency key (1), then inserts only.

-- Purpose: one set of spawn options, checked and typed. P0001 / AB003 / AB004 (an option that makes no sense).
-- Besides the contract's keys: start_at (timestamptz) or delay_seconds, priority (-1000..1000, higher first),
-- default_max_attempts (used when neither the call nor the queue names a limit), fingerprint (text).
create or replace function absurd.read_spawn_options(
    p_options jsonb, p_queue_default integer, p_now timestamptz,
    out headers jsonb, out retry_strategy jsonb, out max_attempts integer, out cancellation jsonb,
    out max_delay double precision, out max_duration double precision, out start_at timestamptz, out priority smallint)
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_key text;
begin
  max_attempts := p_queue_default;
  start_at := p_now;
  priority := 0;
  if p_options is null or p_options = '{}' then
    return;
  end if;
  if jsonb_typeof(p_options) <> 'object' then
    raise exception 'spawn options must be a JSON object, not %', jsonb_typeof(p_options) using errcode = 'AB004';
  end if;
  headers := nullif(p_options->'headers', 'null');
  retry_strategy := nullif(p_options->'retry_strategy', 'null');
  cancellation := nullif(p_options->'cancellation', 'null');
  perform absurd.retry_delay_seconds(retry_strategy, 1);
  begin
    v_key := 'max_attempts';
    if p_options ? 'max_attempts' then
      max_attempts := (p_options->>'max_attempts')::integer;
    elsif p_queue_default is null then
      v_key := 'default_max_attempts';
      max_attempts := (p_options->>'default_max_attempts')::integer;
    end if;
    if max_attempts < 1 then
      raise exception 'max_attempts must be >= 1';
    end if;
    v_key := 'priority';
    priority := coalesce((p_options->>'priority')::smallint, 0);
    if priority not between -1000 and 1000 then
      raise exception 'priority must be between -1000 and 1000, not %', priority using errcode = 'AB004';
    end if;
    v_key := 'start_at';
    if p_options->>'start_at' is not null and p_options->>'delay_seconds' is not null then
      raise exception 'start_at and delay_seconds exclude each other' using errcode = 'AB004', hint = 'Give one of them.';
    end if;
    start_at := coalesce((p_options->>'start_at')::timestamptz, p_now);
    v_key := 'delay_seconds';
    if (p_options->>'delay_seconds')::double precision in ('NaN') or (p_options->>'delay_seconds')::double precision < 0 then
      raise exception 'delay_seconds must be a number >= 0' using errcode = 'AB004';
    end if;
    start_at := coalesce(absurd.later(p_now, (p_options->>'delay_seconds')::double precision), greatest(start_at, p_now));
    if cancellation is not null then
      v_key := 'cancellation';
      if jsonb_typeof(cancellation) <> 'object' then
        raise exception 'cancellation must be a JSON object, not %', jsonb_typeof(cancellation) using errcode = 'AB004',
          hint = 'For example {"max_delay": 3600, "max_duration": 86400}, in seconds.';
      end if;
      max_delay := (cancellation->>'max_delay')::double precision;
      max_duration := (cancellation->>'max_duration')::double precision;
      if max_delay < 0 or max_delay = 'NaN' or max_duration < 0 or max_duration = 'NaN' then
        raise exception 'cancellation max_delay and max_duration must be seconds >= 0, not %', cancellation using errcode = 'AB004';
      end if;
    end if;
  exception when invalid_text_representation or numeric_value_out_of_range or invalid_datetime_format
                 or datetime_field_overflow then
    raise exception 'spawn option "%" holds no usable value: %', v_key, coalesce(p_options->v_key, 'null')
      using errcode = 'AB004';
  end;
end
$$;

-- Purpose: the answers of a spawn of which some rows were there before: a repeat, or an idempotency key in use.
create or replace function absurd.spawned_before(
    p_queue_id integer, p_task_names text[], p_task_ids uuid[], p_created uuid[], p_keys text[], p_fingerprints text[])
  returns table (ordinal bigint, task_id uuid, run_id uuid, attempt integer, created boolean, same_request boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_row record;
begin
  for v_row in
    select u.o, u.id, u.task_name, u.key, f.task_id, coalesce(u.id = any(p_created), false) as created,
           coalesce(l.attempt, e.attempt) as attempt,
           t.task_name = u.task_name
             and coalesce(t.fingerprint = u.fingerprint, t.fingerprint is null or u.fingerprint is null) as same_request
      from unnest(p_task_names, p_task_ids, p_keys, p_fingerprints) with ordinality u(task_name, id, key, fingerprint, o)
      left join lateral (select x.task_id from absurd.idempotency_keys x
                          where u.id is null and x.queue_id = p_queue_id and x.idempotency_key = u.key offset 0) k on true
     cross join lateral (select coalesce(u.id, k.task_id) as task_id) f
      left join lateral (select * from absurd.tasks x
                          where x.queue_id = p_queue_id and x.task_id = f.task_id offset 0) t on true
      left join lateral (select * from absurd.live x
                          where x.queue_id = p_queue_id and x.task_id = f.task_id offset 0) l on true
      left join lateral (select * from absurd.attempts x
                          where x.queue_id = p_queue_id and x.task_id = f.task_id and x.task_state is not null offset 0) e on true
     order by u.o
  loop
    if v_row.attempt is null then
      raise exception 'the task that held idempotency key "%" was cleaned up at the same moment', v_row.key
        using errcode = '40001', hint = 'Repeat the spawn.';
    end if;
    if v_row.id is not null and not v_row.created and not v_row.same_request then
      raise exception 'task id "%" belongs to another request', v_row.id using errcode = 'AB005',
        hint = 'Mint a fresh id for each task.';
    end if;
    return query select v_row.o, v_row.task_id, absurd.run_id_of(v_row.task_id, v_row.attempt), v_row.attempt,
                        v_row.created, v_row.same_request;
  end loop;
end
$$;

-- Purpose: one task under an id minted elsewhere, without a key: the usual spawn, by as few expressions as it takes (each
-- costs its preparation in every transaction). p_max_attempts beats the queue's default, that beats p_default_max_attempts.
-- False, and nothing written, when anything is not as usual: an unknown queue, an id that is taken or unusable, a blank
-- name, a limit below 1. spawn_tasks then says what.
create or replace function absurd.spawn_minted(
    p_queue_name text, p_task_id uuid, p_task_name text, p_params jsonb, p_max_attempts integer default null,
    p_default_max_attempts integer default null, p_headers jsonb default null)
  returns boolean language plpgsql security definer
  set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
  v_queue_id integer;
  v_max integer;
  v_now timestamptz;
begin
  select q.queue_id, coalesce(p_max_attempts, q.default_max_attempts, p_default_max_attempts), absurd.current_time()
    into v_queue_id, v_max, v_now
    from absurd.queues q
   where q.queue_name = p_queue_name and btrim(p_task_name) <> '' and absurd.usable_id(p_task_id)
     and abs(absurd.id_millis(p_task_id) - extract(epoch from clock_timestamp()) * 1000) <= 86400000;
  if not found or v_max < 1 then
    return false;
  end if;
  insert into absurd.tasks (queue_id, task_id, task_name, params, headers, max_attempts, enqueue_at)
  values (v_queue_id, p_task_id, p_task_name, coalesce(p_params, 'null'), p_headers, v_max, v_now)
      on conflict do nothing;
  if not found then
    return false;
  end if;
  insert into absurd.live (queue_id, task_id, state, attempt, due_at, created_at, task_name)
  values (v_queue_id, p_task_id, 'p', 1, v_now, v_now, p_task_name);
  if exists (select from absurd.idle i where i.queue_id = v_queue_id) then
    perform absurd.wake_workers(v_queue_id, 1);
  end if;
  return true;
end
$$;

-- Purpose: spawn many. p_specs holds the distinct option sets, p_spec the 1-based index of each row's set (null: none).
-- Ids may be minted by the client, so that a spawn whose reply was lost can be repeated: the repeat answers
-- created = false; SQLSTATE AB005 when the id belongs to a different request.
-- Row answer: newest run, attempt, created, same_request (false: an idempotency key hid a different name or fingerprint).
-- p_old_only: answer only the rows that were there before; who minted the ids knows the rest.
-- Raises for the first bad row, before anything is written: a bulk spawn is all or nothing.
create or replace function absurd.spawn_tasks(
    p_queue_id integer, p_task_names text[], p_params jsonb[], p_task_ids uuid[] default null,
    p_keys text[] default null, p_fingerprints text[] default null, p_spec integer[] default null, p_specs jsonb[] default null,
    p_old_only boolean default false)
  returns table (ordinal bigint, task_id uuid, run_id uuid, attempt integer, created boolean, same_request boolean)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := absurd.current_time();
  v_clock bigint := extract(epoch from clock_timestamp()) * 1000;
  v_base bigint := absurd.id_base();
  v_count bigint := coalesce(cardinality(p_task_names), 0);
  v_default integer;
  v_ids uuid[] := p_task_ids;
  v_due bigint;
  v_created uuid[];
  s record;
begin
  select q.default_max_attempts into v_default from absurd.queues q where q.queue_id = p_queue_id;
  if not found then
    raise exception 'Queue "%" does not exist', p_queue_id using errcode = '42P01', hint = 'It was dropped: create it again.';
  end if;
  if v_count <> cardinality(p_params) then
    raise exception 'task names and params differ in number: % and %', v_count, cardinality(p_params) using errcode = 'AB004';
  end if;
  perform absurd.require_length(v_count::integer, cardinality(p_keys), 'keys') where cardinality(p_keys) <> v_count;
  perform absurd.require_length(v_count::integer, cardinality(p_fingerprints), 'fingerprints')
    where cardinality(p_fingerprints) <> v_count;
  perform absurd.require_length(v_count::integer, cardinality(p_spec), 'spec') where cardinality(p_spec) <> v_count;
  perform absurd.require_text(n, 'task_name') from unnest(p_task_names) n where n is null or btrim(n) = '';
  if p_task_ids is not null then
    -- the usual id passes by its bytes; check_client_id says what is wrong with the others
    perform absurd.check_client_id(i) from unnest(p_task_ids) i
      where not (absurd.usable_id(i) and absurd.id_millis(i) between v_clock - 86400000 and v_clock + 86400000);
  end if;
  if p_task_ids is null or cardinality(p_task_ids) <> v_count or array_position(p_task_ids, null) is not null then
    select array_agg(coalesce(u.id, absurd.mint_id(v_now, v_base, u.o)) order by u.o) into v_ids
      from unnest(p_task_names, p_task_ids) with ordinality u(task_name, id, o)
     where u.o <= v_count;
  end if;

  if p_keys is null and (p_specs is null or cardinality(p_specs) = 1 and p_specs[1] is not null
                         and p_spec = array_fill(1, array[v_count::integer])) then
    -- the usual case: no keys, one set of options for all
    s := absurd.read_spawn_options(p_specs[1], v_default, v_now);
    with put as (
      insert into absurd.tasks as t (queue_id, task_id, task_name, params, headers, retry_strategy, max_attempts, cancellation,
                                     priority, enqueue_at, fingerprint)
      select p_queue_id, u.task_id, u.task_name, coalesce(u.params, 'null'), s.headers, s.retry_strategy, s.max_attempts,
             s.cancellation, s.priority, v_now, u.fingerprint
        from unnest(v_ids, p_task_names, p_params, p_fingerprints) u(task_id, task_name, params, fingerprint)
          on conflict do nothing
      returning t.task_id)
    select array_agg(p.task_id) into v_created from put p;
    insert into absurd.live (queue_id, task_id, state, rank, attempt, max_duration, due_at, cancel_at, created_at, task_name)
    select p_queue_id, u.task_id, 'p', -s.priority, 1, s.max_duration, s.start_at, absurd.later(s.start_at, s.max_delay), v_now,
           u.task_name
      from unnest(v_ids, p_task_names) u(task_id, task_name)
     where cardinality(v_created) = v_count or u.task_id = any(v_created);
    v_due := case when s.start_at <= v_now + interval '10 seconds' then cardinality(v_created) end;
  else
    if p_keys is not null then
      -- a key is taken by whoever inserts it first; the loser's row spawns nothing and answers with the winner
      with asked as (
        select u.key, u.id, u.o from unnest(p_keys, v_ids) with ordinality u(key, id, o)),
      taken as (
        insert into absurd.idempotency_keys (queue_id, idempotency_key, task_id)
        select p_queue_id, k.key, k.id
          from (select distinct on (a.key) a.key, a.id from asked a where a.key is not null order by a.key, a.o) k
            on conflict do nothing
        returning idempotency_key, task_id)
      select array_agg(case when a.key is null or t.task_id = a.id then a.id end order by a.o) into v_ids
        from asked a left join taken t on t.idempotency_key = a.key;
    end if;
    with specs as materialized (
      select u.o, r.*
        from unnest(p_specs) with ordinality u(s, o)
       cross join lateral absurd.read_spawn_options(u.s, v_default, v_now) r
      union all
      select 0, r.* from absurd.read_spawn_options(null, v_default, v_now) r),
    input as materialized (
      select u.task_id, u.task_name, coalesce(u.params, 'null') as params, u.key, u.fingerprint, coalesce(u.spec, 0) as spec
        from unnest(v_ids, p_task_names, p_params, p_keys, p_fingerprints, p_spec)
             as u(task_id, task_name, params, key, fingerprint, spec)
       where u.task_id is not null),
    put as (
      insert into absurd.tasks as t (queue_id, task_id, task_name, params, headers, retry_strategy, max_attempts, cancellation,
                                     priority, enqueue_at, idempotency_key, fingerprint)
      select p_queue_id, i.task_id, i.task_name, i.params, s.headers, s.retry_strategy, s.max_attempts, s.cancellation,
             s.priority, v_now, i.key, i.fingerprint
        from input i join specs s on s.o = i.spec
          on conflict do nothing
      returning t.task_id),
    started as (
      insert into absurd.live as l (queue_id, task_id, state, rank, attempt, max_duration, due_at, cancel_at, created_at, task_name)
      select p_queue_id, p.task_id, 'p', -s.priority, 1, s.max_duration, s.start_at,
             absurd.later(s.start_at, s.max_delay), v_now, i.task_name
        from put p join input i on i.task_id = p.task_id join specs s on s.o = i.spec
      returning l.task_id, l.due_at)
    select array_agg(s.task_id), count(*) filter (where s.due_at <= v_now + interval '10 seconds') into v_created, v_due
      from started s;
  end if;

  if v_due > 0 then  -- also what is due soon: who is woken early learns when to look again
    perform absurd.wake_workers(p_queue_id, v_due);
  end if;
  if cardinality(v_created) = v_count then
    if not p_old_only then
      return query select u.o, u.id, absurd.run_id_of(u.id, 1), 1, true, true from unnest(v_ids) with ordinality u(id, o);
    end if;
    return;
  end if;
  -- a key taken above for an id that was there before belongs to nobody
  delete from absurd.idempotency_keys k using unnest(v_ids, p_keys) u(id, key)
   where k.queue_id = p_queue_id and k.idempotency_key = u.key and k.task_id = u.id and u.id <> all(coalesce(v_created, '{}'));
  return query
    select b.* from absurd.spawned_before(p_queue_id, p_task_names, v_ids, v_created, p_keys, p_fingerprints) b
     where not (p_old_only and b.created);
end
$$;

-- Purpose: spawn one; the public contract's face. Extras in p_options: task_id (client-minted), fingerprint, and those of
-- read_spawn_options.
create or replace function absurd.spawn_task(
    p_queue_name text, p_task_name text, p_params jsonb, p_options jsonb default '{}')
  returns table (task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_key text;
begin
  -- asked for nothing but a limit or headers: the short way, unless something is wrong
  if p_options is null
     or jsonb_typeof(p_options) = 'object' and p_options - '{max_attempts,default_max_attempts,headers}'::text[] = '{}'
        and coalesce(p_options->>'max_attempts', p_options->>'default_max_attempts', '1') ~ '^[1-9][0-9]{0,8}$'
        and (p_options->>'max_attempts' is not null or not p_options ? 'max_attempts') then
    task_id := absurd.mint_id(absurd.current_time(), absurd.id_base(), 0);
    if absurd.spawn_minted(p_queue_name, task_id, p_task_name, p_params, (p_options->>'max_attempts')::integer,
                           case when not p_options ? 'max_attempts' then (p_options->>'default_max_attempts')::integer end,
                           nullif(p_options->'headers', 'null')) then
      return query select task_id, absurd.run_id_of(task_id, 1), 1, true;
      return;
    end if;
  end if;
  v_key := p_options->>'idempotency_key';
  return query
    select s.task_id, s.run_id, s.attempt, s.created
      from absurd.spawn_tasks(
        absurd.queue_id_of(p_queue_name), array[absurd.require_text(p_task_name, 'task_name')], array[p_params],
        case when p_options->>'task_id' is not null then array[absurd.read_client_id(p_options->>'task_id')] end,
        case when v_key is not null then array[v_key] end,
        case when p_options->>'fingerprint' is not null then array[p_options->>'fingerprint'] end,
        array[1], array[coalesce(p_options, '{}')]) s;
end
$$;

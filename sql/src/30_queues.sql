-- Queues: create, drop, list, policy. Their rows are read by every verb and never locked on the hot path.

-- Purpose: the small id behind a name. SQLSTATE 42P01 for an unknown queue, as a missing table would raise.
create or replace function absurd.queue_id_of(p_queue_name text)
  returns integer language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer;
begin
  select q.queue_id into v_queue_id from absurd.queues q where q.queue_name = p_queue_name;
  if v_queue_id is null then
    raise exception 'Queue "%" does not exist', p_queue_name
      using errcode = '42P01', hint = format('Create it first: absurdctl create-queue %L', p_queue_name);
  end if;
  return v_queue_id;
end
$$;

-- Purpose: whether rows of this queue id will be found by who cleans up: it is there, or was dropped a while ago.
create or replace function absurd.queue_known(p_queue_id integer)
  returns boolean language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select 1 from absurd.queues q where q.queue_id = p_queue_id)
      or exists (select 1 from absurd.dropped_queues d where d.queue_id = p_queue_id)
$$;

-- Purpose: the ids of the queues that exist among some names; for workers, who speak in ids.
create or replace function absurd.queue_ids(p_queue_names text[])
  returns table (queue_name text, queue_id integer) language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$ select q.queue_name, q.queue_id from absurd.queues q where q.queue_name = any(p_queue_names) $$;

-- Purpose: the name, or the reason why it cannot be one. P0001.
create or replace function absurd.validate_queue_name(p_queue_name text)
  returns text language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_queue_name is null or p_queue_name = '' then
    raise exception 'Queue name must be provided';
  end if;
  if octet_length(convert_to(p_queue_name, 'UTF8')) > 57 then
    raise exception 'Queue name "%" is too long (max 57 bytes).', p_queue_name;
  end if;
  return p_queue_name;
end
$$;

-- Purpose: the read-only views of a queue, where missing. Locks: none of ours (the caller holds the queue's row).
create or replace function absurd.create_queue_views(p_queue_name text, p_queue_id integer)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_view record;
begin
  for v_view in
    select * from (values
      ('t_', 'compat_tasks', 'task_id, task_name, params, headers, retry_strategy, max_attempts, cancellation, enqueue_at, '
        || 'first_started_at, state, attempts, last_attempt_run, completed_payload, cancelled_at, idempotency_key'),
      ('r_', 'compat_runs', 'run_id, task_id, attempt, state, claimed_by, claim_expires_at, available_at, wake_event, '
        || 'event_payload, started_at, completed_at, failed_at, result, failure_reason, created_at'),
      ('c_', 'compat_checkpoints', 'task_id, checkpoint_name, state, status, owner_run_id, updated_at'),
      ('e_', 'compat_events', 'event_name, payload, emitted_at'),
      ('w_', 'compat_waits', 'task_id, run_id, step_name, event_name, timeout_at, created_at')
    ) as v(prefix, base, columns)
  loop
    if to_regclass(format('absurd.%I', v_view.prefix || p_queue_name)) is null then
      execute format('create view absurd.%I as select %s from absurd.%I where queue_id = %s',
                     v_view.prefix || p_queue_name, v_view.columns, v_view.base, p_queue_id);
    end if;
  end loop;
end
$$;

-- Purpose: a queue and its views. Idempotent for the same mode. Locks: the queue's row. 0A000 for partitioned.
create or replace function absurd.create_queue(p_queue_name text, p_storage_mode text)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_mode text := lower(btrim(p_storage_mode));
  v_found record;
begin
  perform absurd.validate_queue_name(p_queue_name);
  if v_mode is null or v_mode not in ('unpartitioned', 'partitioned') then
    raise exception 'Unsupported queue storage mode "%"', p_storage_mode;
  end if;
  loop
    -- the row decides between concurrent creators and droppers of one name; views follow under its lock
    insert into absurd.queues (queue_name) select p_queue_name where v_mode = 'unpartitioned'
      on conflict (queue_name) do nothing;
    select q.queue_id, q.storage_mode into v_found from absurd.queues q where q.queue_name = p_queue_name for update;
    exit when found;
    if v_mode = 'partitioned' then
      raise exception 'Storage mode "partitioned" is not available yet' using errcode = '0A000',
        hint = 'Use "unpartitioned": cleanup is by index and does not need partitions.';
    end if;
  end loop;
  if v_found.storage_mode <> v_mode then
    raise exception 'Queue "%" already exists with storage mode "%"', p_queue_name, v_found.storage_mode;
  end if;
  insert into absurd.sweeps (queue_id) values (v_found.queue_id) on conflict do nothing;
  perform absurd.create_queue_views(p_queue_name, v_found.queue_id);
end
$$;

create or replace function absurd.create_queue(p_queue_name text)
  returns void language sql security definer
  set search_path = pg_catalog, pg_temp
as $$ select absurd.create_queue(p_queue_name, 'unpartitioned') $$;

-- Purpose: what create_queue makes besides the row, where missing. P0001.
create or replace function absurd.ensure_queue_tables(p_queue_name text)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform absurd.create_queue(p_queue_name, coalesce(
    (select q.storage_mode from absurd.queues q where q.queue_name = absurd.validate_queue_name(p_queue_name)),
    'unpartitioned'));
end
$$;

create or replace function absurd.list_queues()
  returns table (queue_name text) language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$ select q.queue_name from absurd.queues q order by q.queue_name $$;

create or replace function absurd.get_queue_policy(p_queue_name text)
  returns table (queue_name text, storage_mode text, default_partition text, partition_lookahead interval,
                 partition_lookback interval, cleanup_ttl interval, cleanup_limit integer, detach_mode text,
                 detach_min_age interval)
  language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
  select q.queue_name, q.storage_mode, q.default_partition, q.partition_lookahead, q.partition_lookback,
         q.cleanup_ttl, q.cleanup_limit, q.detach_mode, q.detach_min_age
    from absurd.queues q where q.queue_name = p_queue_name
$$;

-- Purpose: change the given keys of a queue's policy, all or nothing. Beyond the contract:
-- default_max_attempts (integer >= 1, or null: unlimited). P0001; 22007/22P02 for what is no interval or number.
create or replace function absurd.set_queue_policy(p_queue_name text, p_policy jsonb)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_policy jsonb := coalesce(p_policy, '{}');
  v_key text;
  v_text text;
  v_seconds double precision;
begin
  perform absurd.validate_queue_name(p_queue_name);
  if jsonb_typeof(v_policy) <> 'object' then
    raise exception 'Queue policy must be a JSON object, not %', jsonb_typeof(v_policy);
  end if;
  perform 1 from absurd.queues q where q.queue_name = p_queue_name for update;
  if not found then
    raise exception 'Queue "%" does not exist', p_queue_name
      using hint = format('Create it first: absurdctl create-queue %L', p_queue_name);
  end if;
  for v_key, v_text in select * from jsonb_each_text(v_policy) loop
    if v_key in ('partition_lookahead', 'partition_lookback', 'cleanup_ttl', 'detach_min_age') then
      begin
        v_seconds := extract(epoch from v_text::interval);
      exception when data_exception then
        raise exception '% must be an interval such as ''30 days'', not "%"', v_key, v_text using errcode = sqlstate;
      end;
      if v_seconds is null or v_seconds < 0 then
        raise exception '% must be a non-negative interval', v_key;
      end if;
    elsif v_key = 'cleanup_limit' then
      if v_text is null or v_text::integer < 1 then
        raise exception 'cleanup_limit must be >= 1';
      end if;
    elsif v_key = 'default_max_attempts' then
      if v_text::integer < 1 then
        raise exception 'default_max_attempts must be >= 1';
      end if;
    elsif v_key = 'detach_mode' then
      if lower(btrim(v_text)) not in ('none', 'empty') or v_text is null then
        raise exception 'Unsupported detach mode "%"', v_text;
      end if;
    elsif v_key = 'default_partition' then
      raise exception 'default_partition applies to partitioned queues only, queue "%" is unpartitioned', p_queue_name;
    else
      raise exception 'Unsupported queue policy key "%"', v_key;
    end if;
  end loop;
  update absurd.queues q
     set partition_lookahead = coalesce((v_policy->>'partition_lookahead')::interval, q.partition_lookahead),
         partition_lookback = coalesce((v_policy->>'partition_lookback')::interval, q.partition_lookback),
         cleanup_ttl = coalesce((v_policy->>'cleanup_ttl')::interval, q.cleanup_ttl),
         cleanup_limit = coalesce((v_policy->>'cleanup_limit')::integer, q.cleanup_limit),
         detach_mode = coalesce(lower(btrim(v_policy->>'detach_mode')), q.detach_mode),
         detach_min_age = coalesce((v_policy->>'detach_min_age')::interval, q.detach_min_age),
         default_max_attempts = case when v_policy ? 'default_max_attempts'
                                     then (v_policy->>'default_max_attempts')::integer
                                     else q.default_max_attempts end
   where q.queue_name = p_queue_name;
end
$$;

-- Cancel and retry, by task.

-- Purpose: any unfinished state -> cancelled. Letters: o cancelled now, e ended before, b busy, m missing.
-- Locks: live rows sorted, then waiters' rows; SKIP LOCKED.
create or replace function absurd.cancel_tasks(p_queue_id integer, p_task_ids uuid[])
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_held uuid[];
  v_awaited uuid[];
  v_left uuid[];
begin
  with input as materialized (select distinct u.id from unnest(p_task_ids) u(id) where u.id is not null order by 1),
  held as (
    select i.id, l.awaited from input i
     cross join lateral (select c.awaited from absurd.live c
                          where c.queue_id = p_queue_id and c.task_id = i.id for update skip locked) l)
  select array_agg(h.id), array_agg(h.id) filter (where h.awaited) into v_held, v_awaited from held h;
  if v_awaited is not null then
    v_left := absurd.lock_waiters(p_queue_id, v_awaited);
    select array_agg(u) into v_held from unnest(v_held) u where u <> all(coalesce(v_left, '{}'));
  end if;
  if v_held is not null then
    perform absurd.finish_tasks(p_queue_id, absurd.current_time(), v_held, 'x', 'x', null, null);
  end if;
  return (select string_agg(
            case when u.id = any(v_held) then 'o'
                 when exists (select 1 from absurd.live l where l.queue_id = p_queue_id and l.task_id = u.id) then 'b'
                 when exists (select 1 from absurd.attempts e where e.queue_id = p_queue_id and e.task_id = u.id) then 'e'
                 else 'm' end, '' order by u.o)
            from unnest(p_task_ids) with ordinality u(id, o));
end
$$;

-- Purpose: cancel tasks of a queue that are past their policy (max_delay, max_duration), at most 100; returns how many.
-- Locks: live rows, SKIP LOCKED, then their waiters'.
create or replace function absurd.cancel_overdue(p_queue_id integer, p_now timestamptz)
  returns bigint language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_due record;
  v_left uuid[];
begin
  with due as materialized (
    select l.task_id, l.awaited from absurd.live l
     where l.queue_id = p_queue_id and l.cancel_at <= p_now
     order by l.cancel_at limit 100 for update skip locked)
  select array_agg(d.task_id) as ids, array_agg(d.task_id) filter (where d.awaited) as awaited into v_due from due d;
  if v_due.ids is null then
    return 0;
  end if;
  if v_due.awaited is not null then
    v_left := absurd.lock_waiters(p_queue_id, v_due.awaited);
    select array_agg(u) as ids into v_due from unnest(v_due.ids) u where u <> all(coalesce(v_left, '{}'));
  end if;
  perform absurd.finish_tasks(p_queue_id, p_now, v_due.ids, 'x', 'x', null, null);
  return coalesce(cardinality(v_due.ids), 0);
end
$$;

-- Purpose: the same for several queues: workers that are busy, and so do not claim, ask for it at every beat.
create or replace function absurd.enforce_policies(p_queue_ids integer[])
  returns bigint language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := absurd.current_time();
begin
  return (select coalesce(sum(absurd.cancel_overdue(u.id, v_now)), 0)::bigint from unnest(p_queue_ids) u(id));
end
$$;

-- Purpose: cancel one; a no-op once it ended. P0001 unknown. Locks: its live row and its waiters', waiting.
create or replace function absurd.cancel_task(p_queue_name text, p_task_id uuid)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  v_letter text;
begin
  loop
    perform absurd.hold_run(v_queue_id, absurd.run_id_of(absurd.task_id_of(p_task_id), 1), true);
    v_letter := absurd.cancel_tasks(v_queue_id, array[p_task_id]);
    exit when v_letter <> 'b';  -- busy: retried in place between the two statements; take its new row
  end loop;
  if v_letter = 'm' or v_letter is null then
    raise exception 'Task "%" not found in queue "%"', p_task_id, p_queue_name;
  end if;
end
$$;

-- Purpose: give a failed task another run, or spawn a copy of it. P0001 unknown, not failed, or a limit too low.
-- Options: spawn_new (bool), max_attempts (int), task_id (of the copy, client-minted, so that the call can be repeated).
-- Locks: the ending attempts row; then inserts.
create or replace function absurd.retry_task(p_queue_name text, p_task_id uuid, p_options jsonb default '{}')
  returns table (task_id uuid, run_id uuid, attempt integer, created boolean)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  v_now timestamptz := absurd.current_time();
  v_limit integer := (p_options->>'max_attempts')::integer;
  v_task absurd.tasks;
  v_end absurd.attempts;
begin
  if v_limit < 1 then
    raise exception 'max_attempts must be >= 1';
  end if;
  select * into v_task from absurd.tasks t where t.queue_id = v_queue_id and t.task_id = p_task_id;
  if not found then
    raise exception 'Task "%" not found in queue "%"', p_task_id, p_queue_name;
  end if;
  select * into v_end from absurd.attempts e
   where e.queue_id = v_queue_id and e.task_id = p_task_id and e.task_state is not null for update;
  if v_end.task_state is distinct from 'f' then
    raise exception 'Task "%" is not currently failed in queue "%"', p_task_id, p_queue_name;
  end if;

  if coalesce((p_options->>'spawn_new')::boolean, false) then
    return query select * from absurd.spawn_task(p_queue_name, v_task.task_name, v_task.params, jsonb_build_object(
      'headers', v_task.headers, 'retry_strategy', v_task.retry_strategy, 'cancellation', v_task.cancellation,
      'max_attempts', coalesce(v_limit, v_task.max_attempts), 'priority', v_task.priority, 'task_id', p_options->'task_id'));
    return;
  end if;
  if exists (select from absurd.checkpoints c
              where c.queue_id = v_queue_id and c.task_id = p_task_id and c.name = '$undo') then
    raise exception 'Task "%" in queue "%" is undone, or being undone: its steps must not be taken for done', p_task_id, p_queue_name
      using hint = 'Retry it with spawn_new.';
  end if;

  v_limit := coalesce(v_limit, least(coalesce(v_task.max_attempts, v_end.attempt)::bigint + 1, 2147483647)::integer);
  if v_limit <= v_end.attempt then
    raise exception 'max_attempts (%) must be greater than current attempts (%)', v_limit, v_end.attempt;
  elsif v_end.attempt >= 65535 then
    raise exception 'Task "%" has used its last attempt (65535)', p_task_id using hint = 'Retry it with spawn_new.';
  end if;
  update absurd.attempts e set task_state = null
   where e.queue_id = v_queue_id and e.task_id = p_task_id and e.attempt = v_end.attempt;
  update absurd.tasks t set max_attempts = v_limit where t.queue_id = v_queue_id and t.task_id = p_task_id;
  insert into absurd.live (queue_id, task_id, state, rank, attempt, claim_no, max_duration, due_at, cancel_at, created_at,
                           first_started_at, task_name)
  select v_queue_id, p_task_id, 'p', -v_task.priority, v_end.attempt + 1, v_end.claim_no, c.max_duration, v_now,
         case when v_end.first_started_at is null then absurd.later(v_task.enqueue_at, c.max_delay)
              else absurd.later(v_end.first_started_at, c.max_duration) end,
         v_now, v_end.first_started_at, v_task.task_name
    from absurd.read_spawn_options(jsonb_build_object('cancellation', v_task.cancellation), null, v_now) c;
  perform absurd.wake_workers(v_queue_id, 1);
  return query select p_task_id, absurd.run_id_of(p_task_id, v_end.attempt + 1), v_end.attempt + 1, false;
end
$$;

-- Purpose: how a task stands. Zero rows when unknown; result only when completed, failure_reason only when failed.
create or replace function absurd.get_task_result(p_queue_name text, p_task_id uuid)
  returns table (task_id uuid, state text, result jsonb, failure_reason jsonb)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(absurd.validate_queue_name(p_queue_name));
begin
  return query
    select t.task_id, absurd.state_name(coalesce(l.state, e.task_state)),
           case when l.state is null and e.task_state = 'c' then e.result end,
           case when l.state is null and e.task_state = 'f' then e.failure end
      from absurd.tasks t
      left join absurd.live l on l.queue_id = v_queue_id and l.task_id = t.task_id
      left join absurd.attempts e on e.queue_id = v_queue_id and e.task_id = t.task_id and e.task_state is not null
     where t.queue_id = v_queue_id and t.task_id = p_task_id;
end
$$;

-- Purpose: ask to be notified on a channel (payload: the task id) when a task ends; the caller LISTENs first. Returns the
-- task's state now, null when unknown; nothing is registered when it has ended; nor when
-- somebody holds its row just now: the answer is then "locked", ask again. Locks: its live row, SKIP LOCKED.
create or replace function absurd.watch_task(p_queue_name text, p_task_id uuid, p_channel text)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  v_live record;
begin
  if p_channel is null or octet_length(p_channel) not between 1 and 63 then
    raise exception 'channel must be 1 to 63 bytes' using errcode = 'AB004';
  end if;
  select l.state, l.awaited into v_live from absurd.live l
   where l.queue_id = v_queue_id and l.task_id = p_task_id for update skip locked;
  if found then
    if not v_live.awaited then
      update absurd.live l set awaited = true where l.queue_id = v_queue_id and l.task_id = p_task_id;
    end if;
    insert into absurd.watchers (queue_id, task_id, channel) values (v_queue_id, p_task_id, p_channel) on conflict do nothing;
    return absurd.state_name(v_live.state);
  elsif exists (select 1 from absurd.live l where l.queue_id = v_queue_id and l.task_id = p_task_id) then
    return 'locked';
  end if;
  return (select r.state from absurd.get_task_result(p_queue_name, p_task_id) r);
end
$$;

-- What calls of the release before are made of: one that is under way while the schema is upgraded finds its pieces. Gone with
-- the next release.

-- Purpose: 0.1.0's spawn_task and spawn_tasks call it. Nothing of this release does.
create or replace function absurd.spawn_one(
    p_queue_id integer, p_default integer, p_task_id uuid, p_task_name text, p_params jsonb, p_fingerprint text, p_options jsonb)
  returns boolean language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := absurd.current_time();
  o record;
begin
  o := absurd.read_spawn_options(p_options, p_default, v_now);
  insert into absurd.tasks (queue_id, task_id, task_name, params, headers, retry_strategy, max_attempts, cancellation,
                            priority, enqueue_at, fingerprint)
  values (p_queue_id, p_task_id, p_task_name, coalesce(p_params, 'null'), o.headers, o.retry_strategy, o.max_attempts,
          o.cancellation, o.priority, v_now, p_fingerprint)
      on conflict do nothing;
  if not found then
    return false;
  end if;
  insert into absurd.live (queue_id, task_id, state, rank, attempt, max_duration, due_at, cancel_at, created_at, task_name)
  values (p_queue_id, p_task_id, 'p', -o.priority, 1, o.max_duration, o.start_at, absurd.later(o.start_at, o.max_delay), v_now,
          p_task_name);
  if o.start_at <= v_now + interval '10 seconds' then
    perform absurd.wake_workers(p_queue_id, 1);
  end if;
  return true;
end
$$;
-- emit_events, try_emit_events and emit_one likewise.
drop function if exists absurd.emit_events(integer, text[], jsonb[], text);
drop function if exists absurd.try_emit_events(integer, text[], jsonb[], text);
drop function if exists absurd.emit_one(text, text, jsonb);

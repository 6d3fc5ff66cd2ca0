-- The one way a task ends: complete, fail, cancel, deadline all come through finish_tasks.

-- Purpose: the waits for some tasks. One index probe a task: written so that a plan made on empty tables cannot degrade.
create or replace function absurd.waits_for_tasks(p_queue_id integer, p_task_ids uuid[])
  returns setof absurd.waits language sql stable parallel safe
begin atomic
  select w.* from unnest(p_task_ids) u(id)
   cross join lateral (select * from absurd.waits x
                        where x.awaited_queue_id = p_queue_id and x.awaited_task_id = u.id offset 0) w;
end;

create or replace function absurd.waits_for_events(p_queue_id integer, p_event_names text[])
  returns setof absurd.waits language sql stable parallel safe
begin atomic
  select w.* from unnest(p_event_names) u(name)
   cross join lateral (select * from absurd.waits x
                        where x.queue_id = p_queue_id and x.event_name = u.name and x.awaited_task_id is null offset 0) w;
end;

-- Purpose: lock the rows of the tasks that wait for these, so that their end can be written.
-- Returns the finishing tasks that must be left for later: one of their waiters is locked by somebody else.
-- The caller holds the live rows of the finishing tasks. Locks: live rows of the waiters, SKIP LOCKED (what is held here
-- sorts before and after them, so nobody may wait).
create or replace function absurd.lock_waiters(p_queue_id integer, p_task_ids uuid[])
  returns uuid[] language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_left uuid[];
begin
  with waiting as materialized (
    select w.awaited_task_id, w.queue_id, w.task_id
      from absurd.waits_for_tasks(p_queue_id, p_task_ids) w
     order by w.queue_id, w.task_id)
  select array_agg(distinct w.awaited_task_id) into v_left
    from waiting w
    left join lateral (select 1 as held from absurd.live l
                        where l.queue_id = w.queue_id and l.task_id = w.task_id
                        for update skip locked) h on true
   where h.held is null;
  return v_left;
end
$$;

-- Purpose: give the outcome of ended tasks to the tasks that sleep for them: checkpoint, wait deleted, task pending.
-- The caller holds all live rows involved. A wait whose timeout has passed goes without the outcome: the claim writes the
-- timeout.
create or replace function absurd.wake_waiters(p_queue_id integer, p_task_ids uuid[], p_now timestamptz)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_woken record;
begin
  for v_woken in
    with waiting as materialized (
      select w.queue_id, w.task_id, w.step_name, w.attempt, e.task_state, e.result, e.failure
        from absurd.waits_for_tasks(p_queue_id, p_task_ids) w
       cross join lateral (select x.task_state, x.result, x.failure from absurd.attempts x
                            where x.queue_id = w.awaited_queue_id and x.task_id = w.awaited_task_id
                              and x.task_state is not null offset 0) e
       where w.timeout_at is null or w.timeout_at > p_now),
    woken as (
      update absurd.live l
         set state = 'p', due_at = p_now, wake_event = null
        from waiting w
       where l.queue_id = w.queue_id and l.task_id = w.task_id
         and l.state = 's' and l.wake_step = w.step_name and l.attempt = w.attempt
      returning l.queue_id, l.task_id, l.attempt, w.step_name, w.task_state, w.result, w.failure),
    gone as (
      delete from absurd.waits w using woken k
       where w.queue_id = k.queue_id and w.task_id = k.task_id and w.step_name = k.step_name),
    late as materialized (
      select w.queue_id, w.task_id, w.step_name from absurd.waits_for_tasks(p_queue_id, p_task_ids) w where w.timeout_at <= p_now),
    gone_late as (
      delete from absurd.waits w using late k
       where w.queue_id = k.queue_id and w.task_id = k.task_id and w.step_name = k.step_name),
    kept as (
      insert into absurd.checkpoints as c (queue_id, task_id, name, state, attempt, updated_at)
      select k.queue_id, k.task_id, k.step_name, absurd.task_outcome(k.task_state, k.result, k.failure), k.attempt, p_now
        from woken k
          on conflict (queue_id, task_id, name) do update
         set state = excluded.state, status = 'committed', outcome = null, attempt = excluded.attempt, updated_at = excluded.updated_at)
    select k.queue_id, count(*) as tasks from woken k group by k.queue_id
  loop
    perform absurd.wake_workers(v_woken.queue_id, v_woken.tasks);
  end loop;
end
$$;

-- Purpose: what a waiting task reads about the one that ended: {"state", "result" | "failure"}.
create or replace function absurd.task_outcome(p_task_state "char", p_result jsonb, p_failure jsonb)
  returns jsonb language sql immutable parallel safe
  return case p_task_state
           when 'c' then jsonb_build_object('state', 'completed', 'result', coalesce(p_result, 'null'))
           when 'f' then jsonb_build_object('state', 'failed', 'failure', coalesce(p_failure, 'null'))
           else jsonb_build_object('state', 'cancelled') end;

-- Purpose: tell the clients that watch these tasks (watch_task). Locks: watcher rows.
create or replace function absurd.tell_watchers(p_queue_id integer, p_task_ids uuid[])
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_gone record;
begin
  for v_gone in
    with ended as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(p_task_ids) u(id))
    delete from absurd.watchers w using ended e where w.queue_id = e.queue_id and w.task_id = e.task_id
    returning w.channel, w.task_id
  loop
    perform pg_notify(v_gone.channel, v_gone.task_id::text);
  end loop;
end
$$;

-- Purpose: end tasks whose live rows (and waiters' rows) the caller holds.
-- Transitions: any -> gone from live; an attempts row with task_state. A cancelled run loses its claim fields.
create or replace function absurd.finish_tasks(
    p_queue_id integer, p_now timestamptz, p_task_ids uuid[], p_run_state "char", p_task_state "char",
    p_results jsonb[], p_failures jsonb[])
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_awaited uuid[];
  v_asleep uuid[];
begin
  with input as materialized (
    select p_queue_id as queue_id, u.* from unnest(p_task_ids, p_results, p_failures) as u(task_id, result, failure)),
  gone as (
    delete from absurd.live l using input i
     where l.queue_id = i.queue_id and l.task_id = i.task_id
    returning l.*, i.result, i.failure),
  ended as (
    insert into absurd.attempts (queue_id, task_id, attempt, claim_no, state, task_state, finished_at, created_at,
                                 started_at, first_started_at, available_at, lease_until, claimed_by,
                                 wake_event, wake_step, result, failure)
    select g.queue_id, g.task_id, g.attempt, g.claim_no, p_run_state, p_task_state, p_now, g.created_at,
           g.started_at, g.first_started_at, case when g.state = 'r' then g.started_at else g.due_at end,
           case when p_run_state <> 'x' then g.lease_until end, case when p_run_state <> 'x' then g.claimed_by end,
           case when p_run_state <> 'f' then g.wake_event end, g.wake_step, g.result, g.failure
      from gone g)
  select array_agg(g.task_id) filter (where g.awaited), array_agg(g.task_id) filter (where g.state = 's')
    into v_awaited, v_asleep from gone g;
  if v_asleep is not null then
    with asleep as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(v_asleep) u(id))
    delete from absurd.waits w using asleep s where w.queue_id = s.queue_id and w.task_id = s.task_id;
  end if;
  if v_awaited is not null then
    perform absurd.require_read_committed('ending a task that others wait for');
    perform absurd.wake_waiters(p_queue_id, v_awaited, p_now);
    perform absurd.tell_watchers(p_queue_id, v_awaited);
  end if;
end
$$;

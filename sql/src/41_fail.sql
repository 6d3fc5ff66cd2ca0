-- Failing a run: what happens next is decided here, for fail_run, fail_runs and leases that ran out.

-- Purpose: seconds to wait after attempt n, before jitter. NULL -> 0. SQLSTATE AB003 for a strategy that is none.
create or replace function absurd.retry_delay_seconds(p_strategy jsonb, p_attempt integer)
  returns double precision language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text;
  v_base double precision;
  v_factor double precision;
  v_max double precision;
  v_jitter double precision;
begin
  if p_strategy is null or jsonb_typeof(p_strategy) = 'null' then
    return 0;
  end if;
  if jsonb_typeof(p_strategy) <> 'object' then
    raise exception 'retry_strategy must be a JSON object, not %', jsonb_typeof(p_strategy) using errcode = 'AB003',
      hint = 'For example {"kind": "exponential", "base_seconds": 30, "factor": 2, "max_seconds": 3600}.';
  end if;
  v_kind := coalesce(p_strategy->>'kind', 'none');
  if v_kind = 'none' then
    return 0;
  elsif v_kind not in ('fixed', 'exponential') then
    raise exception 'retry_strategy kind "%" is unknown', v_kind using errcode = 'AB003',
      hint = 'Use "none", "fixed" or "exponential".';
  end if;
  begin
    v_base := coalesce((p_strategy->>'base_seconds')::double precision, case v_kind when 'fixed' then 60 else 30 end);
    v_factor := coalesce((p_strategy->>'factor')::double precision, 2);
    v_max := coalesce((p_strategy->>'max_seconds')::double precision, 86400);
    v_jitter := coalesce((p_strategy->>'jitter')::double precision, 0);
  exception when invalid_text_representation or numeric_value_out_of_range then
    raise exception 'retry_strategy holds something that is no number: %', p_strategy using errcode = 'AB003',
      hint = 'base_seconds, factor, max_seconds and jitter are numbers.';
  end;
  if not v_base between 0 and 86400 then
    raise exception 'retry_strategy base_seconds must be between 0 and 86400, not %', v_base using errcode = 'AB003';
  elsif v_factor < 0 or v_factor in ('NaN', 'Infinity') then
    raise exception 'retry_strategy factor must be a finite number >= 0, not %', v_factor using errcode = 'AB003';
  elsif not v_max between 0 and 86400 then
    raise exception 'retry_strategy max_seconds must be between 0 and 86400, not %', v_max using errcode = 'AB003';
  elsif not v_jitter between 0 and 1 then
    raise exception 'retry_strategy jitter must be between 0 and 1, not %', v_jitter using errcode = 'AB003';
  end if;
  if v_kind = 'fixed' or v_base = 0 then
    return least(v_base, v_max);
  end if;
  begin
    return least(v_base * power(v_factor, greatest(p_attempt, 1) - 1), v_max);
  exception when numeric_value_out_of_range then
    return case when v_factor < 1 then 0 else v_max end;
  end;
end
$$;

-- Purpose: when attempt n + 1 may start; null when the stored strategy is none that anybody can follow. jitter (0 to 1):
-- the share of the pause that is left to chance, so that what failed together does not come back together.
create or replace function absurd.next_start(p_strategy jsonb, p_attempt integer, p_retry_at timestamptz, p_now timestamptz)
  returns timestamptz language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  return greatest(p_now, coalesce(p_retry_at, absurd.later(p_now,
    absurd.retry_delay_seconds(p_strategy, p_attempt) * (1 - random() * coalesce((p_strategy->>'jitter')::double precision, 0)))));
exception when sqlstate 'AB003' then
  return null;
end
$$;

-- Purpose: fail the current run of tasks whose live rows (p_rows, as locked; and waiters' rows) the caller holds.
-- Transitions: no attempts left, final, or attempt 65535 -> task failed; next start at or past max_duration ->
-- run failed, task cancelled; else attempt + 1, pending or sleeping until the next start.
create or replace function absurd.fail_held(
    p_queue_id integer, p_now timestamptz, p_rows absurd.live[], p_failures jsonb[],
    p_retry_at timestamptz[], p_final boolean[])
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_plan record;
begin
  -- one statement judges each row and writes the next attempt of those that get one
  with input as materialized (
    select * from unnest(p_failures, p_retry_at, p_final, p_rows) as u(failure, retry_at, final)),  -- and the row's columns
  judged as materialized (
    select l.*, n.next_at,
           case when coalesce(l.final, false) or l.attempt >= 65535 or n.next_at is null
                     or l.attempt + 1 > t.max_attempts then 'f'
                when l.max_duration is not null and l.first_started_at is not null
                     and n.next_at >= absurd.later(l.first_started_at, l.max_duration) then 'x'
                else 'p' end as verdict,
           case when l.attempt >= 65535 and (t.max_attempts is null or t.max_attempts > 65535)
                then coalesce(l.failure, '{}') || '{"limit": "$AttemptLimit"}' else l.failure end as reason
      from input l
     cross join lateral (select x.retry_strategy, x.max_attempts from absurd.tasks x
                          where x.queue_id = p_queue_id and x.task_id = l.task_id offset 0) t
     cross join lateral (select absurd.next_start(t.retry_strategy, l.attempt, l.retry_at, p_now) as next_at offset 0) n),
  ended as (
    insert into absurd.attempts (queue_id, task_id, attempt, claim_no, state, task_state, finished_at, created_at,
                                 started_at, first_started_at, available_at, lease_until, claimed_by, wake_step, failure)
    select j.queue_id, j.task_id, j.attempt, j.claim_no, 'f', null, p_now, j.created_at, j.started_at, j.first_started_at,
           case when j.state = 'r' then j.started_at else j.due_at end, j.lease_until, j.claimed_by, j.wake_step, j.reason
      from judged j where j.verdict = 'p'),
  again as (
    update absurd.live l
       set attempt = l.attempt + 1, state = case when j.next_at > p_now then 's' else 'p' end, due_at = j.next_at,
           lease_until = null, claimed_by = null, created_at = p_now, started_at = null, wake_event = null, wake_step = null
      from judged j
     where j.verdict = 'p' and l.queue_id = j.queue_id and l.task_id = j.task_id)
  select array_agg(task_id) filter (where verdict = 'f') as failed,
         array_agg(reason) filter (where verdict = 'f') as failed_why,
         array_agg(task_id) filter (where verdict = 'x') as cancelled,
         array_agg(reason) filter (where verdict = 'x') as cancelled_why,
         array_agg(task_id) filter (where state = 's') as asleep,
         count(*) filter (where verdict = 'p' and next_at <= p_now) as due
    into v_plan from judged;

  -- before any of them ends: one that waits for another of this batch fails with it, and hears nothing of its end
  if v_plan.asleep is not null then
    with asleep as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(v_plan.asleep) u(id))
    delete from absurd.waits w using asleep s where w.queue_id = s.queue_id and w.task_id = s.task_id;
  end if;
  if v_plan.failed is not null then
    perform absurd.finish_tasks(p_queue_id, p_now, v_plan.failed, 'f', 'f', null, v_plan.failed_why);
  end if;
  if v_plan.cancelled is not null then
    perform absurd.finish_tasks(p_queue_id, p_now, v_plan.cancelled, 'f', 'x', null, v_plan.cancelled_why);
  end if;
  if v_plan.due > 0 then
    perform absurd.wake_workers(p_queue_id, v_plan.due);
  end if;
end
$$;

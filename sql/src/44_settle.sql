-- Settling runs: complete, fail, schedule. Each has an array form, fenced by (run_id, claim_no), that answers one letter a
-- row and never raises for one bad row, and the single-row face of the public contract.
--   o ok   r replayed   b busy   l lost   c cancelled   f failed   m missing   e elapsed (schedule only)

-- Purpose: lock the live rows of runs and say which may be written. p_sleeping: also runs that are asleep.
-- Locks: live rows, sorted, SKIP LOCKED; then, for tasks somebody waits for, the waiters' rows, SKIP LOCKED.
-- Row order of the answer is input order. A null claim number is not compared.
create or replace function absurd.hold_runs(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_ends boolean, p_sleeping boolean default false,
    out task_ids uuid[], out ok boolean[], out all_ok boolean)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_awaited uuid[];
  v_left uuid[];
begin
  if cardinality(p_claim_nos) is distinct from cardinality(p_run_ids) then  -- a short one would switch the fence off
    perform absurd.require_length(cardinality(p_run_ids), coalesce(cardinality(p_claim_nos), 0), 'claim_nos');
  end if;
  with input as materialized (
    select absurd.task_id_of(u.run_id) as task_id, absurd.attempt_of(u.run_id) as attempt, u.claim_no, u.o
      from unnest(p_run_ids, p_claim_nos) with ordinality u(run_id, claim_no, o)
     order by 1),
  held as (
    select i.o, i.task_id, l.awaited,
           coalesce(l.attempt = i.attempt and (i.claim_no is null or l.claim_no = i.claim_no)
                    and (l.state = 'r' or p_sleeping and l.state = 's'), false) as ok
      from input i
      left join lateral (select c.state, c.attempt, c.claim_no, c.awaited from absurd.live c
                          where c.queue_id = p_queue_id and c.task_id = i.task_id
                          for update skip locked) l on true)
  select array_agg(h.task_id order by h.o), array_agg(h.ok order by h.o), bool_and(h.ok),
         array_agg(h.task_id) filter (where h.ok and h.awaited)
    into task_ids, ok, all_ok, v_awaited
    from held h;
  if p_ends and v_awaited is not null then
    v_left := absurd.lock_waiters(p_queue_id, v_awaited);
    if v_left is not null then
      select array_agg(u.ok and u.task_id <> all(v_left) order by u.o) into ok
        from unnest(ok, task_ids) with ordinality u(ok, task_id, o);
      all_ok := false;
    end if;
  end if;
end
$$;

-- Purpose: of several rows for one task keep the last: the others then answer as a repeat of it would.
create or replace function absurd.last_of_each(p_task_ids uuid[], p_ok boolean[])
  returns boolean[] language sql immutable parallel safe
  set search_path = pg_catalog, pg_temp
as $$
  select array_agg(u.ok and u.nth = 1 order by u.o)
    from (select u.o, u.ok, row_number() over (partition by u.task_id, u.ok order by u.o desc) as nth
            from unnest(p_task_ids, p_ok) with ordinality u(task_id, ok, o)) u
$$;

-- Purpose: one letter a row: 'o' where written, else why not.
create or replace function absurd.letters(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_ok boolean[], p_verb text, p_steps text[] default null)
  returns text language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
  select string_agg(case when u.ok then 'o'
                         else absurd.refusal(p_queue_id, absurd.task_id_of(u.run_id), absurd.attempt_of(u.run_id),
                                             u.claim_no, p_verb, u.step) end, '' order by u.o)
    from unnest(p_run_ids, p_claim_nos, p_ok, p_steps) with ordinality u(run_id, claim_no, ok, step, o)
$$;

-- Purpose: wait for the live row of one run and, when it is about to end, for the rows of those who wait for it; the
-- single-row verbs then run the array form, which finds every lock its own.
-- Locks: all these live rows in one sorted statement, waiting: whoever waits here holds only rows that sort before.
create or replace function absurd.hold_run(p_queue_id integer, p_run_id uuid, p_ends boolean)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_task_id uuid := absurd.task_id_of(p_run_id);
  v_awaited boolean;
  v_held text[];
begin
  if not p_ends then
    perform 1 from absurd.live l where l.queue_id = p_queue_id and l.task_id = v_task_id for update;
    return;
  end if;
  select l.awaited into v_awaited from absurd.live l where l.queue_id = p_queue_id and l.task_id = v_task_id;
  if v_awaited is null then
    return;  -- it has ended, or was never there
  elsif not v_awaited then
    select l.awaited into v_awaited
      from absurd.live l where l.queue_id = p_queue_id and l.task_id = v_task_id for update skip locked;
    if not v_awaited then
      return;  -- the usual case
    elsif v_awaited then  -- somebody began to wait for it between the two statements
      if absurd.lock_waiters(p_queue_id, array[v_task_id]) is null then
        return;
      end if;
      raise exception 'somebody began to wait for task "%" at the same moment', v_task_id
        using errcode = '40001', hint = 'Repeat the call.';
    end if;
  end if;
  -- Who waits is known for sure only under the task's own lock. When the first look missed one, give all locks back (with
  -- the subtransaction) and look again.
  loop
    begin
      with rows as materialized (
        select p_queue_id as queue_id, v_task_id as task_id
         union
        select w.queue_id, w.task_id from absurd.waits_for_tasks(p_queue_id, array[v_task_id]) w
         order by 1, 2)
      select array_agg(r.queue_id || ' ' || r.task_id) into v_held
        from rows r
       cross join lateral (select 1 from absurd.live l
                            where l.queue_id = r.queue_id and l.task_id = r.task_id for update) l;
      if not exists (select 1 from absurd.waits_for_tasks(p_queue_id, array[v_task_id]) w
                      where w.queue_id || ' ' || w.task_id <> all(coalesce(v_held, '{}'))) then
        return;
      end if;
      raise exception 'a waiter was missed' using errcode = 'AB099';
    exception when sqlstate 'AB099' then
      null;
    end;
  end loop;
end
$$;

-- Purpose: running -> completed. Locks: hold_runs. Letters: o r b l c f m.
create or replace function absurd.complete_runs(p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_results jsonb[])
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  h record;
  v_ids uuid[];
  v_results jsonb[];
begin
  perform absurd.require_length(cardinality(p_run_ids), cardinality(p_results), 'results');
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, true);
  if h.all_ok then
    perform absurd.finish_tasks(p_queue_id, absurd.current_time(), h.task_ids, 'c', 'c', p_results, null);
    return repeat('o', cardinality(p_run_ids));
  end if;
  select array_agg(u.task_id), array_agg(u.result) into v_ids, v_results
    from unnest(h.task_ids, h.ok, p_results) as u(task_id, ok, result) where u.ok;
  if v_ids is not null then
    perform absurd.finish_tasks(p_queue_id, absurd.current_time(), v_ids, 'c', 'c', v_results, null);
  end if;
  return absurd.letters(p_queue_id, p_run_ids, p_claim_nos, h.ok, 'complete');
end
$$;

-- Purpose: running or sleeping -> failed, and what follows from that (fail_held). p_final: no retry whatever the limit.
-- p_retry_at, or p_retry_in seconds from now: when the next attempt starts, instead of what the strategy says.
-- Locks: hold_runs. Letters: o b l c f m.
create or replace function absurd.fail_runs(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_reasons jsonb[],
    p_retry_at timestamptz[] default null, p_final boolean[] default null, p_retry_in double precision[] default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  h record;
  v record;
  v_now timestamptz := absurd.current_time();
begin
  perform absurd.require_length(cardinality(p_run_ids), cardinality(p_reasons), 'reasons');
  if cardinality(p_retry_at) <> cardinality(p_run_ids) or cardinality(p_final) <> cardinality(p_run_ids)
     or cardinality(p_retry_in) <> cardinality(p_run_ids) then
    raise exception 'array arguments differ in length' using errcode = 'AB004', hint = 'Array arguments of one call have one length.';
  end if;
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, true, true);
  if cardinality(h.ok) > 1 then
    h.ok := absurd.last_of_each(h.task_ids, h.ok);
  end if;
  select array_agg(l.held) as held, array_agg(u.reason) as reasons, array_agg(u.final) as final,
         array_agg(coalesce(u.retry_at, absurd.later(v_now, u.retry_in))) as retry_at
    into v
    from unnest(h.task_ids, h.ok, p_reasons, p_retry_at, p_final, p_retry_in)
         as u(task_id, ok, reason, retry_at, final, retry_in)
   cross join lateral (select x as held from absurd.live x where x.queue_id = p_queue_id and x.task_id = u.task_id offset 0) l
   where u.ok;
  if v.held is not null then
    perform absurd.fail_held(p_queue_id, v_now, v.held, v.reasons, v.retry_at, v.final);
  end if;
  return absurd.letters(p_queue_id, p_run_ids, p_claim_nos, h.ok, 'fail');
end
$$;

-- Purpose: running -> sleeping until p_wake_at, or p_delay seconds from now by the database's clock. With a step name, a
-- checkpoint of that name keeps the wake time (ISO 8601), and a wake time that has passed answers 'e' and leaves the run
-- running. Without one the run always leaves its worker, and may be claimed again when the time has come.
-- Locks: hold_runs. Letters: o e r b l c f m.
create or replace function absurd.schedule_runs(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_wake_at timestamptz[],
    p_delay double precision[] default null, p_steps text[] default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_now timestamptz := absurd.current_time();
  h record;
  v_due bigint;
  v_elapsed bigint[];
  v_letters text;
begin
  if cardinality(p_wake_at) <> cardinality(p_run_ids) or cardinality(p_delay) <> cardinality(p_run_ids)
     or cardinality(p_steps) <> cardinality(p_run_ids) then
    raise exception 'array arguments differ in length' using errcode = 'AB004', hint = 'Array arguments of one call have one length.';
  end if;
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false);
  with input as materialized (
    select p_queue_id as queue_id, u.task_id, absurd.attempt_of(u.run_id) as attempt, u.step, u.o, coalesce(u.wake_at, absurd.later(v_now, greatest(u.delay, 0)), v_now) as wake_at
      from unnest(h.task_ids, h.ok, p_run_ids, p_wake_at, p_delay, p_steps)
           with ordinality u(task_id, ok, run_id, wake_at, delay, step, o)
     where u.ok),
  kept as (
    insert into absurd.checkpoints as c (queue_id, task_id, name, state, attempt, updated_at)
    select p_queue_id, i.task_id, i.step, to_jsonb(i.wake_at), i.attempt, v_now
      from input i
     where i.step is not null
        on conflict (queue_id, task_id, name) do nothing),
  slept as (
    update absurd.live l
       set state = 's', due_at = i.wake_at, lease_until = null, claimed_by = null, wake_event = null, wake_step = null
      from input i
     where l.queue_id = i.queue_id and l.task_id = i.task_id and (i.step is null or i.wake_at > v_now))
  select count(*) filter (where i.step is null and i.wake_at <= v_now),
         array_agg(i.o) filter (where i.step is not null and i.wake_at <= v_now)
    into v_due, v_elapsed from input i;
  if v_due > 0 then
    perform absurd.wake_workers(p_queue_id, v_due);
  end if;
  v_letters := case when h.all_ok then repeat('o', cardinality(p_run_ids))
                    else absurd.letters(p_queue_id, p_run_ids, p_claim_nos, h.ok, 'schedule') end;
  if v_elapsed is not null then
    for v_due in select unnest(v_elapsed) loop
      v_letters := absurd.put_letter(v_letters, v_due, 'e');
    end loop;
  end if;
  return v_letters;
end
$$;

-- Purpose: running -> completed. P0001 unknown or not running, AB001 cancelled, AB002 failed.
create or replace function absurd.complete_run(p_queue_name text, p_run_id uuid, p_state jsonb default null)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  perform absurd.hold_run(v_queue_id, p_run_id, true);
  if absurd.complete_runs(v_queue_id, array[p_run_id], array[null::integer], array[p_state]) <> 'o' then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_run_id, 'complete');
  end if;
end
$$;

-- Purpose: running or sleeping -> failed. P0001 unknown or ended otherwise, AB001 cancelled, AB002 failed already.
create or replace function absurd.fail_run(
    p_queue_name text, p_run_id uuid, p_reason jsonb, p_retry_at timestamptz default null)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  perform absurd.hold_run(v_queue_id, p_run_id, true);
  if absurd.fail_runs(v_queue_id, array[p_run_id], array[null::integer], array[p_reason], array[p_retry_at]) <> 'o' then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_run_id, 'fail');
  end if;
end
$$;

-- Purpose: running -> sleeping until a moment. P0001 whenever it is not running.
create or replace function absurd.schedule_run(p_queue_name text, p_run_id uuid, p_wake_at timestamptz)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  if p_wake_at is null then
    raise exception 'wake_at must be provided';
  end if;
  perform absurd.hold_run(v_queue_id, p_run_id, false);
  if absurd.schedule_runs(v_queue_id, array[p_run_id], array[null::integer], array[p_wake_at]) <> 'o' then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_run_id, 'schedule');
  end if;
end
$$;

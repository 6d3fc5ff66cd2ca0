-- Claim: hand out due work. One probe whether a lease or a cancellation is due (the tidy statements run only then), then
-- one indexed statement per priority class in use, until the quantity is reached. Flat in backlog, history and sleepers.

-- Purpose: cancel tasks past their policy (at most 100) and fail runs whose lease ran out, oldest first: p_qty of them up to
-- 3, then p_qty / 3 + 2, so that sweeping and claiming together read at most 4 * p_qty + 10 rows (three each);
-- leases that were renewed since are moved forward (at most 100). Locks: live rows, SKIP LOCKED, then their waiters'.
create or replace function absurd.tidy_queue(p_queue_id integer, p_now timestamptz, p_qty integer)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_due record;
  v_left uuid[];
  v_skip uuid[] := '{}';
  v_limit constant integer := greatest(least(p_qty, (p_qty + 6) / 3), 1);
begin
  perform absurd.cancel_overdue(p_queue_id, p_now);

  -- Leases in order of due_at. One that was renewed since only moves forward, and one whose waiter somebody holds is left;
  -- so look again until a batch holds one that did run out and can end. No more rows are read than may be failed.
  for v_round in 1..100 loop
    with due as materialized (
      select l.queue_id, l.task_id, l.awaited, l.lease_until, l.claimed_by, l.attempt, l as held from absurd.live l
       where l.queue_id = p_queue_id and l.state = 'r' and l.due_at <= p_now and l.task_id <> all(v_skip)
       order by l.due_at limit v_limit for update skip locked),
    renewed as (
      update absurd.live l set due_at = d.lease_until from due d
       where d.lease_until > p_now and l.queue_id = d.queue_id and l.task_id = d.task_id)
    select array_agg(d.held) filter (where d.lease_until <= p_now) as held,
           array_agg(jsonb_strip_nulls(jsonb_build_object(
             'name', '$ClaimTimeout', 'workerId', d.claimed_by, 'claimExpiredAt', d.lease_until, 'attempt', d.attempt,
             'message', format('worker %s did not finish attempt %s before its claim expired',
                               coalesce(d.claimed_by, '(unknown)'), d.attempt))))
             filter (where d.lease_until <= p_now) as reasons,
           array_agg(d.task_id) filter (where d.awaited and d.lease_until <= p_now) as awaited,
           count(*) as seen
      into v_due from due d;
    exit when v_due.seen = 0;
    continue when v_due.held is null;
    v_left := case when v_due.awaited is not null then absurd.lock_waiters(p_queue_id, v_due.awaited) end;
    v_skip := v_skip || v_left;
    if v_left is not null then
      select array_agg(v_due.held[i]) as held, array_agg(v_due.reasons[i]) as reasons into v_due
        from generate_subscripts(v_due.reasons, 1) i where (v_due.held[i]).task_id <> all(v_skip);
    end if;
    if v_due.held is not null then
      perform absurd.fail_held(p_queue_id, p_now, v_due.held, v_due.reasons, null, null);
      return;
    end if;
  end loop;
end
$$;

-- Purpose: claim up to p_qty due tasks; the one body behind claim_task and claim_tasks.
-- pending or due sleeping -> running, claim_no + 1; where a timeout resumed the task (wake_event is still set), its outcome
-- is kept as a checkpoint and the wait deleted. p_names: only these task names. p_token: marks the rows, so that claimed_again can find them.
-- Locks: live rows, SKIP LOCKED.
create or replace function absurd.claim_live(
    p_queue_id integer, p_now timestamptz, p_worker_id text, p_lease double precision, p_qty integer,
    p_names text[] default null, p_token bigint default null)
  returns table (task_id uuid, attempt integer, claim_no integer, wake_event text, wake_step text, fresh boolean, due_at timestamptz)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_lease timestamptz := case when p_lease > 0 then absurd.later(p_now, p_lease) end;
  v_tidy boolean;
  v_rank smallint;
  v_left integer := p_qty;
  v_got integer;
begin
  if p_lease is null or p_lease = 'NaN' or p_lease < 0 then
    raise exception 'a claim needs a lease in seconds >= 0, not %', p_lease using errcode = 'AB004';
  end if;
  select exists (select 1 from absurd.live l where l.queue_id = p_queue_id and l.state = 'r' and l.due_at <= p_now)
         or exists (select 1 from absurd.live l where l.queue_id = p_queue_id and l.cancel_at <= p_now),
         (select l.rank from absurd.live l
           where l.queue_id = p_queue_id and l.state in ('p', 's') and l.due_at is not null
           order by l.rank limit 1)
    into v_tidy, v_rank;
  if v_tidy then
    perform absurd.tidy_queue(p_queue_id, p_now, p_qty);
    select l.rank into v_rank from absurd.live l
     where l.queue_id = p_queue_id and l.state in ('p', 's') and l.due_at is not null
     order by l.rank limit 1;
  end if;
  while v_rank is not null and v_left > 0 loop
    return query
      with picked as materialized (
        select l.queue_id, l.task_id, l.due_at, l.wake_event, l.wake_step, l.first_started_at
          from absurd.live l
         where l.queue_id = p_queue_id and l.rank = v_rank and l.state in ('p', 's') and l.due_at <= p_now
           and (p_names is null or l.task_name = any(p_names))
           and (l.cancel_at is null or l.cancel_at > p_now)  -- more may be past it than one call tidies
         order by l.due_at, l.task_id limit v_left for update skip locked),
      claimed as (
        update absurd.live l
           set state = 'r', claim_no = l.claim_no + 1, claim_token = p_token, claimed_by = p_worker_id,
               lease_until = v_lease, due_at = v_lease, started_at = p_now,
               first_started_at = coalesce(l.first_started_at, p_now),
               cancel_at = case when l.first_started_at is null then absurd.later(p_now, l.max_duration) else l.cancel_at end
          from picked p
         where l.queue_id = p.queue_id and l.task_id = p.task_id
        returning l.queue_id, l.task_id, l.attempt, l.claim_no, p.wake_event, p.wake_step, p.first_started_at is null as fresh, p.due_at),
      expired as (
        delete from absurd.waits w using claimed c
         where w.queue_id = c.queue_id and w.task_id = c.task_id and c.wake_event is not null and w.step_name = c.wake_step),
      kept as (
        insert into absurd.checkpoints (queue_id, task_id, name, outcome, attempt, updated_at)
        select p_queue_id, c.task_id, c.wake_step, 'timeout', c.attempt, p_now from claimed c where c.wake_event is not null
            on conflict (queue_id, task_id, name) do nothing)
      select c.task_id, c.attempt, c.claim_no, c.wake_event, c.wake_step, c.fresh, c.due_at from claimed c;
    get diagnostics v_got = row_count;
    v_left := v_left - v_got;
    exit when v_left = 0;
    select l.rank into v_rank from absurd.live l
     where l.queue_id = p_queue_id and l.state in ('p', 's') and l.due_at is not null and l.rank > v_rank
     order by l.rank limit 1;
  end loop;
end
$$;

-- Purpose: claim; the public contract's face. Order of the answer: run id (all are available at the same now).
create or replace function absurd.claim_task(
    p_queue_name text, p_worker_id text, p_claim_timeout integer default 30, p_qty integer default 1)
  returns table (run_id uuid, task_id uuid, attempt integer, task_name text, params jsonb, retry_strategy jsonb,
                 max_attempts integer, headers jsonb, wake_event text, event_payload jsonb)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  c record;
begin
  -- Two statements: the second one's snapshot sees whatever was committed before the rows were locked. Joined in one, a
  -- task spawned between the outer and the inner snapshot would be claimed and not handed out.
  select array_agg(l.task_id) as task_ids, array_agg(l.attempt) as attempts, array_agg(l.wake_event) as wake_events,
         array_agg(l.wake_step) as wake_steps
    into c
    from absurd.claim_live(v_queue_id, absurd.current_time(), coalesce(nullif(btrim(p_worker_id), ''), 'worker'),
                           greatest(coalesce(p_claim_timeout, 30), 0), greatest(coalesce(p_qty, 1), 1)) l;
  return query
    select absurd.run_id_of(u.task_id, u.attempt), u.task_id, u.attempt, t.task_name, t.params, t.retry_strategy,
           t.max_attempts, t.headers, u.wake_event,
           case when u.wake_step is not null then
             (select k.state from absurd.checkpoints k
               where k.queue_id = v_queue_id and k.task_id = u.task_id and k.name = u.wake_step) end
      from unnest(c.task_ids, c.attempts, c.wake_events, c.wake_steps) u(task_id, attempt, wake_event, wake_step)
     cross join lateral (select * from absurd.tasks x where x.queue_id = v_queue_id and x.task_id = u.task_id offset 0) t
     order by u.task_id;
end
$$;

-- Purpose: the rows a claim with this token has taken and whose reply was lost. Reads the running rows of the queue.
create or replace function absurd.claimed_again(p_queue_id integer, p_worker_id text, p_token bigint)
  returns table (task_id uuid, attempt integer, claim_no integer, wake_event text, wake_step text, fresh boolean, due_at timestamptz)
  language sql stable security definer
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
  select l.task_id, l.attempt, l.claim_no, l.wake_event, l.wake_step, false, l.started_at
    from absurd.live l
   where l.queue_id = p_queue_id and l.state = 'r' and l.due_at is not null and l.claimed_by = p_worker_id and l.claim_token = p_token
$$;

-- Purpose: the next due time of each priority class (bounded: the classes in use).
create or replace function absurd.next_ready(p_queue_id integer, p_now timestamptz, p_names text[])
  returns setof timestamptz language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_rank smallint;
  v_due timestamptz;
begin
  loop
    select l.rank into v_rank from absurd.live l
     where l.queue_id = p_queue_id and l.state in ('p', 's') and l.due_at is not null and l.rank > coalesce(v_rank, -32768)
     order by l.rank limit 1;
    exit when not found;
    -- rows already due are somebody else's: other names, or locked this moment
    select l.due_at into v_due from absurd.live l
     where l.queue_id = p_queue_id and l.rank = v_rank and l.state in ('p', 's') and l.due_at is not null
       and (p_names is null or l.task_name = any(p_names))
     order by l.due_at limit 1;
    if found then
      return next v_due;
    end if;
  end loop;
end
$$;

-- Purpose: claim for a worker. Besides the task: claim_no (the fence), enqueue and claim time, checkpoints as one object and
-- the names of waits that timed out (none read for fresh tasks). Order of the answer: as claimed, by priority, then due time.
-- Nothing claimed: one row of nulls (but claimed_at) with next_due_in (seconds until something is due, null: nothing scheduled) and the
-- horizons of a snapshot taken before the claim looked (see 35_wake): what had ended by then, the claim has seen. p_repeat: the previous call with p_token lost its reply; its rows, if any, are
-- handed out again, and nothing else.
create or replace function absurd.claim_tasks(
    p_queue_id integer, p_worker_id text, p_lease double precision, p_qty integer,
    p_names text[] default null, p_token bigint default null, p_repeat boolean default false)
  returns table (task_id uuid, attempt integer, claim_no integer, task_name text, params jsonb, headers jsonb,
                 retry_strategy jsonb, max_attempts integer, enqueue_at timestamptz, claimed_at timestamptz, wake_event text,
                 checkpoints jsonb, timeouts text[], next_due_in double precision, snapshot_xmin bigint, snapshot_xmax bigint)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := absurd.current_time();
  v_before pg_snapshot := pg_current_snapshot();
  v_next timestamptz;
  v_found boolean;
  c record;
begin
  -- Claimed first, read after: see claim_task. A checkpoint committed just before the row came free must not be missed.
  select array_agg(l.task_id) as task_ids, array_agg(l.attempt) as attempts, array_agg(l.claim_no) as claim_nos,
         array_agg(l.wake_event) as wake_events, array_agg(l.fresh) as fresh, array_agg(l.due_at) as due_ats
    into c
    from (select * from absurd.claim_live(p_queue_id, v_now, p_worker_id, p_lease, p_qty, p_names, p_token)
           where not p_repeat
           union all
          select * from absurd.claimed_again(p_queue_id, p_worker_id, p_token) where p_repeat) l;
  begin
    return query
      select u.task_id, u.attempt, u.claim_no, t.task_name, t.params, t.headers, t.retry_strategy, t.max_attempts,
             t.enqueue_at, v_now, u.wake_event, k.states, k.timeouts, null::double precision, null::bigint, null::bigint
        from unnest(c.task_ids, c.attempts, c.claim_nos, c.wake_events, c.fresh, c.due_ats)
             u(task_id, attempt, claim_no, wake_event, fresh, due_at)
       cross join lateral (select * from absurd.tasks x where x.queue_id = p_queue_id and x.task_id = u.task_id offset 0) t
       cross join lateral (
         select jsonb_object_agg(x.name, x.state) filter (where x.outcome is null) as states,
                array_agg(x.name) filter (where x.outcome is not null) as timeouts
           from absurd.checkpoints x
          where not u.fresh and x.queue_id = p_queue_id and x.task_id = u.task_id and x.status = 'committed') k
       order by t.priority desc, u.due_at, u.task_id;
    v_found := found;
  exception when program_limit_exceeded then
    -- some task's checkpoints do not fit one value: it must not stop the others. Its states read "too large".
    return query
      select u.task_id, u.attempt, u.claim_no, t.task_name, t.params, t.headers, t.retry_strategy, t.max_attempts,
             t.enqueue_at, v_now, u.wake_event, k.states, k.timeouts, null::double precision, null::bigint, null::bigint
        from unnest(c.task_ids, c.attempts, c.claim_nos, c.wake_events, c.fresh, c.due_ats)
             u(task_id, attempt, claim_no, wake_event, fresh, due_at)
       cross join lateral (select * from absurd.tasks x where x.queue_id = p_queue_id and x.task_id = u.task_id offset 0) t
       cross join lateral (
         select coalesce(sum(octet_length(x.state::text)), 0) <= 200 * 1024 * 1024 as fits
           from absurd.checkpoints x
          where not u.fresh and x.queue_id = p_queue_id and x.task_id = u.task_id offset 0) w
       cross join lateral (
         select case when w.fits then jsonb_object_agg(x.name, x.state) filter (where x.outcome is null)
                     else '"too large"' end as states,
                array_agg(x.name) filter (where x.outcome is not null) as timeouts
           from absurd.checkpoints x
          where w.fits and not u.fresh and x.queue_id = p_queue_id and x.task_id = u.task_id and x.status = 'committed') k
       order by t.priority desc, u.due_at, u.task_id;
    v_found := found;
  end;
  if not v_found then
    select least(
      (select min(n.due_at) from absurd.next_ready(p_queue_id, v_now, p_names) n(due_at)),
      (select l.due_at from absurd.live l where l.queue_id = p_queue_id and l.state = 'r' and l.due_at is not null
        order by l.due_at limit 1),
      (select l.cancel_at from absurd.live l where l.queue_id = p_queue_id and l.cancel_at is not null
        order by l.cancel_at limit 1)) into v_next;
    return query select null::uuid, null::integer, null::integer, null::text, null::jsonb, null::jsonb, null::jsonb,
      null::integer, null::timestamptz, v_now, null::text, null::jsonb, null::text[],
      case when isfinite(v_next) then greatest(extract(epoch from v_next - v_now), 0)::double precision end,
      pg_snapshot_xmin(v_before)::text::bigint, pg_snapshot_xmax(v_before)::text::bigint;
  end if;
end
$$;

-- Purpose: a running run as claim_tasks describes it, and its queue id: for clients that claim by claim_task. No row unless
-- it runs.
create or replace function absurd.running_run(p_queue_name text, p_run_id uuid)
  returns table (task_id uuid, attempt integer, claim_no integer, task_name text, params jsonb, headers jsonb,
                 retry_strategy jsonb, max_attempts integer, enqueue_at timestamptz, claimed_at timestamptz, wake_event text,
                 checkpoints jsonb, timeouts text[], queue_id integer)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  return query
    select l.task_id, l.attempt, l.claim_no, t.task_name, t.params, t.headers, t.retry_strategy, t.max_attempts,
           t.enqueue_at, absurd.current_time(), l.wake_event, k.states, k.timeouts, v_queue_id
      from absurd.live l
      join absurd.tasks t on t.queue_id = v_queue_id and t.task_id = l.task_id
     cross join lateral (
       select jsonb_object_agg(x.name, x.state) filter (where x.outcome is null) as states,
              array_agg(x.name) filter (where x.outcome is not null) as timeouts
         from absurd.checkpoints x
        where x.queue_id = v_queue_id and x.task_id = l.task_id and x.status = 'committed') k
     where l.queue_id = v_queue_id and l.task_id = absurd.task_id_of(p_run_id)
       and l.attempt = absurd.attempt_of(p_run_id) and l.state = 'r';
end
$$;

-- Purpose: what is due for p_overdue seconds or more under names that are not p_names: (name, how many, whether there may be
-- more). Looks at the oldest 100 of each priority class, so a long backlog costs no more than a short one.
create or replace function absurd.unserved_tasks(p_queue_id integer, p_names text[], p_overdue double precision)
  returns table (task_name text, tasks bigint, more boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_before timestamptz := absurd.later(absurd.current_time(), -p_overdue);
  v_rank smallint;
  v_seen text[];
  v_names text[];
  v_more boolean := false;
begin
  loop
    select l.rank into v_rank from absurd.live l
     where l.queue_id = p_queue_id and l.state in ('p', 's') and l.due_at is not null and l.rank > coalesce(v_rank, -32768)
     order by l.rank limit 1;
    exit when not found;
    select array_agg(o.task_name) into v_seen
      from (select l.task_name from absurd.live l
             where l.queue_id = p_queue_id and l.rank = v_rank and l.state in ('p', 's') and l.due_at <= v_before
             order by l.due_at, l.task_id limit 100) o;
    v_more := v_more or coalesce(cardinality(v_seen), 0) = 100;  -- a class may have nothing overdue
    v_names := v_names || v_seen;
  end loop;
  return query
    select u.name, count(*), v_more from unnest(v_names) u(name)
     where u.name <> all(coalesce(p_names, '{}')) group by u.name order by u.name;
end
$$;

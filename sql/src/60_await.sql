-- Await: sleep until an event has a payload, or until a task has ended.
--
-- No lost wake-up: the awaiter locks the event's row (or inserts a sentinel) FOR SHARE before it registers; an emitter
-- updates that row first and reads the waits second. One of them sees the other. Event rows (2) come before live rows (4).

-- Purpose: insert the sentinels of names that nobody has used yet. An emitter's open transaction may hold one of the names,
-- and an insert cannot skip: the wait for it is cut short, and those names stay without a row we can see.
-- Locks: event rows, sorted; at most 10 ms waiting each.
create or replace function absurd.add_sentinels(p_queue_id integer, p_event_names text[])
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp set lock_timeout = '10ms'
as $$
declare
  v_name text;
begin
  if not absurd.queue_known(p_queue_id) then
    return;  -- nothing would ever clean these up
  end if;
  insert into absurd.events (queue_id, event_name) select p_queue_id, n from unnest(p_event_names) n on conflict do nothing;
exception when lock_not_available then
  foreach v_name in array p_event_names loop
    begin
      insert into absurd.events (queue_id, event_name) values (p_queue_id, v_name) on conflict do nothing;
    exception when lock_not_available then
      null;
    end;
  end loop;
end
$$;

-- Purpose: register waits, or answer at once. A payload is taken from: the step's checkpoint; else the event, when it was
-- emitted after p_since (null: ever). p_timeouts in seconds (null: none).
-- Answers in input order: status a answered (payload), t timed out, s suspended, r replayed (asleep already under this
-- claim), or the refusal letters b l c f m.
-- running -> sleeping when suspended. Locks: event rows (by name; SHARE, SKIP LOCKED), then live rows (SKIP LOCKED), then the
-- rows of events that are taken for the first time (NO KEY UPDATE, SKIP LOCKED: it waits for none of them).
create or replace function absurd.await_events(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_steps text[], p_event_names text[],
    p_timeouts double precision[] default null, p_since timestamptz[] default null)
  returns table (ordinal bigint, status text, payload jsonb)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := absurd.current_time();
  h record;
  v_status text[];
  v_open text[];
  v_new text[];
  v_locked text[];
begin
  if cardinality(p_steps) is distinct from cardinality(p_run_ids) or cardinality(p_event_names) is distinct from cardinality(p_run_ids)
     or cardinality(p_timeouts) <> cardinality(p_run_ids) or cardinality(p_since) <> cardinality(p_run_ids) then
    raise exception 'array arguments differ in length' using errcode = 'AB004', hint = 'Array arguments of one call have one length.';
  end if;
  -- 1. outcomes that are there already, whatever became of the run
  select array_agg(case when c.outcome = 'timeout' then 't' when c.name is not null then 'a'
                        when e.emitted_at is not null and (u.since is null or e.emitted_at > u.since) then 'e' end order by u.o)
    into v_status
    from unnest(p_run_ids, p_steps, p_event_names, p_since) with ordinality u(run_id, step, event_name, since, o)
    left join lateral (select x.* from absurd.checkpoints x
                        where x.queue_id = p_queue_id and x.task_id = absurd.task_id_of(u.run_id) and x.name = u.step offset 0) c on true
    left join lateral (select x.emitted_at from absurd.events x
                        where c.name is null and x.queue_id = p_queue_id and x.event_name = u.event_name offset 0) e on true;

  -- 2. the rest must hold the event's row while they register
  select array_agg(distinct u.event_name) into v_open
    from unnest(p_event_names, v_status) u(event_name, status) where u.status is null;
  if v_open is not null then
    select array_agg(n order by n) into v_new from unnest(v_open) n
     where not exists (select 1 from absurd.events e where e.queue_id = p_queue_id and e.event_name = n);
    if v_new is not null then
      perform absurd.add_sentinels(p_queue_id, v_new);
    end if;
    select array_agg(l.event_name) into v_locked
      from (select u from unnest(v_open) u order by u) n(name)
     cross join lateral (select e.event_name from absurd.events e
                          where e.queue_id = p_queue_id and e.event_name = n.name for share skip locked) l;
    -- emitted since the first look?
    select array_agg(coalesce(u.status, case when e.emitted_at is not null and (u.since is null or e.emitted_at > u.since) then 'e'
                                             when u.event_name <> all(coalesce(v_locked, '{}')) then 'b' end) order by u.o)
      into v_status
      from unnest(v_status, p_event_names, p_since) with ordinality u(status, event_name, since, o)
      left join lateral (select x.emitted_at from absurd.events x
                        where u.status is null and x.queue_id = p_queue_id and x.event_name = u.event_name offset 0) e on true;
  end if;

  -- 3. write under the runs' locks
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false);
  if cardinality(h.ok) > 1 then
    h.ok := absurd.last_of_each(h.task_ids, h.ok);  -- a run can wait for one thing only
  end if;
  -- best effort, so never waiting: retention keeps an unmarked event longer, nothing else
  with taken as materialized (
    select p_queue_id as queue_id, l.event_name
      from (select distinct u.event_name as name from unnest(v_status, h.ok, p_event_names) u(status, ok, event_name)
             where u.status = 'e' and u.ok order by 1) n
     cross join lateral (select e.event_name from absurd.events e
                          where e.queue_id = p_queue_id and e.event_name = n.name and e.taken_at is null
                            and e.emitted_at is not null for no key update skip locked) l)
  update absurd.events e set taken_at = v_now from taken t where e.queue_id = t.queue_id and e.event_name = t.event_name;
  with input as materialized (
    select p_queue_id as queue_id, u.*, absurd.attempt_of(u.run_id) as attempt
      from unnest(h.task_ids, h.ok, v_status, p_run_ids, p_steps, p_event_names, p_timeouts)
           as u(task_id, ok, status, run_id, step, event_name, timeout)
     where u.ok),
  given as (
    insert into absurd.checkpoints (queue_id, task_id, name, state, attempt, updated_at)
    select p_queue_id, i.task_id, i.step, e.payload, i.attempt, v_now
      from input i
     -- cleanup may have made a sentinel of it since the first look
     cross join lateral (select x.payload from absurd.events x
                          where x.queue_id = p_queue_id and x.event_name = i.event_name and x.emitted_at is not null offset 0) e
     where i.status = 'e'
        on conflict (queue_id, task_id, name) do nothing),
  registered as (
    insert into absurd.waits as w (queue_id, task_id, step_name, attempt, event_name, timeout_at, created_at)
    select p_queue_id, i.task_id, i.step, i.attempt, i.event_name, absurd.later(v_now, i.timeout), v_now
      from input i where i.status is null
        on conflict (queue_id, task_id, step_name) do update
       set attempt = excluded.attempt, event_name = excluded.event_name, timeout_at = excluded.timeout_at, created_at = excluded.created_at)
  update absurd.live l
     set state = case when i.status is null then 's' else l.state end,
         due_at = case when i.status is null then absurd.later(v_now, i.timeout) else l.due_at end,
         lease_until = case when i.status is null then null else l.lease_until end,
         claimed_by = case when i.status is null then null else l.claimed_by end,
         wake_event = case when i.status is null then i.event_name end,
         wake_step = case when i.status is null then i.step end
    from input i
   where l.queue_id = i.queue_id and l.task_id = i.task_id
     and (i.status is null or i.status = 'e' and (l.wake_event is not null or l.wake_step is not null));

  return query
    select u.o,
           case when u.status in ('a', 't') then u.status
                when u.status = 'b' then case when u.ok then 'b' else r.letter end
                -- an event that cleanup took away since the first look: as if busy, the repeat waits for the next one
                when u.ok then case when u.status is null then 's' when c.name is null then 'b' else 'a' end
                else r.letter end,
           case when u.status = 'a' or u.status = 'e' and u.ok then c.state end
      from unnest(v_status, h.ok, p_run_ids, p_claim_nos, p_steps) with ordinality u(status, ok, run_id, claim_no, step, o)
     cross join lateral (select case when not u.ok and u.status is distinct from 'a' and u.status is distinct from 't' then
                           absurd.refusal(p_queue_id, absurd.task_id_of(u.run_id), absurd.attempt_of(u.run_id),
                                          u.claim_no, 'await') end as letter) r
      left join lateral (select x.* from absurd.checkpoints x
                        where u.status in ('a', 'e') and x.queue_id = p_queue_id and x.task_id = absurd.task_id_of(u.run_id) and x.name = u.step offset 0) c on true
     order by u.o;
end
$$;

-- Purpose: await one event; the public contract's face, one row. P0001 no name, negative timeout, unknown run, not running;
-- AB001. A wait that timed out answers (false, SQL NULL) in this and every later attempt.
-- Locks: event row (SHARE; NO KEY UPDATE of one that nobody has taken), live row; waiting.
create or replace function absurd.await_event(
    p_queue_name text, p_task_id uuid, p_run_id uuid, p_step_name text, p_event_name text, p_timeout integer default null)
  returns table (should_suspend boolean, payload jsonb)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  v record;
begin
  perform absurd.require_text(p_event_name, 'event_name');
  if p_timeout < 0 then
    raise exception 'timeout must be non-negative';
  end if;
  perform absurd.require_text(p_step_name, 'step_name');
  select c.state, c.outcome into v from absurd.checkpoints c
   where c.queue_id = v_queue_id and c.task_id = p_task_id and c.name = p_step_name;
  if found then
    if v.outcome = 'timeout' then  -- told now: the run no longer shows what woke it
      update absurd.live l set wake_event = null, wake_step = null
       where l.queue_id = v_queue_id and l.task_id = p_task_id and l.state = 'r'
         and l.attempt = absurd.attempt_of(p_run_id) and l.wake_event = p_event_name and l.wake_step = p_step_name;
    end if;
    return query select false, v.state;
    return;
  end if;
  if absurd.task_id_of(p_run_id) is distinct from p_task_id
     and (absurd.verdict(v_queue_id, absurd.task_id_of(p_run_id), absurd.attempt_of(p_run_id))).run_state is not null then
    raise exception 'Run "%" does not belong to task "%" in queue "%"', p_run_id, p_task_id, p_queue_name;
  end if;
  loop  -- the event's row, waiting for an emitter in flight; cleanup may take a sentinel away in between
    -- the first who takes an event holds it alone: two who share it could not say that it was taken
    perform 1 from absurd.events e
      where e.queue_id = v_queue_id and e.event_name = p_event_name and e.emitted_at is not null and e.taken_at is null
        for no key update;
    exit when found;
    perform 1 from absurd.events e
      where e.queue_id = v_queue_id and e.event_name = p_event_name and (e.emitted_at is null or e.taken_at is not null) for share;
    exit when found;
    insert into absurd.events (queue_id, event_name) values (v_queue_id, p_event_name) on conflict do nothing;
  end loop;
  perform absurd.hold_run(v_queue_id, p_run_id, false);
  select a.status, a.payload into v
    from absurd.await_events(v_queue_id, array[p_run_id], array[null::integer], array[p_step_name], array[p_event_name],
                             array[p_timeout::double precision]) a;
  if v.status not in ('a', 't', 's') then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_run_id, 'await');
  end if;
  return query select v.status = 's', v.payload;
end
$$;

-- Purpose: sleep until tasks have ended, in this queue or another; their outcome becomes the step's checkpoint
-- (task_outcome). Letters as await_events; u: no such task. Locks: own and awaited live rows, SKIP LOCKED.
create or replace function absurd.await_tasks(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_steps text[],
    p_awaited_queue_ids integer[], p_awaited_task_ids uuid[], p_timeouts double precision[] default null)
  returns table (ordinal bigint, status text, payload jsonb)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := absurd.current_time();
  h record;
  v_status text[];
begin
  if cardinality(p_steps) is distinct from cardinality(p_run_ids) or cardinality(p_timeouts) <> cardinality(p_run_ids)
     or cardinality(p_awaited_queue_ids) is distinct from cardinality(p_run_ids)
     or cardinality(p_awaited_task_ids) is distinct from cardinality(p_run_ids) then
    raise exception 'array arguments differ in length' using errcode = 'AB004', hint = 'Array arguments of one call have one length.';
  end if;
  -- The awaited live row, marked: its end then looks for waits. A row that is gone has ended, or was never there.
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false);
  if cardinality(h.ok) > 1 then
    h.ok := absurd.last_of_each(h.task_ids, h.ok);  -- a run can wait for one thing only
  end if;
  with input as materialized (
    select u.* from unnest(p_awaited_queue_ids, p_awaited_task_ids, h.ok) with ordinality u(queue_id, task_id, ok, o)
     order by u.queue_id, u.task_id),
  held as materialized (
    select i.*, l.held from input i
      left join lateral (select true as held from absurd.live c
                          where i.ok and c.queue_id = i.queue_id and c.task_id = i.task_id for update skip locked) l on true),
  marked as (
    update absurd.live l set awaited = true from held i
     where i.held and l.queue_id = i.queue_id and l.task_id = i.task_id and not l.awaited)
  select array_agg(case when i.held then 's' end order by i.o) into v_status from held i;

  select array_agg(case when c.outcome = 'timeout' then 't' when c.name is not null then 'a'
                        when not u.ok then null when u.status = 's' then 's'
                        when e.task_state is not null then 'e'
                        when l.task_id is not null then 'b' else 'u' end order by u.o)
    into v_status
    from unnest(p_run_ids, p_steps, v_status, p_awaited_queue_ids, p_awaited_task_ids, h.ok)
         with ordinality u(run_id, step, status, queue_id, task_id, ok, o)
    left join lateral (select x.* from absurd.checkpoints x
                        where x.queue_id = p_queue_id and x.task_id = absurd.task_id_of(u.run_id) and x.name = u.step offset 0) c on true
    left join lateral (select x.task_state from absurd.attempts x
                        where x.queue_id = u.queue_id and x.task_id = u.task_id and x.task_state is not null offset 0) e on true
    left join lateral (select x.task_id from absurd.live x where x.queue_id = u.queue_id and x.task_id = u.task_id offset 0) l on true;

  with input as materialized (
    select p_queue_id as queue_id, u.*, absurd.attempt_of(u.run_id) as attempt
      from unnest(h.task_ids, h.ok, v_status, p_run_ids, p_steps, p_awaited_queue_ids, p_awaited_task_ids, p_timeouts)
           as u(task_id, ok, status, run_id, step, awaited_queue_id, awaited_task_id, timeout)
     where u.ok),
  given as (
    insert into absurd.checkpoints (queue_id, task_id, name, state, attempt, updated_at)
    select p_queue_id, i.task_id, i.step, absurd.task_outcome(e.task_state, e.result, e.failure), i.attempt, v_now
      from input i
     cross join lateral (select x.task_state, x.result, x.failure from absurd.attempts x
                          where x.queue_id = i.awaited_queue_id and x.task_id = i.awaited_task_id
                            and x.task_state is not null offset 0) e
     where i.status = 'e'
        on conflict (queue_id, task_id, name) do nothing),
  registered as (
    insert into absurd.waits as w (queue_id, task_id, step_name, attempt, event_name, awaited_queue_id, awaited_task_id, timeout_at, created_at)
    select p_queue_id, i.task_id, i.step, i.attempt, '$task:' || i.awaited_task_id, i.awaited_queue_id, i.awaited_task_id,
           absurd.later(v_now, i.timeout), v_now
      from input i where i.status = 's'
        on conflict (queue_id, task_id, step_name) do update
       set attempt = excluded.attempt, event_name = excluded.event_name, awaited_queue_id = excluded.awaited_queue_id,
           awaited_task_id = excluded.awaited_task_id, timeout_at = excluded.timeout_at, created_at = excluded.created_at)
  update absurd.live l
     set state = 's', due_at = absurd.later(v_now, i.timeout), lease_until = null, claimed_by = null,
         wake_event = '$task:' || i.awaited_task_id, wake_step = i.step
    from input i
   where i.status = 's' and l.queue_id = i.queue_id and l.task_id = i.task_id;

  return query
    select u.o,
           case when u.status is null then absurd.refusal(p_queue_id, absurd.task_id_of(u.run_id), absurd.attempt_of(u.run_id),
                                                          u.claim_no, 'await')
                when u.status = 'e' then case when c.name is null then 'b' else 'a' end  -- b: retried or cleaned up since
                else u.status end,
           case when u.status in ('a', 'e') then c.state end
      from unnest(v_status, p_run_ids, p_claim_nos, p_steps) with ordinality u(status, run_id, claim_no, step, o)
      left join lateral (select x.* from absurd.checkpoints x
                        where u.status in ('a', 'e') and x.queue_id = p_queue_id and x.task_id = absurd.task_id_of(u.run_id) and x.name = u.step offset 0) c on true
     order by u.o;
end
$$;

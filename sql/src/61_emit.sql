-- Emit: give a name its payload and wake who waits for it.

-- Purpose: wake the tasks that wait for events that the caller has just given a payload: it becomes their step's checkpoint.
-- A wait whose timeout has passed goes without the event: the claim writes the timeout.
-- The caller holds the event rows. Locks: all waiters' live rows in one sorted statement (4), then waits and checkpoints.
create or replace function absurd.wake_waiting(p_queue_id integer, p_event_names text[], p_now timestamptz)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_waiting uuid[];
  v_woken bigint;
begin
  select array_agg(w.task_id) into v_waiting from absurd.waits_for_events(p_queue_id, p_event_names) w;
  if v_waiting is null then
    return;
  end if;
  perform 1
     from (select w from unnest(v_waiting) w order by w offset 0) w(task_id)
    cross join lateral (select 1 from absurd.live l
                         where l.queue_id = p_queue_id and l.task_id = w.task_id for update) l;
  with waiting as materialized (
    select w.queue_id, w.task_id, w.step_name, w.attempt, w.event_name, w.created_at from absurd.waits_for_events(p_queue_id, p_event_names) w
     where w.timeout_at is null or w.timeout_at > p_now),
  woken as (
    update absurd.live l
       set state = 'p', due_at = p_now, wake_event = null
      from waiting w
     where l.queue_id = w.queue_id and l.task_id = w.task_id and l.state = 's'
       and l.wake_step = w.step_name and l.attempt = w.attempt
    returning l.queue_id, l.task_id, l.attempt, w.step_name, w.event_name, w.created_at),
  gone as (
    delete from absurd.waits w using woken k
     where w.queue_id = k.queue_id and w.task_id = k.task_id and w.step_name = k.step_name),
  late as materialized (
    select w.queue_id, w.task_id, w.step_name from absurd.waits_for_events(p_queue_id, p_event_names) w
     where w.timeout_at <= p_now),
  gone_late as (
    delete from absurd.waits w using late k
     where w.queue_id = k.queue_id and w.task_id = k.task_id and w.step_name = k.step_name),
  kept as (
    insert into absurd.checkpoints as c (queue_id, task_id, name, state, attempt, updated_at)
    -- an emit that waited for its row began before the wait did; what a task records stands in the order it was done
    select p_queue_id, k.task_id, k.step_name, e.payload, k.attempt, greatest(p_now, k.created_at)
      from woken k
     cross join lateral (select x.payload from absurd.events x
                          where x.queue_id = k.queue_id and x.event_name = k.event_name offset 0) e
        on conflict (queue_id, task_id, name) do update
       set state = excluded.state, status = 'committed', outcome = null, attempt = excluded.attempt, updated_at = excluded.updated_at),
  taken as (
    update absurd.events e set taken_at = p_now
      from (select distinct k.queue_id, k.event_name from woken k) k
     where e.queue_id = k.queue_id and e.event_name = k.event_name)
  select count(*) into v_woken from woken;
  if v_woken > 0 then
    perform absurd.wake_workers(p_queue_id, v_woken);
  end if;
end
$$;

-- Purpose: emit events of one queue. p_mode latch: the first emit of a name wins, later ones are no-ops (the contract);
-- next: the payload replaces the latched one and wakes those who wait now, so that a name works again tomorrow.
-- Of equal names in one call, latch keeps the first and next the last. Letters: o emitted, x there already (no-op).
-- p_emit_ids (null: none): who each emit is. The repeat of the emit whose payload stands there answers o and does nothing.
-- sleeping on the name -> pending. Locks: event rows by name (2), then as wake_waiting.
create or replace function absurd.emit_events(
    p_queue_id integer, p_event_names text[], p_payloads jsonb[], p_mode text default 'latch', p_emit_ids uuid[] default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_now timestamptz := absurd.current_time();
  v_emitted text[];
  v_letters text;
begin
  perform absurd.require_read_committed('emit');
  perform absurd.require_length(cardinality(p_event_names), cardinality(p_payloads), 'payloads');
  perform absurd.require_length(cardinality(p_event_names), cardinality(p_emit_ids), 'emit_ids');
  if p_mode is null or p_mode not in ('latch', 'next') then
    raise exception 'unknown emit mode "%"', p_mode using errcode = 'AB004', hint = 'Use "latch" or "next".';
  end if;
  perform absurd.require_text(n, 'event_name') from unnest(p_event_names) n where n is null or btrim(n) = '';
  if not absurd.queue_known(p_queue_id) then
    raise exception 'Queue "%" does not exist', p_queue_id using errcode = '42P01', hint = 'It was dropped: create it again.';
  end if;
  with input as (
    select distinct on (u.name) u.name, coalesce(u.payload, 'null') as payload, u.emit_id
      from unnest(p_event_names, p_payloads, p_emit_ids) with ordinality u(name, payload, emit_id, o)
     where u.name is not null
     order by u.name, case when p_mode = 'latch' then u.o else -u.o end),
  put as (
    insert into absurd.events as e (queue_id, event_name, payload, emitted_at, emit_id)
    select p_queue_id, i.name, i.payload, v_now, i.emit_id from input i
        on conflict (queue_id, event_name) do update
       set payload = excluded.payload, emitted_at = excluded.emitted_at, emit_id = excluded.emit_id, taken_at = null
     where (e.emitted_at is null or p_mode = 'next')
       and (excluded.emit_id is null or e.emit_id is distinct from excluded.emit_id)
    returning e.event_name)
  select array_agg(p.event_name) into v_emitted from put p;

  if v_emitted is not null then
    perform absurd.wake_waiting(p_queue_id, v_emitted, v_now);
  end if;

  if cardinality(v_emitted) = cardinality(p_event_names) then
    return repeat('o', cardinality(p_event_names));
  end if;
  -- the emitting row of each name, not its doubles
  select string_agg(case when u.nth = 1 and (u.name = any(v_emitted) or e.emit_id = u.emit_id) then 'o' else 'x' end, '' order by u.o)
    into v_letters
    from (select i.name, i.emit_id, i.o, row_number() over (partition by i.name
                                                            order by case when p_mode = 'latch' then i.o else -i.o end) as nth
            from unnest(p_event_names, p_emit_ids) with ordinality i(name, emit_id, o)) u
    left join lateral (select x.emit_id from absurd.events x
                        where u.emit_id is not null and x.queue_id = p_queue_id and x.event_name = u.name offset 0) e on true;
  return v_letters;
end
$$;

-- Purpose: emit one event in mode latch, by as few expressions as it takes. o emitted, x there already; null, and nothing
-- written, when anything is not as usual: an unknown queue, a blank name, another isolation level. emit_events says what,
-- and what p_emit_id is. Locks: as emit_events.
create or replace function absurd.emit_one(p_queue_name text, p_event_name text, p_payload jsonb, p_emit_id uuid default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
  v_queue_id integer;
  v_now timestamptz;
begin
  select q.queue_id, absurd.current_time() into v_queue_id, v_now from absurd.queues q
   where q.queue_name = p_queue_name and btrim(p_event_name) <> '' and current_setting('transaction_isolation') = 'read committed';
  if not found then
    return null;
  end if;
  insert into absurd.events as e (queue_id, event_name, payload, emitted_at, emit_id)
  values (v_queue_id, p_event_name, coalesce(p_payload, 'null'), v_now, p_emit_id)
      on conflict (queue_id, event_name) do update
     set payload = excluded.payload, emitted_at = excluded.emitted_at, emit_id = excluded.emit_id, taken_at = null
   where e.emitted_at is null;
  if not found then
    return case when exists (select from absurd.events e where e.queue_id = v_queue_id and e.event_name = p_event_name
                                                          and e.emit_id = p_emit_id) then 'o' else 'x' end;
  end if;
  -- a statement of its own: its snapshot sees every wait that was written before this event's row was locked
  if exists (select from absurd.waits w
              where w.queue_id = v_queue_id and w.event_name = p_event_name and w.awaited_task_id is null) then
    perform absurd.wake_waiting(v_queue_id, array[p_event_name], v_now);
  end if;
  return 'o';
end
$$;

-- Purpose: emit one event, first emit wins; the public contract's face. P0001 without a name.
create or replace function absurd.emit_event(p_queue_name text, p_event_name text, p_payload jsonb default null)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if absurd.emit_one(p_queue_name, p_event_name, p_payload) is null then
    perform absurd.emit_events(absurd.queue_id_of(p_queue_name), array[absurd.require_text(p_event_name, 'event_name')],
                               array[p_payload]);
  end if;
end
$$;

-- Purpose: emit_events for a worker, which writes for many tasks on one connection: an event, or a waiter, that somebody's
-- open transaction holds answers b (busy: repeat it) instead of holding up all the others.
-- Locks: as emit_events, but waits at most 10 ms for a name, and not at all for a name that was busy a moment ago.
create or replace function absurd.try_emit_events(
    p_queue_id integer, p_event_names text[], p_payloads jsonb[], p_mode text default 'latch', p_emit_ids uuid[] default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp set lock_timeout = '10ms'
as $$
declare
  v_letters text := '';
  v_busy text[] := '{}';
begin
  return absurd.emit_events(p_queue_id, p_event_names, p_payloads, p_mode, p_emit_ids);
exception when lock_not_available then
  for v_row in 1..cardinality(p_event_names) loop
    begin
      if p_event_names[v_row] = any(v_busy) then
        v_letters := v_letters || 'b';
      else
        v_letters := v_letters || absurd.emit_events(
          p_queue_id, p_event_names[v_row:v_row], p_payloads[v_row:v_row], p_mode, p_emit_ids[v_row:v_row]);
      end if;
    exception when lock_not_available then
      v_busy := v_busy || p_event_names[v_row];
      v_letters := v_letters || 'b';
    end;
  end loop;
  return v_letters;
end
$$;

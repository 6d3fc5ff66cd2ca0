-- Retention: finished tasks and old events go in bounded batches, by index, skipping what somebody holds.

-- Purpose: delete tasks with all that hangs on them. The caller holds their ending attempts rows.
create or replace function absurd.delete_tasks(p_queue_id integer, p_task_ids uuid[])
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
begin
  with input as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(p_task_ids) u(id))
  delete from absurd.attempts a using input i where a.queue_id = i.queue_id and a.task_id = i.task_id;
  with input as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(p_task_ids) u(id))
  delete from absurd.checkpoints c using input i where c.queue_id = i.queue_id and c.task_id = i.task_id;
  with input as materialized (select p_queue_id as queue_id, u.id as task_id from unnest(p_task_ids) u(id)),
  gone as materialized (
    delete from absurd.tasks t using input i where t.queue_id = i.queue_id and t.task_id = i.task_id
    returning t.queue_id, t.idempotency_key)
  delete from absurd.idempotency_keys k using gone g
   where k.queue_id = g.queue_id and k.idempotency_key = g.idempotency_key;
end
$$;

-- Purpose: delete at most p_limit tasks that ended before a moment, oldest first; their keys become free. A task with steps
-- to undo stays until its companion, which reads them, has ended. Locks: ending attempts rows, SKIP LOCKED.
create or replace function absurd.delete_old_tasks(p_queue_id integer, p_before timestamptz, p_limit integer)
  returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_ids uuid[];
begin
  select array_agg(o.task_id) into v_ids
    from (select e.task_id from absurd.attempts e
           where e.queue_id = p_queue_id and e.task_state is not null and e.finished_at < p_before
             -- the companion's live row, one primary key after another: as nested scalars no plan can read more
             and (select (select l.task_id from absurd.live l
                           where l.queue_id = p_queue_id
                             and l.task_id = (select k.task_id from absurd.idempotency_keys k
                                               where k.queue_id = p_queue_id and k.idempotency_key = '$undo:' || c.task_id))
                    from absurd.checkpoints c
                   where c.queue_id = p_queue_id and c.task_id = e.task_id and c.name = '$undo') is null
           order by e.finished_at limit greatest(p_limit, 0) for update skip locked) o;
  if v_ids is null then
    return 0;
  end if;
  perform absurd.delete_tasks(p_queue_id, v_ids);
  return cardinality(v_ids);
end
$$;

-- Purpose: the moment before which things are old. P0001 for a null or negative ttl.
create or replace function absurd.expiry(p_ttl_seconds double precision)
  returns timestamptz language plpgsql volatile
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_ttl_seconds is null or p_ttl_seconds < 0 then
    raise exception 'TTL must be a non-negative number of seconds';
  end if;
  return absurd.current_time() - make_interval(secs => p_ttl_seconds);
end
$$;

-- Purpose: delete at most p_limit tasks that ended before now - p_ttl_seconds. P0001 for a null or negative ttl.
create or replace function absurd.cleanup_tasks(p_queue_name text, p_ttl_seconds integer, p_limit integer default 1000)
  returns integer language sql security definer
  set search_path = pg_catalog, pg_temp
as $$
  select absurd.delete_old_tasks(absurd.queue_id_of(p_queue_name), absurd.expiry(p_ttl_seconds), coalesce(p_limit, 1000))
$$;

-- Purpose: look at the next p_limit sentinels, in a round that goes by name, and delete those that nobody waits on. Where
-- another cleanup is at it, nothing. Locks: the round's row, event rows; SKIP LOCKED.
create or replace function absurd.delete_sentinels(p_queue_id integer, p_limit integer)
  returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_after text;
  v_seen text[];
  v_idle text[];
begin
  select s.after_name into v_after from absurd.sweeps s where s.queue_id = p_queue_id for update skip locked;
  if not found and exists (select 1 from absurd.sweeps s where s.queue_id = p_queue_id) then
    return 0;
  end if;
  select array_agg(e.event_name order by e.event_name) into v_seen
    from (select e.event_name from absurd.events e
           where e.queue_id = p_queue_id and e.emitted_at is null and e.event_name > coalesce(v_after, '')
           order by e.event_name limit greatest(p_limit, 0)) e;
  update absurd.sweeps s
     set after_name = case when cardinality(v_seen) = p_limit then v_seen[p_limit] else '' end
   where s.queue_id = p_queue_id;

  select array_agg(l.event_name) into v_idle
    from (select s.name from unnest(v_seen) s(name)
            left join lateral (select true as waited from absurd.waits w
                                where w.queue_id = p_queue_id and w.event_name = s.name and w.awaited_task_id is null
                                limit 1) w on true
           where w.waited is null offset 0) s
   cross join lateral (select e.event_name from absurd.events e
                        where e.queue_id = p_queue_id and e.event_name = s.name and e.emitted_at is null
                        for update skip locked) l;
  -- whoever registers a wait holds the sentinel's row, so waits are looked for once more, after our lock on it
  select array_agg(s.name) into v_idle
    from unnest(v_idle) s(name)
    left join lateral (select true as waited from absurd.waits w
                        where w.queue_id = p_queue_id and w.event_name = s.name and w.awaited_task_id is null
                        limit 1) w on true
   where w.waited is null;
  with idle as materialized (select p_queue_id as queue_id, u.name as event_name from unnest(v_idle) u(name))
  delete from absurd.events e using idle i where e.queue_id = i.queue_id and e.event_name = i.event_name;
  return coalesce(cardinality(v_idle), 0);
end
$$;

-- Purpose: delete at most p_limit events emitted before a moment, oldest first; one that a task waits for anew (`since`)
-- becomes a sentinel instead. Sentinels that nobody waits on go too and are not counted. p_untaken false spares events
-- that no task has received yet. Locks: event rows, SKIP LOCKED.
create or replace function absurd.delete_old_events(
    p_queue_id integer, p_before timestamptz, p_limit integer, p_untaken boolean)
  returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_old text[];
  v_awaited text[];
begin
  perform absurd.delete_sentinels(p_queue_id, p_limit);
  if p_untaken then
    select array_agg(o.event_name) into v_old
      from (select e.event_name from absurd.events e
             where e.queue_id = p_queue_id and e.emitted_at < p_before
             order by e.emitted_at limit greatest(p_limit, 0) for update skip locked) o;
  else  -- by the index of what somebody took, so that events nobody wants are not read each time
    select array_agg(o.event_name) into v_old
      from (select e.event_name from absurd.events e
             where e.queue_id = p_queue_id and e.emitted_at < p_before and e.taken_at is not null
             order by e.emitted_at limit greatest(p_limit, 0) for update skip locked) o;
  end if;
  if v_old is null then
    return 0;
  end if;
  select array_agg(o.name) into v_awaited
    from unnest(v_old) o(name)
   cross join lateral (select 1 from absurd.waits w
                        where w.queue_id = p_queue_id and w.event_name = o.name and w.awaited_task_id is null limit 1) w;
  if v_awaited is not null then
    with awaited as materialized (select p_queue_id as queue_id, u.name as event_name from unnest(v_awaited) u(name))
    update absurd.events e set payload = null, emitted_at = null, taken_at = null from awaited a
     where e.queue_id = a.queue_id and e.event_name = a.event_name;
  end if;
  with old as materialized (select p_queue_id as queue_id, u.name as event_name from unnest(v_old) u(name))
  delete from absurd.events e using old o
   where e.queue_id = o.queue_id and e.event_name = o.event_name and e.emitted_at is not null;
  return cardinality(v_old);
end
$$;

create or replace function absurd.cleanup_events(p_queue_name text, p_ttl_seconds integer, p_limit integer default 1000)
  returns integer language sql security definer
  set search_path = pg_catalog, pg_temp
as $$
  select absurd.delete_old_events(absurd.queue_id_of(p_queue_name), absurd.expiry(p_ttl_seconds), coalesce(p_limit, 1000), true)
$$;

-- Purpose: one batch per queue by its policy (cleanup_ttl, cleanup_limit), by name. P0001 for an unknown queue. Also purges
-- a batch of what dropped queues left behind.
create or replace function absurd.cleanup_all_queues(p_queue_name text default null)
  returns table (queue_name text, tasks_deleted integer, events_deleted integer)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue record;
begin
  if p_queue_name is not null and not exists (
      select 1 from absurd.queues q where q.queue_name = absurd.validate_queue_name(p_queue_name)) then
    raise exception 'Queue "%" does not exist', p_queue_name
      using hint = format('Create it first: absurdctl create-queue %L', p_queue_name);
  end if;
  for v_queue in
    -- by id: one that is dropped meanwhile has nothing left to clean, which is no error
    select q.queue_id, q.queue_name, q.cleanup_limit,
           absurd.expiry(least(extract(epoch from q.cleanup_ttl), 2147483647)::double precision) as expiry
      from absurd.queues q where p_queue_name is null or q.queue_name = p_queue_name order by q.queue_name
  loop
    queue_name := v_queue.queue_name;
    tasks_deleted := absurd.delete_old_tasks(v_queue.queue_id, v_queue.expiry, v_queue.cleanup_limit);
    events_deleted := absurd.delete_old_events(v_queue.queue_id, v_queue.expiry, v_queue.cleanup_limit, true);
    return next;
  end loop;
  if p_queue_name is null then
    perform absurd.purge_dropped_queues(1000);
  end if;
end
$$;

-- Purpose: of these queues, those whose last housekeeping is p_every seconds ago or more; the caller has taken them over.
create or replace function absurd.take_housekeeping(p_queue_ids integer[], p_every double precision)
  returns integer[] language sql security definer
  set search_path = pg_catalog, pg_temp
as $$
  with taken as (
    insert into absurd.housekeeping as h (queue_id, done_at)
    select q.u, clock_timestamp() from (select distinct u from unnest(p_queue_ids) u where u is not null order by u) q
        on conflict (queue_id) do update set done_at = excluded.done_at
     where h.done_at <= clock_timestamp() - make_interval(secs => p_every)
    returning h.queue_id)
  select coalesce(array_agg(t.queue_id), '{}') from taken t
$$;

-- Purpose: the workers' own retention: as cleanup_all_queues for some queues, but an event that no task has received yet
-- stays however old it is.
create or replace function absurd.housekeep(p_queue_ids integer[])
  returns table (queue_name text, tasks_deleted integer, events_deleted integer)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_queue record;
begin
  for v_queue in
    select q.queue_id, q.queue_name, q.cleanup_limit,
           absurd.expiry(least(extract(epoch from q.cleanup_ttl), 2147483647)::double precision) as expiry
      from absurd.queues q where q.queue_id = any(p_queue_ids) order by q.queue_name
  loop
    queue_name := v_queue.queue_name;
    tasks_deleted := absurd.delete_old_tasks(v_queue.queue_id, v_queue.expiry, v_queue.cleanup_limit);
    events_deleted := absurd.delete_old_events(v_queue.queue_id, v_queue.expiry, v_queue.cleanup_limit, false);
    return next;
  end loop;
  perform absurd.purge_dropped_queues(1000);
  delete from absurd.watchers w where w.watched_at < clock_timestamp() - interval '1 day';
end
$$;

-- Purpose: delete at most p_limit tasks of one queue id, whatever their state, and as many events. What somebody holds at
-- this moment stays. Returns the number of tasks, and of all rows.
-- Locks: live rows, their waiters', ending attempts rows, event rows; SKIP LOCKED.
create or replace function absurd.purge_rows(p_queue_id integer, p_limit integer, out tasks integer, out total integer)
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_ids uuid[];
  v_live uuid[];
  v_left uuid[];
begin
  select array_agg(t.task_id order by t.task_id) into v_ids
    from (select t.task_id from absurd.tasks t where t.queue_id = p_queue_id order by t.task_id limit p_limit) t;
  -- somebody may wait for the unfinished ones: they end as cancelled first
  select array_agg(u.id) into v_live
    from unnest(v_ids) u(id)
   cross join lateral (select 1 from absurd.live l where l.queue_id = p_queue_id and l.task_id = u.id for update skip locked) l;
  if v_live is not null then
    v_left := absurd.lock_waiters(p_queue_id, v_live);
    perform absurd.finish_tasks(p_queue_id, absurd.current_time(),
      (select array_agg(u) from unnest(v_live) u where u <> all(coalesce(v_left, '{}'))), 'x', 'x', null, null);
  end if;
  select array_agg(u.id) into v_ids
    from unnest(v_ids) u(id)
   cross join lateral (select 1 from absurd.attempts e
                        where e.queue_id = p_queue_id and e.task_id = u.id and e.task_state is not null
                        for update skip locked) e;
  if v_ids is not null then
    perform absurd.delete_tasks(p_queue_id, v_ids);
  end if;
  tasks := coalesce(cardinality(v_ids), 0);
  total := tasks + absurd.delete_sentinels(p_queue_id, p_limit)
                 + absurd.delete_old_events(p_queue_id, 'infinity', p_limit, true);
end
$$;

-- Purpose: empty a queue: every task, whatever its state, and every event, but for what an open transaction holds (call it
-- again). Returns the number of tasks deleted. 42P01.
create or replace function absurd.purge_queue(p_queue_name text)
  returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
  v_batch record;
  v_tasks integer := 0;
begin
  loop
    select * into v_batch from absurd.purge_rows(v_queue_id, 1000);
    exit when v_batch.total = 0;
    v_tasks := v_tasks + v_batch.tasks;
  end loop;
  return v_tasks;
end
$$;

-- Purpose: a batch of what dropped queues left. A tombstone stays for ten minutes after the drop, for rows of calls that
-- were under way. Locks: tombstones, SKIP LOCKED.
create or replace function absurd.purge_dropped_queues(p_limit integer)
  returns integer language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_dropped record;
  v_rows integer;
  v_total integer := 0;
begin
  for v_dropped in
    select d.queue_id, d.dropped_at from absurd.dropped_queues d order by d.queue_id limit 10 for update skip locked
  loop
    v_rows := (absurd.purge_rows(v_dropped.queue_id, p_limit)).total;
    v_total := v_total + v_rows;
    if v_rows = 0 and v_dropped.dropped_at < clock_timestamp() - interval '10 minutes'
       and not exists (select 1 from absurd.tasks t where t.queue_id = v_dropped.queue_id)
       and not exists (select 1 from absurd.events e where e.queue_id = v_dropped.queue_id) then
      delete from absurd.idempotency_keys k where k.queue_id = v_dropped.queue_id;
      delete from absurd.idle i where i.queue_id = v_dropped.queue_id;
      delete from absurd.sweeps s where s.queue_id = v_dropped.queue_id;
      delete from absurd.housekeeping h where h.queue_id = v_dropped.queue_id;
      delete from absurd.dropped_queues d where d.queue_id = v_dropped.queue_id;
    end if;
  end loop;
  return v_total;
end
$$;

-- Purpose: drop a queue; an unknown name is a no-op. Views and row go at once, tasks that others wait for end as cancelled,
-- the rest (and what somebody holds) is purged in batches (purge_dropped_queues).
-- Locks: the queue's row, waiting; live rows and their waiters', SKIP LOCKED.
create or replace function absurd.drop_queue(p_queue_name text)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer;
  v_scope text := left(md5(p_queue_name), 12);
  v_awaited uuid[];
  v_left uuid[];
  v_prefix text;
begin
  delete from absurd.queues q where q.queue_name = p_queue_name returning q.queue_id into v_queue_id;
  if not found then
    return;
  end if;
  if to_regclass('cron.job') is not null and to_regprocedure('cron.unschedule(bigint)') is not null then
    execute 'select cron.unschedule(jobid) from cron.job where jobname in ($1, $2, $3) or jobname like $4 or jobname like $5'
      using 'absurd_partitions_' || v_scope, 'absurd_cleanup_' || v_scope, 'absurd_detach_plan_' || v_scope,
            'absurd\_detach\_run\_' || v_scope || '\_%', 'absurd\_drop\_run\_' || v_scope || '\_%';
  end if;
  insert into absurd.dropped_queues (queue_id, queue_name, dropped_at) values (v_queue_id, p_queue_name, clock_timestamp());
  foreach v_prefix in array array['t_', 'r_', 'c_', 'e_', 'w_'] loop
    execute format('drop view if exists absurd.%I', v_prefix || p_queue_name);
  end loop;
  select array_agg(a.task_id) into v_awaited
    from (select distinct w.awaited_task_id as task_id from absurd.waits w where w.awaited_queue_id = v_queue_id order by 1) a
   cross join lateral (select 1 from absurd.live l
                        where l.queue_id = v_queue_id and l.task_id = a.task_id for update skip locked) l;
  if v_awaited is not null then
    v_left := absurd.lock_waiters(v_queue_id, v_awaited);
    perform absurd.finish_tasks(v_queue_id, absurd.current_time(),
      (select array_agg(u) from unnest(v_awaited) u where u <> all(coalesce(v_left, '{}'))), 'x', 'x', null, null);
  end if;
end
$$;

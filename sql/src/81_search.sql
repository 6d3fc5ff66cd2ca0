-- Searches with a budget: lists for people, by any filter, that read no more than so many rows however much is stored.
-- A search walks an index from the newest down, counts each row it reads and stops when the page is full or the budget is
-- used up. Over several queues, each gets an equal share of what is left; the answer then ends where the first of them had
-- to stop (the horizon), so that pages joined are the whole list. Reads only; plans are pinned, for the walk must not be
-- replaced by a sort.

-- Purpose: in which queues a task is, by its id or that of one of its runs: one probe a queue.
create or replace function absurd.locate_task(p_id uuid, p_queue_name text default null)
  returns table (queue_id integer, task_id uuid)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
begin
  return query
    select q.queue_id, t.task_id from absurd.queues q
     cross join lateral (select x.task_id from absurd.tasks x
                          where x.queue_id = q.queue_id and x.task_id = absurd.task_id_of(p_id) limit 1) t
     where p_queue_name is null or q.queue_name = p_queue_name;
end
$$;

-- Purpose: the ids of tasks that pass a filter, newest first, at most p_limit; and, when there may be more, one row with hit
-- = false: the id below which to go on (p_below, p_below_queue). Fewer than p_limit and such a row: the budget was used up.
-- p_live, p_ended: letters of states, both null: any. p_text: in the params, whatever its case; of params that are large, the
-- budget also holds 8 MB as stored.
create or replace function absurd.search_tasks(
    p_queue_name text, p_task_name text, p_prefix boolean, p_live "char"[], p_ended "char"[], p_since timestamptz,
    p_until timestamptz, p_text text, p_id uuid, p_below uuid, p_below_queue integer, p_limit integer, p_budget integer)
  returns table (queue_id integer, task_id uuid, hit boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_arms text[] := '{}';   -- what is walked in each queue
  v_arm text;
  v_queues integer[];
  v_queue integer;
  v_cursor refcursor;
  v_row record;
  v_text text := lower(p_text);
  v_probe boolean := p_text is not null or p_since is not null or p_until is not null;
  v_top uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  v_bottom uuid := '00000000-0000-0000-0000-000000000000';
  v_including boolean;
  v_tasks uuid[] := '{}';  -- found so far, and their queues
  v_homes integer[] := '{}';
  v_left integer := p_budget;
  v_walks integer;
  v_share integer;
  v_bytes bigint := 0;
  v_hits integer;
  v_last uuid;             -- the last row of a walk that had to stop
  v_horizon uuid;
  v_horizon_queue integer;
  v_below uuid := p_below;
  v_below_queue integer := p_below_queue;
  v_floor uuid;
begin
  -- a task's id carries its moment, up to a day off when a client minted it
  if p_since is not null then
    v_bottom := absurd.uuidv7_floor(greatest(p_since - interval '1 day', 'epoch'));
  end if;
  if p_until is not null then
    v_top := absurd.uuidv7_floor(greatest(p_until + interval '1 day', 'epoch'));
  end if;
  if p_id is not null then
    v_bottom := greatest(v_bottom, absurd.task_id_of(p_id));
    v_top := least(v_top, absurd.task_id_of(p_id));
  end if;
  v_top := least(v_top, v_below);
  if p_live is null and p_ended is null then
    v_arms := '{all}';
  end if;
  if p_live is not null then
    v_arms := v_arms || case when p_live <@ '{r}' then 'running' else 'live' end;
  end if;
  if p_ended is not null then
    v_arms := v_arms || case when p_ended <@ '{f,x}' then 'unhappy' else 'ended' end;
  end if;
  v_floor := v_bottom;

  -- Where one queue is much longer than the others, they leave most of their shares: then search on from the horizon.
  loop
    select coalesce(array_agg(q.queue_id), '{}') into v_queues from absurd.queues q
     where (p_queue_name is null or q.queue_name = p_queue_name)
       and (select true from absurd.tasks t where t.queue_id = q.queue_id and t.task_id >= v_bottom and t.task_id <= v_top
             order by t.task_id desc limit 1);
    v_walks := cardinality(v_queues) * cardinality(v_arms);

    foreach v_queue in array v_queues loop
      v_including := v_below is null or v_top < v_below or v_queue < v_below_queue;
      foreach v_arm in array v_arms loop
        v_share := greatest(v_left / greatest(v_walks, 1), 1);
        v_walks := v_walks - 1;
        if v_arm = 'running' then
          select count(*) into v_hits from (select from absurd.live l
           where l.queue_id = v_queue and l.state = 'r' and l.due_at is not null order by l.due_at limit v_share / 4 + 1) x;
          if v_hits > v_share / 4 then
            v_arm := 'live';  -- so many that they must be met in order
          end if;
          v_left := v_left - v_hits;
          v_share := v_share - v_hits;
        end if;
        if v_arm = 'all' then
          open v_cursor for
            select t.task_id, 1 as cost, case when p_text is not null then pg_column_size(t.params) else 0 end as bytes,
                   case when (p_task_name is null or t.task_name = p_task_name or p_prefix and t.task_name ^@ p_task_name)
                         and (p_since is null or t.enqueue_at >= p_since) and (p_until is null or t.enqueue_at < p_until)
                        then p_text is null or strpos(lower(t.params::text), v_text) > 0 end as hit
              from absurd.tasks t
             where t.queue_id = v_queue and t.task_id >= v_bottom and t.task_id <= v_top
               and (v_including or t.task_id < v_top)
             order by t.task_id desc;
        elsif v_arm = 'running' then
          open v_cursor for
            select l.task_id, 1 + (t.task_id is not null)::integer as cost, coalesce(t.bytes, 0) as bytes,
                   (p_task_name is null or l.task_name = p_task_name or p_prefix and l.task_name ^@ p_task_name)
                     and (not v_probe or t.hit) as hit
              from ((select x.task_id, x.task_name from absurd.live x
                      where x.queue_id = v_queue and x.state = 'r' and x.due_at is not null order by x.due_at limit v_share)
                    union all
                    (select x.task_id, x.task_name from absurd.live x
                      where x.queue_id = v_queue and x.state = 'r' and x.due_at is null order by x.task_id desc limit v_share)) l
              left join lateral (
                select t.task_id, case when p_text is not null then pg_column_size(t.params) end as bytes,
                       case when (p_since is null or t.enqueue_at >= p_since) and (p_until is null or t.enqueue_at < p_until)
                            then p_text is null or strpos(lower(t.params::text), v_text) > 0 end as hit
                  from absurd.tasks t where v_probe and t.queue_id = v_queue and t.task_id = l.task_id limit 1) t on true
             where l.task_id >= v_bottom and l.task_id <= v_top and (v_including or l.task_id < v_top)
             order by l.task_id desc;
        elsif v_arm = 'live' then
          open v_cursor for
            select l.task_id, 1 + (t.task_id is not null)::integer as cost, coalesce(t.bytes, 0) as bytes,
                   l.fits and (not v_probe or t.hit) as hit
              from (select l.task_id, l.state = any(p_live) and (p_task_name is null or l.task_name = p_task_name
                                                                 or p_prefix and l.task_name ^@ p_task_name) as fits
                      from absurd.live l
                     where l.queue_id = v_queue and l.task_id >= v_bottom and l.task_id <= v_top
                       and (v_including or l.task_id < v_top)
                     order by l.task_id desc offset 0) l
              left join lateral (
                select t.task_id, case when p_text is not null then pg_column_size(t.params) end as bytes,
                       case when (p_since is null or t.enqueue_at >= p_since) and (p_until is null or t.enqueue_at < p_until)
                            then p_text is null or strpos(lower(t.params::text), v_text) > 0 end as hit
                  from absurd.tasks t where v_probe and l.fits and t.queue_id = v_queue and t.task_id = l.task_id limit 1) t on true;
        else
          open v_cursor for
            select a.task_id, 1 + (t.task_id is not null)::integer as cost, coalesce(t.bytes, 0) as bytes,
                   a.fits and (not v_probe and p_task_name is null or t.hit) as hit
              from ((select a.task_id, a.task_state = any(p_ended) as fits from absurd.attempts a
                      where v_arm = 'unhappy' and a.queue_id = v_queue and a.task_state in ('f', 'x')
                        and a.task_id >= v_bottom and a.task_id <= v_top and (v_including or a.task_id < v_top)
                      order by a.task_id desc offset 0)
                    union all
                    (select a.task_id, coalesce(a.task_state = any(p_ended), false) from absurd.attempts a
                      where v_arm = 'ended' and a.queue_id = v_queue
                        and a.task_id >= v_bottom and a.task_id <= v_top and (v_including or a.task_id < v_top)
                      order by a.task_id desc offset 0)) a
              left join lateral (
                select t.task_id, case when p_text is not null then pg_column_size(t.params) end as bytes,
                       case when (p_task_name is null or t.task_name = p_task_name or p_prefix and t.task_name ^@ p_task_name)
                             and (p_since is null or t.enqueue_at >= p_since) and (p_until is null or t.enqueue_at < p_until)
                            then p_text is null or strpos(lower(t.params::text), v_text) > 0 end as hit
                  from absurd.tasks t
                 where (v_probe or p_task_name is not null) and a.fits and t.queue_id = v_queue and t.task_id = a.task_id
                 limit 1) t on true;
        end if;

        v_hits := 0;
        v_last := null;
        loop
          fetch v_cursor into v_row;
          exit when not found;
          v_left := v_left - v_row.cost;
          v_share := v_share - v_row.cost;
          v_bytes := v_bytes + v_row.bytes;
          if v_row.hit then
            v_tasks := v_tasks || v_row.task_id;
            v_homes := v_homes || v_queue;
            v_hits := v_hits + 1;
            exit when v_hits > p_limit;
          end if;
          if v_share <= 0 or v_bytes > 8388608 then
            v_last := v_row.task_id;
            exit;
          end if;
        end loop;
        close v_cursor;
        if v_last is not null and (v_horizon is null or (v_last, v_queue) > (v_horizon, v_horizon_queue)) then
          v_horizon := v_last;
          v_horizon_queue := v_queue;
          v_bottom := greatest(v_bottom, v_last);
        end if;
        if cardinality(v_tasks) > p_limit then
          select array_agg(x.task order by x.task desc, x.home desc), array_agg(x.home order by x.task desc, x.home desc)
            into v_tasks, v_homes
            from (select * from unnest(v_tasks, v_homes) x(task, home) order by 1 desc, 2 desc limit p_limit + 1) x;
          v_bottom := greatest(v_bottom, v_tasks[p_limit + 1]);  -- the page is full: the other walks need not go deeper
        end if;
      end loop;
    end loop;
    exit when v_horizon is null or cardinality(v_tasks) > p_limit or v_left < p_budget / 4 or v_bytes > 8388608;
    select coalesce(array_agg(x.task), '{}'), coalesce(array_agg(x.home), '{}') into v_tasks, v_homes
      from unnest(v_tasks, v_homes) x(task, home) where (x.task, x.home) >= (v_horizon, v_horizon_queue);
    exit when cardinality(v_tasks) >= p_limit;
    v_below := v_horizon;
    v_below_queue := v_horizon_queue;
    v_top := least(v_top, v_below);
    v_bottom := v_floor;
    v_horizon := null;
  end loop;

  return query
    with hits as materialized (
      select x.task, x.home, row_number() over (order by x.task desc, x.home desc) as place
        from unnest(v_tasks, v_homes) x(task, home)
       where v_horizon is null or (x.task, x.home) >= (v_horizon, v_horizon_queue))
    (select h.home, h.task, true from hits h where h.place <= p_limit order by h.place)
    union all
    select coalesce(h.home, v_horizon_queue), coalesce(h.task, v_horizon), false
      from (select (select count(*) from hits) as n) c left join hits h on c.n > p_limit and h.place = p_limit
     where c.n > p_limit or v_horizon is not null;
end
$$;

-- Purpose: the keys of waits, those of the newest tasks first, and where to go on (see search_tasks; p_below_step belongs to the
-- place). p_tasks: true only waits for tasks, false only those for events.
create or replace function absurd.search_waits(
    p_queue_name text, p_event_name text, p_prefix boolean, p_tasks boolean, p_below uuid, p_below_queue integer,
    p_below_step text, p_limit integer, p_budget integer)
  returns table (queue_id integer, task_id uuid, step_name text, hit boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queues integer[];
  v_queue integer;
  v_cursor refcursor;
  v_row record;
  v_top uuid := coalesce(p_below, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  v_bottom uuid := '00000000-0000-0000-0000-000000000000';
  v_tasks uuid[] := '{}';
  v_homes integer[] := '{}';
  v_steps text[] := '{}';
  v_left integer := p_budget;
  v_walks integer;
  v_share integer;
  v_hits integer;
  v_horizon uuid;
  v_horizon_queue integer;
  v_horizon_step text;
begin
  select coalesce(array_agg(q.queue_id), '{}') into v_queues from absurd.queues q
   where (p_queue_name is null or q.queue_name = p_queue_name)
     and (select true from absurd.waits w where w.queue_id = q.queue_id and w.task_id <= v_top order by w.task_id desc limit 1);
  v_walks := cardinality(v_queues);
  foreach v_queue in array v_queues loop
    v_share := greatest(v_left / greatest(v_walks, 1), 1);
    v_walks := v_walks - 1;
    if p_event_name is not null and not p_prefix then
      open v_cursor for
        select w.task_id, w.step_name, p_tasks is not true as hit from absurd.waits w
         where w.queue_id = v_queue and w.event_name >= p_event_name and w.event_name <= p_event_name  -- no =: it is walked by
           and w.awaited_task_id is null and w.task_id >= v_bottom and w.task_id <= v_top
           and (p_below is null or (w.task_id, w.queue_id, w.step_name) < (p_below, p_below_queue, p_below_step))
         order by w.event_name desc, w.task_id desc, w.step_name desc;
    else
      open v_cursor for
        select w.task_id, w.step_name,
               (p_tasks is null or p_tasks = (w.awaited_task_id is not null))
                 and (p_event_name is null or w.awaited_task_id is null and w.event_name ^@ p_event_name) as hit
          from absurd.waits w
         where w.queue_id = v_queue and w.task_id >= v_bottom and w.task_id <= v_top
           and (p_below is null or (w.task_id, w.queue_id, w.step_name) < (p_below, p_below_queue, p_below_step))
         order by w.task_id desc, w.step_name desc;
    end if;
    v_hits := 0;
    loop
      fetch v_cursor into v_row;
      exit when not found;
      v_left := v_left - 1;
      v_share := v_share - 1;
      if v_row.hit then
        v_tasks := v_tasks || v_row.task_id;
        v_homes := v_homes || v_queue;
        v_steps := v_steps || v_row.step_name::text;
        v_hits := v_hits + 1;
        exit when v_hits > p_limit;
      end if;
      if v_share <= 0 then
        if v_horizon is null
           or (v_row.task_id, v_queue, v_row.step_name) > (v_horizon, v_horizon_queue, v_horizon_step) then
          v_horizon := v_row.task_id;
          v_horizon_queue := v_queue;
          v_horizon_step := v_row.step_name;
          v_bottom := greatest(v_bottom, v_horizon);
        end if;
        exit;
      end if;
    end loop;
    close v_cursor;
  end loop;
  return query
    with hits as materialized (
      select x.task, x.home, x.step, row_number() over (order by x.task desc, x.home desc, x.step desc) as place
        from unnest(v_tasks, v_homes, v_steps) x(task, home, step)
       where v_horizon is null or (x.task, x.home, x.step) >= (v_horizon, v_horizon_queue, v_horizon_step))
    (select h.home, h.task, h.step, true from hits h where h.place <= p_limit order by h.place)
    union all
    select coalesce(h.home, v_horizon_queue), coalesce(h.task, v_horizon), coalesce(h.step, v_horizon_step), false
      from (select (select count(*) from hits) as n) c left join hits h on c.n > p_limit and h.place = p_limit
     where c.n > p_limit or v_horizon is not null;
end
$$;

-- Purpose: the names of events: those waited for and not emitted, by name (half 0), then those emitted, newest first (half 1);
-- with how many wait, counted to p_most, and since when. Where to go on, as search_tasks says it: p_after_half and the place
-- in it. p_since: emitted, or waited for, since.
create or replace function absurd.search_events(
    p_queue_name text, p_event_name text, p_prefix boolean, p_pending boolean, p_emitted boolean, p_since timestamptz,
    p_after_half integer, p_after_at timestamptz, p_after_name text, p_after_queue integer,
    p_most integer, p_limit integer, p_budget integer)
  returns table (half integer, queue_id integer, event_name text, emitted_at timestamptz, waiters integer,
                 waiting_since timestamptz, hit boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queues integer[];
  v_queue integer;
  v_cursor refcursor;
  v_row record;
  v_after boolean;         -- whether this half has a place to start at
  v_names text[] := '{}';
  v_homes integer[] := '{}';
  v_ats timestamptz[] := '{}';  -- infinity in the half of what is not emitted
  v_halves integer[] := '{}';
  v_left integer := p_budget;
  v_walks integer;
  v_share integer;
  v_hits integer;
  v_horizon text;
  v_horizon_queue integer;
  v_horizon_at timestamptz;
begin
  select coalesce(array_agg(q.queue_id order by q.queue_id), '{}') into v_queues from absurd.queues q
   where (p_queue_name is null or q.queue_name = p_queue_name)
     and ((select true from absurd.events e where e.queue_id = q.queue_id order by e.event_name limit 1)
          or (select true from absurd.waits w where w.queue_id = q.queue_id order by w.task_id limit 1));
  for v_half in coalesce(p_after_half, 0) .. 1 loop
    continue when not case v_half when 0 then p_pending else p_emitted end;
    v_after := coalesce(v_half = p_after_half, false);
    v_walks := cardinality(v_queues);
    foreach v_queue in array v_queues loop
      v_share := greatest(v_left / greatest(v_walks, 1), 1);
      v_walks := v_walks - 1;
      if v_half = 0 then
        open v_cursor for  -- the names that somebody waits for, one probe each: rows of events that nobody waits for are not met
          with recursive names(name) as (
            (select case when p_prefix or p_event_name is null then
                    (select w.event_name from absurd.waits w
                      where w.queue_id = v_queue and w.awaited_task_id is null
                        and w.event_name >= case when v_after then p_after_name else '' end
                        and (not v_after or w.event_name > p_after_name or v_queue > p_after_queue)
                      order by w.event_name, w.task_id limit 1)
                    when not v_after or p_event_name > p_after_name
                         or p_event_name = p_after_name and v_queue > p_after_queue then p_event_name end)
            union all
            select (select w.event_name from absurd.waits w
                     where w.queue_id = v_queue and w.awaited_task_id is null and w.event_name > n.name
                     order by w.event_name, w.task_id limit 1)
              from names n where n.name is not null and (p_prefix or p_event_name is null))
          select n.name as event_name, 'infinity'::timestamptz as at, 2 + coalesce(w.waiters, 0) as cost,
                 w.waiters > 0 and (p_since is null or w.waiting_since >= p_since)
                   and (select e.emitted_at from absurd.events e
                         where e.queue_id = v_queue and e.event_name = n.name) is null as hit
            from names n
            left join lateral (
              select count(*)::integer as waiters, min(w.created_at) as waiting_since
                from (select w.created_at from absurd.waits w
                       where (not p_prefix or n.name ^@ p_event_name)
                         and w.queue_id = v_queue and w.event_name >= n.name and w.event_name <= n.name
                         and w.awaited_task_id is null
                       order by w.event_name, w.task_id limit p_most) w) w on true
           where n.name is not null;
      elsif p_event_name is not null and not p_prefix then
        open v_cursor for
          select e.event_name, e.emitted_at as at, 1 as cost, p_since is null or e.emitted_at >= p_since as hit
            from absurd.events e
           where e.queue_id = v_queue and e.event_name = p_event_name and e.emitted_at is not null
             and (not v_after or e.emitted_at < p_after_at or e.emitted_at = p_after_at
                                 and (e.event_name, e.queue_id) > (p_after_name, p_after_queue))
           order by e.event_name;
      else
        open v_cursor for
          select e.event_name, e.emitted_at as at, 1 as cost,
                 p_event_name is null or e.event_name ^@ p_event_name as hit
            from absurd.events e
           where e.queue_id = v_queue and e.emitted_at is not null and e.emitted_at >= coalesce(p_since, '-infinity')
             and e.emitted_at <= case when v_after then p_after_at else 'infinity' end
             and (not v_after or e.emitted_at < p_after_at or (e.event_name, e.queue_id) > (p_after_name, p_after_queue))
           order by e.emitted_at desc, e.event_name;
      end if;
      v_hits := 0;
      loop
        fetch v_cursor into v_row;
        exit when not found;
        v_left := v_left - v_row.cost;
        v_share := v_share - v_row.cost;
        if v_row.hit then
          v_names := v_names || v_row.event_name::text;
          v_homes := v_homes || v_queue;
          v_ats := v_ats || v_row.at::timestamptz;
          v_halves := v_halves || v_half;
          v_hits := v_hits + 1;
          exit when v_hits > p_limit;
        end if;
        if v_share <= 0 then
          if v_horizon is null or v_row.at > v_horizon_at
             or v_row.at = v_horizon_at and (v_row.event_name, v_queue) < (v_horizon, v_horizon_queue) then
            v_horizon := v_row.event_name;
            v_horizon_queue := v_queue;
            v_horizon_at := v_row.at;
          end if;
          exit;
        end if;
      end loop;
      close v_cursor;
    end loop;
    exit when v_horizon is not null or cardinality(v_names) > p_limit;
  end loop;
  -- after the loop v_half is gone: what stopped the search stands in the half of its moment
  return query
    with hits as materialized (
      select x.*, row_number() over (order by x.side, x.at desc, x.name, x.home) as place
        from unnest(v_halves, v_ats, v_names, v_homes) x(side, at, name, home)
       where v_horizon is null or x.side = 0 and v_horizon_at < 'infinity' or x.at > v_horizon_at
          or x.at = v_horizon_at and (x.name, x.home) <= (v_horizon, v_horizon_queue))
    (select h.side, h.home, h.name, nullif(h.at, 'infinity'), w.waiters, w.waiting_since, true
       from hits h
      cross join lateral (
        select count(*)::integer as waiters, min(w.created_at) as waiting_since
          from (select w.created_at from absurd.waits w
                 where w.queue_id = h.home and w.event_name >= h.name and w.event_name <= h.name and w.awaited_task_id is null
                 order by w.event_name, w.task_id limit p_most) w) w
      where h.place <= p_limit order by h.place)
    union all
    select coalesce(h.side, (v_horizon_at < 'infinity')::integer), coalesce(h.home, v_horizon_queue),
           coalesce(h.name, v_horizon), nullif(coalesce(h.at, v_horizon_at), 'infinity'), null, null, false
      from (select (select count(*) from hits) as n) c left join hits h on c.n > p_limit and h.place = p_limit
     where c.n > p_limit or v_horizon is not null;
end
$$;

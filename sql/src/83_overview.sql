-- How everything stands at once, for pages that ask every second: bounded, however much is stored. Reads only.

-- Purpose: how full queues stand, by name from p_after on, at most p_limit. Of a queue, p_cap unfinished tasks are looked at, of
-- all ten times as many (then at least p_cap / 20 of each); `capped`: there are more. p_ended_cap: the same for the tasks that
-- ended in the last minute. oldest_due_at is exact: one probe for each priority in use. tasks: counted to 1,000, beyond that
-- the planner's guess.
create or replace function absurd.queue_stands(
    p_queue_name text, p_after text, p_limit integer, p_cap integer, p_ended_cap integer)
  returns table (queue_name text, pending integer, sleeping integer, running integer, due integer, capped boolean,
                 oldest_due_at timestamptz, completed integer, failed integer, cancelled integer, ended_capped boolean,
                 tasks bigint, tasks_estimated boolean, as_of timestamptz)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
  set jit = off
as $$
#variable_conflict use_column
declare
  v_now timestamptz := absurd.current_time();
  v_queue record;
  v_seen integer;
  v_cap integer;
  v_left bigint := 10 * p_cap::bigint;
  v_ended_left bigint := 10 * p_ended_cap::bigint;
  v_all double precision;      -- rows of absurd.tasks, by the planner's statistics
  v_ids integer[];             -- and which share of them belongs to which queue
  v_shares real[];
begin
  select case when c.reltuples > 0 and c.relpages > 0
              then c.reltuples / c.relpages * (pg_relation_size(c.oid) / current_setting('block_size')::integer) end
    into v_all from pg_class c where c.oid = 'absurd.tasks'::regclass;
  select s.most_common_vals::text::integer[], s.most_common_freqs into v_ids, v_shares
    from pg_stats s where s.schemaname = 'absurd' and s.tablename = 'tasks' and s.attname = 'queue_id';

  for v_queue in
    select q.queue_id, q.queue_name from absurd.queues q
     where (p_queue_name is null or q.queue_name = p_queue_name) and (p_after is null or q.queue_name > p_after)
     order by q.queue_name limit p_limit
  loop
    queue_name := v_queue.queue_name;
    as_of := v_now;

    v_cap := greatest(least(p_cap, v_left), p_cap / 20, 1);
    select count(*), count(*) filter (where l.state = 'p'), count(*) filter (where l.state = 's'),
           count(*) filter (where l.state = 'r'), count(*) filter (where l.state <> 'r' and l.due_at <= v_now)
      into v_seen, pending, sleeping, running, due
      from (select l.state, l.due_at from absurd.live l where l.queue_id = v_queue.queue_id
             order by l.task_id limit v_cap + 1) l;
    v_left := v_left - v_seen;
    capped := v_seen > v_cap;
    if capped then
      -- among so many the few that run may not have been met
      select greatest(running, count(*)) into running from (select from absurd.live l
       where l.queue_id = v_queue.queue_id and l.state = 'r' and l.due_at is not null order by l.due_at limit v_cap) x;
      v_left := v_left - running;
    end if;
    select min(n.due_at) into oldest_due_at from absurd.next_ready(v_queue.queue_id, v_now, null) n(due_at)
     where n.due_at <= v_now;

    v_cap := greatest(least(p_ended_cap, v_ended_left), p_ended_cap / 20, 1);
    select count(*), count(*) filter (where a.task_state = 'c'), count(*) filter (where a.task_state = 'f'),
           count(*) filter (where a.task_state = 'x')
      into v_seen, completed, failed, cancelled
      from (select a.task_state from absurd.attempts a
             where a.queue_id = v_queue.queue_id and a.task_state is not null and a.finished_at > v_now - interval '1 minute'
             order by a.finished_at desc limit v_cap + 1) a;
    v_ended_left := v_ended_left - v_seen;
    ended_capped := v_seen > v_cap;

    select count(*) into tasks from (select from absurd.tasks t where t.queue_id = v_queue.queue_id
                                      order by t.task_id desc limit 1001) x;
    tasks_estimated := tasks > 1000;
    if tasks_estimated then
      tasks := greatest(tasks, v_all * coalesce(v_shares[array_position(v_ids, v_queue.queue_id)],
                                                case when v_ids is null then 1 end))::bigint;
    end if;
    return next;
  end loop;
end
$$;

-- Purpose: who runs tasks now, or ended some lately: of each queue, the running tasks (those whose lease ends last, at most 5,000)
-- and the newest thousand ended; over all queues at most 50,000 rows, and then a few of each. The last seen first.
create or replace function absurd.workers_seen(p_queue_name text, p_limit integer)
  returns table (worker text, running integer, last_seen timestamptz, lease_until timestamptz, queues text[],
                 as_of timestamptz)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue record;
  v_left integer := 50000;
  v_seen jsonb := '[]';  -- [worker, running, last seen, lease, queue], one a worker and queue
  v_more jsonb;
  v_rows integer;
begin
  for v_queue in
    select q.queue_id, q.queue_name from absurd.queues q
     where p_queue_name is null or q.queue_name = p_queue_name order by q.queue_name
  loop
    with met as materialized (
      (select l.claimed_by as worker, 1 as running, l.started_at as seen, l.lease_until as lease from absurd.live l
        where l.queue_id = v_queue.queue_id and l.state = 'r' and l.due_at is not null
        order by l.due_at desc limit greatest(least(5000, v_left), 10))
      union all
      (select l.claimed_by, 1, l.started_at, null from absurd.live l
        where l.queue_id = v_queue.queue_id and l.state = 'r' and l.due_at is null
        order by l.task_id desc limit greatest(least(1000, v_left), 10))
      union all
      (select a.claimed_by, 0, a.finished_at, null from absurd.attempts a
        where a.queue_id = v_queue.queue_id and a.task_state is not null
        order by a.finished_at desc limit greatest(least(1000, v_left), 10)))
    select (select count(*) from met),
           (select jsonb_agg(jsonb_build_object('worker', x.worker, 'running', x.running, 'seen', x.seen, 'lease', x.lease,
                                                'queue', v_queue.queue_name))
              from (select m.worker, sum(m.running)::integer as running, max(m.seen) as seen, max(m.lease) as lease
                      from met m where m.worker is not null group by m.worker) x)
      into v_rows, v_more;
    v_left := v_left - v_rows;
    v_seen := v_seen || coalesce(v_more, '[]');
  end loop;
  return query
    select x.worker, sum(x.running)::integer, max(x.seen), max(x.lease), array_agg(x.queue order by x.queue),
           absurd.current_time()
      from jsonb_to_recordset(v_seen) x(worker text, running integer, seen timestamptz, lease timestamptz, queue text)
     group by x.worker order by max(x.seen) desc nulls last, x.worker limit p_limit;
end
$$;

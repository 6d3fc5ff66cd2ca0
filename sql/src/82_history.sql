-- What a task has recorded, for whoever goes through it again without doing it again. Reads only.

-- Purpose: a task in any state, as claim_tasks describes one, with its state, the names of its checkpoints, waits that ran out
-- among them, in the order they were committed (at one moment of a clock that stands: in the order of their transactions), the
-- attempt that wrote each, the step it waits at, and whether it was spawned when only clients worked that mark what
-- has no order: in a new database, or a day after the migration that brought the marks. No row for an unknown task.
create or replace function absurd.task_history(p_queue_name text, p_task_id uuid)
  returns table (task_id uuid, attempt integer, claim_no integer, task_name text, params jsonb, headers jsonb,
                 retry_strategy jsonb, max_attempts integer, enqueue_at timestamptz, claimed_at timestamptz, wake_event text,
                 checkpoints jsonb, timeouts text[], queue_id integer, state text, steps text[], step_attempts integer[], waits_at text, ordered boolean)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  return query
    select t.task_id, t.attempt, 0, t.task_name, t.params, t.headers, t.retry_strategy, t.max_attempts, t.enqueue_at,
           absurd.current_time(), t.wake_event, k.states, k.timeouts, v_queue_id, t.state, k.steps, k.attempts,
           (select w.step_name from absurd.waits w where w.queue_id = v_queue_id and w.task_id = p_task_id limit 1),
           not exists (select from absurd.migrations m, absurd.migrations f
                        where m.number = 3 and f.number = 1
                          and t.enqueue_at < m.applied_at + case when m.applied_at > f.applied_at + interval '1 minute'
                                                                 then interval '1 day' else interval '0' end)
      from absurd.all_tasks t
     cross join lateral (
       select jsonb_object_agg(x.name, x.state) filter (where x.outcome is null) as states,
              array_agg(x.name) filter (where x.outcome is not null) as timeouts,
              array_agg(x.name order by x.updated_at, age(x.xmin) desc, x.name) as steps,
              array_agg(x.attempt order by x.updated_at, age(x.xmin) desc, x.name) as attempts
         from absurd.checkpoints x
        where x.queue_id = v_queue_id and x.task_id = p_task_id and x.status = 'committed') k
     where t.queue_id = v_queue_id and t.task_id = p_task_id;
end
$$;

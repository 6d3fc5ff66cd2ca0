-- Checkpoints: results by (task, name). One statement locks the run and writes from it, so that a dead attempt adds nothing.

-- Purpose: keep results of steps. p_extend_by > 0 also renews the runs' leases. The last of equal names in a batch wins; an
-- older attempt never overwrites a newer one. Locks: live rows, SKIP LOCKED. Letters: o r b l c f m.
create or replace function absurd.set_checkpoints(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_names text[], p_states jsonb[],
    p_extend_by double precision default null)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_now timestamptz := absurd.current_time();
  v_until timestamptz := absurd.later(v_now, nullif(greatest(p_extend_by, 0), 0));
  h record;
begin
  perform absurd.require_length(cardinality(p_run_ids), cardinality(p_names), 'names');
  perform absurd.require_length(cardinality(p_run_ids), cardinality(p_states), 'states');
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false);
  insert into absurd.checkpoints as c (queue_id, task_id, name, state, attempt, updated_at)
  select distinct on (u.task_id, u.name) p_queue_id, u.task_id, u.name, u.state, absurd.attempt_of(u.run_id), v_now
    from unnest(h.task_ids, h.ok, p_run_ids, p_names, p_states) with ordinality u(task_id, ok, run_id, name, state, o)
   where u.ok
   order by u.task_id, u.name, u.o desc
      on conflict (queue_id, task_id, name) do update
     set state = excluded.state, status = 'committed', outcome = null, attempt = excluded.attempt, updated_at = excluded.updated_at
   where c.attempt <= excluded.attempt;
  if v_until is not null then
    with input as materialized (
      select distinct p_queue_id as queue_id, u.task_id from unnest(h.task_ids, h.ok) as u(task_id, ok) where u.ok)
    update absurd.live l
       set lease_until = v_until, due_at = least(l.due_at, v_until)
      from input i
     where l.queue_id = i.queue_id and l.task_id = i.task_id and l.lease_until is not null;
  end if;
  if h.all_ok then
    return repeat('o', cardinality(p_run_ids));
  end if;
  return absurd.letters(p_queue_id, p_run_ids, p_claim_nos, h.ok, 'checkpoint', p_names);
end
$$;

-- Purpose: keep one result. P0001 unknown run, a run of another task, or one that is not running; AB001, AB002.
create or replace function absurd.set_task_checkpoint_state(
    p_queue_name text, p_task_id uuid, p_step_name text, p_state jsonb, p_owner_run uuid, p_extend_claim_by integer default null)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  perform absurd.require_text(p_step_name, 'step_name');
  perform absurd.hold_run(v_queue_id, p_owner_run, false);
  if absurd.task_id_of(p_owner_run) is distinct from p_task_id
     and (absurd.verdict(v_queue_id, absurd.task_id_of(p_owner_run), absurd.attempt_of(p_owner_run))).run_state is not null then
    raise exception 'Run "%" does not belong to task "%" in queue "%"', p_owner_run, p_task_id, p_queue_name;
  end if;
  if absurd.set_checkpoints(v_queue_id, array[p_owner_run], array[null::integer], array[p_step_name], array[p_state],
                            p_extend_claim_by) <> 'o' then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_owner_run, 'checkpoint');
  end if;
end
$$;

create or replace function absurd.get_task_checkpoint_state(
    p_queue_name text, p_task_id uuid, p_step_name text, p_include_pending boolean default false)
  returns table (checkpoint_name text, state jsonb, status text, owner_run_id uuid, updated_at timestamptz)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  return query
    select c.name, c.state, c.status, absurd.run_id_of(c.task_id, c.attempt), c.updated_at
      from absurd.checkpoints c
     where c.queue_id = v_queue_id and c.task_id = p_task_id and c.name = p_step_name and c.outcome is null
       and (c.status = 'committed' or coalesce(p_include_pending, false));
end
$$;

-- Purpose: what a run may see of its task's checkpoints, oldest first. P0001 unknown run, or a run of another task.
create or replace function absurd.get_task_checkpoint_states(p_queue_name text, p_task_id uuid, p_run_id uuid)
  returns table (checkpoint_name text, state jsonb, status text, owner_run_id uuid, updated_at timestamptz)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  if (absurd.verdict(v_queue_id, absurd.task_id_of(p_run_id), absurd.attempt_of(p_run_id))).run_state is null then
    raise exception 'Run "%" not found in queue "%"', p_run_id, p_queue_name;
  end if;
  if absurd.task_id_of(p_run_id) is distinct from p_task_id then
    raise exception 'Run "%" does not belong to task "%" in queue "%"', p_run_id, p_task_id, p_queue_name;
  end if;
  return query
    select c.name, c.state, c.status, absurd.run_id_of(c.task_id, c.attempt), c.updated_at
      from absurd.checkpoints c
     where c.queue_id = v_queue_id and c.task_id = p_task_id and c.outcome is null and c.status = 'committed'
       and c.attempt <= absurd.attempt_of(p_run_id)
     order by c.updated_at, c.name;
end
$$;

-- Leases: a heartbeat writes lease_until only (HOT); due_at, which is indexed, follows lazily when it comes up.
-- Always due_at <= lease_until, so that a shortened lease is noticed in time.

-- Purpose: renew leases. Runs without a lease stay without. Letters: o b l c f m r.  Locks: live rows, SKIP LOCKED.
create or replace function absurd.extend_claims(
    p_queue_id integer, p_run_ids uuid[], p_claim_nos integer[], p_extend_by double precision)
  returns text language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  v_until timestamptz := absurd.later(absurd.current_time(), p_extend_by);
  h record;
begin
  if p_extend_by is null then  -- would take the leases away, and nobody takes over a run without one
    raise exception 'extend_by must be seconds, not null' using errcode = 'AB004';
  end if;
  h := absurd.hold_runs(p_queue_id, p_run_ids, p_claim_nos, false);
  with input as materialized (
    select p_queue_id as queue_id, u.task_id from unnest(h.task_ids, h.ok) as u(task_id, ok) where u.ok)
  update absurd.live l
     set lease_until = v_until, due_at = least(l.due_at, v_until)
    from input i
   where l.queue_id = i.queue_id and l.task_id = i.task_id and l.lease_until is not null;
  if h.all_ok then
    return repeat('o', cardinality(p_run_ids));
  end if;
  return absurd.letters(p_queue_id, p_run_ids, p_claim_nos, h.ok, 'extend');
end
$$;

-- Purpose: renew one lease (replaces it, may shorten). P0001 unknown, not running, no lease; AB001, AB002.
create or replace function absurd.extend_claim(p_queue_name text, p_run_id uuid, p_extend_by integer)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_queue_id integer := absurd.queue_id_of(p_queue_name);
begin
  if p_extend_by is null or p_extend_by <= 0 then
    raise exception 'extend_by must be > 0';
  end if;
  perform absurd.hold_run(v_queue_id, p_run_id, false);
  if absurd.extend_claims(v_queue_id, array[p_run_id], array[null::integer], p_extend_by) <> 'o' then
    perform absurd.raise_refusal(p_queue_name, v_queue_id, p_run_id, 'extend');
  end if;
  if exists (select 1 from absurd.live l where l.queue_id = v_queue_id and l.task_id = absurd.task_id_of(p_run_id)
                                           and l.lease_until is null) then
    raise exception 'Run "%" does not have an active claim in queue "%"', p_run_id, p_queue_name;
  end if;
end
$$;

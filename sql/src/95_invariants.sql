-- What must always hold. One row per violation, none when all is well; every stress and chaos test ends with it.

-- Purpose: check one queue, or all (null). Reads every row of it: for tests and doctors, not for the hot path.
create or replace function absurd.check_invariants(p_queue_name text default null)
  returns table (queue_name text, rule text, task_id uuid, detail text)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_ids integer[];
begin
  if p_queue_name is null then
    select array_agg(q.queue_id) into v_ids from absurd.queues q;
  else
    v_ids := array[absurd.queue_id_of(p_queue_name)];
  end if;
  return query
  with found as (
    select t.queue_id, 'a task is live or has one ending run, never both or neither' as rule, t.task_id,
           format('live: %s, ending runs: %s', l.state, count(e.attempt)) as detail
      from absurd.tasks t
      left join absurd.live l on l.queue_id = t.queue_id and l.task_id = t.task_id
      left join absurd.attempts e on e.queue_id = t.queue_id and e.task_id = t.task_id and e.task_state is not null
     group by t.queue_id, t.task_id, l.state
    having (l.state is not null)::int + count(e.attempt) <> 1
    union all
    select l.queue_id, 'a live row belongs to a task', l.task_id, l.state::text
      from absurd.live l where not exists (select 1 from absurd.tasks t where t.queue_id = l.queue_id and t.task_id = l.task_id)
    union all
    select l.queue_id, 'earlier attempts of a live task are all recorded', l.task_id,
           format('attempt %s, recorded %s', l.attempt, count(a.attempt))
      from absurd.live l left join absurd.attempts a on a.queue_id = l.queue_id and a.task_id = l.task_id
     group by l.queue_id, l.task_id, l.attempt having count(a.attempt) <> l.attempt - 1
    union all
    select l.queue_id, 'a running run has a claim, a waiting one has none', l.task_id,
           format('state %s, claimed by %s, lease %s', l.state, l.claimed_by, l.lease_until)
      from absurd.live l
     where (l.state = 'r' and (l.claimed_by is null or l.started_at is null or l.claim_no < 1))
        or (l.state <> 'r' and (l.claimed_by is not null or l.lease_until is not null))
    union all
    select l.queue_id, 'a running run has a lease', l.task_id, format('claimed by %s without a lease: nobody takes it over', l.claimed_by)
      from absurd.live l where l.state = 'r' and l.lease_until is null
    union all
    select l.queue_id, 'a lease is looked at no later than it ends', l.task_id, format('due %s, lease %s', l.due_at, l.lease_until)
      from absurd.live l where l.state = 'r' and l.lease_until is not null and (l.due_at is null or l.due_at > l.lease_until)
    union all
    select l.queue_id, 'a pending run is due at some time, a sleeping one also when it has a wait', l.task_id, l.state::text
      from absurd.live l
     where l.state in ('p', 's') and l.due_at is null
       and not exists (select 1 from absurd.waits w where w.queue_id = l.queue_id and w.task_id = l.task_id and l.state = 's')
    union all
    select w.queue_id, 'a wait belongs to a sleeping task that waits for just that', w.task_id, format('%s: %s', w.step_name, w.event_name)
      from absurd.waits w
     where not exists (select 1 from absurd.live l where l.queue_id = w.queue_id and l.task_id = w.task_id and l.state = 's'
                                                     and l.attempt = w.attempt and l.wake_step = w.step_name and l.wake_event = w.event_name)
    union all
    select w.queue_id, 'nobody waits for an event that has been emitted since', w.task_id, w.event_name
      from absurd.waits w join absurd.events e on e.queue_id = w.queue_id and e.event_name = w.event_name
     where w.awaited_task_id is null and e.emitted_at > w.created_at
       and (w.timeout_at is null or w.timeout_at > e.emitted_at)
    union all
    select w.queue_id, 'the event of a wait has a row to lock', w.task_id, w.event_name
      from absurd.waits w
     where w.awaited_task_id is null
       and not exists (select 1 from absurd.events e where e.queue_id = w.queue_id and e.event_name = w.event_name)
    union all
    select w.queue_id, 'nobody waits for a task that has ended', w.task_id, w.awaited_task_id::text
      from absurd.waits w
     where w.awaited_task_id is not null
       and not exists (select 1 from absurd.live l where l.queue_id = w.awaited_queue_id and l.task_id = w.awaited_task_id and l.awaited)
    union all
    select c.queue_id, 'a checkpoint belongs to a task', c.task_id, c.name
      from absurd.checkpoints c where not exists (select 1 from absurd.tasks t where t.queue_id = c.queue_id and t.task_id = c.task_id)
    union all
    select a.queue_id, 'an attempt belongs to a task', a.task_id, a.attempt::text
      from absurd.attempts a where not exists (select 1 from absurd.tasks t where t.queue_id = a.queue_id and t.task_id = a.task_id)
    union all
    select k.queue_id, 'an idempotency key belongs to the task that carries it', k.task_id, k.idempotency_key
      from absurd.idempotency_keys k
     where not exists (select 1 from absurd.tasks t where t.queue_id = k.queue_id and t.task_id = k.task_id
                                                      and t.idempotency_key = k.idempotency_key)
    union all
    select t.queue_id, 'a keyed task has its key', t.task_id, t.idempotency_key
      from absurd.tasks t
     where t.idempotency_key is not null
       and not exists (select 1 from absurd.idempotency_keys k where k.queue_id = t.queue_id and k.task_id = t.task_id))
  select q.queue_name, f.rule, f.task_id, f.detail
    from found f join absurd.queues q on q.queue_id = f.queue_id
   where f.queue_id = any(v_ids)
   order by 1, 2, 3;
end
$$;

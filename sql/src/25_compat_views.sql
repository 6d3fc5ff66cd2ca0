-- The five shared views behind the per-queue views t_<queue> r_<queue> c_<queue> e_<queue> w_<queue>.
-- Columns are the public contract's; queue_id comes last and is dropped by the thin per-queue views.
-- For reading. r_'s runs are the ended ones (attempts) and the current one (live).

create or replace view absurd.compat_tasks as
select t.task_id, t.task_name, t.params, t.headers, t.retry_strategy, t.max_attempts, t.cancellation, t.enqueue_at,
       coalesce(l.first_started_at, e.first_started_at) as first_started_at,
       absurd.state_name(coalesce(l.state, e.task_state)) as state,
       coalesce(l.attempt, e.attempt) as attempts,
       absurd.run_id_of(t.task_id, coalesce(l.attempt, e.attempt)) as last_attempt_run,
       case when e.task_state = 'c' then e.result end as completed_payload,
       case when e.task_state = 'x' then e.finished_at end as cancelled_at,
       t.idempotency_key,
       t.queue_id
  from absurd.tasks t
  left join absurd.live l on l.queue_id = t.queue_id and l.task_id = t.task_id
  left join absurd.attempts e on e.queue_id = t.queue_id and e.task_id = t.task_id and e.task_state is not null;

create or replace view absurd.compat_runs as
select absurd.run_id_of(a.task_id, a.attempt) as run_id, a.task_id, a.attempt,
       absurd.state_name(a.state) as state, a.claimed_by, a.lease_until as claim_expires_at,
       coalesce(a.available_at, 'infinity') as available_at, a.wake_event,
       (select c.state from absurd.checkpoints c
         where c.queue_id = a.queue_id and c.task_id = a.task_id and c.name = a.wake_step and c.outcome is null) as event_payload,
       a.started_at,
       case when a.state = 'c' then a.finished_at end as completed_at,
       case when a.state = 'f' then a.finished_at end as failed_at,
       a.result, a.failure as failure_reason, a.created_at, a.queue_id
  from absurd.attempts a
union all
select absurd.run_id_of(l.task_id, l.attempt), l.task_id, l.attempt,
       absurd.state_name(l.state), l.claimed_by, l.lease_until,
       case when l.state = 'r' then l.started_at else coalesce(l.due_at, 'infinity') end, l.wake_event,
       (select c.state from absurd.checkpoints c
         where c.queue_id = l.queue_id and c.task_id = l.task_id and c.name = l.wake_step and c.outcome is null),
       l.started_at, null, null, null, null, l.created_at, l.queue_id
  from absurd.live l;

create or replace view absurd.compat_checkpoints as
select c.task_id, c.name as checkpoint_name, c.state, c.status,
       absurd.run_id_of(c.task_id, c.attempt) as owner_run_id, c.updated_at, c.queue_id
  from absurd.checkpoints c
 where c.outcome is null;

-- Only what was emitted: who counts rows here, as a client's dry run of a cleanup does, must not count sentinels.
create or replace view absurd.compat_events as
select e.event_name, e.payload, e.emitted_at, e.queue_id
  from absurd.events e
 where e.emitted_at is not null;

create or replace view absurd.compat_waits as
select w.task_id, absurd.run_id_of(w.task_id, w.attempt) as run_id, w.step_name, w.event_name,
       w.timeout_at, w.created_at, w.queue_id
  from absurd.waits w;

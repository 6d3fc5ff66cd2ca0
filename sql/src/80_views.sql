-- The read model: what the command line, the web pages and metrics ask. Thin: each row is one index probe away from its
-- primary key, so a reader that walks a key in order and stops early (keyset paging) never pays for the rest.
-- A caller names queue_id, or walks the queues and asks for each. Moments that never come are null, not infinity: not
-- every client can read that. Letters beside the words (live_state, ended_state) let a filter become a join condition.

-- Purpose: one row a task, unfinished or ended, with all that is known of it but its checkpoints.
create or replace view absurd.all_tasks as
select t.queue_id, t.task_id, t.task_name, absurd.state_name(coalesce(l.state, e.task_state)) as state,
       l.state as live_state, e.task_state as ended_state,
       absurd.run_id_of(t.task_id, coalesce(l.attempt, e.attempt)) as run_id,
       coalesce(l.attempt, e.attempt) as attempt, t.max_attempts, t.priority, t.idempotency_key, t.enqueue_at,
       coalesce(l.first_started_at, e.first_started_at) as first_started_at,
       case when l.task_id is not null then l.started_at else e.started_at end as started_at,
       case when isfinite(l.due_at) then l.due_at end as due_at,
       l.lease_until, case when isfinite(l.cancel_at) then l.cancel_at end as cancel_at,
       coalesce(l.claimed_by, e.claimed_by) as claimed_by, l.wake_event, l.wake_step, e.finished_at,
       t.params, t.headers, t.retry_strategy, t.cancellation, e.result, e.failure
  from absurd.tasks t
  left join absurd.live l on l.queue_id = t.queue_id and l.task_id = t.task_id
  left join absurd.attempts e on e.queue_id = t.queue_id and e.task_id = t.task_id and e.task_state is not null;

-- Purpose: a row of all_tasks, for whoever has the queue_id and task_id: how a task ended stands in its last attempt, so that one
-- of thousands of attempts is read no slower than another. Not for walks: the ended ones cannot be met by when they ended.
create or replace view absurd.task_by_id as
select t.queue_id, t.task_id, t.task_name, absurd.state_name(coalesce(l.state, e.task_state)) as state,
       l.state as live_state, e.task_state as ended_state,
       absurd.run_id_of(t.task_id, coalesce(l.attempt, e.attempt)) as run_id,
       coalesce(l.attempt, e.attempt) as attempt, t.max_attempts, t.priority, t.idempotency_key, t.enqueue_at,
       coalesce(l.first_started_at, e.first_started_at) as first_started_at,
       case when l.task_id is not null then l.started_at else e.started_at end as started_at,
       case when isfinite(l.due_at) then l.due_at end as due_at,
       l.lease_until, case when isfinite(l.cancel_at) then l.cancel_at end as cancel_at,
       coalesce(l.claimed_by, e.claimed_by) as claimed_by, l.wake_event, l.wake_step, e.finished_at,
       t.params, t.headers, t.retry_strategy, t.cancellation, e.result, e.failure
  from absurd.tasks t
  left join absurd.live l on l.queue_id = t.queue_id and l.task_id = t.task_id
  left join lateral (select * from absurd.attempts a
                      where l.task_id is null and a.queue_id = t.queue_id and a.task_id = t.task_id
                      order by a.attempt desc limit 1) e on e.task_state is not null;

-- Purpose: one row a run: the ended ones and the current one. started_at is the last claim; a run that slept and was
-- resumed has been claimed more than once.
create or replace view absurd.all_runs as
select a.queue_id, a.task_id, absurd.run_id_of(a.task_id, a.attempt) as run_id, a.attempt, absurd.state_name(a.state) as state,
       a.claim_no, a.created_at, a.started_at, a.finished_at, a.claimed_by, a.wake_event, a.wake_step, a.result, a.failure
  from absurd.attempts a
union all
select l.queue_id, l.task_id, absurd.run_id_of(l.task_id, l.attempt), l.attempt, absurd.state_name(l.state),
       l.claim_no, l.created_at, l.started_at, null, l.claimed_by, l.wake_event, l.wake_step, null, null
  from absurd.live l;

-- Purpose: one row a name that was emitted, or that somebody waits for. waiters counts who waits now.
create or replace view absurd.all_events as
select e.queue_id, e.event_name, case when e.emitted_at is null then 'pending' else 'emitted' end as state,
       e.payload, e.emitted_at, e.taken_at, w.waiters, w.waiting_since
  from absurd.events e
 cross join lateral (select count(*) as waiters, min(x.created_at) as waiting_since from absurd.waits x
                      where x.queue_id = e.queue_id and x.event_name = e.event_name and x.awaited_task_id is null) w
 where e.emitted_at is not null or w.waiters > 0;

-- Purpose: who sleeps for what: an event, or another task.
create or replace view absurd.all_waits as
select w.queue_id, w.task_id, absurd.run_id_of(w.task_id, w.attempt) as run_id, w.step_name,
       case when w.awaited_task_id is null then w.event_name end as event_name, w.awaited_queue_id, w.awaited_task_id,
       case when isfinite(w.timeout_at) then w.timeout_at end as timeout_at, w.created_at
  from absurd.waits w;

-- Purpose: how much stands in a queue now, and how much ended in the last day. Reads the unfinished rows of the queue.
create or replace view absurd.queue_counts as
select q.queue_id, q.queue_name, l.*, e.*
  from absurd.queues q
 cross join lateral (
   select count(*) filter (where x.state = 'p') as pending,
          count(*) filter (where x.state = 's') as sleeping,
          count(*) filter (where x.state = 'r') as running,
          count(*) filter (where x.state <> 'r' and x.due_at <= absurd.current_time()) as due,
          min(x.due_at) filter (where x.state <> 'r' and x.due_at <= absurd.current_time()) as oldest_due_at
     from absurd.live x where x.queue_id = q.queue_id) l
 cross join lateral (
   select count(*) filter (where x.task_state = 'c') as completed_last_day,
          count(*) filter (where x.task_state = 'f') as failed_last_day,
          count(*) filter (where x.task_state = 'x') as cancelled_last_day
     from absurd.attempts x
    where x.queue_id = q.queue_id and x.task_state is not null
      and x.finished_at > absurd.current_time() - interval '1 day') e;

-- Purpose: the kept outcomes of steps, sleeps and waits; outcome is timeout for a wait that ran out.
create or replace view absurd.all_checkpoints as
select c.queue_id, c.task_id, c.name, c.state, c.status, c.outcome, c.attempt, c.updated_at
  from absurd.checkpoints c;

-- Purpose: what was emitted, without counting who waits: one probe a row, where thousands wait too.
create or replace view absurd.emitted_events as
select e.queue_id, e.event_name, e.payload, e.emitted_at, e.taken_at
  from absurd.events e
 where e.emitted_at is not null;

-- Purpose: who sleeps for an event, by its name (all_waits cannot be walked by it).
create or replace view absurd.event_waits as
select w.queue_id, w.event_name, w.task_id, absurd.run_id_of(w.task_id, w.attempt) as run_id, w.step_name,
       case when isfinite(w.timeout_at) then w.timeout_at end as timeout_at, w.created_at
  from absurd.waits w
 where w.awaited_task_id is null;

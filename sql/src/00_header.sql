-- Absurd: durable tasks and events on nothing but Postgres.
--
-- Tables (all shared by every queue, queue_id leads each primary key):
--   queues            one row a queue: name, small integer id, policy
--   tasks             the request: name, params, options; written once
--   live              one narrow row per unfinished task: state, attempt, lease, due time
--   attempts          one row per ended run; the row that ended the task carries task_state
--   checkpoints       results of steps, waits and sleeps, by task and name
--   events            the latched payload of a name (or a sentinel: somebody waits, nothing emitted)
--   waits             who sleeps until which event, or which task, until when
--   idempotency_keys  key -> task, freed when the task is cleaned up
--   idle              unlogged: which workers are asleep and how to wake them (a hint, never a truth)
--   sweeps            how far the cleanup of sentinels has come in each queue
--
-- A task lives in `live` until it ends; then its last `attempts` row says how. run_id is the task id
-- with the attempt number in its last 16 bits, so a run needs no table and no index of its own.
--
-- Reading order is file order; a file calls only functions of lower-numbered files (and its own).

do $install$
begin
  -- one installer at a time; released with the transaction
  perform pg_catalog.pg_advisory_xact_lock(7164223061);
  if pg_catalog.current_setting('server_version_num')::int < 150000 then
    raise exception 'Absurd needs PostgreSQL 15 or newer, this server is %', pg_catalog.current_setting('server_version');
  end if;
  if pg_catalog.to_regnamespace('absurd') is null then
    create schema absurd;
    create table absurd.migrations (
      number     integer primary key,
      name       text not null,
      checksum   text not null,
      applied_at timestamptz not null default clock_timestamp()
    );
  end if;
end
$install$;

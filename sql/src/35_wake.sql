-- Waking idle workers. `idle` is a hint: polling is the guarantee.
-- A worker that found nothing LISTENs on its channel, commits an idle row, takes a transaction id x, and claims once more; it
-- sleeps only when every transaction that might have looked before that commit has ended, that is when the claim's snapshot
-- has xmin >= x. (The xmax of a snapshot taken after the commit cannot stand for x: it is one more than the newest id that
-- has ended, and may lie below ids that are given out and at work.)
-- A producer inserts first and looks into `idle` second, so that it has a transaction id by then.

-- Purpose: take up to p_count idle workers of each fleet of a queue (a fleet knows the same task names) and notify them. When rows exist but all are locked (another
-- producer's open transaction took them), one is notified anyway: a duplicate is harmless, silence is not.
-- Locks: idle rows, SKIP LOCKED.
create or replace function absurd.wake_workers(p_queue_id integer, p_count bigint)
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_idle record;
  v_any text;
begin
  select i.channel into v_any from absurd.idle i where i.queue_id = p_queue_id limit 1;
  if v_any is null then
    return;  -- the usual case on a busy system: one probe, no message
  end if;
  for v_idle in
    with free as (
      select i.channel, i.fleet from absurd.idle i where i.queue_id = p_queue_id
       order by i.channel limit 256 for update skip locked),
    taken as (
      select f.channel, row_number() over (partition by f.fleet order by f.channel) as nth from free f)
    delete from absurd.idle i
     where i.queue_id = p_queue_id and i.channel = any(array(select t.channel from taken t where t.nth <= p_count))
    returning i.channel
  loop
    v_any := null;
    perform pg_notify(v_idle.channel, p_queue_id::text);
  end loop;
  if v_any is not null then
    perform pg_notify(v_any, '');  -- without a text: its idle row is still there
  end if;
end
$$;

-- Purpose: wake an idle worker of a queue; for producers that commit by other means.
create or replace function absurd.wake(p_queue_name text)
  returns void language sql security definer
  set search_path = pg_catalog, pg_temp
as $$ select absurd.wake_workers(absurd.queue_id_of(p_queue_name), 1) $$;

-- Purpose: say that the worker listening on a channel found nothing in these queues (p_fleet: a digest of the names it knows); rows older than an hour belong
-- to dead workers and go. A row that a producer's open transaction has taken counts: it comes back, or the worker is told.
-- Locks: idle rows, SKIP LOCKED (no producer's transaction holds a worker up).
create or replace function absurd.set_idle(p_queue_ids integer[], p_channel text, p_fleet text default '')
  returns void language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_channel is null or octet_length(p_channel) not between 1 and 63 then
    raise exception 'channel must be 1 to 63 bytes' using errcode = 'AB004';
  end if;
  with mine as materialized (
    select i.queue_id, i.channel from absurd.idle i
     where i.queue_id = any(p_queue_ids) and i.channel = p_channel for update skip locked)
  update absurd.idle i set idle_at = clock_timestamp(), fleet = coalesce(p_fleet, '') from mine m where i.queue_id = m.queue_id and i.channel = m.channel;
  with old as materialized (
    select i.queue_id, i.channel from absurd.idle i
     where i.idle_at < clock_timestamp() - interval '1 hour' limit 100 for update skip locked)
  delete from absurd.idle i using old o where i.queue_id = o.queue_id and i.channel = o.channel;
  insert into absurd.idle (queue_id, channel, fleet)
  select u, p_channel, coalesce(p_fleet, '') from unnest(p_queue_ids) u
   where u is not null and not exists (select 1 from absurd.idle i where i.queue_id = u and i.channel = p_channel)
      on conflict do nothing;
end
$$;

-- Purpose: the worker on a channel is busy again, or gone. Locks: idle rows, SKIP LOCKED.
create or replace function absurd.clear_idle(p_queue_ids integer[], p_channel text)
  returns void language sql security definer
  set search_path = pg_catalog, pg_temp
as $$
  with mine as materialized (
    select i.queue_id, i.channel from absurd.idle i
     where i.queue_id = any(p_queue_ids) and i.channel = p_channel for update skip locked)
  delete from absurd.idle i using mine m where i.queue_id = m.queue_id and i.channel = m.channel
$$;

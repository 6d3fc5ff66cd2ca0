-- Last: version and the clock choice, which survives every re-application of the functions.

-- Purpose: the installed release; `main` for a schema that was installed from a checkout's SQL.
create or replace function absurd.get_schema_version()
  returns text language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$ select coalesce((select s.value from absurd.settings s where s.name = 'version'), 'main') $$;

-- Purpose: whether absurd.fake_now is honoured. Off: the clock function no longer looks at it. For the schema's owner.
create or replace function absurd.set_fake_clock(p_on boolean)
  returns void language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  insert into absurd.settings (name, value) values ('fake_clock', case when p_on then 'on' else 'off' end)
    on conflict (name) do update set value = excluded.value;
  if p_on then
    create or replace function absurd.current_time()
      returns timestamptz language sql volatile parallel safe
      return coalesce(nullif(btrim(current_setting('absurd.fake_now', true)), '')::timestamptz, clock_timestamp());
  else
    create or replace function absurd.current_time()
      returns timestamptz language sql volatile parallel safe
      return clock_timestamp();
  end if;
end
$$;

do $install$
begin
  if exists (select 1 from absurd.settings s where s.name = 'fake_clock' and s.value = 'off') then
    perform absurd.set_fake_clock(false);
  end if;
end
$install$;

-- The pieces the verbs are made of act with the owner's rights and check nothing: only the owner calls them directly.
do $install$
declare
  v_piece regprocedure;
begin
  for v_piece in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'absurd'::regnamespace
       and p.proname in ('add_sentinels', 'cancel_overdue', 'claim_live', 'claimed_again', 'create_queue_views', 'delete_old_events',
                         'delete_old_tasks', 'delete_sentinels', 'delete_tasks', 'fail_held', 'finish_tasks', 'hold_runs',
                         'letters', 'lock_waiters', 'next_ready', 'purge_rows', 'refusal', 'set_fake_clock', 'spawn_one', 'spawned_before',
                         'tell_watchers', 'tidy_queue', 'verdict', 'wake_waiters', 'wake_waiting', 'wake_workers')
  loop
    execute format('revoke execute on function %s from public', v_piece);
  end loop;
end
$install$;

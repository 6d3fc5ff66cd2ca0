-- An upgrade takes the locks that could meet somebody here, all of them together, before it changes anything.
--
-- Taken one by one, by the migrations and views as they come, they close circles with calls under way: a view's reader
-- holds the view and wants its table, an emit holds events and wants live. No one order suits everybody. So this takes them in
-- tries that are over before anybody's deadlock_timeout (one second, unless set), and holds nothing between two of them: nobody is
-- chosen as a victim, and nobody queues for long behind an upgrade that itself waits for somebody's open transaction.
-- It gives up after a minute, or after the session's own lock_timeout if that is set. 55P03.
do $install$
declare
  v_own constant text := current_setting('lock_timeout');
  v_patience constant interval := coalesce(nullif(v_own::interval, interval '0'), interval '1 minute');
  v_began constant timestamptz := clock_timestamp();
  v_until timestamptz;
  v_lock record;
  v_holder record;
begin
  if to_regclass('absurd.live') is null then
    return;
  end if;
  loop
    v_until := clock_timestamp() + least(v_patience, interval '300 milliseconds');
    begin
      for v_lock in
        -- the views made anew, outer before inner, by a change that is none: `lock table` would take their tables, too
        select c.relname, format('alter view absurd.%I alter column %I drop default', c.relname, a.attname) as command, -c.oid::bigint as o
          from pg_class c
          join pg_attribute a on a.attrelid = c.oid and a.attnum = 1
         where c.relnamespace = 'absurd'::regnamespace and c.relkind = 'v' and c.relname !~ '^[trcew]_'
        union all
        -- the tables that migrations not yet recorded lock, in the order of docs/lock-order.md: name them here
        select t.relname, format('lock table absurd.%I in %s mode', t.relname, t.mode), t.o
          from (values (1, 4, 'events', 'access exclusive'), (2, 3, 'live', 'exclusive'), (3, 3, 'attempts', 'share'))
               t(o, migration, relname, mode)
         where not exists (select from absurd.migrations m where m.number = t.migration)
         order by o
      loop
        perform set_config('lock_timeout', greatest(1, ceil(extract(epoch from v_until - clock_timestamp()) * 1000))::text, true);
        execute v_lock.command;
      end loop;
      perform set_config('lock_timeout', v_own, true);
      return;
    exception when lock_not_available or deadlock_detected then
      if clock_timestamp() - v_began > v_patience then
        select a.pid, a.xact_start into v_holder
          from pg_locks k
          join pg_stat_activity a on a.pid = k.pid
         where k.relation = to_regclass(format('absurd.%I', v_lock.relname)) and k.granted and k.pid <> pg_backend_pid()
         order by a.xact_start nulls last limit 1;  -- null: of a role that this one may not look at
        raise exception 'the upgrade could not lock absurd.% within % s', v_lock.relname, extract(epoch from v_patience)::float8
          using errcode = '55P03', hint = case when v_holder.pid is null then 'Repeat it.' else format('Process %s has used it%s. '
            'Let its transaction end, or end it with select pg_terminate_backend(%s), and repeat.', v_holder.pid,
            ' since ' || v_holder.xact_start, v_holder.pid) end;
      end if;
      perform pg_sleep(0.2);
    end;
  end loop;
end
$install$;

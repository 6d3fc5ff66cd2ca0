-- An upgrade takes the locks that could meet somebody here, all of them together, before it changes anything.
--
-- Taken one by one, by the migrations and views as they come, they close circles with calls under way: a view's reader
-- holds the view and wants its table, an emit holds events and wants live. No one order suits everybody. So this takes them in
-- tries that are over before deadlock_timeout, and holds nothing between two of them that a call could meet: no circle lasts until
-- somebody is chosen as a victim, and nobody queues for long behind an upgrade that itself waits for an open transaction. (A session
-- that has waited for something else already may look for a deadlock during a try, and find one: its transaction made several calls.)
-- It gives up after a minute, or after the session's own lock_timeout if that is set. 55P03.
do $install$
declare
  v_own constant text := current_setting('lock_timeout');
  v_patience constant interval := coalesce(nullif(v_own::interval, interval '0'), interval '1 minute');
  v_longest constant interval := least(v_patience, 0.8 * least(current_setting('deadlock_timeout')::interval, interval '1 second'));
  v_began constant timestamptz := clock_timestamp();
  -- First what only a vacuum or other DDL holds, as long as it takes: an autovacuum gives way to who waits for a second.
  v_alone boolean := true;
  v_try interval := v_patience;
  v_until timestamptz;
  v_lock record;
  v_pid integer;
  v_since timestamptz;
begin
  if to_regclass('absurd.live') is null then
    return;
  end if;
  loop
    v_until := clock_timestamp() + v_try;
    begin
      for v_lock in
        -- the views made anew, outer before inner, by a change that is none: `lock table` would take their tables, too
        select c.relname, format('alter view absurd.%I alter column %I drop default', c.relname, a.attname) as command, '{}'::text[] as goes,
               -c.oid::bigint as o
          from pg_class c
          join pg_attribute a on a.attrelid = c.oid and a.attnum = 1
         where not v_alone and c.relnamespace = 'absurd'::regnamespace and c.relkind = 'v' and c.relname !~ '^[trcew]_'
           and pg_has_role(c.relowner, 'usage')
        union all
        -- the tables that migrations not yet recorded lock, in the order of docs/lock-order.md: name them here
        select t.relname, format('lock table absurd.%I in %s mode', t.relname, m.mode), m.goes, t.o
          from (values (1, 4, 'events', 'access exclusive'), (2, 3, 'live', 'exclusive'), (3, 3, 'attempts', 'share'))
               t(o, migration, relname, mode)
          join (values ('share update exclusive', '{AccessShareLock,RowShareLock,RowExclusiveLock}'::text[]),
                       ('share', '{AccessShareLock,RowShareLock,ShareLock}'), ('exclusive', '{AccessShareLock}'), ('access exclusive', '{}'))
               m(mode, goes) on m.mode = case when v_alone then 'share update exclusive' else t.mode end
         where not exists (select from absurd.migrations d where d.number = t.migration)
         order by o
      loop
        perform set_config('lock_timeout', greatest(1, ceil(extract(epoch from v_until - clock_timestamp()) * 1000))::text, true);
        execute v_lock.command;
      end loop;
      exit when not v_alone;
      v_alone := false;
      v_try := 0.4 * v_longest;
    exception when lock_not_available or deadlock_detected then
      if clock_timestamp() - v_began > v_patience then
        select k.pid, a.xact_start into v_pid, v_since
          from pg_locks k
          left join pg_stat_activity a on a.pid = k.pid
         where k.relation = to_regclass(format('absurd.%I', v_lock.relname)) and k.granted and k.mode <> all (v_lock.goes)
           and k.database = (select d.oid from pg_database d where d.datname = current_database()) and k.pid is distinct from pg_backend_pid()
         order by a.xact_start nulls last limit 1;  -- null: of a role that this one may not look at, or prepared
        raise exception 'the upgrade could not lock absurd.% within % s', v_lock.relname, extract(epoch from v_patience)::float8
          using errcode = '55P03', hint = case
            when v_pid is not null then format('Process %s has used it%s. Let its transaction end, or end it with '
              'select pg_terminate_backend(%s), and repeat.', v_pid, ' since ' || v_since, v_pid)
            else 'Repeat it; if it happens again, look for a prepared transaction in pg_prepared_xacts.' end;
      end if;
      perform pg_sleep(extract(epoch from v_try));
      v_try := least(1.2 * v_try, v_longest);
    end;
  end loop;
  perform set_config('lock_timeout', v_own, true);
end
$install$;

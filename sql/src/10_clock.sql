-- The clock. Every "now" of the engine is absurd.current_time().

-- Purpose: now; the setting absurd.fake_now replaces it (tests, demonstrations) until set_fake_clock(false).
create or replace function absurd.current_time()
  returns timestamptz language sql volatile parallel safe
  return coalesce(
    nullif(btrim(current_setting('absurd.fake_now', true)), '')::timestamptz,
    clock_timestamp());

-- Purpose: a moment that many seconds after another; beyond the calendar it is infinity.
create or replace function absurd.later(p_from timestamptz, p_seconds double precision)
  returns timestamptz language sql immutable parallel safe
  return case when p_seconds is null then null
              when p_seconds > 1e11 then 'infinity'::timestamptz
              else p_from + make_interval(secs => p_seconds) end;

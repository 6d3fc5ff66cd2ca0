-- What became of a run: asked only when a verb found no row it could write.

-- Purpose: run_state and task_state of a run ('p','s','r' while live; null when there is no such run) and the claim
-- number under which it ended, or lives.
create or replace function absurd.verdict(
    p_queue_id integer, p_task_id uuid, p_attempt integer,
    out run_state "char", out task_state "char", out claim_no integer)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v_attempt integer;
begin
  select l.state, l.attempt, l.claim_no into task_state, v_attempt, claim_no
    from absurd.live l where l.queue_id = p_queue_id and l.task_id = p_task_id;
  if v_attempt = p_attempt then
    run_state := task_state;
    return;
  end if;
  if v_attempt is null then
    select e.task_state into task_state
      from absurd.attempts e where e.queue_id = p_queue_id and e.task_id = p_task_id and e.task_state is not null;
  end if;
  claim_no := null;
  select a.state, a.claim_no into run_state, claim_no
    from absurd.attempts a where a.queue_id = p_queue_id and a.task_id = p_task_id and a.attempt = p_attempt;
end
$$;

-- Purpose: the letter of a row that an array verb could not write. p_verb: complete fail schedule await checkpoint extend.
--   r replayed: this very call has happened (same claim)   b busy: locked by somebody else, repeat it
--   c cancelled   f failed   l lost: the run goes on elsewhere, or ended otherwise   m missing: no such run
create or replace function absurd.refusal(
    p_queue_id integer, p_task_id uuid, p_attempt integer, p_claim_no integer, p_verb text, p_step text default null)
  returns text language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  v record;
begin
  select * into v from absurd.verdict(p_queue_id, p_task_id, p_attempt);
  if v.run_state is null then
    return case when v.task_state = 'x' then 'c' else 'm' end;
  elsif v.run_state = 'x' then
    return 'c';
  elsif v.run_state = 'f' then
    return case when v.task_state = 'x' then 'c' else 'f' end;
  elsif v.run_state = 'r' then
    return case when p_claim_no is null or v.claim_no = p_claim_no then 'b' else 'l' end;
  elsif v.claim_no is distinct from p_claim_no then
    return 'l';
  elsif p_verb = 'checkpoint' then  -- replayed only if its row is there: it may share a batch with what ended the run
    return case when exists (select 1 from absurd.checkpoints c
                              where c.queue_id = p_queue_id and c.task_id = p_task_id and c.name = p_step
                                and c.attempt = p_attempt) then 'r' else 'l' end;
  elsif v.run_state = 'c' then
    return case when p_verb in ('complete', 'extend') then 'r' else 'l' end;
  else  -- asleep, or already woken, under the same claim
    return case when p_verb in ('schedule', 'await', 'extend') then 'r' else 'l' end;
  end if;
end
$$;

-- Purpose: raise what the public contract says about a run that a single-row verb could not write.
-- complete and fail ask the run; checkpoint, extend and await ask the task first; schedule never answers AB00x.
create or replace function absurd.raise_refusal(p_queue_name text, p_queue_id integer, p_run_id uuid, p_verb text)
  returns void language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  v record;
begin
  select * into v from absurd.verdict(p_queue_id, absurd.task_id_of(p_run_id), absurd.attempt_of(p_run_id));
  if v.run_state is null or absurd.attempt_of(p_run_id) = 0 then
    case p_verb
      when 'fail' then raise exception 'Run "%" cannot be failed in queue "%"', p_run_id, p_queue_name;
      when 'schedule' then raise exception 'Run "%" is not currently running in queue "%"', p_run_id, p_queue_name;
      when 'checkpoint' then raise exception 'Run "%" not found for checkpoint', p_run_id;
      when 'await' then raise exception 'Run "%" not found while awaiting event', p_run_id;
      else raise exception 'Run "%" not found in queue "%"', p_run_id, p_queue_name;
    end case;
  end if;
  if p_verb in ('checkpoint', 'extend', 'await') and v.task_state = 'x'
     or p_verb in ('complete', 'fail') and v.run_state = 'x' then
    raise exception 'Task "%" has been cancelled', absurd.task_id_of(p_run_id) using errcode = 'AB001';
  end if;
  if p_verb in ('complete', 'fail', 'checkpoint', 'extend') and v.run_state = 'f' then
    raise exception 'Run "%" has already failed', p_run_id using errcode = 'AB002';
  end if;
  case p_verb
    when 'fail' then raise exception 'Run "%" cannot be failed in queue "%"', p_run_id, p_queue_name;
    when 'await' then raise exception 'Run "%" must be running to await events', p_run_id;
    else raise exception 'Run "%" is not currently running in queue "%"', p_run_id, p_queue_name;
  end case;
end
$$;

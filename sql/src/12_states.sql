-- States, as one letter in the tables and one word outside.
--   p pending   s sleeping   r running   c completed   f failed   x cancelled

create or replace function absurd.state_name(p_state "char")
  returns text language sql immutable parallel safe
  return case p_state when 'p' then 'pending' when 's' then 'sleeping' when 'r' then 'running'
                      when 'c' then 'completed' when 'f' then 'failed' when 'x' then 'cancelled' end;

-- Purpose: a text argument that must hold something.
create or replace function absurd.require_text(p_value text, p_what text)
  returns text language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_value is null or btrim(p_value) = '' then
    raise exception '% must be provided', p_what;
  end if;
  return p_value;
end
$$;

-- Purpose: refuse a transaction whose snapshot is older than its locks: it would not see who began to wait since, and
-- leave them asleep. SQLSTATE 25001.
create or replace function absurd.require_read_committed(p_verb text)
  returns void language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    raise exception '% needs READ COMMITTED, this transaction is %', p_verb, upper(current_setting('transaction_isolation'))
      using errcode = '25001', hint = 'Begin it with "isolation level read committed", or call this in a transaction of its own.';
  end if;
end
$$;

-- Purpose: array arguments of one call must be of one length; null stands for an absent one. SQLSTATE AB004.
create or replace function absurd.require_length(p_length integer, p_other integer, p_what text)
  returns void language plpgsql immutable
  set search_path = pg_catalog, pg_temp
as $$
begin
  if p_other is distinct from p_length and p_other is not null then
    raise exception '% holds % values for % rows', p_what, p_other, p_length using errcode = 'AB004',
      hint = 'Array arguments of one call have one length.';
  end if;
end
$$;

-- Purpose: one letter per row, as the array verbs answer: the letter at p_ordinal replaced.
create or replace function absurd.put_letter(p_letters text, p_ordinal bigint, p_letter text)
  returns text language sql immutable strict parallel safe
  return overlay(p_letters placing p_letter from p_ordinal::int for 1);

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

-- Purpose: one letter per row, as the array verbs answer: the letter at p_ordinal replaced.
create or replace function absurd.put_letter(p_letters text, p_ordinal bigint, p_letter text)
  returns text language sql immutable strict parallel safe
  return overlay(p_letters placing p_letter from p_ordinal::int for 1);

-- A single spawn needs no function of its own any more, and spawn_tasks has an argument more.
drop function if exists absurd.spawn_one(integer, integer, uuid, text, jsonb, text, jsonb);
drop function if exists absurd.spawn_tasks(integer, text[], jsonb[], uuid[], text[], text[], integer[], jsonb[]);

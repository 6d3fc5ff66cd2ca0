-- spawn_tasks and fail_runs have an argument more; calls of the shorter forms find them by their defaults.
drop function if exists absurd.spawn_tasks(integer, text[], jsonb[], uuid[], text[], text[], integer[], jsonb[]);
drop function if exists absurd.fail_runs(integer, uuid[], integer[], jsonb[], timestamptz[], boolean[]);

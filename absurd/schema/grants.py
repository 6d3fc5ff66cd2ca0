"""Least privilege: what each role may do, as SQL to review and run.

Four roles, each with the rights of its job and no more. The procedures run with the rights of the schema's owner, so a role
needs `execute` on them, and no rights on tables beyond reading what its job reads.

    owner     everything: whoever installs and upgrades (the owner of the schema; nothing is granted)
    worker    claims tasks and runs them: spawns, emits, settles, keeps house
    emitter   spawns tasks, emits events, asks for results
    viewer    reads: the views, and what the command line and the dashboard show
"""

from __future__ import annotations

import re

ROLES = ("worker", "emitter", "viewer")

#: helpers without effect, that views and clients of every role call
_HELPERS = (
    "attempt_of", "current_time", "expiry", "later", "queue_id_of", "queue_ids", "run_id_of", "state_name", "task_id_of",
    "task_outcome", "uuidv7_floor", "uuidv7_timestamp", "waits_for_events", "waits_for_tasks", "get_schema_version",
    "id_millis", "usable_id", "mint_id", "id_base", "portable_uuidv7",
)  # fmt: skip
_READS = (
    "check_invariants", "get_queue_policy", "get_task_checkpoint_state", "get_task_checkpoint_states", "get_task_result",
    "list_queues", "locate_task", "queue_stands", "retry_delay_seconds", "search_events", "search_tasks", "search_waits",
    "task_history", "unserved_tasks", "validate_queue_name", "workers_seen",
)  # fmt: skip
_EMITS = (
    "spawn_task", "spawn_tasks", "spawn_minted", "emit_event", "emit_events", "emit_one", "get_task_result", "watch_task",
    "wake",
)  # fmt: skip
_WORKS = (
    "await_event", "await_events", "await_tasks", "cancel_task", "cancel_tasks", "claim_task", "claim_tasks", "clear_idle",
    "complete_run", "complete_runs", "enforce_policies", "extend_claim", "extend_claims", "fail_run", "fail_runs",
    "get_task_checkpoint_state", "get_task_checkpoint_states", "hold_run", "housekeep", "retry_task", "running_run",
    "schedule_run", "schedule_runs", "set_checkpoints", "set_idle", "set_task_checkpoint_state", "take_housekeeping",
    "task_history", "try_emit_events", "unserved_tasks",
)  # fmt: skip

#: role -> names of the functions it may call
FUNCTIONS = {
    "worker": frozenset((*_HELPERS, *_EMITS, *_WORKS)),
    "emitter": frozenset((*_HELPERS, *_EMITS)),
    "viewer": frozenset((*_HELPERS, *_READS)),
}
#: role -> relations it may read; "views" stands for the read model and the views of each queue
RELATIONS = {"worker": ("queues",), "emitter": (), "viewer": ("queues", "settings", "migrations", "views")}

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}")


def script(prefix: str = "absurd_") -> str:
    """The SQL that makes the roles `<prefix>worker`, `<prefix>emitter` and `<prefix>viewer` where they are missing, takes
    everything else from everybody but the owner, and grants each role its job. Run it as the owner, again after every
    upgrade: it is repeatable. ValueError for a prefix that makes no plain role name.
    """
    if not _NAME.fullmatch(f"{prefix}worker"):
        raise ValueError(f"prefix must be lower-case letters, digits and _, not {prefix!r}")
    parts = [_HEAD, *(_ROLE.format(role=prefix + role) for role in ROLES), _REVOKE]
    for role in ROLES:
        functions = ", ".join(f"'{name}'" for name in sorted(FUNCTIONS[role]))
        relations = ", ".join(f"'{name}'" for name in RELATIONS[role] if name != "views") or "''"
        views = "true" if "views" in RELATIONS[role] else "false"
        parts.append(_GRANT.format(role=prefix + role, functions=functions, relations=relations, views=views))
    return "\n".join([*parts, "commit;", ""])


_HEAD = """\
-- Roles of an Absurd schema. Made by `absurdctl grants`; run it as the schema's owner, again after every upgrade.
begin;
"""
_ROLE = """\
do $$ begin
  if not exists (select from pg_catalog.pg_roles where rolname = '{role}') then
    create role {role} nologin;
  end if;
end $$;
"""
_REVOKE = """\
-- by default everybody may execute a function
revoke all on schema absurd from public;
revoke execute on all functions in schema absurd from public;
"""
_GRANT = """\
grant usage on schema absurd to {role};
do $$
declare
  v_thing record;
begin
  for v_thing in
    select p.oid::regprocedure as name from pg_catalog.pg_proc p
     where p.pronamespace = 'absurd'::regnamespace and p.proname in ({functions})
  loop
    execute format('grant execute on function %s to {role}', v_thing.name);
  end loop;
  for v_thing in
    select c.oid::regclass as name from pg_catalog.pg_class c
     where c.relnamespace = 'absurd'::regnamespace and (c.relname in ({relations}) or {views} and c.relkind = 'v')
  loop
    execute format('grant select on %s to {role}', v_thing.name);
  end loop;
end $$;
"""

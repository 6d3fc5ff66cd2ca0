"""Each role can do its job, and nothing else."""

from __future__ import annotations

import inspect
import itertools
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from absurd.queries import Query, detail, events, health, overview, queues, tasks, waits
from absurd.queries import run as ask
from absurd.queries.events import EventFilter
from absurd.queries.tasks import TaskFilter
from absurd.queries.waits import WaitFilter
from absurd.schema import grants
from tests.fixtures.postgres import Connection, needs_superuser
from tests.sql.driver import Queue

_numbers = itertools.count()


class Roles:
    """The roles of one database, under names of their own: roles belong to the server."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.prefix = f"absurd_t{os.getpid()}_{next(_numbers)}_"
        conn.execute(grants.script(self.prefix))
        conn.execute(grants.script(self.prefix))  # repeatable

    @contextmanager
    def being(self, role: str) -> Iterator[None]:
        self.conn.execute(f"set role {self.prefix}{role}")
        try:
            yield
        finally:
            self.conn.execute("reset role")


@pytest.fixture
def roles(conn: Connection) -> Iterator[Roles]:
    needs_superuser(conn, "makes roles")
    made = Roles(conn)
    yield made
    for role in grants.ROLES:
        conn.execute(f"drop owned by {made.prefix}{role}")
        conn.execute(f"drop role {made.prefix}{role}")


def denied(conn: Connection, *statements: str) -> None:
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(statement)


ADMIN = (
    "select absurd.create_queue('mine')",
    "select absurd.drop_queue('q')",
    "select absurd.purge_queue('q')",
    "select absurd.set_queue_policy('q', '{}')",
    "select absurd.cleanup_tasks('q', 1)",
    "select absurd.set_fake_clock(true)",
    "delete from absurd.tasks",
    "select * from absurd.tasks",
    "select absurd.finish_tasks(1, now(), '{}', 'c', 'c', null, null)",
)


def test_a_worker_runs_tasks_and_manages_nothing(q: Queue, roles: Roles) -> None:
    with roles.being("worker"):
        q.spawn(max_attempts=2)
        (run,) = q.claim()
        q.checkpoint(run, "s", 1, extend_by=60)
        q.await_event(run, "e")
        q.emit("e", 1)
        (again,) = q.claim()
        q.fail(again["run_id"])
        (second,) = q.claim()
        q.complete(second["run_id"], "done")
        assert q.result(run["task_id"])["result"] == "done"
        assert q.conn.execute("select queue_name from absurd.queues").fetchall() == [("q",)]
        denied(q.conn, *ADMIN)


def test_an_emitter_spawns_and_emits_and_claims_nothing(q: Queue, roles: Roles) -> None:
    with roles.being("emitter"):
        spawned = q.spawn(idempotency_key="k", priority=3)
        q.emit("e", 1)
        assert q.result(spawned["task_id"])["state"] == "pending"
        denied(
            q.conn,
            *ADMIN,
            "select * from absurd.claim_task('q', 'w')",
            f"select absurd.cancel_task('q', '{spawned['task_id']}')",
            "select * from absurd.t_q",
        )


def test_a_viewer_reads_and_changes_nothing(q: Queue, roles: Roles) -> None:
    spawned = q.spawn()
    with roles.being("viewer"):
        assert q.task(spawned["task_id"])["state"] == "pending"
        for view in ("all_tasks", "all_runs", "all_events", "all_waits", "queue_counts"):
            q.conn.execute(f"select * from absurd.{view}")
        assert q.result(spawned["task_id"])["state"] == "pending"
        assert q.violations() == []
        denied(
            q.conn,
            *ADMIN,
            "select absurd.spawn_task('q', 't', '1')",
            "select absurd.emit_event('q', 'e')",
            "delete from absurd.events",
        )


def _questions(task_id: uuid.UUID) -> dict[str, Query[Any]]:
    """Every question of absurd.queries, but those of retention, which write or belong to who cleans up."""
    return {
        "tasks.find": tasks.find(TaskFilter(states=("pending", "failed"), text="x")),
        "tasks.get": tasks.get(task_id),
        "events.find": events.find(EventFilter(waiters=True)),
        "events.payload": events.payload("q", "an event"),
        "waits.find": waits.find(WaitFilter()),
        "queues.find": queues.find(),
        "queues.get": queues.get("q"),
        "queues.counts": queues.counts(),
        "overview.find": overview.find(),
        "overview.workers": overview.workers(),
        "overview.pulse": overview.pulse(),
        "detail.get": detail.get(task_id),
        "detail.checkpoints": detail.checkpoints("q", task_id),
        "detail.payload": detail.payload("q", task_id, "params"),
        "health.violations": health.violations(),
    }


def test_a_viewer_can_ask_every_question_of_the_read_model(q: Queue, roles: Roles) -> None:
    run = q.start()
    q.checkpoint(run, "s", 1)
    q.await_event(run, "e")
    q.emit("other", 1)
    questions = _questions(run["task_id"])
    modules = (tasks, events, waits, queues, overview, detail, health)
    defined = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and "Query" in str(value.__annotations__["return"])
    }
    assert defined == set(questions)
    with roles.being("viewer"):
        for query in questions.values():
            ask(q.conn, query)


@pytest.mark.parametrize("role", grants.ROLES)
def test_a_search_path_of_ones_own_gives_no_rights(q: Queue, roles: Roles, role: str) -> None:
    """The functions run as the owner: what they call must not be what the caller has put in front."""
    q.spawn()
    q.conn.execute("create schema theirs")
    q.conn.execute(f"grant all on schema theirs to {roles.prefix}{role}")
    with roles.being(role):
        body = "begin delete from absurd.tasks; return null; end"
        q.conn.execute(f"create function theirs.btrim(text) returns text language plpgsql as $$ {body} $$")
        q.conn.execute(f"create function theirs.clock_timestamp() returns timestamptz language plpgsql as $$ {body} $$")
        q.conn.execute("set search_path = theirs, pg_catalog, absurd")
        if role != "viewer":
            q.spawn()
        q.conn.execute("select * from absurd.get_task_result('q', gen_random_uuid())")
        q.conn.execute("set search_path = default")
    assert q.value("select count(*) from absurd.tasks") == (1 if role == "viewer" else 2)


def test_nobody_else_can_call_anything(q: Queue, roles: Roles) -> None:
    q.conn.execute(f"create role {roles.prefix}stranger")
    try:
        with roles.being("stranger"):
            denied(q.conn, "select absurd.spawn_task('q', 't', '1')", "select absurd.current_time()")
    finally:
        q.conn.execute(f"drop role {roles.prefix}stranger")


def test_the_functions_that_are_granted_exist(conn: Connection) -> None:
    found = {
        name
        for (name,) in conn.execute(
            "select proname from pg_proc where pronamespace = 'absurd'::regnamespace"
        ).fetchall()
    }
    for role, functions in grants.FUNCTIONS.items():
        assert functions <= found, role


@pytest.mark.parametrize("prefix", ["", "Absurd_", "a b", "x; drop role y; --", "é"])
def test_a_prefix_that_makes_no_role_is_refused(prefix: str) -> None:
    if prefix:
        with pytest.raises(ValueError, match="prefix"):
            grants.script(prefix)
    else:
        assert "create role worker" in grants.script("")

"""What every command says, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tests.cli.engine import Engine
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection


def test_init_and_version(shell: Shell, empty_database_url: str) -> None:
    shell.url = empty_database_url
    shell.run("schema-version")
    shell.run("schema-version", "--json")
    shell.run("list-queues")
    shell.run("migrate")
    shell.run("init")
    shell.run("init")
    shell.run("init", "--ref", "0.100.0")
    shell.run("init", "--ref", "0.4.0")
    shell.run("schema-version")
    shell.run("schema-version", "--json")
    shell.run("verify")
    shell.run("uninstall", input="no\n")
    shell.run("uninstall", "--yes")
    shell.run("uninstall", "--yes")
    shell.run("schema-version")
    shell.matches("init")


def test_migrate(shell: Shell, conn: Connection) -> None:
    conn.execute("update absurd.settings set value = '0.0.9' where name = 'version'")
    shell.run("migrate", "--dry-run")
    shell.run("schema-version")
    shell.run("migrate")
    shell.run("migrate")
    shell.run("migrate", "--to", "0.0.1")
    shell.run("migrate", "--dump-sql")
    conn.execute("update absurd.settings set value = '99.0' where name = 'version'")
    shell.run("migrate")
    shell.run("verify")
    shell.matches("migrate")


def test_queues(shell: Shell) -> None:
    shell.run("list-queues")
    shell.run("create-queue", "orders")
    shell.run("create-queue", "orders")
    shell.run("create-queue", "two words")
    shell.run("create-queue", "")
    shell.run("create-queue", "parts", "--storage-mode", "partitioned")
    shell.run("create-queue", "parts", "--storage-mode", "sideways")
    shell.run("list-queues")
    shell.run("list-queues", "--json")
    shell.run("drop-queue", "orders", input="y\n")
    shell.run("drop-queue", "orders", input="")
    shell.run("drop-queue", "orders", input="yes\n")
    shell.run("drop-queue", "orders", "--yes")
    shell.run("drop-queue", "two words", "-y")
    shell.run("list-queues")
    shell.run("queue-policy", "orders")
    shell.matches("queues")


def test_queue_policy(shell: Shell) -> None:
    shell.run("create-queue", "orders")
    shell.run("queue-policy", "orders")
    shell.run(
        "queue-policy", "orders", "--cleanup-ttl", "7 days", "--cleanup-limit", "10", "--default-max-attempts", "3"
    )
    shell.run("queue-policy", "orders", "--detach-mode", "EMPTY", "--detach-min-age", "1 day", "--json")
    shell.run("queue-policy", "orders", "--partition-lookahead", "2 weeks", "--partition-lookback", "1 week")
    shell.run("queue-policy", "orders", "--cleanup-limit", "0")
    shell.run("queue-policy", "orders", "--cleanup-ttl", "soon")
    shell.run("queue-policy", "orders", "--default-partition", "enabled")
    shell.run("queue-policy", "nope")
    shell.matches("queue-policy")


def test_spawn_task(shell: Shell, engine: Engine) -> None:
    shell.run("spawn-task", "ship", "-q", "orders")
    shell.later(1)
    options = ["-P", "id=order-1", "-P", "items:=[1, 2]", "-P", "to.city=Graz", "-H", "trace=t", "-H", "depth:=0"]
    shell.run("spawn-task", "ship", "-q", "orders", *options, "--max-attempts", 2, "--key", "k1", "--priority", 5)
    shell.run("spawn-task", "ship", "-q", "orders", *options, "--max-attempts", 2, "--key", "k1", "--priority", 5)
    shell.later(1)
    retry = ["--retry-base", 0, "--retry-factor", 3, "--retry-max", 60, "--max-duration", 7, "--max-delay", 0]
    shell.run("spawn-task", "ship", "-q", "orders", *retry, "--json")
    shell.later(1)
    shell.run("spawn-task", "ship", "-q", "orders", "--params", "[1]", "--start", "2026-03-01T13:00")
    shell.run("spawn-task", "ship", "-q", "orders", "--max-attempts", 0)
    shell.run("spawn-task", "ship", "-q", "orders", "--retry-kind", "fixed", "--retry-base", "-1")
    shell.run("spawn-task", "ship", "-q", "nope")
    shell.run("list-tasks", "-q", "orders")
    shell.matches("spawn-task")


def test_list_tasks(shell: Shell, engine: Engine, conn: Connection, clock: Clock) -> None:
    shell.run("list-tasks", "-q", "orders")
    engine.spawn("order.ship", {"id": 1})
    engine.complete(engine.claim(), "done")
    clock.advance(conn, 1)
    engine.spawn("order.bill", max_attempts=1)
    engine.fail(engine.claim(), name="Boom", message="no stock")
    clock.advance(conn, 3600)
    engine.spawn("mail")
    engine.wait(engine.claim(), "paid:1")
    shell.later(3700)
    shell.run("list-tasks", "-q", "orders")
    shell.run("list-tasks", "-q", "orders", "-s", "failed", "--status", "completed", "-n", "order.*")
    shell.run("list-tasks", "--all-queues", "-l", 1)
    shell.run("list-tasks", "-q", "orders", "--since", "2026-03-01T12:30", "--json")
    shell.run("list-tasks", "-q", "orders", "--status", "done")
    shell.run("list-tasks", "-q", "orders", "--since", "yesterday")
    shell.run("list-tasks", "-q", "orders", "--after", "here")
    shell.run("list-tasks")
    shell.run("list-queues", "--counts")
    shell.matches("list-tasks")


def test_dump_task(shell: Shell, engine: Engine, conn: Connection, clock: Clock) -> None:
    strategy = {"kind": "fixed", "base_seconds": 5}
    task = engine.spawn(
        "ship", {"order": 7}, headers={"trace": "t"}, max_attempts=2, retry_strategy=strategy, priority=3,
        idempotency_key="order-7", cancellation={"max_duration": 9000},
    )  # fmt: skip
    shell.run("dump-task", "--task-id", task)
    run = engine.claim()
    engine.step(run, "reserve", {"items": ["a", "b"]})
    shell.run("dump-task", "--run-id", run)
    clock.advance(conn, 1.5)
    engine.fail(run, name="Boom", message="no stock", traceback="Traceback:\n  line 1\nBoom: no stock")
    shell.later(2)
    shell.run("dump-task", task)
    clock.advance(conn, 6)
    run = engine.claim()
    engine.wait(run, "paid:7", timeout=30)
    shell.later(6)
    shell.run("dump-task", task)
    clock.advance(conn, 40)
    run = engine.claim()
    engine.wait(run, "paid:7", timeout=30)
    engine.step(run, "bad\x1b[31mname", None)
    clock.advance(conn, 1)
    engine.fail(run, name="Late", message="nobody paid")
    shell.later(60)
    shell.run("dump-task", task)
    shell.run("dump-task", "--task-id", task, "--json")
    shell.matches("dump-task")


def test_dump_task_of_completed_and_cancelled(shell: Shell, engine: Engine, conn: Connection, clock: Clock) -> None:
    done = engine.spawn("ship")
    engine.wait(engine.claim(), "paid:7")
    clock.advance(conn, 1)
    engine.emit("paid:7", {"amount": 3})
    clock.advance(conn, 1)
    engine.complete(engine.claim(), {"ok": True})
    gone = engine.spawn("bill")
    conn.execute("select absurd.cancel_task('orders', %s)", (gone,))
    shell.later(9)
    shell.run("dump-task", done)
    shell.run("dump-task", gone)
    shell.run("dump-task")
    shell.run("dump-task", done, "--run-id", gone)
    shell.run("dump-task", "--task-id", "12")
    shell.run("dump-task", "--task-id", "01935bf7-8a25-7c92-b123-456789ab0000")
    shell.matches("dump-task-ended")


def test_task_result(shell: Shell, engine: Engine) -> None:
    task = engine.spawn("ship", max_attempts=1)
    shell.run("task-result", task)
    shell.run("task-result", task, "--wait", 0)
    engine.complete(engine.claim(), {"ok": True, "name": "Grüße"})
    shell.run("task-result", task)
    shell.run("task-result", task, "--wait", 5, "--json")
    failed = engine.spawn("ship", max_attempts=1)
    engine.fail(engine.claim(), name="Boom", message="no stock")
    shell.run("task-result", failed, "-q", "orders")
    shell.run("task-result", failed, "-q", "nope")
    traced = engine.spawn("ship", max_attempts=1)
    trace = 'Traceback (most recent call last):\n  File "ship.py", line 1, in ship\nBoom: no stock\n'
    engine.fail(engine.claim(), name="Boom", message="no stock", traceback=trace)
    shell.run("task-result", traced)
    shell.run("dump-task", traced)
    asleep = engine.spawn("ship")
    engine.wait(engine.claim(), "paid:1", timeout=60)
    shell.run("task-result", asleep, "--wait", 0)
    shell.run("task-result", "01935bf7-8a25-7c92-b123-456789ab0000")
    shell.matches("task-result")


def test_retry_and_cancel(shell: Shell, engine: Engine) -> None:
    task = engine.spawn("ship", max_attempts=1)
    shell.run("retry-task", task, "-q", "orders")
    engine.fail(engine.claim(), name="Boom")
    shell.run("retry-task", task, "-q", "orders", "--max-attempts", 1)
    shell.run("retry-task", task, "-q", "orders")
    shell.run("cancel-task", task, "-q", "orders")
    shell.run("cancel-task", task, "-q", "orders")
    failed = engine.spawn("ship", max_attempts=1)
    engine.fail(engine.claim(), name="Boom")
    shell.run("retry-task", failed, "-q", "orders", "--spawn-new")
    shell.run("retry-task", failed, "-q", "orders", "--max-attempts", 4, "--json")
    done = engine.spawn("ship", priority=9)
    engine.complete(engine.claim())
    shell.run("cancel-task", done, "-q", "orders")
    for command in ("retry-task", "cancel-task"):
        shell.run(command, "01935bf7-8a25-7c92-b123-456789ab0000", "-q", "orders")
        shell.run(command, done)
        shell.run(command, done, "-q", "order")
    again = engine.spawn("ship", max_attempts=1)
    shell.run("cancel-task", str(again)[:-4] + "0002")
    shell.run("cancel-task", str(again)[:-4] + "0001")
    shell.matches("retry-cancel")


def test_a_task_in_two_queues_is_changed_only_in_the_one_that_is_named(
    shell: Shell, engine: Engine, conn: Connection
) -> None:
    engine.queue("mails")
    conn.execute("select set_config('absurd.fake_now', '', false)")
    row = conn.execute("select absurd.portable_uuidv7()").fetchone()
    assert row is not None
    task = row[0]
    for queue in ("orders", "mails"):
        engine.spawn("ship", queue=queue, task_id=str(task))
    for command in ("retry-task", "cancel-task"):
        said = shell.run(command, task)
        assert said.code == 2
        assert "orders" in said.err
        assert "mails" in said.err
        assert "-q" in said.err
    assert shell.run("cancel-task", task, "-q", "mails").code == 0
    assert shell.run("list-tasks", "-a", "-s", "pending").out.count("queue=orders") == 1


def test_many_queues_are_not_all_named(shell: Shell, engine: Engine) -> None:
    for number in range(12):
        engine.queue(f"q{number}")
    said = shell.run("list-tasks", "-q", "order")
    assert said.code == 3
    assert "did you mean 'orders'? Existing queues: orders, q0, q1, " in said.err
    assert "and 3 more (`absurdctl list-queues`); create it with `absurdctl create-queue order`" in said.err


def test_events(shell: Shell, engine: Engine) -> None:
    shell.run("list-events", "-q", "orders")
    engine.spawn("ship")
    engine.wait(engine.claim(), "paid:1", timeout=60)
    shell.run("list-events", "-q", "orders", "--waiters")
    shell.run("list-events", "-q", "orders", "--json")
    shell.run("emit-event", "paid:1", "-q", "orders", "-P", "amount:=99.99", "-P", "by.card=visa")
    shell.run("emit-event", "paid:1", "-q", "orders", "--payload", "2")
    shell.later(60)
    shell.run("emit-event", "paid:1", "-q", "orders", "--payload", "2", "--mode", "next")
    shell.run("emit-event", "done", "-q", "orders")
    shell.run("emit-event", "paid:2", "-q", "nope")
    shell.run("emit-event", "", "-q", "orders")
    shell.run("list-events", "-q", "orders")
    shell.run("list-events", "-a", "--limit", 1, "--name", "paid:*", "--state", "emitted")
    shell.run("list-events", "-q", "orders", "-n", "done", "--json")
    shell.run("list-events", "-q", "orders", "--since", "2026-03-02")
    shell.matches("events")


def test_list_waits(shell: Shell, engine: Engine, conn: Connection, clock: Clock) -> None:
    shell.run("list-waits", "-q", "orders")
    engine.spawn("ship")
    engine.wait(engine.claim(), "paid:0")
    clock.advance(conn, 5)
    shell.later(5)
    engine.spawn("ship")
    engine.wait(engine.claim(), "paid:1", timeout=60)
    shell.run("list-waits", "-q", "orders")
    shell.run("list-waits", "-a", "-e", "paid:1", "--json")
    shell.run("list-waits", "-q", "nope")
    shell.run("list-waits", "-a", "--after", "here")
    shell.matches("list-waits")


def test_waits_are_walked_page_by_page(shell: Shell, engine: Engine) -> None:
    for number in range(3):
        engine.spawn("ship")
        engine.wait(engine.claim(), f"paid:{number}")
    first = shell.run("list-waits", "-a", "-e", "paid:*", "-l", 2)
    rest = shell.run("list-waits", "-a", "--after", first.err.split("--after ")[1].strip())
    assert (first.out.count("$awaitEvent:"), rest.out.count("$awaitEvent:")) == (2, 1)
    assert sorted(set(re.findall(r"\bpaid:\d", first.out + rest.out))) == ["paid:0", "paid:1", "paid:2"]


def test_overview(shell: Shell, engine: Engine) -> None:
    engine.queue("mails")
    for _ in range(3):
        engine.spawn("mail", queue="mails")
    engine.claim("mails")
    shell.later(90)
    shell.run("overview")
    shell.run("overview", "--limit", 1)
    shell.run("overview", "--after", "mails")
    shell.run("overview", "--json")
    shell.run("overview", "--after", "orders")
    shell.matches("overview")


def test_cleanup_and_purge(shell: Shell, engine: Engine) -> None:
    for number in range(3):
        engine.spawn("ship")
        engine.complete(engine.claim())
        engine.emit(f"e{number}")
    engine.spawn("ship")
    shell.run("cleanup", "orders", 1)
    shell.later(2 * 86400)
    shell.run("cleanup", "orders", 1, "--dry-run")
    shell.run("cleanup", "orders", 1, "--limit", 2)
    shell.run("cleanup", "orders", 1, "-n")
    shell.run("cleanup", "--all")
    shell.run("cleanup", "--all", "--dry-run")
    shell.run("cleanup", "orders")
    shell.run("cleanup", "orders", "-1")
    shell.run("cleanup", "nope", 1)
    shell.run("cleanup", "--all", "orders")
    shell.run("purge-queue", "orders", input="no\n")
    shell.run("purge-queue", "orders", "--yes")
    shell.run("list-tasks", "-q", "orders")
    shell.matches("cleanup")


def test_verify(shell: Shell, engine: Engine, conn: Connection) -> None:
    engine.spawn("ship")
    shell.run("verify")
    shell.run("verify", "--queue", "orders", "--json")
    conn.execute("delete from absurd.live")
    shell.run("verify", "-q", "orders")
    shell.run("verify", "--json")
    shell.run("verify", "-q", "nope")
    shell.matches("verify")


def test_help_version_and_unknown_commands(shell: Shell) -> None:
    assert shell.run().out == shell.run("--help").out == shell.run("help").out
    shell.transcript.clear()
    shell.run()
    shell.run("help", "emit-event")
    shell.run("--version")
    shell.run("destroy")
    shell.run("help", "spawn")
    shell.run("list-task")
    shell.run("-h")
    shell.run("list-tasks", "--colour")
    shell.matches("help")


def test_install_skill(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell.run("install-skill")
    shell.run("install-skill")
    shell.run("install-skill", "--force")
    shell.run("install-skill", "else/where")
    shell.matches("install-skill")
    for folder in (".agents/skills", "else/where"):
        assert (tmp_path / folder / "absurd" / "SKILL.md").read_text(encoding="utf-8").startswith("---\nname: absurd\n")

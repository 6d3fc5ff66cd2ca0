"""The released absurdctl 0.5.1 against our schema: every command that does not concern partitions or pg_cron."""

from __future__ import annotations

import re
from subprocess import CompletedProcess

import pytest

from tests.compat.conftest import AbsurdCtl, StartClient
from tests.fixtures.postgres import Connection

pytestmark = pytest.mark.compat

SPAWN = (
    *("spawn-task", "order", "-q", "orders", "--params", '{"sku": "cup"}', "-P", "order=9", "-P", "gift.wrap:=true"),
    *("-H", "trace=abc", "--max-attempts", "4", "--retry-kind", "fixed", "--retry-base", "5"),
    *("--max-duration", "900", "--max-delay", "600"),
)


def spawned(done: CompletedProcess[str]) -> tuple[str, str, int]:
    """Task id, run id and attempt out of what a spawn or a retry prints."""
    found = re.search(r"Task ID: (\S+)\n  Run ID: (\S+)\n  Attempt: (\d+)", done.stdout)
    assert found is not None, done.stdout
    return found[1], found[2], int(found[3])


def test_queues_are_made_listed_and_dropped(absurdctl: AbsurdCtl, conn: Connection) -> None:
    assert absurdctl("list-queues").stdout.strip() == ""
    assert absurdctl("create-queue", "orders").stdout == "Queue 'orders' created successfully\n"
    absurdctl("create-queue", "orders", "--storage-mode", "unpartitioned")
    absurdctl("create-queue", "it's a queue")
    assert absurdctl("list-queues").stdout.split("\n")[:2] == ["it's a queue", "orders"]
    absurdctl("spawn-task", "t", "-q", "it's a queue")
    assert absurdctl("drop-queue", "it's a queue", "--yes").stdout == "Queue 'it's a queue' dropped successfully\n"
    assert absurdctl("list-queues").stdout.strip() == "orders"
    assert "does not exist" in absurdctl("drop-queue", "it's a queue", "--yes", ok=False).stderr


def test_a_spawn_keeps_every_option(absurdctl: AbsurdCtl, conn: Connection) -> None:
    absurdctl("create-queue", "orders")
    done = absurdctl(*SPAWN)
    assert done.stdout.startswith("Task spawned successfully:\n")
    task, run, attempt = spawned(done)
    assert attempt == 1
    row = conn.execute(
        """select task_id::text, last_attempt_run::text, params, headers, max_attempts, retry_strategy, cancellation
           from absurd.t_orders"""
    ).fetchone()
    assert row == (
        task,
        run,
        {"sku": "cup", "order": "9", "gift": {"wrap": True}},
        {"trace": "abc"},
        4,
        {"kind": "fixed", "base_seconds": 5},
        {"max_delay": 600, "max_duration": 900},
    )
    assert "Queue 'nowhere' does not exist" in absurdctl("spawn-task", "t", "-q", "nowhere", ok=False).stderr


def test_tasks_are_listed_by_queue_name_and_state(absurdctl: AbsurdCtl, client: StartClient) -> None:
    worker = client("python")
    for queue in ("orders", "other"):
        absurdctl("create-queue", queue)
    assert "No tasks found" in absurdctl("list-tasks").stdout
    task, run, _ = spawned(absurdctl(*SPAWN))
    unlimited, _, _ = spawned(absurdctl("spawn-task", "later", "-q", "other"))
    worker.call("work")
    blocks = absurdctl("list-tasks", "-q", "orders").stdout
    assert blocks.startswith(f"task_id={task}\n  run_id={run}\n  attempts=1/4\n  age=")
    assert "\n  queue=orders\n  task_name=order\n  status=sleeping\n" in blocks
    assert blocks.endswith("Total: 1 task(s)\n")
    assert f"task_id={unlimited}" in absurdctl("list-tasks", "-s", "pending").stdout
    assert "attempts=1/∞" in absurdctl("list-tasks", "-n", "later").stdout
    assert "Total: 1 task(s)" in absurdctl("list-tasks", "-l", "1").stdout
    assert "Total: 2 task(s)" in absurdctl("list-tasks").stdout
    assert "No tasks found" in absurdctl("list-tasks", "-s", "failed").stdout


def test_an_order_is_run_by_its_events_and_dumped_along_the_way(absurdctl: AbsurdCtl, client: StartClient) -> None:
    worker = client("node")
    absurdctl("create-queue", "orders")
    task, run, _ = spawned(absurdctl(*SPAWN))
    worker.call("work")
    waiting = absurdctl("dump-task", "--task-id", task).stdout
    for line in (
        "Current status:    sleeping",
        "Queue:             orders",
        "Step:            $awaitEvent:payment:9",
        "Wake event:      payment:9",
        "Wake at:         infinity",
        "Attempt:           1 of 4",
        "reserve (committed)",
        '"trace": "abc"',
    ):
        assert line in waiting
    emitted = absurdctl("emit-event", "payment:9", "-q", "orders", "--payload", '{"amount": 5}', "-P", "by.card:=true")
    assert emitted.stdout == "Event 'payment:9' emitted successfully to queue 'orders'\n"
    worker.call("work")
    absurdctl("emit-event", "delivery:9", "-q", "orders")
    worker.call("work")
    done = absurdctl("dump-task", "--run-id", run).stdout
    assert "Current status:    completed" in done
    assert "WAIT STATES" not in done
    final = done[done.index("FINAL STATE") : done.index("CHECKPOINTS")]
    assert '"amount": 5' in final
    assert '"parcel": "parcel-9"' in final
    for step in ("$awaitEvent:delivery:9", "ship", "$awaitEvent:payment:9", "reserve"):
        assert f"  {step} (committed)\n" in done[done.index("CHECKPOINTS") :]


def test_a_failed_task_is_dumped_retried_and_cancelled(absurdctl: AbsurdCtl, client: StartClient) -> None:
    worker = client("absurd-async")
    absurdctl("create-queue", "orders")
    task, run, _ = spawned(absurdctl("spawn-task", "flaky", "-q", "orders", "--max-attempts", "1"))
    worker.call("work")
    dump = absurdctl("dump-task", "--task-id", task).stdout
    assert "Attempt:           1 of 1" in dump
    assert '"message": "card declined"' in dump[dump.index("FAILURE") :]
    anew = absurdctl("retry-task", task, "-q", "orders", "--spawn-new", "--max-attempts", "3")
    assert anew.stdout.startswith("Task respawned successfully:\n")
    assert spawned(anew)[0] != task
    again = absurdctl("retry-task", task, "-q", "orders")
    assert again.stdout.startswith("Task retried successfully:\n")
    assert spawned(again) == (task, run[:-1] + "2", 2)
    both = absurdctl("dump-task", "--task-id", task).stdout
    assert both.count("Run ID:") == 2, "every run is shown"
    assert absurdctl("cancel-task", task, "-q", "orders").stdout == f"Task {task} cancelled in queue 'orders'\n"
    refused = absurdctl("retry-task", task, "-q", "orders", ok=False)
    assert f'Task "{task}" is not currently failed in queue "orders"' in refused.stderr


def test_a_policy_is_set_and_shown(absurdctl: AbsurdCtl) -> None:
    absurdctl("create-queue", "orders")
    given = {
        "partition_lookahead": "3 days",
        "partition_lookback": "2 days",
        "cleanup_ttl": "35 days",
        "cleanup_limit": "7",
        "detach_mode": "empty",
        "detach_min_age": "9 days",
    }
    options = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    shown = absurdctl("queue-policy", "orders", *options).stdout
    assert shown == absurdctl("queue-policy", "orders").stdout
    assert shown.splitlines() == [
        "Queue policy for 'orders':",
        "  storage_mode: unpartitioned",
        "  default_partition: enabled",
        *(f"  {key}: {value}" for key, value in given.items()),
    ]
    refused = absurdctl("queue-policy", "orders", "--default-partition", "disabled", ok=False)
    assert "partitioned queues only" in refused.stderr
    assert "Queue 'nowhere' does not exist" in absurdctl("queue-policy", "nowhere", ok=False).stderr


def test_cleanup_deletes_in_batches_what_the_dry_run_counted(absurdctl: AbsurdCtl, client: StartClient) -> None:
    worker = client("python")
    absurdctl("create-queue", "orders")
    for number in range(3):
        worker.call("spawn", task="steps", params={})
        worker.call("emit", event=f"e{number}")
    waiting, _, _ = spawned(absurdctl("spawn-task", "waiter", "-q", "orders", "-P", "event=never"))
    worker.call("work", batch_size=9)
    assert worker.call("result", task_id=waiting)["state"] == "sleeping"
    dry = absurdctl("cleanup", "orders", "0", "--dry-run").stdout
    assert "Would delete 3 tasks and 4 events" in dry  # the steps emit one, and a name only waited for is no event
    done = absurdctl("cleanup", "orders", "0", "--limit", "2").stdout
    assert "Deleted 2 tasks, 2 events\n" in done
    assert "Cleanup complete: 3 tasks, 4 events deleted in" in done
    assert worker.call("result", task_id=waiting)["state"] == "sleeping"
    assert "Queue 'nowhere' does not exist" in absurdctl("cleanup", "nowhere", "0", ok=False).stderr


def test_the_schema_has_a_version_and_is_not_theirs_to_install(absurdctl: AbsurdCtl, conn: Connection) -> None:
    from absurd import schema

    assert absurdctl("schema-version").stdout == f"{schema.VERSION}\n"
    functions = "select array_agg(p.oid::regprocedure || md5(p.prosrc) order by p.oid) from pg_proc p " \
                "where pronamespace = 'absurd'::regnamespace"  # fmt: skip
    before = conn.execute(functions).fetchone()
    assert "already exists" in absurdctl("init", ok=False).stderr
    absurdctl("migrate", ok=False)
    assert conn.execute(functions).fetchone() == before, "nothing was changed"


@pytest.mark.parametrize(
    "command",
    [
        ("create-queue", "weekly", "--storage-mode", "partitioned"),
        ("cron", "--enable"),
        ("list-detach-candidates",),
        ("detach-candidate", "t_orders_053"),
    ],
)
def test_what_concerns_partitions_and_pg_cron_is_refused(absurdctl: AbsurdCtl, command: tuple[str, ...]) -> None:
    refused = absurdctl(*command, ok=False)
    assert "not available yet" in refused.stderr or "does not exist" in refused.stderr
    assert absurdctl("list-queues").stdout.strip() == ""

"""Tasks: spawn, list, dump, result, retry, cancel."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import click

from absurd.cli import options, output, timeline
from absurd.cli.connection import Target
from absurd.cli.options import Command, Identifier, Json, Moment, json_option, pass_target, queue_option
from absurd.errors import ConfigError, TaskNotFound, TaskTerminal, TimeoutError
from absurd.queries import document, filled, tasks, why
from absurd.queries.tasks import STATES, Task, TaskDetail, TaskFilter
from absurd.types import TaskResultSnapshot

_ID = Identifier()
_found_queue_option = click.option("-q", "--queue", metavar="NAME", help="Its queue; found by itself otherwise.")


@click.command("spawn-task", cls=Command)
@click.argument("name", metavar="NAME")
@queue_option
@click.option(
    "-P", "--param", "pairs", multiple=True, metavar="K=V", help="A key of the params: k=text, k:=json, a.b=text."
)
@click.option("--params", type=Json(), metavar="JSON", help="The params as a whole; -P sets keys in it.")
@click.option("-H", "--header", "header_pairs", multiple=True, metavar="K=V", help="A header: k=text or k:=json.")
@click.option("--max-attempts", type=int, metavar="N", help="Attempts at most; else what the queue says, else 5.")
@click.option("--retry-kind", type=click.Choice(["none", "fixed", "exponential"]), help="Pause between attempts.")
@click.option("--retry-base", type=options.Number(), metavar="S", help="Seconds of the first pause.")
@click.option(
    "--retry-factor", type=options.Number(), metavar="F", help="What each pause is multiplied with to make the next."
)
@click.option("--retry-max", type=options.Number(), metavar="S", help="Longest pause, in seconds.")
@click.option(
    "--max-duration", type=options.Number(), metavar="S", help="Cancel this many seconds after the first start."
)
@click.option(
    "--max-delay", type=options.Number(), metavar="S", help="Cancel if it has not started after this many seconds."
)
@click.option("--key", metavar="KEY", help="Idempotency key: a second spawn with it answers with the first task.")
@click.option("--priority", type=int, metavar="N", help="-1000 to 1000; higher is claimed first.")
@click.option("--start", type=options.FutureMoment(), metavar="WHEN", help="Not before: 30m, 12h, or a moment.")
@json_option
@pass_target
def spawn_task(
    target: Target,
    /,
    name: str,
    queue: str,
    pairs: tuple[str, ...],
    params: list[Any] | None,
    header_pairs: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Ask for a task to be done.

    \b
    Examples:
      absurdctl spawn-task ship -q orders -P id=order-1 -P items:='["a", "b"]'
      absurdctl spawn-task report --params '{"year": 2026}' --retry-kind fixed --retry-base 60
      absurdctl spawn-task remind -P user.id:=7 --start 2h --key remind-7
    """
    value = options.payload(params, pairs, "--params", {})
    chosen = _spawn_options(given, options.headers(header_pairs))
    target.require_queue(queue)
    spawned = target.client(queue).spawn(name, value, queue=queue, **chosen)
    if as_json:
        output.data(dict(spawned))
        return
    if not spawned["created"]:
        output.note(f"The key {given['key']!r} belongs to this task already: nothing was spawned.")
    output.line("Task spawned successfully:")
    _print_run(spawned)


@click.command("list-tasks", cls=Command)
@queue_option
@click.option("-a", "--all-queues", is_flag=True, help="Every queue.")
@click.option("-n", "--task-name", metavar="NAME", help="This name, or a prefix: order.*")
@click.option("-s", "--status", multiple=True, type=click.Choice(list(STATES)), help="State; may be repeated.")
@click.option("--id", "task_id", type=_ID, metavar="ID", help="The task of this id, or of this run.")
@click.option("--since", type=Moment(), metavar="WHEN", help="Spawned since: 30m, 7d, or a moment.")
@click.option("--until", type=Moment(), metavar="WHEN", help="Spawned before.")
@click.option("--text", metavar="TEXT", help="Params that contain this; may read every task the other filters leave.")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Tasks at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where another list ended.")
@json_option
@pass_target
def list_tasks(target: Target, /, queue: str, all_queues: bool, as_json: bool, **given: Any) -> None:
    """List tasks, the newest first.

    \b
    Examples:
      absurdctl list-tasks -q orders -s failed --since 24h
      absurdctl list-tasks -a -n 'order.*' --json
    """
    if not all_queues:
        target.require_queue(queue)
    which = TaskFilter(
        queue=None if all_queues else queue,
        name=given["task_name"],
        states=given["status"],
        id=given["task_id"],
        since=given["since"],
        until=given["until"],
        text=given["text"],
        limit=given["limit"],
        after=given["after"],
    )
    page = filled(target.ask, tasks.find, which)
    if as_json:
        output.data(document.listed("tasks", page))
        return
    for task in page.items:
        _print_task(task)
    output.line(f"Total: {len(page.items)} task(s)" if page.items else "No tasks found")
    if page.next:
        output.note(f"There are more: --after {page.next}")


@click.command("dump-task", cls=Command)
@click.argument("either_id", metavar="[ID]", type=_ID, required=False)
@click.option("--task-id", type=_ID, metavar="ID", help="The task.")
@click.option("--run-id", type=_ID, metavar="ID", help="One of its runs.")
@json_option
@pass_target
def dump_task(target: Target, either_id: UUID | None, task_id: UUID | None, run_id: UUID | None, as_json: bool) -> None:
    """Show a task as a timeline, and why it is not running.

    Everything known of it: timing, waits, retry, params, headers, checkpoints, every run, how it ended. Looks in every queue.

    \b
    Examples:
      absurdctl dump-task --task-id 01935bf7-8a25-7c92-b123-456789ab0000
      absurdctl dump-task 01935bf7-8a25-7c92-b123-456789ab0000 --json
    """
    given = [each for each in (either_id, task_id, run_id) if each is not None]
    if len(given) != 1:
        raise click.UsageError("Give one of --task-id and --run-id.")
    detail = _detail(target, given[0])
    if as_json:
        output.data(document.told(detail))
    else:
        timeline.show(detail)


@click.command("task-result", cls=Command)
@click.argument("task_id", metavar="ID", type=_ID)
@_found_queue_option
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Wait this long for the task to end.")
@json_option
@pass_target
def task_result(target: Target, task_id: UUID, queue: str | None, wait: float | None, as_json: bool) -> int:
    """Print a task's state and its result, or its failure.

    Exit code 1 when the task failed or was cancelled, 3 when there is none, 5 when it did not end in time.

    \b
    Examples:
      absurdctl task-result 01935bf7-8a25-7c92-b123-456789ab0000
      absurdctl task-result 01935bf7-8a25-7c92-b123-456789ab0000 --wait 30 --json
    """
    found = _detail(target, task_id, queue).task
    if wait is not None and found.finished_at is None:
        snapshot = _awaited(target, found, wait)
    else:
        snapshot = target.client(found.queue_name).fetch_task_result(found.task_id)
    if snapshot is None:
        raise _not_found(task_id)
    if as_json:
        answer = {"task_id": found.task_id, "queue_name": found.queue_name, "state": snapshot.state}
        output.data({**answer, "result": snapshot.result, "failure": snapshot.failure})
    else:
        output.line(snapshot.state)
        if snapshot.state == "completed":
            output.block(snapshot.result, indent="")
        elif snapshot.state == "failed":
            output.failed(snapshot.failure)
    return 1 if snapshot.state in ("failed", "cancelled") else 0


@click.command("retry-task", cls=Command)
@click.argument("task_id", metavar="ID", type=_ID)
@_found_queue_option
@click.option("--max-attempts", type=int, metavar="N", help="New limit of attempts; else one more than there were.")
@click.option("--spawn-new", is_flag=True, help="Spawn a copy that starts over; the failed task stays.")
@json_option
@pass_target
def retry_task(
    target: Target, task_id: UUID, queue: str | None, max_attempts: int | None, spawn_new: bool, as_json: bool
) -> None:
    """Give a failed task another attempt.

    It goes on after its last checkpoint; a copy (--spawn-new) starts over.

    \b
    Examples:
      absurdctl retry-task 01935bf7-8a25-7c92-b123-456789ab0000
      absurdctl retry-task 01935bf7-8a25-7c92-b123-456789ab0000 -q orders --spawn-new
    """
    found = _the_task(target, task_id, queue)
    run = target.client(found.queue_name).retry_task(found.task_id, max_attempts=max_attempts, spawn_new=spawn_new)
    if as_json:
        output.data(dict(run))
        return
    output.line("Task respawned successfully:" if spawn_new else "Task retried successfully:")
    _print_run(run)


@click.command("cancel-task", cls=Command)
@click.argument("task_id", metavar="ID", type=_ID)
@_found_queue_option
@pass_target
def cancel_task(target: Target, task_id: UUID, queue: str | None) -> None:
    """Cancel a task that has not ended.

    A worker that runs it stops at its next step. Exit code 4 when the task completed or failed before.

    \b
    Example:
      absurdctl cancel-task 01935bf7-8a25-7c92-b123-456789ab0000
    """
    found = _the_task(target, task_id, queue)
    client = target.client(found.queue_name)
    client.cancel_task(found.task_id)
    snapshot = client.fetch_task_result(found.task_id)
    if snapshot is not None and snapshot.state in ("completed", "failed"):
        raise TaskTerminal(f"Task {found.task_id} {snapshot.state} before; there is nothing to cancel")
    output.line(f"Task {found.task_id} cancelled in queue '{found.queue_name}'")


def _spawn_options(given: dict[str, Any], headers: dict[str, Any] | None) -> dict[str, Any]:
    """Only what was given; zeros are values too."""
    retry = {
        "kind": given["retry_kind"],
        "base_seconds": given["retry_base"],
        "factor": given["retry_factor"],
        "max_seconds": given["retry_max"],
    }
    retry = {name: value for name, value in retry.items() if value is not None}
    if retry:
        retry.setdefault("kind", "exponential")
    limits = {"max_duration": given["max_duration"], "max_delay": given["max_delay"]}
    start: datetime | None = given["start"]
    chosen = {
        "max_attempts": given["max_attempts"],
        "retry_strategy": retry or None,
        "cancellation": {name: value for name, value in limits.items() if value is not None} or None,
        "headers": headers,
        "idempotency_key": given["key"],
        "priority": given["priority"],
        "start_at": start,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _awaited(target: Target, task: Task, seconds: float) -> TaskResultSnapshot | None:
    """How the task ended; TimeoutError, which says how it stands, when it has not."""
    client = target.client(task.queue_name)
    try:
        return client.await_task_result(task.task_id, timeout=seconds)
    except TimeoutError:
        late = _detail(target, task.task_id, task.queue_name)
    if late.task.finished_at is not None:
        return client.fetch_task_result(task.task_id)
    text = f"Task {task.task_id} did not end within {seconds:g} seconds: it is {late.task.state}"
    if late.task.state == "pending" and late.task.started_at is None:
        text += ", no worker has claimed it"
    raise TimeoutError(f"{text}.\n{why.explain(late)}")


def _detail(target: Target, task_or_run_id: UUID, queue: str | None = None) -> TaskDetail:
    if queue is not None:
        target.require_queue(queue)
    detail = target.ask(tasks.get(task_or_run_id, queue))
    if detail is None:
        raise _not_found(task_or_run_id, queue)
    return detail


def _the_task(target: Target, task_or_run_id: UUID, queue: str | None) -> Task:
    """The one task of this id; ids are unique in a queue only, and nothing is changed on a guess."""
    if queue is not None:
        target.require_queue(queue)
    found = target.ask(tasks.find(TaskFilter(queue=queue, id=task_or_run_id))).items
    if not found:
        raise _not_found(task_or_run_id, queue)
    if len(found) > 1:
        names = ", ".join(output.plain(each.queue_name) for each in found)
        raise ConfigError(f"Queues {names} hold a task {found[0].task_id} each", hint="say which one with -q")
    return found[0]


def _not_found(task_or_run_id: UUID, queue: str | None = None) -> TaskNotFound:
    where = f"in queue '{queue}'" if queue else "in any queue of this database"
    return TaskNotFound(f"There is no task or run {task_or_run_id} {where}")


def _print_run(run: Any) -> None:
    output.fields([("Task ID", run["task_id"]), ("Run ID", run["run_id"]), ("Attempt", run["attempt"])])


def _print_task(task: Task) -> None:
    limit = "unlimited" if task.max_attempts is None else task.max_attempts
    pairs: list[tuple[str, object]] = [
        ("run_id", task.run_id),
        ("attempts", f"{task.attempt}/{limit}"),
        ("age", why.span(task.as_of - task.enqueue_at)),
        ("queue", task.queue_name),
        ("task_name", task.task_name),
        ("status", task.state),
    ]
    if task.wake_event and task.state == "sleeping":
        pairs.append(("waits_for", task.wake_event))
    if task.error:
        pairs.append(("error", task.error))
    output.line(f"task_id={task.task_id}")
    for name, value in pairs:
        output.line(f"  {name}={output.plain(str(value))}")
    output.line()

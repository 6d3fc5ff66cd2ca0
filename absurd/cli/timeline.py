"""One task, told in the order in which things happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from absurd.cli import output
from absurd.queries import why
from absurd.queries.tasks import Checkpoint, Run, TaskDetail, Wait
from absurd.queries.values import Json

_EVENT, _TASK = "$awaitEvent:", "$awaitTaskResult:"


class Entry(NamedTuple):
    """What happened when. `order` sorts what shares a moment: spawn, timeouts, claims, checkpoints, ends, waits."""

    at: datetime
    order: int
    text: str
    more: tuple[str, ...] = ()


def show(detail: TaskDetail) -> None:
    """Print it all: who, when, what for, what happened, how it stands."""
    task = detail.task
    limit = "without limit" if task.max_attempts is None else f"of {task.max_attempts}"
    output.line(f"Task {task.task_id}")
    output.fields(
        [
            ("Name", task.task_name),
            ("Queue", task.queue_name),
            ("State", task.state),
            ("Attempts", f"{task.attempt} {limit}"),
            ("Run", task.run_id),
            ("Priority", task.priority or None),
            ("Key", task.idempotency_key),
            ("Why", why.explain(detail)),
        ]
    )
    output.section("Timing")
    output.fields(
        [
            ("Spawned", output.moment(task.enqueue_at)),
            ("First start", output.moment(task.first_started_at)),
            ("Last start", output.moment(task.started_at)),
            ("Due", output.moment(task.due_at) if task.state in ("pending", "sleeping") else None),
            ("Claimed until", output.moment(task.lease_until) if task.state == "running" else None),
            ("Cancels at", output.moment(task.cancel_at) if task.finished_at is None else None),
            ("Ended", output.moment(task.finished_at)),
        ]
    )
    _show_waits(detail)
    _show_values(detail)
    output.section("Timeline")
    start = task.enqueue_at
    for entry in sorted(entries(detail), key=lambda each: each[:2]):
        output.line(f"  {output.moment(entry.at)}  +{why.span(entry.at - start):<8} {entry.text}")
        for line in entry.more:
            output.line(f"      {output.plain(line)}")
    _show_end(detail)


def entries(detail: TaskDetail) -> Iterator[Entry]:
    """Everything with a moment, in no order."""
    yield Entry(detail.task.enqueue_at, 0, "spawned")
    for run in detail.runs:
        yield from _run(run, detail.checkpoints)
    for checkpoint in detail.checkpoints:
        yield Entry(checkpoint.updated_at, 1 if checkpoint.outcome else 3, _checkpoint(checkpoint))
    for wait in detail.waits:
        yield Entry(wait.created_at, 5, f"waits for {_awaited(wait)}")


def _run(run: Run, checkpoints: tuple[Checkpoint, ...]) -> Iterator[Entry]:
    if run.started_at is not None:
        # a run keeps only its last claim; what it had written before that tells that there was an earlier one
        before = any(each.attempt == run.attempt and _precedes(each, run.started_at) for each in checkpoints)
        by = f" by {output.plain(run.claimed_by)}" if run.claimed_by else ""
        yield Entry(run.started_at, 2, f"attempt {run.attempt} {'resumed' if before else 'claimed'}{by}")
    if run.finished_at is not None:
        text = f"attempt {run.attempt} {run.state}"
        more: tuple[str, ...] = ()
        if run.failure is not None:
            reason, more = _failure(run.failure)
            text += f": {reason}"
        yield Entry(run.finished_at, 4, text, more)


def _precedes(checkpoint: Checkpoint, claim: datetime) -> bool:
    # a timeout is written by the claim that it leads to
    return checkpoint.updated_at < claim or (checkpoint.outcome is not None and checkpoint.updated_at == claim)


def _failure(failure: Any) -> tuple[str, tuple[str, ...]]:
    """One line of a failure, and its traceback."""
    failure = failure.read() if isinstance(failure, Json) else failure
    if not isinstance(failure, dict):
        return output.short(failure), ()
    named = [str(failure[key]) for key in ("name", "message") if failure.get(key)]
    others, trace = output.parted(failure)
    first, *rest = (": ".join(named) or json.dumps(others, ensure_ascii=False)).splitlines() or [""]
    return output.plain(first), tuple(trace or rest)


def _checkpoint(checkpoint: Checkpoint) -> str:
    name = output.plain(checkpoint.name)
    if checkpoint.outcome == "timeout":
        return f"wait {name.removeprefix(_EVENT).removeprefix(_TASK)} timed out"
    value = output.short(checkpoint.state)
    for prefix, text in ((_EVENT, "event {} came: {}"), (_TASK, "task {} ended: {}")):
        if name.startswith(prefix):
            return text.format(name.removeprefix(prefix), value)
    pending = "" if checkpoint.status == "committed" else f" ({output.plain(checkpoint.status)})"
    return f"checkpoint {name}{pending} = {value}"


def _awaited(wait: Wait) -> str:
    if wait.event_name is not None:
        return f"event '{output.plain(wait.event_name)}'"
    return f"task {wait.awaited_task_id} in queue '{output.plain(wait.awaited_queue or '(dropped)')}'"


def _show_waits(detail: TaskDetail) -> None:
    if detail.waits:
        output.section("Waits")
    for wait in detail.waits:
        until = f", until {output.moment(wait.timeout_at)}" if wait.timeout_at else ", without a timeout"
        step = output.plain(wait.step_name)
        output.line(f"  {_awaited(wait)} (step {step}) since {output.moment(wait.created_at)}{until}")


def _show_values(detail: TaskDetail) -> None:
    for title, value in (("Retry", detail.retry_strategy), ("Cancellation", detail.cancellation)):
        if value is not None:
            output.section(title)
            output.line(f"  {output.short(value)}")
    for title, value in (("Params", detail.params), ("Headers", detail.headers)):
        if title == "Params" or value is not None:
            output.section(title)
            output.block(value)
    if detail.checkpoints:
        output.section("Checkpoints")
    for each in detail.checkpoints:
        output.line(f"  {output.plain(each.name)} (attempt {each.attempt})")
        if each.outcome == "timeout":
            output.line("    timed out")
        else:
            output.block(each.state, indent="    ")


def _show_end(detail: TaskDetail) -> None:
    if detail.task.state == "completed":
        output.section("Result")
        output.block(detail.result)
    elif detail.task.state == "failed":
        # the timeline ends with its traceback
        output.section("Failure")
        output.block(output.parted(detail.failure)[0])

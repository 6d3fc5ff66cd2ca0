"""Whether today's code can take up the tasks that wait."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from absurd import ReplayCheck, TaskHistory, queries
from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, json_option, pass_target
from absurd.cli.worker import load_app
from absurd.errors import InvalidOption
from absurd.queries import tasks
from absurd.queries.tasks import State, TaskFilter

_UNFINISHED: tuple[State, ...] = ("pending", "sleeping", "running")
_PAGE = 500


@click.command("replay-check", cls=Command)
@click.argument("app", metavar="MODULE:APP")
@click.option(
    "-q",
    "--queue",
    "queue_names",
    multiple=True,
    metavar="NAME",
    help="May be repeated. Default: every queue the app has tasks for.",
)
@click.option("-n", "--name", metavar="NAME", help="Tasks of this name, or of a prefix: order.*")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), default=10_000, show_default=True, metavar="N", help="Tasks at most."
)
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Also keep the histories there."
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Check kept histories instead of a database.",
)
@json_option
@pass_target
def replay_check(
    target: Target,
    app: str,
    queue_names: tuple[str, ...],
    name: str | None,
    limit: int,
    save: Path | None,
    source: Path | None,
    as_json: bool,
) -> int:
    """Say which waiting tasks today's code would break.

    Runs the handlers of MODULE:APP over what each unfinished task has recorded, with effects off: steps, emits and spawns do
    not happen, code between them does. Exit code 1 if any task would break.

    \b
    Examples:
      absurdctl replay-check orders.app:app
      absurdctl replay-check orders.app:app --save waiting.jsonl
      absurdctl replay-check orders.app:app --from waiting.jsonl
    """
    if any((target.database, target.host, target.port, target.user)):
        os.environ["ABSURD_DATABASE_URL"] = target.conninfo
    client = load_app(app)
    if source is not None:
        histories = _kept(source)
    else:
        histories = list(_recorded(client, queue_names or client._registry.queues(), name, limit))
    if save is not None:
        _keep(save, histories)
        output.note(f"Kept {len(histories)} histories in {save}")
    with contextlib.redirect_stdout(sys.stderr):  # what handlers print is no part of the answer
        checks = _checked(client, histories)
    if as_json:
        output.data([queries.as_json(asdict(check)) for check in checks])
    else:
        _show(checks, len(histories) >= limit and source is None)
    return 1 if any(check.breaks for check in checks) else 0


def _recorded(client: Any, queue_names: tuple[str, ...], name: str | None, limit: int) -> Iterator[TaskHistory]:
    """The unfinished tasks that have recorded something, or wait, newest first."""
    with contextlib.closing(client.make_sync()) as asking, asking._session.connection() as conn:
        for queue in queue_names:
            after = None
            left = limit
            while left > 0:
                which = TaskFilter(queue=queue, name=name, states=_UNFINISHED, limit=min(_PAGE, left), after=after)
                page = queries.run(conn, tasks.find(which))
                for task in page.items:
                    history = asking.fetch_history(task.task_id, queue)
                    if history is not None and not history.task_name.startswith("$undo:") and _begun(history):
                        left -= 1
                        yield history
                after = page.next
                if after is None:
                    break


def _begun(history: TaskHistory) -> bool:
    return bool(history.steps or history.timeouts or history.waits_at)


def _steps_of_work(length: int) -> contextlib.AbstractContextManager[Any]:
    """A bar where somebody watches."""
    return output.progress("Checking", length) if output.interactive() else contextlib.nullcontext(lambda *_: None)


def _checked(client: Any, histories: list[TaskHistory]) -> list[ReplayCheck]:
    with _steps_of_work(len(histories)) as advance:
        if not inspect.iscoroutinefunction(client.check_replay):
            checks = []
            for history in histories:
                checks.append(client.check_replay(history))
                advance(1, "")
            return checks

        async def run() -> list[ReplayCheck]:
            found = []
            for history in histories:
                found.append(await client.check_replay(history))
                advance(1, "")
            await client.close()
            return found

        return asyncio.run(run())


def _show(checks: list[ReplayCheck], more: bool) -> None:
    groups = Counter((check.breaks, check.task_name, check.why) for check in checks)
    rows = [
        (task_name, count, "" if breaks else why, why if breaks else "")
        for (breaks, task_name, why), count in sorted(
            groups.items(), key=lambda item: (-item[0][0], item[0][1], -item[1])
        )
    ]
    if rows:
        output.table(("Task", "Waiting", "Goes on", "Breaks"), rows)
    broken = [check for check in checks if check.breaks]
    output.line(f"{len(checks)} waiting tasks checked, {len(broken)} would break")
    for check in broken[:5]:
        output.note(f"  {check.task_id}  {check.task_name}: {check.why}")
    if more:
        output.note("Hint: there are more tasks; --limit N checks more of them")


def _keep(file: Path, histories: list[TaskHistory]) -> None:
    with file.open("w", encoding="utf-8") as out:
        for history in histories:
            out.write(json.dumps(queries.as_json(asdict(history)), ensure_ascii=False) + "\n")


def _kept(file: Path) -> list[TaskHistory]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            given = json.loads(line)
            for key in ("enqueue_at", "recorded_at"):
                given[key] = datetime.fromisoformat(given[key])
            found.append(TaskHistory(**{**given, "task_id": UUID(given["task_id"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidOption(
                f"line {number} of {file} is no task history: {error}", hint="make the file with replay-check --save"
            ) from None
    return found

"""Pattern 2, one event for many tasks, and the same name again tomorrow.

    $ python patterns/broadcast.py
    day 1: sales read the report of day 1
    day 1: stock read the report of day 1
    day 2: sales read the report of day 2
    day 2: stock read the report of day 2

By default an event is a fact: the first emit of a name wins and is kept, so that it does not matter who comes first.
A name that is used every day needs two words more. The emitter says `mode="next"`: the new payload takes the old
one's place and wakes who waits. The reader says `since="task_start"`: what was emitted before this task was spawned
does not count, so today's task never reads yesterday's report.
"""

from __future__ import annotations

from typing import Any

from absurd import TaskContext
from database import open_app

REPORT = "daily.report.ready"

app = open_app("pattern-broadcast")


@app.register_task("read-report")
def read_report(params: dict[str, Any], ctx: TaskContext) -> str:
    """Wait for the first report that comes after this task was spawned."""
    report = ctx.await_event(REPORT, since="task_start")
    return f"{params['reader']} read the report of {report['date']}"


def one_day(date: str) -> None:
    """Two readers wait, then the report comes."""
    tasks = [app.spawn("read-report", {"reader": reader}) for reader in ("sales", "stock")]
    app.work_batch(batch_size=2)
    app.emit_event(REPORT, {"date": date}, mode="next")
    app.work_batch(batch_size=2)
    for task in tasks:
        print(f"{date}: {app.await_task_result(task['task_id'], timeout=10).result}")


def main() -> None:
    """Two days in a row."""
    one_day("day 1")
    one_day("day 2")
    app.close()


if __name__ == "__main__":
    main()

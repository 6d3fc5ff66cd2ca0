"""The smallest durable task: two steps, one event, one result.

Kill it between two steps and run the task again: what is committed is not done a second time.

    $ python patterns/quickstart.py
    Hello, Ada! You have 3 letters and a reply: "nice to meet you".
"""

from __future__ import annotations

import uuid
from typing import Any

from absurd import TaskContext
from database import open_app

app = open_app("quickstart")


@app.register_task("greet")
def greet(params: dict[str, Any], ctx: TaskContext) -> str:
    """Every step's value is kept: a crash between two of them repeats none that is committed."""
    greeting = ctx.step("greet", lambda: f"Hello, {params['name']}!")
    letters = ctx.step("count", lambda: len(params["name"]))
    reply = ctx.await_event(f"reply:{params['id']}")
    return f'{greeting} You have {letters} letters and a reply: "{reply}".'


def main() -> None:
    """Spawn, work until the task waits, emit, work until it ends."""
    conversation = uuid.uuid4().hex
    task = app.spawn("greet", {"id": conversation, "name": "Ada"})
    app.work_batch()  # in a program of its own this would be app.start_worker()
    app.emit_event(f"reply:{conversation}", "nice to meet you")
    app.work_batch()
    print(app.await_task_result(task["task_id"], timeout=10).result)
    app.close()


if __name__ == "__main__":
    main()

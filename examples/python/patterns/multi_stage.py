"""Pattern 3, stages: one event after the other, with work in between.

    $ python patterns/multi_stage.py
    after stage 1: sleeping
    after stage 2: completed, ['raw data cleaned', 'clean data summed']

The event of stage 2 may come before that of stage 1: it waits until the task asks for it.
"""

from __future__ import annotations

import uuid
from typing import Any

from absurd import TaskContext
from database import open_app

app = open_app("pattern-multi-stage")


@app.register_task("pipeline")
def pipeline(params: dict[str, Any], ctx: TaskContext) -> list[str]:
    """Each stage begins when its event is there and the stage before is committed."""
    workflow_id = params["workflow_id"]
    raw = ctx.await_event(f"stage1.complete:{workflow_id}")
    first = ctx.step("process-stage1", lambda: f"{raw['data']} cleaned")
    clean = ctx.await_event(f"stage2.complete:{workflow_id}")
    second = ctx.step("process-stage2", lambda: f"{clean['data']} summed")
    return [first, second]


def main() -> None:
    """One workflow, stage by stage."""
    workflow_id = uuid.uuid4().hex
    task = app.spawn("pipeline", {"workflow_id": workflow_id})["task_id"]
    app.work_batch()
    app.emit_event(f"stage1.complete:{workflow_id}", {"data": "raw data"})
    app.work_batch()
    between = app.fetch_task_result(task)
    print(f"after stage 1: {between.state if between else 'gone'}")
    app.emit_event(f"stage2.complete:{workflow_id}", {"data": "clean data"})
    app.work_batch()
    ended = app.await_task_result(task, timeout=10)
    print(f"after stage 2: {ended.state}, {ended.result}")
    app.close()


if __name__ == "__main__":
    main()

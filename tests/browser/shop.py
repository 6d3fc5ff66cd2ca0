"""The worker behind the pages: the order demo, and cards that are declined at the first attempt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "python"))

import event_demo

from absurd import TaskContext


@event_demo.app.register_task("charge-card")
def charge_card(params: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    """Declined once, then charged."""
    ctx.step("look-up", lambda: {"card": params["card"]})
    if ctx.attempt == 1:
        raise ConnectionError("the bank does not answer")
    return {"charged": params["card"]}


if __name__ == "__main__":
    event_demo.prepare()
    event_demo.app.start_worker(concurrency=4, housekeeping=False)

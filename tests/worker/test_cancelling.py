"""`start_worker` as a task that is cancelled: it drains, and cancelled again it leaves nothing running in the loop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from absurd import AsyncAbsurd, telemetry
from tests.worker.conftest import Queue

PARTS = ("committer", "keeper", "claimer", "unblock", "slot-0")


def parts() -> set[asyncio.Task[Any]]:
    """The worker's own tasks that are still in the loop."""
    return {task for task in asyncio.all_tasks() if task.get_name() in {f"absurd-{part}" for part in PARTS}}


class Signals:
    """Events of this loop that the engine's signals set."""

    def __init__(self) -> None:
        self._seen: dict[str, asyncio.Event] = {}

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        self.of(name).set()

    def of(self, name: str) -> asyncio.Event:
        return self._seen.setdefault(name, asyncio.Event())


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_worker_that_is_cancelled_again_and_again_leaves_nothing_in_the_loop(
    q: Queue, database_url: str, times: int
) -> None:
    signals = Signals()
    unlisten = telemetry.listen(signals)
    app = AsyncAbsurd(database_url, q.name)
    began = asyncio.Event()

    @app.register_task("work")
    async def work(params: Any, ctx: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    try:
        task_id = q.spawn()
        drain = 0.1 if times == 1 else 3600
        worker = asyncio.create_task(app.start_worker(handle_signals=False, drain_timeout=drain))
        await asyncio.wait_for(began.wait(), 20)
        assert len(parts()) == len(PARTS)
        worker.cancel()
        await asyncio.wait_for(signals.of("worker.draining").wait(), 20)
        for _ in range(times - 1):
            await asyncio.sleep(0)
            worker.cancel()
        await asyncio.wait([worker], timeout=20)
        assert worker.cancelled()
        assert signals.of("worker.stopped").is_set()
        assert not parts()
        assert times > 2 or q.state(task_id) != "running", "handed back"
    finally:
        unlisten()
        for task in parts():
            task.cancel()
        await app.close()

"""A new release under load: each worker is replaced by a new one, and no task notices."""

from __future__ import annotations

import json
import time
from collections import Counter

from tests.worker.conftest import Queue, Start
from tests.worker.process import WorkerProcess

WORKERS = 4
SLOTS = 4
WAVES = 5
WAVE = 400
LEASE = 15  # longer than a slow machine holds up a worker
WORK = [["step", "one", [["say", "one"], ["lasts", 0.01]]], ["step", "two", [["say", "two"]]], ["returns", 1]]


def test_four_workers_replaced_one_by_one_burn_no_attempt(q: Queue, start: Start, world: str) -> None:
    def begun() -> WorkerProcess:
        return start(slots=SLOTS, lease=LEASE)

    serving = [begun().ready() for _ in range(WORKERS)]
    everybody = list(serving)
    spawn_wave(q)
    drains = []
    for _ in range(WORKERS):
        new, old = begun().started(), serving.pop(0)
        serving.append(new)
        everybody.append(new)
        mark = old.mark
        spawn_wave(q)
        old.wait(after=mark, signal="run.started")
        asked = time.monotonic()
        assert old.stop() == 0, old.report()
        drains.append(time.monotonic() - asked)
    wait_drained(q, serving)
    print(f"{world}: {WORKERS} workers left within {sum(drains):.2f} s in all, the slowest within {max(drains):.2f} s")

    runs = q.conn.execute("select attempt, state, count(*)::int from absurd.attempts group by 1, 2").fetchall()
    assert runs == [(1, "c", WAVES * WAVE)], "an attempt was burnt, or a lease ran out"
    said = Counter(
        (line["task_id"], line["said"])
        for one in everybody
        for line in one.lines
        if "task_id" in line and "said" in line
    )
    assert len(said) == 2 * WAVES * WAVE
    assert set(said.values()) == {1}, "a step was interrupted and ran again"
    stopped = everybody[:WORKERS]
    assert all(one.said(one.index(signal="worker.draining"), signal="run.ended") for one in stopped), (
        "nobody was at work"
    )
    for one in serving:
        assert one.stop() == 0


def spawn_wave(q: Queue) -> None:
    """Tasks of two steps, more than the workers have done by the time they are asked to leave."""
    q.conn.execute(
        "select absurd.spawn_task(%s, 'work', %s::jsonb, '{\"max_attempts\": 3}') from generate_series(1, %s)",
        (q.name, json.dumps({"do": WORK}), WAVE),
    )


def wait_drained(q: Queue, serving: list[WorkerProcess]) -> None:
    """Until no task is left."""
    serving[0].wait_until(lambda: q.conn.execute("select from absurd.live limit 1").rowcount == 0, "the last task")

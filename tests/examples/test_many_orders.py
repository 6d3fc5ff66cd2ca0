"""A hundred orders, shuffled events, four workers, and SIGKILL again and again, a good part of it inside steps."""

from __future__ import annotations

import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from absurd import Absurd
from tests.examples import order
from tests.examples.nursery import Nursery, Watch, Worker
from tests.examples.order import Connection

ORDERS = [f"order-{number}" for number in range(10_001, 10_101)]
WORKERS = 4
SEED = 20_250_101
INSIDE, BETWEEN = 24, 22
"""Kills: so many inside a step, so many between steps."""
STEPS = {"reserve-inventory", "ship-order", "$awaitEvent:payment.confirmed", "$awaitEvent:shipment.delivered"}


class Killer:
    """Chooses, by seed, at which of the places that workers come to they die; and keeps the books."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._left = {"inside": INSIDE, "between": BETWEEN}
        self._gap = {"inside": 3, "between": 3}
        self.kills: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self._open: dict[int, set[str]] = defaultdict(set)  # process -> tasks whose shipping step has begun there

    def wants(self, worker: Worker) -> bool:
        """Whether the worker dies at the place where it is."""
        place = worker.place
        assert place is not None
        if place.step == "ship-order":
            self._open[worker.pid].add(place.task)
        else:
            self._open[worker.pid].discard(place.task)
        kind = "inside" if place.step else "between"
        self._gap[kind] -= 1
        if self._left[kind] == 0 or self._gap[kind] > 0:
            return False
        self._left[kind] -= 1
        self._gap[kind] = self._chance.randint(2, 9) if place.step else self._chance.randint(4, 20)
        self.kills[kind] += 1
        # Every shipping step under way in the process dies with it, not only the one we looked at.
        self.hits.update(self._open.pop(worker.pid, set()))
        return True


class Shop:
    """The database, the events still to come, and the workers."""

    def __init__(self, app: Absurd, nursery: Nursery, chance: random.Random) -> None:
        self._app, self._nursery = app, nursery
        self._killer = Killer(chance)
        events = [event for name in ORDERS for event in order.events(name)]
        chance.shuffle(events)
        self._events: Iterator[tuple[str, object]] = iter(events)
        self._watch = Watch()

    def emit(self, count: int) -> bool:
        """Emit the next events; whether there were any."""
        some = list(islice(self._events, count))
        return bool(self._app.emit_many(some))

    def run(self, done: int, count_done: Connection, deadline: float) -> Killer:
        """Work until so many orders are done."""
        workers = {worker.pid: worker for worker in (self._hire() for _ in range(WORKERS))}
        places = 0
        while True:
            ready = self._watch.ready(0.2)
            for worker in ready:
                places += 1
                if worker.next() is None:
                    raise AssertionError("a worker ended by itself")
                if not self._killer.wants(worker):
                    worker.go()
                    continue
                self._watch.drop(worker)
                worker.kill()
                del workers[worker.pid]
                hired = self._hire()
                workers[hired.pid] = hired
            more = (not ready or places % 8 == 0) and self.emit(3)
            if not ready and not more and completed(count_done) == done:
                break
            assert time.monotonic() < deadline, f"{completed(count_done)} of {done} orders after {places} places"
        self._watch.close()
        for worker in workers.values():
            worker.stop()
        return self._killer

    def _hire(self) -> Worker:
        worker = self._nursery.start()
        self._watch.add(worker)
        return worker


def completed(conn: Connection) -> int:
    row = conn.execute("select count(*) from absurd.attempts where task_state = 'c'").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.timeout(180)
def test_a_hundred_orders_survive_forty_kills(
    database_url: str, nursery: Nursery, conn: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    chance = random.Random(SEED)
    with Absurd(database_url, queue_name="examples") as app:
        app.create_queue()
        shop = Shop(app, nursery, chance)
        shop.emit(60)
        requests = [{"task_name": "order-fulfillment", "params": {"order_id": name}} for name in ORDERS]
        spawned = app.spawn_many([{**one, "queue": "examples", "max_attempts": 100} for one in requests])  # type: ignore[typeddict-item]
        tasks = {str(one["task_id"]): name for one, name in zip(spawned, ORDERS, strict=True)}
        killer = shop.run(len(ORDERS), conn, began + 150)
        states = {name: app.fetch_task_result(task) for task, name in tasks.items()}

    shipped = order.effects(conn, "order shipped")
    hits = {tasks[task]: number for task, number in killer.hits.items()}
    repeated = sum(shipped.values()) - len(ORDERS)
    reserved = order.effects(conn, "inventory reserved")
    seconds = time.monotonic() - began
    with capsys.disabled():  # on stderr, which the processes of a parallel run share with the terminal
        print(
            f"\n100 orders, {WORKERS} workers, {seconds:.1f} s"
            f"\n  kills: {killer.kills.total()}, inside a step: {killer.kills['inside']}"
            f"\n  inventory reserved: {sum(reserved.values())} times (a transaction step)"
            f"\n  shipped: {sum(shipped.values())} times, duplicates: {repeated}, shipping steps hit: {sum(hits.values())}",
            file=sys.stderr,
        )
    assert killer.kills.total() >= 40
    assert killer.kills["inside"] >= 15
    assert {name: one and one.result for name, one in states.items()} == {name: order.result(name) for name in ORDERS}
    assert reserved == dict.fromkeys(ORDERS, 1)
    assert set(shipped) == set(ORDERS)
    assert {name: count for name, count in shipped.items() if count > 1 + hits.get(name, 0)} == {}
    assert repeated > 0, "no kill fell between the effect of a plain step and its checkpoint: the test proves little"
    assert left_behind(conn) == []
    assert order.violations(conn) == []


def left_behind(conn: Connection) -> list[object]:
    """Runs that are not over, and (task, step) pairs without exactly one checkpoint."""
    rows = list(conn.execute("select task_id from absurd.live").fetchall())
    question = (
        "select task_id, array_agg(split_part(name, ':order-', 1) order by name) from absurd.checkpoints group by 1"
    )
    per_task: dict[object, list[str]] = dict(conn.execute(question).fetchall())
    wrong = [(task, names) for task, names in per_task.items() if sorted(names) != sorted(STEPS)]
    return [*rows, *wrong, *([] if len(per_task) == len(ORDERS) else [f"{len(per_task)} tasks have checkpoints"])]

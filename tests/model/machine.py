"""Random calls of every verb, single rows and arrays mixed, and what the model says of each.

No rule has a precondition: of several leases that run out at one moment the engine may fail any, so the same choices need not
lead to the same state, and hypothesis insists that they lead to the same choices. What a rule needs, it makes (supply.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.model.reference import SECOND, Task
from tests.model.stage import TTL, Pick, at, plain, seconds
from tests.model.supply import Supply
from tests.sql.driver import Queue, refused, run_of

NUMBER = st.integers(0, 50)
PICKS = st.lists(st.tuples(NUMBER, st.integers(0, 7)), min_size=1, max_size=5)
RETRIES = [
    None,
    {"kind": "fixed", "base_seconds": 7},
    {"kind": "exponential", "base_seconds": 2, "factor": 3, "max_seconds": 10},
]
SPEC = st.fixed_dictionaries(
    {
        "max_attempts": st.sampled_from([None, 1, 2, 3]),
        "retry_strategy": st.sampled_from(RETRIES),
        "priority": st.integers(-2, 2),
        "delay_seconds": st.sampled_from([0, 0, 5]),
        "cancellation": st.sampled_from([None, None, {"max_delay": 6}, {"max_duration": 9}]),
    }
)
NAME = st.sampled_from(["work", "other"])
KEY = st.sampled_from([None, None, "k1", "k2"])
EVENT = st.sampled_from("stuvwxyz")
TIMEOUT = st.sampled_from([None, 0, 4, 40])
PAYLOAD = st.integers(1, 9)


class Machine(Supply):
    """The rules."""

    # ---------------------------------------------------------------- time

    @rule(seconds=st.integers(0, 20))
    def time_passes(self, seconds: int) -> None:
        self.tick()
        self.now += seconds * SECOND

    @rule(number=NUMBER, what=st.sampled_from(["", "claim"]))
    def the_very_moment_comes(self, number: int, what: str) -> None:
        """At which something is due, or over: the next step stands at it, neither before nor after."""
        tasks = [task for task in self.model.tasks.values() if not task.ended]
        moments = {
            m for task in tasks for m in (task.due, task.lease, task.cancel_at) if m is not None and m > self.now
        }
        self.tick()
        if moments:
            self.now = max(self.now, sorted(moments)[number % len(moments)])
            self.exact = True
        if what == "claim":
            self.claimed(1 + number % 6, 30)

    # ---------------------------------------------------------------- spawn

    @rule(name=NAME, spec=SPEC, key=KEY, again=st.integers(0, 9))
    def spawn(self, name: str, spec: dict[str, Any], key: str | None, again: int) -> None:
        """Sometimes one that there is, by its id, as after a lost reply."""
        self.tick()
        if again != 9 or not self.model.tasks:
            self.spawned(name, spec, key)
            return
        task = self.one(again)
        row = self.q.spawn(task.name, task_id=str(task.id))
        assert (row["task_id"], row["attempt"], row["created"]) == (task.id, task.attempt, False)

    @rule(names=st.lists(st.tuples(NAME, KEY), min_size=1, max_size=5), specs=st.lists(SPEC, min_size=1, max_size=2))
    def spawn_tasks(self, names: list[tuple[str, str | None]], specs: list[dict[str, Any]]) -> None:
        self.tick()
        which = [number % len(specs) for number in range(len(names))]
        tasks = [self.task(n, specs[w], k, self.mint()) for (n, k), w in zip(names, which, strict=True)]
        rows = self.q.spawns(
            [task.name for task in tasks], task_ids=[task.id for task in tasks], keys=[task.key for task in tasks],
            spec=[number + 1 for number in which], specs=specs,
        )  # fmt: skip
        for task, row in zip(tasks, rows, strict=True):
            self.agree_on_spawn(task, row)

    # ---------------------------------------------------------------- claim

    @rule(qty=st.integers(1, 6), lease=st.sampled_from([3, 30, 30]))
    def claim(self, qty: int, lease: int) -> None:
        self.tick()
        self.claimed(qty, lease)

    @rule(qty=st.integers(1, 6), lease=st.sampled_from([3, 30, 30]), names=st.sampled_from([None, ["work"], ["other"]]))
    def claim_tasks(self, qty: int, lease: int, names: list[str] | None) -> None:
        """And once more, as after a lost reply."""
        self.tick()
        queue, token = self.q, self.steps
        rows = queue.claims(qty, lease=lease, names=names, token=token)
        expected = self.model.claim(self.now, lease * SECOND, qty, self.swept(queue), names)
        if not expected:
            assert [row["task_id"] for row in rows] == [None]
            return
        fences = [(task.id, task.attempt, task.claim_no) for task in expected]
        assert [(row["task_id"], row["attempt"], row["claim_no"]) for row in rows] == fences
        for task, row in zip(expected, rows, strict=True):
            states = {step: plain(step, value) for step, value in (row["checkpoints"] or {}).items()}
            assert (states, set(row["timeouts"] or ())) == (task.checkpoints, task.timed_out)
        again = queue.claims(qty, lease=lease, names=names, token=token, repeat=True)
        assert sorted((row["task_id"], row["attempt"], row["claim_no"]) for row in again) == sorted(fences)

    # ---------------------------------------------------------------- ends

    @rule(number=NUMBER)
    def complete(self, number: int) -> None:
        self.tick()
        task = self.running(number)
        self.q.complete(run_of(task.id, task.attempt), {"n": number})
        self.model.complete([(task, {"n": number})], self.now)

    @rule(picks=PICKS)
    def complete_runs(self, picks: Sequence[Pick]) -> None:
        self.tick()
        named = self.named(picks)
        letters = self.letters(named, "complete")
        results = ("jsonb", list(range(len(named))))
        assert self.q.letters("complete_runs", self.claims(named), results) == letters
        self.model.complete([(task, n) for n, task in self.writable(named, letters)], self.now)

    @rule(number=NUMBER, retry_in=st.sampled_from([None, None, 0, 6]))
    def fail(self, number: int, retry_in: int | None) -> None:
        self.tick()
        task = self.pick(number, "running", "sleeping") or self.running(number)
        retry_at = None if retry_in is None else self.now + retry_in * SECOND
        self.q.fail(run_of(task.id, task.attempt), None, at(retry_at))
        self.model.fail([(task, "Boom", retry_at, False)], self.now)

    @rule(picks=PICKS, final=st.lists(st.booleans(), min_size=5, max_size=5), retry_in=st.sampled_from([None, 0, 6]))
    def fail_runs(self, picks: Sequence[Pick], final: list[bool], retry_in: int | None) -> None:
        self.tick()
        named = self.named(picks)
        letters = self.letters(named, "fail")
        count = len(named)
        columns = ("timestamptz", [None] * count), ("bool", final[:count]), ("float8", [retry_in] * count)
        assert (
            self.q.letters("fail_runs", self.claims(named), ("jsonb", [{"name": "Boom"}] * count), *columns) == letters
        )
        retry_at = None if retry_in is None else self.now + retry_in * SECOND
        self.model.fail([(task, "Boom", retry_at, final[n]) for n, task in self.writable(named, letters)], self.now)

    @rule(picks=PICKS, single=st.booleans())
    def cancel(self, picks: Sequence[Pick], single: bool) -> None:
        self.tick()
        if single:
            task = self.some(picks[0][0])
            self.q.cancel(task.id)
            self.model.cancel([task], self.now)
            return
        ids = [task_id for task_id, _ in self.named(picks[:2])]
        tasks = [self.model.tasks.get(task_id) for task_id in ids]
        letters = "".join("m" if task is None else "e" if task.ended else "o" for task in tasks)
        assert self.q.cancels(ids) == letters
        self.model.cancel([task for task in tasks if task is not None], self.now)

    @rule(number=NUMBER, more=st.sampled_from([None, None, 1, 2]))
    def retry(self, number: int, more: int | None) -> None:
        self.tick()
        task = self.failed(number)
        limit = None if more is None else task.attempt + more
        row = self.q.retry(task.id, **({} if limit is None else {"max_attempts": limit}))
        self.model.retry(task, self.now, limit)
        assert (row["run_id"], row["created"]) == (run_of(task.id, task.attempt), False)

    @rule(number=NUMBER)
    def retry_as_a_copy(self, number: int) -> None:
        self.tick()
        task = self.failed(number)
        copy = Task(
            self.mint(), task.name, task.rank, task.max_attempts, task.retry, self.now, self.now, None,
            task.max_delay, task.max_duration,
        )  # fmt: skip
        self.agree_on_spawn(copy, self.q.call("retry_task", task.id, {"spawn_new": True, "task_id": str(copy.id)})[0])

    @rule(
        number=NUMBER,
        which=st.integers(0, 9),
        verb=st.sampled_from(["complete", "fail", "extend", "checkpoint", "schedule", "await"]),
    )
    def a_run_that_does_not_run_is_refused(self, number: int, which: int, verb: str) -> None:
        self.tick()
        task = self.some(number)
        attempt = 1 + which % task.attempt
        if attempt == task.attempt and (task.state == "running" or (verb == "fail" and task.state == "sleeping")):
            return
        run = {"task_id": task.id, "run_id": run_of(task.id, attempt)}
        queue = self.q
        calls = {
            "complete": lambda: queue.complete(run["run_id"]),
            "fail": lambda: queue.fail(run["run_id"]),
            "extend": lambda: queue.extend(run["run_id"], 9),
            "checkpoint": lambda: queue.checkpoint(run, "a", 1),
            "schedule": lambda: queue.schedule(run["run_id"], at(self.now)),
            "await": lambda: queue.await_event(run, "unheard of", "never"),
        }
        with refused(self.model.refusal(task, attempt, verb)):
            calls[verb]()

    # ---------------------------------------------------------------- steps and leases

    @rule(number=NUMBER, step=st.sampled_from(["a", "b", "wait z"]), extend=st.sampled_from([None, None, 5]))
    def checkpoint(self, number: int, step: str, extend: int | None) -> None:
        self.tick()
        task = self.running(number)
        self.q.checkpoint({"task_id": task.id, "run_id": run_of(task.id, task.attempt)}, step, number, extend)
        task.keep(step, number)
        if extend is not None:
            self.model.extend(task, self.now + extend * SECOND)

    @rule(picks=PICKS, step=st.sampled_from("ab"), extend=st.sampled_from([None, None, 5]))
    def set_checkpoints(self, picks: Sequence[Pick], step: str, extend: int | None) -> None:
        self.tick()
        named = self.named(picks)
        letters = self.letters(named, "checkpoint", step)
        columns = ("text", [step] * len(named)), ("jsonb", list(range(len(named))))
        tail = "" if extend is None else f", {extend}"
        assert self.q.letters("set_checkpoints", self.claims(named), *columns, tail=tail) == letters
        for n, task in self.writable(named, letters):
            task.keep(step, n)
            if extend is not None:
                self.model.extend(task, self.now + extend * SECOND)

    @rule(number=NUMBER, extend=st.sampled_from([1, 5, 50]))
    def extend_claim(self, number: int, extend: int) -> None:
        self.tick()
        task = self.running(number)
        self.q.extend(run_of(task.id, task.attempt), extend)
        self.model.extend(task, self.now + extend * SECOND)

    @rule(picks=PICKS, extend=st.sampled_from([1, 5, 50]))
    def extend_claims(self, picks: Sequence[Pick], extend: int) -> None:
        self.tick()
        named = self.named(picks)
        letters = self.letters(named, "extend")
        assert self.q.letters("extend_claims", self.claims(named), tail=f", {extend}") == letters
        for _, task in self.writable(named, letters):
            self.model.extend(task, self.now + extend * SECOND)

    # ---------------------------------------------------------------- sleeps and waits

    @rule(number=NUMBER, length=st.integers(0, 9))
    def sleep(self, number: int, length: int) -> None:
        self.tick()
        task = self.running(number)
        until = self.now + length * SECOND
        self.q.schedule(run_of(task.id, task.attempt), at(until))
        self.model.sleep(task, until)

    @rule(picks=PICKS, length=st.integers(0, 9), step=st.sampled_from([None, "nap", "nap 2"]))
    def schedule_runs(self, picks: Sequence[Pick], length: int, step: str | None) -> None:
        self.tick()
        named = self.named(picks)
        letters = self.letters(named, "schedule")
        until, count = self.now + length * SECOND, len(named)
        columns = ("timestamptz", [None] * count), ("float8", [length] * count), ("text", [step] * count)
        runs_on = step is not None and length == 0
        expected = letters.replace("o", "e") if runs_on else letters
        assert self.q.letters("schedule_runs", self.claims(named), *columns) == expected
        for _, task in self.writable(named, letters):
            if step is not None and step not in task.checkpoints:
                task.keep(step, until)
            if not runs_on:
                self.model.sleep(task, until)

    @rule(number=NUMBER, event=EVENT, timeout=TIMEOUT)
    def await_event(self, number: int, event: str, timeout: int | None) -> None:
        self.tick()
        task = self.running(number)
        run = {"task_id": task.id, "run_id": run_of(task.id, task.attempt)}
        asleep, payload = self.q.await_event(run, event, f"wait {event}", timeout)
        answer = self.model.await_event(task, f"wait {event}", event, self.now, seconds(timeout))
        assert answer is not None
        assert asleep == (answer[0] == "s")
        assert (None if payload is None else json.loads(payload)) == answer[1]

    @rule(picks=PICKS, event=EVENT, timeout=TIMEOUT, since=st.sampled_from([None, None, 0, 8]))
    def await_events(self, picks: Sequence[Pick], event: str, timeout: int | None, since: int | None) -> None:
        self.tick()
        named, step = self.named(picks), f"wait {event}"
        letters = self.letters(named, "await", step)
        after = None if since is None else self.now - since * SECOND
        count = len(named)
        rows = self.q.awaits(
            self.claims(named), [step] * count, [event] * count,
            timeouts=[timeout] * count, since=[at(after)] * count,
        )  # fmt: skip
        for (task_id, _), letter, row in zip(named, letters, rows, strict=True):
            task = self.model.tasks.get(task_id)
            said = task and self.model.await_event(task, step, event, self.now, seconds(timeout), after, letter == "o")
            assert (row["status"], row["payload"]) == (said or (letter, None))

    @rule(picks=PICKS, number=NUMBER, timeout=TIMEOUT)
    def await_tasks(self, picks: Sequence[Pick], number: int, timeout: int | None) -> None:
        self.tick()
        named, queue = self.named(picks), self.q
        awaited = list(self.known)[number % len(self.known)]
        step = f"child {number % 3}"
        letters = self.letters(named, "await", step)
        count = len(named)
        rows = queue.awaits_tasks(self.claims(named), [step] * count, [(queue.id, awaited)] * count, [timeout] * count)
        for (task_id, _), letter, row in zip(named, letters, rows, strict=True):
            task = self.model.tasks.get(task_id)
            said = task and self.model.await_task(task, step, awaited, self.now, seconds(timeout), letter == "o")
            payload = row["payload"] and plain(step, row["payload"])
            assert (row["status"], payload) == (said or (letter, None))

    def awaited(self, number: int, event: str) -> str:
        """The name of an event that somebody waits for; where nobody does, this one."""
        waits = [task.wait for task in self.model.tasks.values() if task.wait is not None and task.wait.task is None]
        return waits[number % len(waits)].event if waits else event

    @rule(number=NUMBER, event=EVENT, payload=PAYLOAD)
    def emit(self, number: int, event: str, payload: int) -> None:
        self.tick()
        event = self.awaited(number, event)
        self.q.emit(event, payload)
        self.model.emit(event, payload, self.now)

    @rule(
        number=NUMBER,
        events=st.dictionaries(EVENT, PAYLOAD, min_size=1, max_size=4),
        mode=st.sampled_from(["latch", "next"]),
    )
    def emit_events(self, number: int, events: dict[str, int], mode: str) -> None:
        self.tick()
        events.setdefault(self.awaited(number, "z"), number)
        letters = self.q.emits(list(events.items()), mode)
        assert letters == "".join(self.model.emit(name, payload, self.now, mode) for name, payload in events.items())

    # ---------------------------------------------------------------- retention

    def _cleaned(self, queue: Queue, ttl: int, limit: int = 1000) -> int:
        left = {row["task_id"] for row in queue.view("t")}
        return self.model.cleanup_tasks(self.now - ttl * SECOND, limit, lambda task: task.id not in left)

    @rule(
        what=st.sampled_from(["tasks", "events", "by policy", "by a worker", "policies", "everything"]),
        ttl=st.sampled_from([0, 10]),
        limit=st.sampled_from([1, 3, 1000]),
    )
    def the_house_is_kept(self, what: str, ttl: int, limit: int) -> None:
        self.tick()
        queue = self.q
        before = self.now - ttl * SECOND
        if what == "tasks":
            assert queue.call("cleanup_tasks", ttl, limit)[0]["cleanup_tasks"] == self._cleaned(queue, ttl, limit)
        elif what == "events":
            assert queue.call("cleanup_events", ttl)[0]["cleanup_events"] == self.model.cleanup_events(before)
        elif what == "policies":
            late = queue.value("select absurd.enforce_policies(%s)", ([queue.id],))
            assert late == self.model.enforce(self.now)
        elif what == "everything":
            self._purged(queue)
        else:
            self._kept_by_policy(queue, spare=what == "by a worker")

    def _kept_by_policy(self, queue: Queue, spare: bool) -> None:
        """Workers spare events that nobody has received yet."""
        if spare:
            (row,) = queue.rows("select * from absurd.housekeep(%s)", ([queue.id],))
        else:
            (row,) = queue.rows("select * from absurd.cleanup_all_queues(%s)", (queue.name,))
        tasks, events = self._cleaned(queue, TTL), self.model.cleanup_events(self.now - TTL * SECOND, not spare)
        assert (row["tasks_deleted"], row["events_deleted"]) == (tasks, events)

    def _purged(self, queue: Queue) -> None:
        if len(self.model.tasks) > 15:
            assert queue.call("purge_queue")[0]["purge_queue"] == len(self.model.tasks)
            self.model.tasks.clear()
            self.model.events.clear()

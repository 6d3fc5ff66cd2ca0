"""The paired primitives: the same story on asyncio and on threads. What the worker relies on stands here, once for both."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from absurd._async import _compat as on_asyncio
from absurd._sync import _compat as on_threads

DEADLINE = 20.0


class World:
    """One side: `run(story)` runs an async story there; awaiting what a primitive returns is right on both sides."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.compat: Any = on_asyncio if name == "async" else on_threads
        self.threads: list[threading.Thread] = []

    def run(self, story: Callable[[World], Any]) -> Any:
        if self.name == "async":
            return asyncio.run(asyncio.wait_for(story(self), DEADLINE))
        return _drive(story(self))

    def go(self, call: Callable[[], Any]) -> Any:
        """Start a call beside the story; `await self.result(handle)` for what it returns."""
        if self.name == "async":
            return asyncio.ensure_future(_awaited(call()))
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(call()), daemon=True)
        thread.start()
        return thread, outcome

    async def result(self, handle: Any) -> Any:
        if self.name == "async":
            return await handle
        thread, outcome = handle
        thread.join(DEADLINE)
        assert outcome, "the call did not end"
        return outcome[0]

    def pending(self, handle: Any) -> bool:
        return not handle.done() if self.name == "async" else handle[0].is_alive()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Let the others run until something can be seen."""
        deadline = time.monotonic() + DEADLINE
        while not happened():
            assert time.monotonic() < deadline
            if self.name == "async":
                await asyncio.sleep(0)
            else:
                time.sleep(0.0005)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _drive(story: Any) -> Any:
    try:
        story.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a story of threads waited")


@pytest.fixture(params=["async", "sync"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_both_sides_have_the_same_names() -> None:
    def names(module: Any) -> dict[str, list[str]]:
        return {
            name: sorted(key for key in vars(value) if not key.startswith("_")) if inspect.isclass(value) else []
            for name, value in vars(module).items()
            if not name.startswith("_")
            and getattr(value, "__module__", None) == module.__name__
            and not isinstance(value, type(Any))
        }

    ours, theirs = names(on_asyncio), names(on_threads)
    assert set(theirs) - {"Cancelled"} == set(ours) - {"Cancelled"}
    for name in set(ours) & set(theirs):
        assert ours[name] == theirs[name], name


# -- Reply -------------------------------------------------------------------------------------------------------------


def test_a_reply_is_set_once_and_later_answers_are_ignored(world: World) -> None:
    async def story(w: World) -> None:
        reply = w.compat.Reply()
        reply.set(1)
        reply.set(2)
        reply.fail(RuntimeError("late"))
        assert await _awaited(reply.get()) == 1
        assert await _awaited(reply.get()) == 1

    world.run(story)


def test_a_reply_wakes_who_waits_with_the_error_it_was_given(world: World) -> None:
    async def story(w: World) -> None:
        reply = w.compat.Reply()

        def wait() -> Any:
            return _caught(reply.get) if w.name == "sync" else _acaught(reply.get)

        waiting = w.go(wait)
        reply.fail(KeyError("no"))
        reply.set(1)
        assert isinstance(await w.result(waiting), KeyError)

    world.run(story)


def _caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


async def _acaught(call: Callable[[], Any]) -> Any:
    try:
        return await call()
    except Exception as error:
        return error


# -- Event -------------------------------------------------------------------------------------------------------------


def test_an_event_that_is_set_is_seen_even_without_time_to_wait(world: World) -> None:
    async def story(w: World) -> None:
        event = w.compat.Event()
        assert await _awaited(event.wait(0)) is False
        assert await _awaited(event.wait(0.001)) is False
        event.set()
        assert await _awaited(event.wait(0)) is True
        assert await _awaited(event.wait(-1)) is True
        assert await _awaited(event.wait()) is True
        assert event.is_set()

    world.run(story)


# -- Inbox -------------------------------------------------------------------------------------------------------------


def test_an_inbox_gives_what_is_there_up_to_the_limit_in_order(world: World) -> None:
    async def story(w: World) -> None:
        inbox = w.compat.Inbox()
        for number in range(5):
            assert inbox.put(number)
        assert len(inbox) == 5
        assert await _awaited(inbox.drain(3)) == [0, 1, 2]
        assert await _awaited(inbox.drain(3)) == [3, 4]

    world.run(story)


def test_a_closed_inbox_is_emptied_first_and_refuses_once_its_reader_has_gone(world: World) -> None:
    async def story(w: World) -> None:
        inbox = w.compat.Inbox()
        inbox.put(1)
        inbox.close()
        assert inbox.put(2), "the reader is still there"
        assert await _awaited(inbox.drain(10)) == [1, 2]
        assert await _awaited(inbox.drain(10)) is None
        assert inbox.put(3) is False

    world.run(story)


def test_closing_wakes_a_reader_that_waits(world: World) -> None:
    async def story(w: World) -> None:
        inbox = w.compat.Inbox()
        reading = w.go(lambda: inbox.drain(10))
        inbox.close()
        assert await w.result(reading) is None

    world.run(story)


def test_a_reader_that_leaves_takes_along_what_is_unread(world: World) -> None:
    async def story(w: World) -> None:
        inbox = w.compat.Inbox()
        inbox.put(1)
        assert inbox.end() == [1]
        assert inbox.put(2) is False
        assert inbox.end() == []

    world.run(story)


def test_an_inbox_loses_nothing_between_many_writers_and_one_reader(world: World) -> None:
    writers, each = 8, 400

    async def story(w: World) -> None:
        inbox = w.compat.Inbox()

        def write(writer: int) -> Any:
            if w.name == "sync":
                return [inbox.put((writer, number)) for number in range(each)]
            return _write_async(inbox, writer, each)

        writing = [w.go(lambda writer=writer: write(writer)) for writer in range(writers)]
        got: list[tuple[int, int]] = []
        while len(got) < writers * each:
            got += await _awaited(inbox.drain(7))
        for one in writing:
            await w.result(one)
        for writer in range(writers):
            assert [number for who, number in got if who == writer] == list(range(each))

    world.run(story)


async def _write_async(inbox: Any, writer: int, each: int) -> bool:
    for number in range(each):
        inbox.put((writer, number))
        if number % 3 == 0:
            await asyncio.sleep(0)
    return True


# -- Ready -------------------------------------------------------------------------------------------------------------


def test_a_slot_that_waits_is_room_even_without_prefetch(world: World) -> None:
    async def story(w: World) -> None:
        ready = w.compat.Ready(0)
        asking = w.go(ready.room)
        await w.until(lambda: w.pending(asking))
        slot = w.go(ready.get)
        assert await w.result(asking) == 1
        await _awaited(ready.put_many(["a"]))
        assert await w.result(slot) == "a"
        assert ready.taken == 1

    world.run(story)


@pytest.mark.parametrize("capacity", [1, 3, 5, 7])
def test_the_buffer_is_refilled_from_its_half(world: World, capacity: int) -> None:
    """Odd sizes on both sides: an off-by-one here spins or stalls."""

    async def story(w: World) -> None:
        ready = w.compat.Ready(capacity)
        assert await _awaited(ready.room()) == capacity
        await _awaited(ready.put_many(list(range(capacity))))
        asking = w.go(ready.room)
        for taken in range(1, capacity + 1):
            await _awaited(ready.get())
            if capacity - taken <= capacity // 2:
                assert await w.result(asking) >= (capacity + 1) // 2
                break
            assert w.pending(asking), f"room after {taken} of {capacity}"

    world.run(story)


@pytest.mark.parametrize(("slots", "capacity"), list(itertools.product([1, 2, 5], [0, 1, 3, 8])))
def test_everything_put_is_taken_once_by_some_slot(world: World, slots: int, capacity: int) -> None:
    total = 300

    async def story(w: World) -> None:
        ready = w.compat.Ready(capacity)
        taken: list[int] = []
        working = [w.go(lambda: _work(w, ready, taken)) for _ in range(slots)]
        put = 0
        while put < total:
            room = await _awaited(ready.room())
            assert 0 < room <= slots + capacity
            room = min(room, total - put)
            await _awaited(ready.put_many(list(range(put, put + room))))
            put += room
        await w.until(lambda: len(taken) == total)
        assert await _awaited(ready.close()) == []
        for one in working:
            await w.result(one)
        assert sorted(taken) == list(range(total))
        assert ready.taken == total

    world.run(story)


def _work(w: World, ready: Any, taken: list[int]) -> Any:
    if w.name == "async":
        return _work_async(ready, taken)
    while (item := ready.get()) is not None:
        taken.append(item)
    return True


async def _work_async(ready: Any, taken: list[int]) -> bool:
    while (item := await ready.get()) is not None:
        taken.append(item)
    return True


def test_a_closed_buffer_gives_back_what_nobody_took_and_keeps_what_comes_late(world: World) -> None:
    async def story(w: World) -> None:
        ready = w.compat.Ready(4)
        await _awaited(ready.put_many([1, 2]))
        assert await _awaited(ready.close()) == [1, 2]
        await _awaited(ready.put_many([3]))
        assert await _awaited(ready.get()) is None
        assert await _awaited(ready.room()) == 0
        assert await _awaited(ready.take_back()) == [3]

    world.run(story)


def test_closing_wakes_slots_and_claimer(world: World) -> None:
    async def story(w: World) -> None:
        ready = w.compat.Ready(0)
        asking = w.go(ready.room)
        await w.until(lambda: w.pending(asking))
        await _awaited(ready.close())
        assert await w.result(asking) == 0
        slots = [w.go(ready.get) for _ in range(3)]
        assert [await w.result(slot) for slot in slots] == [None] * 3

    world.run(story)


# -- Waker -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_a_wait_ends_by_a_wake_that_came_before_it(world: World, pair: tuple[socket.socket, socket.socket]) -> None:
    async def story(w: World) -> None:
        waker = w.compat.Waker()
        waker.wake()
        await _awaited(waker.wait_for(pair[0].fileno(), None))
        began = time.monotonic()
        await _awaited(waker.wait_for(pair[0].fileno(), 0.02))  # one wake, one wait: this one runs out of time
        assert time.monotonic() - began >= 0.02
        waker.close()

    world.run(story)


def test_a_wait_ends_when_the_socket_has_something(world: World, pair: tuple[socket.socket, socket.socket]) -> None:
    async def story(w: World) -> None:
        waker = w.compat.Waker()
        waiting = w.go(lambda: waker.wait_for(pair[0].fileno(), None))
        await w.until(lambda: w.pending(waiting))
        pair[1].send(b"x")
        if w.name == "async":
            await w.result(waiting)
        else:
            waiting[0].join(DEADLINE)
            assert not w.pending(waiting)
        waker.close()

    world.run(story)


def test_a_wake_from_elsewhere_ends_a_wait(world: World, pair: tuple[socket.socket, socket.socket]) -> None:
    async def story(w: World) -> None:
        waker = w.compat.Waker()
        waiting = w.go(lambda: waker.wait_for(pair[0].fileno(), None))
        await w.until(lambda: w.pending(waiting))
        waker.wake()
        if w.name == "async":
            await w.result(waiting)
        else:
            waiting[0].join(DEADLINE)
            assert not w.pending(waiting)
        waker.close()
        waker.wake()  # harmless

    world.run(story)


@pytest.mark.parametrize("seconds", [1e-9, 0.0004, 1e12])
def test_a_waits_time_is_never_cut_to_nothing_nor_too_large(
    world: World, pair: tuple[socket.socket, socket.socket], seconds: float
) -> None:
    async def story(w: World) -> None:
        waker = w.compat.Waker()
        if seconds > 1:
            waker.wake()
        began = time.monotonic()
        await _awaited(waker.wait_for(pair[0].fileno(), seconds))
        assert seconds > 1 or time.monotonic() - began >= seconds
        waker.close()

    world.run(story)


def test_wakers_leave_no_descriptors_behind(world: World) -> None:
    async def story(w: World) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            w.compat.Waker().close()
        assert len(os.listdir("/proc/self/fd")) <= before

    world.run(story)


# -- Group, Running ----------------------------------------------------------------------------------------------------


def test_a_job_that_raises_is_told_of_and_the_others_go_on(world: World) -> None:
    async def story(w: World) -> None:
        failures: list[BaseException] = []
        group = w.compat.Group(failures.append)
        done = w.compat.Event()

        def bad() -> Any:
            raise SystemExit(3)

        async def bad_async() -> None:
            raise SystemExit(3)

        def good() -> Any:
            return done.set()

        async def good_async() -> None:
            done.set()

        group.start(bad_async if w.name == "async" else bad, name="bad")
        group.start(good_async if w.name == "async" else good, name="good")
        assert await _awaited(group.join(DEADLINE)) is True
        assert [type(error) for error in failures] == [SystemExit]
        assert done.is_set()

    world.run(story)


def test_joining_says_when_the_time_is_up(world: World) -> None:
    async def story(w: World) -> None:
        group = w.compat.Group(lambda error: None)
        event = w.compat.Event()

        async def wait_async() -> None:
            await event.wait()

        group.start(wait_async if w.name == "async" else event.wait, name="waiting")
        assert await _awaited(group.join(0.01)) is False
        event.set()
        assert await _awaited(group.join(DEADLINE)) is True
        assert await _awaited(w.compat.Group(lambda error: None).join()) is True

    world.run(story)


def test_a_handler_says_itself_where_it_runs(world: World) -> None:
    async def story(w: World) -> None:
        running = w.compat.Running()
        seen: list[bool] = []

        def handler() -> None:
            running.enter()
            seen.append(running.elsewhere())

        async def handler_async() -> None:
            handler()

        await _awaited(running.run(handler_async if w.name == "async" else handler))
        assert seen == [False]

    world.run(story)


def test_the_first_reason_to_stop_a_handler_stays(world: World) -> None:
    async def story(w: World) -> None:
        running = w.compat.Running()
        first, second = KeyError(), ValueError()
        running.interrupt(first)
        running.stop(second)
        assert running.reason is first

    world.run(story)

"""What differs between the two worlds, on asyncio. The sync twin (absurd/_sync/_compat.py) has the same names on threads.

All state that slots, committer, claimer and keeper share lives in these objects: a swap that is atomic between two awaits
is a race between two threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import signal as signals
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import psycopg
from psycopg_pool import AsyncConnectionPool

from absurd import errors
from absurd.errors import ConfigError, ConnectionLost

T = TypeVar("T")
Item = TypeVar("Item")
Connection = psycopg.AsyncConnection[Any]
Cursor = psycopg.AsyncCursor[Any]
Pool = AsyncConnectionPool[Connection]
Cancelled = asyncio.CancelledError
Lock = asyncio.Lock
Semaphore = asyncio.Semaphore
#: seconds: what the loop's clock can still add
_LONGEST_WAIT = 86400.0


def is_pool(source: Any) -> bool:
    """Whether it is a pool of this world's connections."""
    return isinstance(source, AsyncConnectionPool)


def check_handler(name: str, handler: Any) -> None:
    """Refuse the wrong kind of handler at registration, not at the first task."""
    if not inspect.iscoroutinefunction(handler) and not inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        raise ConfigError(f'task "{name}": AsyncAbsurd needs an `async def` handler; use Absurd for plain functions')


async def maybe_await(value: Any) -> Any:
    """The value, awaited when it can be (hooks and steps may be plain functions)."""
    return (await value) if inspect.isawaitable(value) else value


def check_timeout(seconds: float | None) -> None:
    """The twin refuses one: a thread cannot be stopped."""


async def within(seconds: float | None, fn: Callable[[], Any], what: str) -> Any:
    """The value of `fn`, awaited when it can be; TimeoutError when that takes longer."""
    if seconds is None:
        return await maybe_await(fn())
    try:
        async with asyncio.timeout(seconds) as limit:
            return await maybe_await(fn())
    except TimeoutError:
        if not limit.expired():
            raise  # the function's own
        raise errors.TimeoutError(f"{what} took longer than {seconds:g} s") from None


async def all_of(calls: Sequence[Callable[[], Awaitable[T]]], limit: int) -> list[T | BaseException]:
    """The values of calls made side by side, at most `limit` at a time, or what each raised."""
    permits = asyncio.Semaphore(max(limit, 1))

    async def run(call: Callable[[], Awaitable[T]]) -> T | BaseException:
        async with permits:
            try:
                return await call()
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return error

    tasks = [asyncio.ensure_future(run(call)) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # cancelled from outside: nobody goes on behind the handler's back
            task.cancel()


async def try_acquire(permits: Semaphore) -> bool:
    """Take a permit if one is free."""
    if permits.locked():
        return False
    await permits.acquire()
    return True


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """The items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def give_way() -> None:
    """Let whoever has just been given something begin: a slot takes a turn of the loop, its handler's task the next."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class Pause:
    """Fairness: handlers that never wait must not starve committer and keeper; yields every 32nd call."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    async def __call__(self) -> None:
        self._count += 1
        if self._count % 32 == 0:
            await asyncio.sleep(0)


class Event:
    """A flag that can be waited for with a timeout."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self, timeout: float | None = None) -> bool:
        """True when set, False when the time is up."""
        if self._event.is_set() or (timeout is not None and timeout <= 0):
            return self._event.is_set()
        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except TimeoutError:
            return False
        return True


class Reply(Generic[T]):
    """Set once, from anywhere; abandoned after a timeout or a cancellation, never reused."""

    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._future: asyncio.Future[T] = (loop or asyncio.get_running_loop()).create_future()

    def set(self, value: T) -> None:
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: BaseException) -> None:
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # retrieved: an abandoned reply must not warn

    async def get(self) -> T:
        return await self._future


class Inbox(Generic[T]):
    """Put from anywhere; one reader drains what is there, waiting for the first. None once it is closed and empty."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._ready = asyncio.Event()
        self._closed = False
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._items)

    def reply(self) -> Reply[Any]:
        """For an item to carry, so that who puts it can wait for its answer."""
        if self._loop is None:  # to ask which loop runs is a system call before Python 3.12
            self._loop = asyncio.get_running_loop()
        return Reply(self._loop)

    def put(self, item: T) -> bool:
        """False when the reader has gone: nobody will ever see the item."""
        if self._ended:
            return False
        self._items.append(item)
        self._ready.set()
        return True

    def close(self) -> None:
        """Let the reader go once it has emptied the box; what is put until then still gets read."""
        self._closed = True
        self._ready.set()

    def end(self) -> list[T]:
        """The reader goes now; returns what it leaves unread."""
        self._ended = True
        left = list(self._items)
        self._items.clear()
        return left

    async def drain(self, limit: int) -> list[T] | None:
        while not self._items:
            if self._closed:
                self._ended = True
                return None
            self._ready.clear()
            await self._ready.wait()
        return [self._items.popleft() for _ in range(min(limit, len(self._items)))]


class Ready(Generic[T]):
    """Claimed work between the claimer and the slots. `capacity` may change; a slot that waits counts as room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0  # items handed out so far
        self._items: deque[T] = deque()
        self._hungry: deque[asyncio.Future[None]] = deque()
        self._claimer: asyncio.Future[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    async def put_many(self, items: list[T]) -> None:
        self._items.extend(items)
        for _ in items:
            if not self._hungry:
                break
            self._wake(self._hungry.popleft())

    async def get(self) -> T | None:
        """The next item; None once closed (what is left then belongs to whoever closed it)."""
        while not self._closed:
            if self._items:
                item = self._items.popleft()
                self.taken += 1
                self._tell_claimer()
                return item
            waiter = asyncio.get_running_loop().create_future()
            self._hungry.append(waiter)
            self._tell_claimer()
            await waiter
        return None

    async def room(self) -> int:
        """How many items may be put: waits until a slot is free, or the buffer has fallen to half. 0 once closed."""
        while not self._closed:
            if self._has_room():
                return len(self._hungry) + self.capacity - len(self._items)
            self._claimer = asyncio.get_running_loop().create_future()
            await self._claimer
        return 0

    async def take_back(self) -> list[T]:
        """What nobody took; the buffer is empty then."""
        left = list(self._items)
        self._items.clear()
        return left

    async def close(self) -> list[T]:
        """End it; returns what nobody took. Items put later stay for `take_back`."""
        self._closed = True
        left = await self.take_back()
        while self._hungry:
            self._wake(self._hungry.popleft())
        if self._claimer is not None:
            self._wake(self._claimer)
        return left

    def _has_room(self) -> bool:
        if len(self._hungry) > len(self._items):
            return True
        free = len(self._hungry) + self.capacity - len(self._items)
        return free > 0 and self.capacity > 0 and free >= (self.capacity + 1) // 2

    def _tell_claimer(self) -> None:
        if self._claimer is not None and self._has_room():
            self._wake(self._claimer)

    @staticmethod
    def _wake(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)


class Ahead(Generic[T]):
    """A call under way while its caller goes on."""

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._task = asyncio.ensure_future(call())

    @property
    def done(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return self._task.done()

    async def result(self) -> T:
        """Wait for it; raises what it raised."""
        return await self._task

    async def abandon(self, *, stop: bool) -> None:
        """Wait for its end, whatever that is; `stop`: cancel it."""
        if stop:
            self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # seen


class Coalescer(Generic[Item, T]):
    """Concurrent calls of one kind become one: what comes while a call is under way leaves together as the next.

    For calls that wait for nobody's lock: who comes later waits for those under way. A caller who is alone pays nothing for
    it. No timer: the flight time is the batching window.
    """

    _ROWS, _SIZE = 500, 4 * 1024 * 1024

    def __init__(self, send: Callable[[list[Item]], Awaitable[list[T]]], size: Callable[[Item], int]) -> None:
        """`send` answers in input order, all or nothing, and may be repeated; `size`: bytes of an item, about."""
        self._send, self._size = send, size
        self._waiting: deque[tuple[Item, asyncio.Future[T]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next: asyncio.Task[None] | None = None

    async def call(self, item: Item) -> T:
        """The answer to this item, or what its own call raised."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            future: asyncio.Future[T] = loop.create_future()
            self._waiting.append((item, future))
            return await future
        if self._loop is not None and self._loop.is_running():  # of another thread
            return (await self._send([item]))[0]
        self._loop, self._waiting = loop, deque()  # nobody is under way, or a loop that has ended was
        try:
            return (await self._send([item]))[0]
        finally:
            self._proceed(loop)

    def _proceed(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting:
            self._next = loop.create_task(self._flush())
        else:
            self._loop = None

    async def _flush(self) -> None:
        try:
            while self._waiting:
                await self._together(self._batch())
        finally:
            for _, future in self._waiting:
                future.cancel()
            self._loop = None

    def _batch(self) -> list[tuple[Item, asyncio.Future[T]]]:
        batch: list[tuple[Item, asyncio.Future[T]]] = []
        size = 0
        while (
            self._waiting
            and len(batch) < self._ROWS
            and (not batch or size + self._size(self._waiting[0][0]) <= self._SIZE)
        ):
            item, future = self._waiting.popleft()
            if not future.done():  # else: its caller has gone
                batch.append((item, future))
                size += self._size(item)
        return batch

    async def _together(self, batch: list[tuple[Item, asyncio.Future[T]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch]) if batch else []
        except Exception as error:
            if len(batch) == 1 or isinstance(error, ConnectionLost):
                self._fail(batch, error)
            else:  # nobody gets a neighbour's error
                await self._one_by_one(batch)
            return
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _one_by_one(self, batch: list[tuple[Item, asyncio.Future[T]]]) -> None:
        for number, (item, future) in enumerate(batch):
            try:
                (answer,) = await self._send([item])
            except ConnectionLost as error:  # nor does anybody wait for the same again
                self._fail(batch[number:], error)
                return
            except Exception as error:
                self._fail([(item, future)], error)
            except BaseException:
                for _, left in batch[number:]:
                    left.cancel()
                raise
            else:
                if not future.done():
                    future.set_result(answer)

    @staticmethod
    def _fail(batch: list[tuple[Item, asyncio.Future[T]]], error: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(error)


class Waker:
    """Interrupts a wait on a socket from elsewhere in the process."""

    def __init__(self) -> None:
        self._woken = False
        self._waiting: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._woken = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Nothing to release here; the twin has a pipe."""

    async def wait_for(self, fileno: int, timeout: float | None) -> None:
        """Until the socket has something to read, `wake` is called, or the time is up."""
        # a bare future: asyncio.wait_for makes a task of what it waits for, and a worker wakes through here
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        timer = None if timeout is None else loop.call_later(min(timeout, _LONGEST_WAIT), self.wake)
        loop.add_reader(fileno, self.wake)
        try:
            if not self._woken:
                await waiting
        finally:
            self._woken, self._waiting = False, None
            loop.remove_reader(fileno)
            if timer is not None:
                timer.cancel()


class Running:
    """A handler under way: cancellable from outside, with the reason why."""

    __slots__ = ("_loop", "_task", "reason")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self.reason: BaseException | None = None

    async def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run in a task of its own: its own context, and cancellation reaches nothing else."""
        self._loop = asyncio.get_running_loop()
        try:
            self._task = task = self._loop.create_task(call())
            return await task
        finally:
            # its context holds the handler's, that holds us: a circle for each run, which only the cyclic garbage collector
            # would open, at a third of a small task's CPU
            self._task = None

    def enter(self) -> None:
        """The handler runs here: said by itself, since an eager task is under way before anybody has it."""
        self._task = asyncio.current_task(self._loop)

    def elsewhere(self) -> bool:
        """Whether another asyncio task (thread) calls than the handler's own."""
        return self._task is None or asyncio.current_task(self._loop) is not self._task

    def stop(self, reason: BaseException) -> None:
        """Ask it to end: CancelledError at its next await."""
        self.interrupt(reason)
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def interrupt(self, reason: BaseException) -> None:
        """Ask it to end at its next context call."""
        if self.reason is None:
            self.reason = reason


class Group:
    """Background jobs of a worker. A job that raises ends alone; `failed` hears of it."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, job: Callable[..., Coroutine[Any, Any, None]], *args: Any, name: str = "") -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._guard(job, args), name=f"absurd-{name}"))

    async def _guard(self, job: Callable[..., Coroutine[Any, Any, None]], args: tuple[Any, ...]) -> None:
        try:
            await job(*args)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)

    async def join(self, timeout: float | None = None) -> bool:
        """Wait for all jobs; False when the time is up first."""
        if not self._tasks:
            return True
        _, waiting = await asyncio.wait(self._tasks, timeout=timeout)
        return not waiting

    def abandon(self) -> None:
        """Stop waiting for what is still running."""
        for task in self._tasks:
            task.cancel()


@contextlib.contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(signal number)` on SIGTERM and SIGINT while inside; nothing outside the main thread."""
    loop = asyncio.get_running_loop()
    added: list[signals.Signals] = []
    for number in (signals.SIGTERM, signals.SIGINT):
        try:
            loop.add_signal_handler(number, handle, number)
        except (NotImplementedError, RuntimeError, ValueError):
            continue
        added.append(number)
    try:
        yield
    finally:
        for number in added:
            loop.remove_signal_handler(number)


def call_soon(call: Callable[[], None]) -> None:
    """Run a short callback outside the present frame."""
    asyncio.get_running_loop().call_soon(call)


def twin_client() -> Any:
    """The client class of the other world."""
    return importlib.import_module("absurd").Absurd

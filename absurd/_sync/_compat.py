"""What differs between the two worlds, on threads. The async twin (absurd/_async/_compat.py) has the same names on asyncio."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import inspect
import math
import os
import select
import signal as signals
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import psycopg
from psycopg_pool import ConnectionPool

from absurd.errors import ConfigError, InvalidOption

T = TypeVar("T")
Item = TypeVar("Item")
Connection = psycopg.Connection[Any]
Cursor = psycopg.Cursor[Any]
Pool = ConnectionPool[Connection]
Lock = threading.Lock
Semaphore = threading.Semaphore


class Cancelled(BaseException):
    """Never raised: threads cannot be cancelled. Its asyncio twin can."""


def is_pool(source: Any) -> bool:
    """Whether it is a pool of this world's connections."""
    return isinstance(source, ConnectionPool)


def check_handler(name: str, handler: Any) -> None:
    """Refuse the wrong kind of handler at registration, not at the first task."""
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
        raise ConfigError(f'task "{name}": Absurd needs a plain function; use AsyncAbsurd for `async def` handlers')


def maybe_await(value: Any) -> Any:
    """The value itself."""
    return value


def check_timeout(seconds: float | None) -> None:
    """InvalidOption for a timeout: a thread cannot be stopped."""
    if seconds is not None:
        raise InvalidOption("a step of Absurd takes no timeout, since a thread cannot be stopped: use AsyncAbsurd")


def within(seconds: float | None, fn: Callable[[], Any], what: str) -> Any:
    """The value of `fn`; the twin can end it after some time."""
    return fn()


def all_of(calls: Sequence[Callable[[], T]], limit: int) -> list[T | BaseException]:
    """The values of calls made side by side, at most `limit` at a time, or what each raised. A thread each."""

    def run(context: contextvars.Context, call: Callable[[], T]) -> T | BaseException:
        try:
            return context.run(call)
        except BaseException as error:
            return error

    if not calls:
        return []
    with ThreadPoolExecutor(max_workers=min(max(limit, 1), len(calls)), thread_name_prefix="absurd-step") as threads:
        return list(threads.map(run, [contextvars.copy_context() for _ in calls], calls))


def try_acquire(permits: Semaphore) -> bool:
    """Take a permit if one is free."""
    return permits.acquire(blocking=False)


def each(items: Iterable[T]) -> Iterable[T]:
    """The items."""
    return items


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def give_way() -> None:
    """Let whoever has just been given something begin."""
    time.sleep(0)


class Pause:
    """Fairness is the scheduler's business here."""

    __slots__ = ()

    def __call__(self) -> None:
        return None


class Event:
    """A flag that can be waited for with a timeout."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """True when set, False when the time is up."""
        return self._event.wait(timeout)


class Reply(Generic[T]):
    """Set once, from anywhere; a late or second `set` is legal and ignored."""

    __slots__ = ("_error", "_settled", "_value", "_waiting")

    def __init__(self) -> None:
        self._settled = threading.Lock()  # taken for good by whoever answers first
        self._waiting = threading.Lock()
        self._waiting.acquire()
        self._value: Any = None
        self._error: BaseException | None = None

    def set(self, value: T) -> None:
        if self._settled.acquire(blocking=False):
            self._value = value
            self._waiting.release()

    def fail(self, error: BaseException) -> None:
        if self._settled.acquire(blocking=False):
            self._error = error
            self._waiting.release()

    def get(self) -> T:
        with self._waiting:
            if self._error is not None:
                raise self._error
            return self._value  # type: ignore[no-any-return]


class Inbox(Generic[T]):
    """Put from anywhere; one reader drains what is there, waiting for the first. None once it is closed and empty."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._ready = threading.Condition(threading.Lock())
        self._closed = False
        self._ended = False

    def __len__(self) -> int:
        return len(self._items)

    def reply(self) -> Reply[Any]:
        """For an item to carry, so that who puts it can wait for its answer."""
        return Reply()

    def put(self, item: T) -> bool:
        """False when the reader has gone: nobody will ever see the item."""
        with self._ready:
            if self._ended:
                return False
            self._items.append(item)
            self._ready.notify()
            return True

    def close(self) -> None:
        """Let the reader go once it has emptied the box; what is put until then still gets read."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def end(self) -> list[T]:
        """The reader goes now; returns what it leaves unread."""
        with self._ready:
            self._ended = True
            left = list(self._items)
            self._items.clear()
            return left

    def drain(self, limit: int) -> list[T] | None:
        with self._ready:
            while not self._items:
                if self._closed:
                    self._ended = True
                    return None
                self._ready.wait()
            return [self._items.popleft() for _ in range(min(limit, len(self._items)))]


class Ready(Generic[T]):
    """Claimed work between the claimer and the slots. `capacity` may change; a slot that waits counts as room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0  # items handed out so far
        self._items: deque[T] = deque()
        self._hungry = 0
        self._closed = False
        self._changed = threading.Condition(threading.Lock())
        self._taken = threading.Condition(self._changed._lock)  # type: ignore[attr-defined]  # one lock, two queues

    def __len__(self) -> int:
        return len(self._items)

    def put_many(self, items: list[T]) -> None:
        with self._changed:
            self._items.extend(items)
            self._changed.notify(len(items))

    def get(self) -> T | None:
        """The next item; None once closed (what is left then belongs to whoever closed it)."""
        with self._changed:
            self._hungry += 1
            self._taken.notify()
            try:
                while not self._items and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return None
                self.taken += 1
                return self._items.popleft()
            finally:
                self._hungry -= 1

    def room(self) -> int:
        """How many items may be put: waits until a slot is free, or the buffer has fallen to half. 0 once closed."""
        with self._taken:
            while not self._closed:
                free = self._hungry + self.capacity - len(self._items)
                if self._hungry > len(self._items) or (self.capacity and free >= (self.capacity + 1) // 2 and free > 0):
                    return free
                self._taken.wait()
            return 0

    def take_back(self) -> list[T]:
        """What nobody took; the buffer is empty then."""
        with self._changed:
            left = list(self._items)
            self._items.clear()
            return left

    def close(self) -> list[T]:
        """End it; returns what nobody took. Items put later stay for `take_back`."""
        with self._changed:
            self._closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            self._taken.notify_all()
            return left


LONGEST_WAIT = 2**31 - 1  # milliseconds, what poll() takes


class Ahead(Generic[T]):
    """A call under way while its caller goes on."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._answer: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), name="absurd-ahead", daemon=True)
        self._thread.start()
        time.sleep(0.00005)  # lets it take the interpreter and send; else it would wait for the caller's time slice

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._answer = call()
        except BaseException as error:
            self._error = error

    @property
    def done(self) -> bool:
        """Whether `result` returns, or raises, at once."""
        return not self._thread.is_alive()

    def abandon(self, *, stop: bool) -> None:
        """Wait for its end, whatever that is; a thread cannot be stopped."""
        self._thread.join()

    def result(self) -> T:
        """Wait for it; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._answer


class Coalescer(Generic[Item, T]):
    """The asyncio twin sends concurrent calls together; threads have a connection each."""

    def __init__(self, send: Callable[[list[Item]], list[T]], size: Callable[[Item], int]) -> None:
        self._send = send

    def call(self, item: Item) -> T:
        """The answer to this item, or what its call raised."""
        return self._send([item])[0]


class Waker:
    """Interrupts a wait on a socket from elsewhere in the process."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._lock = threading.Lock()
        self._open = True

    def wake(self) -> None:
        with self._lock:
            if self._open:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._write, b"w")

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                os.close(self._read)
                os.close(self._write)

    def wait_for(self, fileno: int, timeout: float | None) -> None:
        """Until the socket has something to read, `wake` is called, or the time is up."""
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        poll.register(self._read, select.POLLIN)
        # rounded up: a wait that ends too early asks in vain, and again
        poll.poll(None if timeout is None else min(math.ceil(max(timeout, 0) * 1000), LONGEST_WAIT))
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)


class Running:
    """A handler under way. A thread cannot be cancelled: it notices at its next context call."""

    __slots__ = ("_thread", "reason")

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.reason: BaseException | None = None

    def run(self, call: Callable[[], T]) -> T:
        """Run here, in a fresh copy of the context."""
        return contextvars.copy_context().run(call)

    def enter(self) -> None:
        """The handler runs here."""
        self._thread = threading.current_thread()

    def elsewhere(self) -> bool:
        """Whether another thread (asyncio task) calls than the handler's own."""
        return threading.current_thread() is not self._thread

    def stop(self, reason: BaseException) -> None:
        """Ask it to end at its next context call."""
        self.interrupt(reason)

    def interrupt(self, reason: BaseException) -> None:
        """Ask it to end at its next context call."""
        if self.reason is None:
            self.reason = reason


class Group:
    """Background jobs of a worker: daemon threads, so that a handler that never returns cannot keep the process alive.

    A job that raises ends alone; `failed` hears of it, in the job's thread.
    """

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._failed = failed
        self._threads: list[threading.Thread] = []

    def start(self, job: Callable[..., None], *args: Any, name: str = "") -> None:
        thread = threading.Thread(target=self._guard, args=(job, args), name=f"absurd-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, job: Callable[..., None], args: tuple[Any, ...]) -> None:
        try:
            job(*args)
        except BaseException as error:
            self._failed(error)

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all jobs; False when the time is up first."""
        until = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def abandon(self) -> None:
        """Stop waiting for what is still running."""


@contextlib.contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle(signal number)` on SIGTERM and SIGINT while inside; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signals.signal(number, lambda n, frame: handle(n)) for number in (signals.SIGTERM, signals.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signals.signal(number, handler)


def call_soon(call: Callable[[], None]) -> None:
    """Run a short callback outside the present frame: a signal handler must not take locks its own thread may hold."""
    threading.Thread(target=call, daemon=True).start()


def twin_client() -> Any:
    """The client class of the other world."""
    return importlib.import_module("absurd").AsyncAbsurd

"""Forks `event_demo` workers that ask before they go on: one line of JSON on stdin for each.

A worker of this program is the example itself, but after each line it prints, and at the start of its shipping step,
it tells the test over a socket where it is and waits for the answer. What the test kills there has died exactly there.
Forking from a process that has its imports done makes a worker in milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import absurd

INSIDE = {"✓ Inventory reserved": "reserve-inventory", "✓ Order shipped": "ship-order"}
"""Lines that are printed inside a step, before its commit."""


def main() -> None:
    """Fork until stdin ends; then take every worker along."""
    children: set[int] = set()
    for request in sys.stdin:
        _reap(children)
        child = os.fork()
        if child == 0:
            try:
                _be_worker(json.loads(request))
            finally:
                os._exit(1)
        children.add(child)
    _reap(children)
    for child in children:
        os.kill(child, signal.SIGKILL)


def _reap(children: set[int]) -> None:
    # A child not waited for keeps its process id, so the ids in the set are ours.
    for child in list(children):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0]:
                children.discard(child)


def _be_worker(request: dict[str, Any]) -> None:
    os.environ["ABSURD_DATABASE_URL"] = request["url"]
    sys.path.insert(0, request["folder"])
    sys.argv = ["event_demo.py", *request["arguments"]]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import event_demo  # type: ignore[import-not-found]

    reporter = _Reporter(request["socket"])
    real_ship: Callable[[str], dict[str, Any]] = event_demo.ship_order

    def ship_order(order_id: str) -> dict[str, Any]:
        reporter.report("ship-order", "")
        return real_ship(order_id)

    def traced(*parts: object, **_: Any) -> None:
        line = " ".join(map(str, parts))
        if absurd.get_current_context() is not None:
            step = next((step for begin, step in INSIDE.items() if line.startswith(begin)), "")
            reporter.report(step, line)

    event_demo.ship_order = ship_order
    event_demo.print = traced
    code = event_demo.main()
    reporter.close()
    os._exit(code)


class _Reporter:
    """Tells the test a place and waits for its answer, one thread at a time."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(f"{os.getpid()}\n".encode())
        self._socket.recv(1)
        self._lock = threading.Lock()

    def report(self, step: str, line: str) -> None:
        context = absurd.get_current_context()
        assert context is not None
        place = {"task": str(context.task_id), "step": step, "line": line}
        with self._lock:
            self._socket.sendall(json.dumps(place).encode() + b"\n")
            if not self._socket.recv(1):
                os._exit(2)  # nobody listens any more

    def close(self) -> None:
        self._socket.close()


if __name__ == "__main__":
    main()

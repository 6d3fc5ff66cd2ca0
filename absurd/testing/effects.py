"""Counting what a task does to the world outside."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping


class Effects:
    """Counts effects by name. Call `note(name)` where the fake of the outside world is asked to act.

    It is never rolled back, as a letter that was sent is not. For rows that a transaction writes, count the rows instead.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, name: str) -> None:
        """It happened, once more."""
        with self._lock:
            self._counts[name] += 1

    def __call__(self) -> Mapping[str, int]:
        """name -> how often."""
        with self._lock:
            return dict(self._counts)

    def __getitem__(self, name: str) -> int:
        with self._lock:
            return self._counts[name]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts.clear()

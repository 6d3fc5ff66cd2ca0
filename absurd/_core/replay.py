"""Replay: which checkpoint belongs to which call, and what is known of it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from absurd.errors import StepNameError

MAX_NAME_BYTES = 1024


class History:
    """The checkpoints a run starts with, and the names it has used so far.

    The n-th use of a name is `name#n`. A name that is taken already (somebody called a step "a#2") counts on until a
    free one is found, so two calls never share a checkpoint; the rule is a function of the order of calls alone.
    """

    __slots__ = ("_counts", "_pending", "_states", "_timeouts", "_used")

    def __init__(self, states: dict[str, Any] | None, timeouts: Iterable[str] | None) -> None:
        self._states = states or {}
        self._timeouts = set(timeouts or ())
        self._pending = set(self._states) | self._timeouts
        self._counts: dict[str, int] = {}
        self._used: set[str] = set()

    def next_name(self, name: str) -> str:
        """The checkpoint name of the next call that uses `name`; StepNameError for a name that cannot be one."""
        if not isinstance(name, str) or not name.strip():
            raise StepNameError("a step needs a name: a non-empty string")
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise StepNameError(f"the step name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes: shorten it")
        if "\0" in name or (not name.isprintable() and _surrogates(name)):
            raise StepNameError(
                f"the step name {name!r} holds NUL or half a surrogate pair, which Postgres cannot store"
            )
        count = self._counts.get(name, 0) + 1
        unique = name if count == 1 else f"{name}#{count}"
        while unique in self._used:
            count += 1
            unique = f"{name}#{count}"
        self._counts[name] = count
        self._used.add(unique)
        return unique

    def take(self, name: str) -> tuple[bool, Any]:
        """(True, stored value) when the checkpoint is there."""
        self._pending.discard(name)
        if name in self._states:
            return True, self._states[name]
        return False, None

    def timed_out(self, name: str) -> bool:
        """Whether the wait of this name ran out in this or an earlier attempt."""
        return name in self._timeouts

    def keep(self, name: str, state: Any) -> None:
        """Remember what has just been committed."""
        self._states[name] = state

    @property
    def replaying(self) -> bool:
        """Whether some of what earlier executions committed still lies ahead."""
        return bool(self._pending)


def _surrogates(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)

"""Replay: which checkpoint belongs to which call, and what is known of it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from absurd.errors import StepError, StepNameError

MAX_NAME_BYTES = 1024
#: Before the name of a step that failed while its handler went on: the next execution may take another way from there.
FAILED = "$failed:"


class History:
    """The checkpoints a run starts with, and the names it has used so far.

    The n-th use of a name is `name#n`. A name that is taken already (somebody called a step "a#2") counts on until a
    free one is found, so two calls never share a checkpoint; the rule is a function of the order of calls alone.

    What is recorded lies ahead until it is asked for. New work while something lies ahead means that the code has changed, or
    does not depend on its steps alone: `ahead` says so. `strict=False` never does.
    """

    __slots__ = ("_counts", "_failed", "_pending", "_states", "_strict", "_timeouts", "_used", "unsaid")

    def __init__(self, states: dict[str, Any] | None, timeouts: Iterable[str] | None, *, strict: bool = True) -> None:
        self._states = states or {}
        self._timeouts = set(timeouts or ())
        self._pending = set(self._states) | self._timeouts
        self._failed: set[str] = set()
        for name in [name for name in self._states if name.startswith(FAILED)]:
            self._failed.add(name.removeprefix(FAILED))
            self._pending.discard(name)
        self._strict = strict
        self._counts: dict[str, int] = {}
        self._used: set[str] = set()
        #: steps that failed in this execution, with their errors, until that is recorded
        self.unsaid: dict[str, BaseException] = {}

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
            if name in self._failed:  # what came after its failure need not come after its success
                self._strict = False
            return True, self._states[name]
        return False, None

    def timed_out(self, name: str) -> bool:
        """Whether the wait of this name ran out in this or an earlier attempt."""
        return name in self._timeouts

    def keep(self, name: str, state: Any) -> None:
        """Remember what has just been committed."""
        self._states[name] = state
        self.unsaid.pop(name, None)
        if name in self._failed:
            self._strict = False

    def failed(self, name: str, error: BaseException) -> None:
        """A step failed. If its handler goes on, that must be recorded before anything else is."""
        self.unsaid[name] = error

    def said(self, name: str) -> bool:
        """The failure of a step is being recorded; whether it was before."""
        self.unsaid.pop(name, None)
        before = name in self._failed
        self._failed.add(name)
        return before

    def ahead(self, name: str) -> set[str]:
        """What is recorded and has not been asked for, if `name`, which is new, should not come before it."""
        return self._pending if self._strict and name not in self._failed else set()

    def relax(self) -> None:
        """From here on the order of calls says nothing: several tasks or threads make them."""
        self._strict = False

    @property
    def uneasy(self) -> bool:
        """Whether something new has to be looked at before it is done."""
        return bool(self._pending or self.unsaid)

    def undoable(self, name: str, undo: Callable[[Any], Any], value: Any) -> None:
        """A step can be undone: of interest only to who rehearses."""

    @property
    def replaying(self) -> bool:
        """Whether some of what earlier executions committed still lies ahead."""
        return bool(self._pending)


def kept_moment(state: Any, checkpoint: str) -> datetime:
    """A kept wake time: ISO 8601, as ours and the original's clients write it."""
    try:
        moment = datetime.fromisoformat(state)
    except (TypeError, ValueError):
        raise StepError(f'step "{checkpoint}" was no sleep when it was kept: rename the step that changed') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _surrogates(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)

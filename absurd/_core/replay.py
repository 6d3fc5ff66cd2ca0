"""Replay: which checkpoint belongs to which call, and what is known of it. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from absurd.errors import StepError, StepNameError

MAX_NAME_BYTES = 1024
#: Checkpoints that are no steps: "the steps of this task have no order", "this code did not fit", and how to undo a step.
UNORDERED = "$unordered"
REFUSED = "$refused"
UNDO = "$undo"


class History:
    """The checkpoints a run starts with, and the names it has used so far.

    The n-th use of a name is `name#n`. A name that is taken already (somebody called a step "a#2") counts on until a
    free one is found, so two calls never share a checkpoint; the rule is a function of the order of calls alone.

    What is recorded lies ahead until it is asked for. New work while something lies ahead may mean that the code has changed.
    It need not where the record does not tell all: a call that failed while its handler went on, steps inside steps, calls
    from several tasks or threads. After the first such thing nothing is recorded before the mark that says so, which holds
    for good. Whether the order is judged (`strict`) does not matter for that: who judges later relies on the mark.
    """

    __slots__ = (
        "_counts",
        "_marked",
        "_open",
        "_pending",
        "_states",
        "_strict",
        "_timeouts",
        "_used",
        "passed",
        "untold",
    )

    def __init__(self, states: dict[str, Any] | None, timeouts: Iterable[str] | None, *, strict: bool = True) -> None:
        self._states = states or {}
        self._timeouts = set(timeouts) if timeouts else set()
        self._pending = {name for name in states if not is_mark(name)} if states else set()
        if timeouts:
            self._pending |= self._timeouts
        self._marked = UNORDERED in self._states
        self._strict = strict and not self._marked
        self._counts: dict[str, int] = {}
        self._used: set[str] = set()
        #: what has been asked for and neither kept nor given up in a way that is recorded
        self._open: set[str] = set()
        #: what was recorded already when it was asked for, in the order of the calls; not those made side by side, which are
        #: recorded in the order in which they end
        self.passed: list[str] = []
        #: something happened of which the record will not tell: a call from another task or thread than the handler's, or one
        #: that failed and leaves no record of its own
        self.untold = False

    def next_name(self, name: str) -> str:
        """The checkpoint name of the next call that uses `name`; StepNameError for a name that cannot be one."""
        if not isinstance(name, str) or not name.strip():
            raise StepNameError("a step needs a name: a non-empty string")
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise StepNameError(f"the step name {name[:40]!r}... is longer than {MAX_NAME_BYTES} bytes: shorten it")
        if name[0] == "$" and is_mark(name):
            raise StepNameError(f"the name {name!r} is kept for the engine: give the step another")
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
            self.passed.append(name)
            return True, self._states[name]
        if name in self._timeouts:
            self.passed.append(name)
        else:
            self._open.add(name)
        return False, None

    def take_group(self, names: Iterable[str]) -> dict[str, Any]:
        """The stored values of calls that are made side by side on purpose: they do not disturb each other's order."""
        wanted = list(names)
        self._pending.difference_update(wanted)
        return {name: self._states[name] for name in wanted if name in self._states}

    def timed_out(self, name: str) -> bool:
        """Whether the wait of this name ran out in this or an earlier attempt."""
        return name in self._timeouts

    def keep(self, name: str, state: Any) -> None:
        """Remember what has just been committed."""
        self._states[name] = state
        self._open.discard(name)

    def time_out(self, name: str) -> None:
        """Remember that a wait has just run out."""
        self._timeouts.add(name)
        self._open.discard(name)

    def failed(self, name: str) -> None:
        """A call of a group failed: from here on it counts like any other."""
        self._open.add(name)

    def kept(self, name: str) -> Any:
        """The stored value of a checkpoint that is no step; None without one."""
        return self._states.get(name)

    def marks(self, prefix: str) -> int:
        """How many checkpoints that are no steps begin so."""
        return sum(name.startswith(prefix) for name in list(self._states))  # threads may add some meanwhile

    def loses_order(self, name: str) -> bool:
        """Whether the commit of `name` leaves a record that does not tell the way to it: to be marked first."""
        return not self._marked and (self.untold or len(self._open) > (name in self._open)) and not is_mark(name)

    def marked(self) -> None:
        """The mark has been recorded."""
        self._marked, self._strict = True, False

    def lenient(self) -> None:
        """The order of calls says nothing to this run from here on."""
        self._strict = False

    def ahead(self, name: str) -> set[str]:
        """What is recorded and has not been asked for, now that `name` has; nothing where that does not matter."""
        return self._pending if self._strict and name not in self._timeouts else set()

    @property
    def replaying(self) -> bool:
        """Whether some of what earlier executions committed still lies ahead."""
        return bool(self._pending)


def is_mark(name: str) -> bool:
    """Whether a checkpoint is no step, but says something of the task."""
    return name in (UNORDERED, REFUSED, UNDO) or name.startswith(f"{UNDO}:")


def kept_moment(state: Any, checkpoint: str) -> datetime:
    """A kept wake time: ISO 8601, as ours and the original's clients write it."""
    try:
        moment = datetime.fromisoformat(state)
    except (TypeError, ValueError):
        raise StepError(f'step "{checkpoint}" was no sleep when it was kept: rename the step that changed') from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _surrogates(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)

"""A clock that a test moves. Pure: the sessions of the clients it was given to take it to the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from absurd._core.options import seconds_of
from absurd.errors import InvalidOption


class Clock:
    """What a test takes for now. It stands still until it is moved, and never goes back."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = datetime.now(UTC) if start is None else _aware(start)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._now.isoformat(sep=' ')})"

    @property
    def now(self) -> datetime:
        """The moment the clock shows, in UTC."""
        return self._now

    def advance(self, by: float | timedelta) -> datetime:
        """Move on by seconds or a timedelta; returns the new moment. The database hears of it with the client's next call.

        Raises InvalidOption for what is no duration, or a negative one.
        """
        seconds = seconds_of(by, "by")
        try:
            self._now += timedelta(seconds=seconds)
        except OverflowError:
            raise InvalidOption(f"a clock cannot be moved on by {by!r}: no calendar reaches so far") from None
        return self._now

    def move_to(self, moment: datetime) -> datetime:
        """Move on to a moment with a time zone; returns it. InvalidOption for one in the clock's past."""
        wanted = _aware(moment)
        if wanted < self._now:
            raise InvalidOption(f"a test clock never goes back: it shows {self._now}, and was asked for {moment}")
        self._now = wanted
        return self._now

    def rewind(self, moment: datetime) -> None:
        """Back to an earlier moment: only between runs that know nothing of each other."""
        self._now = _aware(moment)


def _aware(moment: datetime) -> datetime:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidOption(f"a clock needs a datetime with a time zone, not {moment!r}: add tzinfo=UTC")
    return moment.astimezone(UTC)

"""Filters as people write them, on a command line and in an address."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, now: datetime, *, ahead: bool = False) -> datetime:
    """`30m`, `12h`, `7d` back from now (or on from it, where we look `ahead`), or a date and time as ISO 8601 writes it, in
    UTC unless it says otherwise. ValueError for anything else."""
    found = _SPAN.fullmatch(text)
    try:
        if found:
            span = timedelta(**{_UNITS[found[2]]: float(found[1])})
            return now + span if ahead else now - span
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither a span (30m, 12h, 7d) nor a moment (2026-03-01T12:00)") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)

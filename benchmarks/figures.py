"""Medians, percentiles and ratios of what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values: nothing was measured")
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of the runs, and the runs."""
    if not runs:
        raise ValueError("no runs: nothing was measured")
    return {"median": statistics.median(runs), "min": min(runs), "max": max(runs), "runs": list(runs)}


def median_of(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each entry."""
    return {key: statistics.median(cost[key] for cost in costs) for key in costs[0]} if costs else {}


def better(lines: Iterable[Mapping[str, Any]], *, lower: bool = False) -> Mapping[str, Any] | None:
    """The line with the better median; None without lines."""
    known = [line for line in lines if line.get("median") is not None]
    return (min if lower else max)(known, key=lambda line: line["median"], default=None)


def ratio(ours: float | None, theirs: float | None, *, lower: bool = False) -> float | None:
    """How many times better ours is: above 1 is better. None when a figure is missing or zero."""
    if not ours or not theirs:
        return None
    return theirs / ours if lower else ours / theirs


def rounded(value: float | None) -> str:
    """A figure as people read it: three digits, thousands separated."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}"

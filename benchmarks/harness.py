"""Runs rows: the contenders in turns, run by run, and one JSON line for each when the row has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.figures import median_of, percentile, rounded, summary
from benchmarks.results import Results
from benchmarks.rows import Contender, Row
from benchmarks.server import Server
from benchmarks.workloads import Bench, Run

Runner = Callable[[Row, Contender], Run]


def runner(server: Server, scale: float) -> Runner:
    """Runs on a server, at a scale."""
    return lambda row, contender: Bench(server, row, contender, scale).run()


def missing(row: Row, results: Results) -> tuple[Contender, ...]:
    """The contenders of a row that have no figure yet."""
    return tuple(one for one in row.contenders if not results.has(row.name, one.system, one.setting))


def measure(
    row: Row, contenders: Sequence[Contender], run: Runner, runs: int, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Run the contenders of a row in turns; a line for each. One that fails keeps its line, with the error and no figure."""
    began, load = datetime.now(UTC), os.getloadavg()[0]
    done: dict[Contender, list[Run]] = {one: [] for one in contenders}
    errors: dict[Contender, str] = {}
    for number in range(runs):
        for one in contenders:
            if one in errors:
                continue
            since = time.monotonic()
            try:
                done[one].append(run(row, one))
            except Exception as error:  # whatever it was: the others still have to run, and this one has no figure
                errors[one] = f"{type(error).__name__}: {error}"
                say(f"  {one.system}, {one.setting}: failed\n{error}")
                continue
            figure, seconds = rounded(done[one][-1].value), time.monotonic() - since
            say(f"  {number + 1}/{runs} {one.system}, {one.setting}: {figure} {row.unit} ({seconds:.1f} s)")
    return [line(row, one, done[one], errors.get(one), began, load) for one in contenders]


def line(
    row: Row, contender: Contender, runs: Sequence[Run], error: str | None, began: datetime, load: float
) -> dict[str, Any]:
    """What is kept of one contender in one row."""
    kept: dict[str, Any] = {"kind": "row", "row": row.name, "title": row.title, "unit": row.unit, "lower": row.lower}
    kept |= {"system": contender.system, "setting": contender.setting, "options": dict(contender.options)}
    kept |= {"at": began.isoformat(timespec="seconds"), "load_before": load}
    if error is not None or not runs:
        return kept | {"median": None, "error": error or "no run"}
    kept |= summary([one.value for one in runs]) | {"n": runs[-1].n}
    kept["cost"] = median_of([one.cost.per(one.n) for one in runs if one.cost is not None])
    samples = [sample for one in runs for sample in one.samples]
    if samples:
        kept |= {"p50": percentile(samples, 0.5), "p99": percentile(samples, 0.99), "samples": len(samples)}
    extra = median_of([one.extra for one in runs if one.extra])
    return kept | ({"extra": extra} if extra else {})

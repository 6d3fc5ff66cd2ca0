"""What the engine must show, as data. A target without its figure is not met."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.figures import ratio, rounded
from benchmarks.results import Results

SDK = ("absurd-sdk-sync", "absurd-sdk-async")
PEERS = (*SDK, "dbos", "procrastinate", "pgqueuer")
#: Figures where less is better, whatever the row says of its main one.
_COSTS = ("p99", "client_us", "server_us", "wal_bytes", "writes")


@dataclass(frozen=True)
class Target:
    """One claim: `system` in `row`, held against `against` (in `other` where that is another row) or against `bound`.

    `factor`: how many times better ours must be at least. `bound`: the least, or where less is better the greatest, value.
    `aim`: the value it should come to. `metric`: the row's own figure, or one of its costs.
    """

    figure: str
    wanted: str
    row: str
    system: str
    against: tuple[str, ...] = ()
    other: str = ""
    factor: float | None = None
    bound: float | None = None
    aim: float | None = None
    metric: str = "median"
    lower: bool = False


@dataclass(frozen=True)
class Verdict:
    """A target held against results."""

    target: Target
    ours: float | None
    theirs: float | None
    opponent: str
    ratio: float | None
    met: bool
    aim_met: bool | None

    @property
    def words(self) -> str:
        """`met` or `not met`, and why where there is no figure."""
        if self.met:
            return "met"
        if self.ours is None:
            return "not met (no figure)"
        return "not met" if self.target.factor is None or self.theirs is not None else "not met (no figure to compare)"


def _drains() -> tuple[Target, ...]:
    found: list[Target] = []
    for system in ("ours-async", "ours-sync"):
        figure, row = f"no-op drain, {system}", "drain-1w"
        found += [
            Target(figure, "15x absurd-sdk", row, system, SDK, factor=15, aim=25_000),
            Target(figure, "10x DBOS", row, system, ("dbos",), factor=10),
            Target(figure, "10x Procrastinate", row, system, ("procrastinate",), factor=10),
            Target(figure, "ahead of PgQueuer", row, system, ("pgqueuer",), factor=1),
            Target(figure + ", 2 workers", "(aim) faster than one", "drain-2w", system, (system,), row, factor=1),
        ]
    return (
        *found,
        Target(
            "three steps, ours-async", "20x absurd-sdk async", "steps-1w", "ours-async", SDK[1:], factor=20, aim=9_000
        ),
        Target("three steps, ours-async", "40x DBOS", "steps-1w", "ours-async", ("dbos",), factor=40),
        Target("three steps, ours-sync", "10x absurd-sdk sync", "steps-1w", "ours-sync", SDK[:1], factor=10, aim=5_000),
        Target("three steps, ours-sync", "20x DBOS", "steps-1w", "ours-sync", ("dbos",), factor=20),
    )


_SPAWN_BARE = "70 % of the bare insert at 8 clients"
SPAWNS = (
    Target("spawn one at a time", "1.2x absurd-sdk", "spawn", "ours-sync", SDK, factor=1.2, aim=2_500),
    Target("spawn one at a time", "level with PgQueuer", "spawn", "ours-sync", ("pgqueuer",), factor=1),
    Target("spawn one at a time", "2x DBOS", "spawn", "ours-sync", ("dbos",), factor=2),
    Target("spawn, 8 client processes", _SPAWN_BARE, "spawn-8c", "ours-sync", ("floor",), "floor-insert-8c", factor=0.7),
    Target(
        "spawn_task called by pgbench, 8 clients", _SPAWN_BARE, "floor-spawn-8c", "ours-sync", ("floor",),
        "floor-insert-8c", factor=0.7,
    ),
    Target(
        "spawn_minted called by pgbench, 8 clients", "70 % of the bare insert of the same rows", "floor-minted-8c", "ours-sync",
        ("ours-sync",), "floor-rows-8c", factor=0.7,
    ),
    Target(
        "spawn, of pgbench calling the same", "(aim) 86 %", "spawn", "ours-sync", ("ours-sync",), "floor-spawn-1c", factor=0.86
    ),
    Target("concurrent spawns, coalesced", "(aim) 20,000/s", "spawn-concurrent", "ours-async", bound=20_000),
    Target("spawn bulk", "1.3x PgQueuer", "spawn-bulk", "ours-sync", ("pgqueuer",), factor=1.3, aim=80_000),
    Target("spawn bulk", "15x absurd-sdk in one transaction", "spawn-bulk", "ours-sync", SDK, factor=15),
)  # fmt: skip


def _latencies() -> tuple[Target, ...]:
    found: list[Target] = []
    for system in ("ours-async", "ours-sync"):
        figure = f"spawn to start, {system}"
        found += [
            Target(figure, "p50 lower than every peer", "pickup", system, PEERS, factor=1, aim=1.1, lower=True),
            Target(figure, "p99 under 10 ms", "pickup", system, bound=10, aim=4, metric="p99", lower=True),
        ]
        figure = f"emit to resume, {system}"
        found += [
            Target(figure, "lower than DBOS", "resume", system, ("dbos",), factor=1, aim=1.5, lower=True),
            Target(figure, "lower than absurd-sdk", "resume", system, SDK, factor=1, lower=True),
            Target(figure, "(aim) p99 under 4 ms", "resume", system, bound=4, metric="p99", lower=True),
        ]
    return tuple(found)


EVENTS = (
    Target("emit one at a time, 1 client", "2x absurd-sdk", "emit-1c", "ours-sync", SDK, factor=2, aim=3_500),
    Target("emit one at a time, 4 clients", "2x absurd-sdk", "emit-4c", "ours-sync", SDK, factor=2, aim=8_000),
    Target("emit, arrays of 100", "20,000 events/s", "emit-arrays", "ours-sync", bound=20_000, aim=27_000),
    Target("1,000 waiters", "5x absurd-sdk", "waiters-1000", "ours-async", SDK, factor=5, aim=0.25, lower=True),
    Target("10,000 waiters", "10x absurd-sdk", "waiters-10000", "ours-async", SDK, factor=10, lower=True),
    Target(
        "10,000 waiters", "within 12x of 1,000", "waiters-10000", "ours-async", ("ours-async",), "waiters-1000",
        factor=1 / 12, lower=True,
    ),
)  # fmt: skip


def _growth() -> tuple[Target, ...]:
    found = [
        Target(
            f"drain beside {words}",
            "within 10 % of small",
            row,
            "ours-async",
            ("ours-async",),
            "backlog-small",
            factor=0.9,
        )
        for words, row in (
            ("500,000 finished", "backlog-finished"),
            ("50,000 sleeping", "backlog-sleeping"),
            ("200,000 due", "backlog-due"),
        )
    ]
    row, system = "claim-100000", "ours-sync"
    return (
        *found,
        Target(
            "claim of 1 at 100,000 due",
            "within 30 % of 10 due",
            row,
            system,
            (system,),
            "claim-10",
            1 / 1.3,
            lower=True,
        ),
        Target("claim of 1 at 100,000 due", "50x absurd-sdk", row, system, SDK, factor=50, lower=True),
        Target("10 idle workers", "under 1 transaction/s each", "idle-10", "ours-async", bound=1, aim=0.3, lower=True),
    )


def _costs() -> tuple[Target, ...]:
    row, system = "steps-1w", "ours-async"
    return (
        Target(
            "client CPU of a three-step task, us",
            "a third of absurd-sdk",
            row,
            system,
            SDK,
            "",
            3,
            None,
            40,
            "client_us",
        ),
        Target(
            "Postgres CPU of a three-step task, us",
            "a tenth of absurd-sdk",
            row,
            system,
            SDK,
            "",
            10,
            None,
            80,
            "server_us",
        ),
        Target(
            "WAL of a three-step task, bytes", "half of absurd-sdk", row, system, SDK, "", 2, None, 1_500, "wal_bytes"
        ),
        Target(
            "write transactions of a three-step task", "fewer than absurd-sdk", row, system, SDK, "", 1, metric="writes"
        ),
    )


TARGETS: tuple[Target, ...] = (*_drains(), *SPAWNS, *_latencies(), *EVENTS, *_growth(), *_costs())


def judge(target: Target, results: Results) -> Verdict:
    """Hold one target against what was measured; the better setting of the system and of its opponents counts."""
    lower = target.lower or target.metric in _COSTS
    ours, _, window = _best(target, results, target.row, (target.system,), lower)
    theirs, opponent, other = None, "", window
    if target.against:
        theirs, opponent, other = _best(target, results, target.other or target.row, target.against, lower)
    if theirs is not None and other != window:
        opponent += ", measured in another window"
    times = ratio(ours, theirs, lower=lower)
    met = False
    if target.factor is not None:
        met = times is not None and times >= target.factor
    elif target.bound is not None and ours is not None:
        met = ours <= target.bound if lower else ours >= target.bound
    aim_met = None
    if target.aim is not None:
        aim_met = ours is not None and (ours <= target.aim if lower else ours >= target.aim)
    return Verdict(target, ours, theirs, opponent, times, met, aim_met)


def _best(
    target: Target, results: Results, row: str, systems: tuple[str, ...], lower: bool
) -> tuple[float | None, str, str]:
    """The best value, whose it is, and the run of the harness it comes from."""
    known = [
        (value, f"{line['system']} ({line['setting']})", str(line.get("window", "")))
        for line in results.of(row, *systems)
        if (value := _value(line, target.metric)) is not None
    ]
    if not known:
        return None, "", ""
    return min(known) if lower else max(known)


def _value(line: Mapping[str, Any], metric: str) -> float | None:
    found = line.get(metric) if metric in ("median", "p99") else (line.get("cost") or {}).get(metric)
    return None if found is None else float(found)


def table(results: Results, rows: Collection[str] | None = None) -> str:
    """Every target as a line of a Markdown table; only those of some rows where a shorter run measures no others."""
    lines = ["| figure | at least | ours | against | ratio | verdict | aim |", "|---|---|---|---|---|---|---|"]
    for target in TARGETS:
        if rows is not None and not {target.row, target.other or target.row} <= set(rows):
            continue
        verdict = judge(target, results)
        against = f"{rounded(verdict.theirs)} {verdict.opponent}".strip() if target.against else "-"
        aim = "-" if target.aim is None else f"{rounded(target.aim)}: {'met' if verdict.aim_met else 'not met'}"
        times = "-" if verdict.ratio is None else f"{rounded(verdict.ratio)}x"
        cells = (target.figure, target.wanted, rounded(verdict.ours), against, times, verdict.words, aim)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

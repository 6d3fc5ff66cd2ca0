"""What goes wrong, and when: a plan drawn from a seed, the same mix for a minute as for half an hour."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

#: faults in half an hour; a shorter run has its share of each, and at least one
HALF_HOUR = {
    "kill": 230,
    "stop": 90,
    "term": 60,
    "crash": 23,
    "cut": 115,
    "lose": 115,
    "stall": 60,
    "hole": 60,
    "partition": 45,
    "terminate": 150,
}
TASKS_IN_HALF_HOUR = 54_000
#: what half an hour has to show at least; some of the planned losses may find no statement in time
PROMISED = {"tasks": 50_000, "kill": 200, "crash": 20, "cut or lose": 200}
FULL_SIZE = 1800.0  # seconds
WORKERS = 4
LEASE = 3.0  # seconds: so short that it runs out under a stopped or cut-off worker
ROUND_SECONDS = 90.0

#: statements whose answers are lost, each by a part of its text; what commits a transactional step is a bare COMMIT
VERBS = (
    r"claim_tasks",
    r"set_checkpoints",
    r"complete_runs",
    r"await_events",
    r"schedule_runs",
    r"extend_claims",
    r"fail_runs",
    r"spawn_",
    r"emit_",
    r"(?i)^commit",
    r"into chaos\.effects",
)


class Fault(NamedTuple):
    """`at`: seconds after the beginning of the round; `worker`: the slot it is meant for, where it is meant for one."""

    at: float
    kind: str
    worker: int
    seconds: float
    verb: str = ""


class Round(NamedTuple):
    """One stretch of faults under load, then a drain and the checks."""

    number: int
    tasks: int
    faults: dict[str, int]


def rounds(seconds: float) -> list[Round]:
    """The rounds of a run of so many seconds: faults and tasks shared out evenly, what does not divide goes first."""
    count = max(1, round(seconds / ROUND_SECONDS))
    share = seconds / FULL_SIZE
    totals = {kind: max(1, math.ceil(number * share)) for kind, number in HALF_HOUR.items()}
    tasks = math.ceil(TASKS_IN_HALF_HOUR * share)
    return [
        Round(
            number,
            _part(tasks, number, count),
            {kind: _part(total, number, count) for kind, total in totals.items()},
        )
        for number in range(count)
    ]


def faults(round_: Round, seconds: float, rng: random.Random) -> list[Fault]:
    """When each fault of a round comes, in order; crashes stand apart from each other, the others come as they like."""
    drawn: list[Fault] = []
    for kind, number in round_.faults.items():
        for nth in range(number):
            at = (nth + rng.uniform(0.3, 0.7)) * seconds / number if kind == "crash" else rng.uniform(0, seconds)
            drawn.append(Fault(at, kind, rng.randrange(WORKERS), _duration(kind, rng), rng.choice(VERBS)))
    return sorted(drawn)


def _part(total: int, number: int, count: int) -> int:
    return total // count + (number < total % count)


def _duration(kind: str, rng: random.Random) -> float:
    """Seconds: around the lease, so that the stopped and cut-off come back when somebody else has just taken over; a few
    come back in time, and a few much later."""
    if kind in ("stop", "partition"):
        return rng.uniform(*rng.choice([(0.8, 1.6), (0.8, 1.6), (0.8, 1.6), (0.5, 3.0)])) * LEASE
    if kind in ("stall", "hole"):
        return rng.uniform(0.1, 2.0) * LEASE
    if kind == "lose":  # every other time the network is gone for a while
        return rng.choice([0.0, rng.uniform(0.2, 1.5) * LEASE])
    if kind == "crash":
        return rng.choice([0.0, rng.uniform(0, 2)])
    return rng.uniform(0, 1)  # until a killed worker is replaced


def missing(figures: dict[str, int], seconds: float) -> list[str]:
    """What a run of so many seconds has promised and not shown."""
    shown = {**figures, "cut or lose": figures.get("cut", 0) + figures.get("lose", 0)}
    promised = {name: int(number * seconds / FULL_SIZE) for name, number in PROMISED.items()}
    return [
        f"{shown.get(name, 0)} {name}, not {number}" for name, number in promised.items() if shown.get(name, 0) < number
    ]


def describe(chosen: dict[str, Any]) -> str:
    """Counts by kind as one line."""
    return ", ".join(f"{number} {kind}" for kind, number in chosen.items())

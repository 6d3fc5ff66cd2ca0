"""The plan is big enough, the same for the same seed, and the same mix in small."""

from __future__ import annotations

import random
from collections import Counter

from tests.chaos import plan


def _drawn(seconds: float, seed: int) -> list[plan.Fault]:
    rng = random.Random(seed)
    return [fault for round_ in plan.rounds(seconds) for fault in plan.faults(round_, 60, rng)]


def test_half_an_hour_holds_what_it_has_to_show() -> None:
    counts = Counter(fault.kind for fault in _drawn(1800, 1))
    assert counts["kill"] >= 200
    assert counts["crash"] >= 20
    assert counts["cut"] + counts["lose"] >= 200
    assert sum(round_.tasks for round_ in plan.rounds(1800)) >= 50_000


def test_a_minute_has_its_share_of_everything() -> None:
    counts = Counter(fault.kind for fault in _drawn(60, 1))
    assert set(counts) == set(plan.HALF_HOUR)
    assert counts["kill"] >= 7
    assert counts["cut"] + counts["lose"] >= 7
    assert sum(round_.tasks for round_ in plan.rounds(60)) >= 50_000 / 30


def test_a_seed_gives_one_plan() -> None:
    assert _drawn(300, 7) == _drawn(300, 7)
    assert _drawn(300, 7) != _drawn(300, 8)


def test_a_run_that_shows_less_than_it_promised_says_so() -> None:
    enough = {"tasks": 50_000, "kill": 200, "crash": 20, "cut": 120, "lose": 80}
    assert plan.missing(enough, 1800) == []
    assert plan.missing({**enough, "lose": 79}, 1800) == ["199 cut or lose, not 200"]
    assert plan.missing({"tasks": 1666, "kill": 6, "cut": 3, "lose": 3}, 60) == []

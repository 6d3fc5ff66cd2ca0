"""How often, and after which pauses, a step is tried within one attempt of its task."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from absurd._core import options
from absurd.errors import InvalidOption, NonRetryableError, RetryAfter, ValidationFailed

#: a pause is spent in the worker's slot: longer ones belong to the task
LONGEST_PAUSE = 300.0


class StepPolicy(NamedTuple):
    """`max_attempts` tries, the pauses between them, and seconds for each (None: any)."""

    max_attempts: int
    strategy: Mapping[str, Any]
    timeout: float | None

    def pause(self, tried: int, error: Exception) -> float | None:
        """Seconds until the next try after `tried` of them; None when the error stands."""
        if tried >= self.max_attempts or isinstance(error, (NonRetryableError, ValidationFailed)):
            return None
        if isinstance(error, RetryAfter):
            return error.delay if error.delay <= LONGEST_PAUSE else None
        return delay(self.strategy, tried) * (1 - random.random() * float(self.strategy.get("jitter") or 0))


ONCE = StepPolicy(1, {}, None)


def step_policy(max_attempts: Any, strategy: Any, timeout: Any) -> StepPolicy:
    """The policy of a step, from what its caller said; InvalidOption for what makes none."""
    if max_attempts is None and strategy is None and timeout is None:
        return ONCE
    tries = options.whole_number(1 if max_attempts is None else max_attempts, "max_attempts")
    rule = options.retry_strategy({"kind": "none"} if strategy is None else strategy)
    if tries > 1 and delay(rule, tries - 1) > LONGEST_PAUSE:
        raise InvalidOption(
            f"a step would pause for more than {LONGEST_PAUSE:.0f} s in its worker's slot: set max_seconds,"
            " or let the step raise, and give the task a retry_strategy"
        )
    return StepPolicy(tries, rule, None if timeout is None else options.seconds_of(timeout, "timeout"))


def delay(strategy: Mapping[str, Any], tried: int) -> float:
    """Seconds after the n-th try, before jitter: the formula of absurd.retry_delay_seconds."""
    kind = strategy.get("kind", "none")
    if kind == "none":
        return 0.0
    base = float(strategy.get("base_seconds", 60 if kind == "fixed" else 30))
    most = float(strategy.get("max_seconds", 86400))
    if kind == "fixed":
        return min(base, most)
    try:
        return min(base * float(strategy.get("factor", 2)) ** (max(tried, 1) - 1), most)
    except OverflowError:
        return most

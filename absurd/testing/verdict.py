"""What a run left behind, held against what the undisturbed run left."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from absurd._core import codec
from absurd.testing.values import ID, Standing

Key = Callable[[Any], Any]


@dataclass(frozen=True)
class Ending:
    """How a run ended: the task, the effects it had, the events that were emitted, and the engine's own complaints."""

    standing: Standing
    result: Any
    effects: Mapping[str, int]
    events: Mapping[str, Any]
    violations: list[str]


def ending(
    standing: Standing,
    key: Key | None,
    effects: Mapping[str, int],
    events: Mapping[str, Any],
    tasks: Mapping[uuid.UUID, str],
    violations: list[str],
) -> Ending:
    """Ids of this run's tasks are replaced by words: they differ from run to run."""
    result = standing.result if key is None or standing.state != "completed" else key(standing.result)
    masked = {_masked(name, tasks): _masked(payload, tasks) for name, payload in events.items()}
    return Ending(standing, _masked(result, tasks), effects, masked, violations)


def differences(expected: Ending, found: Ending, repeated: Mapping[str, int]) -> list[str]:
    """One line for each thing that is not as in the undisturbed run. `repeated`: how often an effect may come again."""
    lines = []
    if found.standing.state != expected.standing.state:
        why = f": {_failure(found.standing)}" if found.standing.failure else ""
        lines.append(f"state is {found.standing.state}, not {expected.standing.state}{why}")
    elif found.result != expected.result:
        lines.append(f"result is {_shown(found.result)}, not {_shown(expected.result)}")
    elif not _timed_out(found.standing) and _failure(found.standing) != _failure(expected.standing):
        # (where all attempts fail, the crash may have been the last)
        lines.append(f"failure is {_failure(found.standing)}, not {_failure(expected.standing)}")
    lines += _effects(expected.effects, found.effects, repeated)
    lines += _events(expected.events, found.events)
    return lines + [f"the engine's invariants are violated: {line}" for line in found.violations]


def _effects(expected: Mapping[str, int], found: Mapping[str, int], repeated: Mapping[str, int]) -> list[str]:
    lines = []
    for name in sorted({*expected, *found}):
        least, count = expected.get(name, 0), found.get(name, 0)
        most = least + max(repeated.get(name, 0), 0)
        if not least <= count <= most:
            wanted = f"{least}" if most == least else f"{least} to {most}"
            lines.append(f'effect "{name}" happened {count} times, not {wanted}')
    return lines


def _events(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted({*expected, *found}):
        if name not in found:
            lines.append(f'event "{name}" was not emitted')
        elif name not in expected:
            lines.append(f'event "{name}" was emitted, and is not in the undisturbed run')
        elif found[name] != expected[name]:
            lines.append(f'event "{name}" carries {_shown(found[name])}, not {_shown(expected[name])}')
    return lines


def _failure(standing: Standing) -> str:
    failure = standing.failure
    if standing.state == "completed" or not isinstance(failure, dict):
        return ""
    if _timed_out(standing):
        return "$ClaimTimeout (a crash costs an attempt, and there was none left: raise max_attempts)"
    return f"{failure.get('name')}: {failure.get('message')}"


def _timed_out(standing: Standing) -> bool:
    return isinstance(standing.failure, dict) and standing.failure.get("name") == "$ClaimTimeout"


def _masked(value: Any, tasks: Mapping[uuid.UUID, str]) -> Any:
    def word(text: str) -> str:
        number = uuid.UUID(text).int
        name = tasks.get(uuid.UUID(int=number)) or tasks.get(uuid.UUID(int=number >> 16 << 16))
        return text if name is None else f"<id of {name}>"

    text = ID.sub(lambda match: word(match[0]), codec.encode(value, what="value"))
    return codec.decode(text)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else f"{text[:200]}..."


def minus(later: Mapping[str, int], earlier: Mapping[str, int]) -> Counter[str]:
    """What was added between two counts."""
    return Counter(
        {name: count - earlier.get(name, 0) for name, count in later.items() if count > earlier.get(name, 0)}
    )

"""What a type checker says of code that uses the SDK: the right types are known, the wrong ones are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = HERE / "cases"


@pytest.fixture(scope="session")
def said() -> dict[str, list[tuple[int, str, str]]]:
    """What `mypy --strict` finds, as (line, code, message), by file."""
    paths = [CASES / "typed_values.py", CASES / "wrong.py", ROOT / "examples" / "python" / "typed_order.py"]
    given = ["--strict", "--no-error-summary", "--hide-error-context", "--config-file", str(ROOT / "pyproject.toml")]
    out, err, _ = api.run([*given, *map(str, paths)])
    assert err == ""
    found: dict[str, list[tuple[int, str, str]]] = {path.name: [] for path in paths}
    for line in out.splitlines():
        match = re.fullmatch(r"(?:.*/)?([^/:]+):(\d+): error: (.*)  \[([\w-]+)\]", line)
        if match:
            found[match[1]].append((int(match[2]), match[4], match[3]))
        else:
            assert ": note: " in line, line
    return found


@pytest.mark.timeout(180)
def test_the_types_of_steps_events_and_results_are_known(said: dict[str, list[tuple[int, str, str]]]) -> None:
    assert said["typed_values.py"] == []


@pytest.mark.timeout(180)
def test_the_typed_example_is_strictly_typed(said: dict[str, list[tuple[int, str, str]]]) -> None:
    assert said["typed_order.py"] == []


@pytest.mark.timeout(180)
def test_each_wrong_line_is_refused_for_its_reason(said: dict[str, list[tuple[int, str, str]]]) -> None:
    lines = (CASES / "wrong.py").read_text(encoding="utf-8").splitlines()
    expected = {(number, line.partition("# E: ")[2]) for number, line in enumerate(lines, 1) if "# E: " in line}
    assert len(expected) > 15
    assert {(line, code) for line, code, _ in said["wrong.py"]} == expected

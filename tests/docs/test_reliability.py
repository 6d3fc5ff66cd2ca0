"""The table of weaknesses names a test for each of them, and every test of that kind stands in it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NUMBERS = [f"W{n}" for n in range(1, 19)] + ["W17b"] + [f"W{n}" for n in range(20, 41)]


def _rows() -> dict[str, str]:
    page = (ROOT / "docs" / "reliability.md").read_text()
    return dict(re.findall(r"^\| (W\w+) \| [^|]+ \| (.+) \|$", page, re.M))


def _tests() -> set[str]:
    files = (path for path in (ROOT / "tests").rglob("test_*.py") if "_sync" not in path.parts)
    return {name for path in files for name in re.findall(r"def (test_w\d\d\w*)\(", path.read_text())}


def test_every_weakness_has_a_row_with_its_tests_or_the_reason_why_it_cannot_happen() -> None:
    rows = _rows()
    assert set(rows) == set(NUMBERS)
    for number, text in rows.items():
        prefix = f"test_w{number[1:].rstrip('b'):0>2}{'b' if number.endswith('b') else ''}_"
        named = re.findall(r"`(test_\w+)`", text)
        assert all(name.startswith(prefix) for name in named)
        assert named or text.startswith("cannot happen: ")


def test_the_tests_of_the_table_are_those_there_are() -> None:
    assert set(re.findall(r"`(test_w\w+)`", "".join(_rows().values()))) == _tests()

"""Hostile values for the fuzz tests, and how many of them are tried.

Left alone the tests are the same every time (CI). FUZZ_EXAMPLES=2000 tries more, other ones at every run; what fails then
says its FUZZ_SEED, with which it fails again.
"""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

F = TypeVar("F", bound=Callable[..., Any])
Draw = Callable[[st.SearchStrategy[Any]], Any]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 0)
SEED = int(os.environ.get("FUZZ_SEED") or (random.SystemRandom().randrange(2**32) if EXAMPLES else 0))
#: Ten megabytes of text that does not compress to nothing where it matters, and one that does.
TEN_MEGABYTES = 10 * 1024 * 1024


def fuzz(examples: int) -> Callable[[F], F]:
    """Try that many examples, or FUZZ_EXAMPLES of them; a failure tells how to see it again."""

    def decorate(test: F) -> F:
        chosen = settings(
            max_examples=EXAMPLES or examples,
            derandomize=not EXAMPLES,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        tried = chosen(test)
        if EXAMPLES:
            tried = seed(SEED)(tried)

        @functools.wraps(tried)
        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                return tried(*args, **kwargs)
            except BaseException as error:
                error.add_note(f"again: FUZZ_EXAMPLES={EXAMPLES or ''} FUZZ_SEED={SEED}")
                raise

        told.is_hypothesis_test = True  # type: ignore[attr-defined]
        return told  # type: ignore[return-value]

    return decorate


#: Texts that have broken something somewhere.
NASTY = [
    "",
    " ",
    "\t\n ",
    "'",
    '"',
    "\\",
    "''; drop table absurd.tasks; --",
    '"; drop schema absurd cascade; --',
    "$$ $1 %s %(a)s {0} :x",
    "😀" * 14,
    "😀" * 15,
    "\u202eabc\u200f",
    "\ufeff\u00a0",
    "e\u0301",
    "\u0001\u001f\x7f",
    "NULL",
    "null",
    "{}",
    "$undo:",
    "$",
    "a" * 57,
    "a" * 58,
    "absurd.tasks",
    "../../etc/passwd",
    "-1",
    "--help",
    "\U0010ffff",
]
STORABLE = st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])
TEXTS = st.one_of(st.sampled_from(NASTY), st.text(STORABLE, max_size=20))
#: What no Postgres text can hold, too.
ANY_TEXTS = st.one_of(
    TEXTS, st.text(st.characters(), max_size=20), st.sampled_from(["\0", "a\0b", "\ud800", "x\udfff"])
)

# ---------------------------------------------------------------- what an argument of SQL can be written as

#: Texts of jsonb, some of which are none.
JSONS = st.one_of(
    st.sampled_from(
        [
            "null",
            "true",
            "0",
            "-0",
            "[]",
            "{}",
            '""',
            '"a"',
            "1e400",
            "-1e-400",
            "1e131071",
            "1e131072",
            "9" * 400,
            "NaN",
            "Infinity",
            '"\\u0000"',
            '{"\\u0000": 1}',
            '"\\ud800"',
            '"\\udc00\\ud800"',
            '"😀"',
            "[" * 60 + "]" * 60,
            "[" * 20000 + "]" * 20000,
            '{"a": {"a": [null, {"a": 1, "a": 2}]}}',
            "[null]",
            '{"": ""}',
            "",
            " ",
            "{",
            "'",
            "1 2",
        ]
    ),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=6,
    ).map(lambda value: json.dumps(value)),
)
INTEGERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([0, 1, 2**15, 2**16, 65535, 2**31 - 1, -(2**31), 2**31, 2**63, 10**30]),
).map(str)
FLOATS = st.one_of(
    st.sampled_from(["0", "-0", "0.5", "-1", "1", "60", "1e9", "1e15", "1e300", "1e400", "5e-324"]),
    st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
MOMENTS = st.one_of(
    st.sampled_from(
        [
            "infinity",
            "-infinity",
            "294276-12-31 23:59:59.999999+00",
            "294277-01-01",
            "4714-11-24 00:00+00 BC",
            "4713-01-01 BC",
            "epoch",
            "now",
            "2026-02-30",
            "1969-12-31 23:59:59.999999+00",
            "10889-08-02 05:31:50.655+00",
            "",
            "yesterday",
        ]
    ),
    st.datetimes().map(str),
)
BOOLEANS = st.sampled_from(["true", "false", "t", "", "2"])
UNKNOWN_IDS = st.sampled_from(
    ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "01935bf7-8a25-7c92-b123-456789ab0000",
     "01935bf7-8a25-7c92-b123-456789ab0001", "01935bf7-8a25-4c92-b123-456789ab0000", "", "x", "0"]
)  # fmt: skip


def array_text(items: list[str | None]) -> str:
    """An array literal."""
    quoted = ("NULL" if item is None else '"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items)
    return "{" + ",".join(quoted) + "}"

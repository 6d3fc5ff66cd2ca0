"""Hostile values for the fuzz tests, and how many of them are tried.

Left alone the tests are the same every time (CI). FUZZ_EXAMPLES=2000 tries more, other ones at every run; what fails then
says its FUZZ_SEED, with which it fails again.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

F = TypeVar("F", bound=Callable[..., Any])

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
ANY_TEXTS = st.one_of(TEXTS, st.text(st.characters(), max_size=20), st.sampled_from(["\0", "a\0b", "\ud800", "x\udfff"]))

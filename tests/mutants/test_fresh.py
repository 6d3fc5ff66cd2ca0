"""The catalogue of `make mutants` still fits: every fault can be put in, and every test it names exists."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.mutants.__main__ import judge
from tests.mutants.catalogue import ROOT, mutations

CATALOGUE = {mutation.name: mutation for mutation in mutations()}
#: what the suite must catch by name
PROMISED = {
    "fence dropped in complete",
    "fence dropped in fail",
    "fence dropped in checkpoint",
    "claim number not raised",
    "lock order swapped in cancel",
    "lock order swapped in cleanup",
    "due condition dropped from claim",
    "event row lock dropped",
    "checkpoint owner check dropped",
    "timeout outcome not stored",
    "idempotency race ignored",
    "lease compared with < instead of <=",
    "idle row inserted after the last claim",
    "finish path skipped on cancel",
    "committer answers a neighbour's error",
}


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_mutation_applies_exactly_once(name: str) -> None:
    mutation = CATALOGUE[name]
    assert mutation.stale() == []
    assert all(edit.text != edit.becomes for edit in mutation.edits)
    assert mutation.tests


def test_the_catalogue_holds_what_is_promised() -> None:
    assert set(CATALOGUE) >= PROMISED
    assert len(CATALOGUE) == len(mutations()), "two mutations of one name"


def test_every_named_test_exists() -> None:
    named = sorted({test for mutation in CATALOGUE.values() for test in mutation.tests})
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *named],
        cwd=ROOT, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ({"a": "AssertionError", "b": "DeadlockDetected"}, "caught"),
        ({"a": "AssertionError", "b": None}, "survived"),
        ({"a": "psycopg.errors.UndefinedColumn: no such column"}, "broken"),
    ],
)
def test_a_mutation_is_caught_only_when_every_named_test_fails_for_a_reason(outcomes: dict, verdict: str) -> None:
    assert judge(outcomes)[0] == verdict

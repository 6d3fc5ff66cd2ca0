"""What the example's tests share: its programs, run as people run them, and workers that can be held anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.examples.nursery import PYTHON, ROOT, SECONDS, Nursery

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(url: str) -> dict[str, str]:
    """The environment of an example program on a database."""
    return {**os.environ, "ABSURD_DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """Run a program of examples/python to its end on this test's database."""

    def start(program: str, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PYTHON / program), *arguments],
            env=environment(url or request.getfixturevalue("database_url")),
            cwd=ROOT / "examples",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    return start


@pytest.fixture
def nursery(database_url: str, session_folder: Path) -> Iterator[Nursery]:
    """Workers of the order example on this test's database."""
    opened = Nursery(database_url, session_folder)
    try:
        yield opened
    finally:
        opened.close()

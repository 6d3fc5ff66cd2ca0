"""What the example's tests share: its programs, run as people run them, and workers that can be held anywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from absurd import Absurd
from tests.examples.nursery import PYTHON, ROOT, SECONDS, Nursery
from tests.examples.terminal import Terminal, environment
from tests.fixtures.pooler import besides_the_warning

Run = Callable[..., "subprocess.CompletedProcess[str]"]
OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """Run a program of examples/python to its end on this test's database."""

    def start(program: str, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, str(PYTHON / program), *arguments],
            env=environment(url or request.getfixturevalue("database_url")),
            cwd=ROOT / "examples",
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        done.stderr = besides_the_warning(done.stderr)
        return done

    return start


@pytest.fixture
def nursery(database_url: str, session_folder: Path) -> Iterator[Nursery]:
    """Workers of the order example on this test's database."""
    opened = Nursery(database_url, session_folder)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def terminal(database_url: str) -> Iterator[OpenTerminal]:
    """Start `event_demo.py` workers with these arguments."""
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(database_url, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.kill()


@pytest.fixture
def app(database_url: str) -> Iterator[Absurd]:
    """A client of the example's queue."""
    with Absurd(database_url, queue_name="examples") as client:
        client.create_queue()
        yield client

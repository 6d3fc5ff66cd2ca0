"""The short form of `make chaos`: everything that goes wrong in half an hour, in a minute's share of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60
LIMIT = 170


@pytest.mark.timeout(LIMIT + 5)
def test_nothing_is_lost_doubled_or_stuck_in_a_minute_of_chaos() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHAOS_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--seconds", str(SECONDS)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 doubled, 0 stuck" in done.stdout.splitlines()[-1]

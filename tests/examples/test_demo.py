"""`make demo`, twice in a row: what it prints, that it ends well, and that it leaves no process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from absurd import embedded
from tests.examples.nursery import ROOT
from tests.examples.test_transcripts import T1, T2, T3, T4, T5, T6, UUID7


@pytest.mark.timeout(180)
@pytest.mark.skipif((os.environ.get("PG") or "18") != "18", reason="the demo brings its own PostgreSQL 18")
def test_the_demo_tells_the_guides_story_twice_in_a_row(
    session_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = session_folder / "clone"
    for folder in ("absurd", "examples"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ABSURD_DATABASE_URL")}
    seconds = []
    try:
        for _ in range(2):
            command = [sys.executable, "examples/demo.py"]
            done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=90)
            assert done.returncode == 0, done.stdout + done.stderr
            seconds.append(_holds_the_story(done.stdout))
    finally:
        embedded.stop(clone / ".absurd" / "pg18")
    with capsys.disabled():
        print(f"\nmake demo: {seconds[0]} s the first time, {seconds[1]} s the second", file=sys.stderr)


def _holds_the_story(printed: str) -> str:
    """The transcripts, in order; the seconds it took."""
    printed = UUID7.sub("<uuid7>", printed)
    story, absurdctl = printed.split("── absurdctl task-result", 1)
    programs = "".join(line for line in story.splitlines(keepends=True) if not line.startswith("── "))
    # Worker 1 dies after it printed the payment and before the next commit: that one line comes twice.
    paid = T4.splitlines(keepends=True)[0]
    assert programs == T1 + T2 + T3 + paid + T4 + T5 + T6
    assert "completed" in absurdctl
    assert '"tracking_number": "1Z999order-12345"' in absurdctl
    assert "$ClaimTimeout" in absurdctl
    found = re.search(r"What you saw.* \((\d+\.\d) s\)", printed)
    assert found is not None
    return found[1]

"""`make demo`, twice in a row: what it prints, that it ends well, and that it leaves no process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
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
        _can_be_pasted(done.stdout, clone, env)
        assert embedded.status(clone / ".absurd" / "pg18") is None, "the last line stops the server"
    finally:
        embedded.stop(clone / ".absurd" / "pg18")
    with capsys.disabled():
        print(f"\nmake demo: {seconds[0]} s the first time, {seconds[1]} s the second", file=sys.stderr)


def _holds_the_story(printed: str) -> str:
    """The transcripts, in order; the seconds it took."""
    printed = UUID7.sub("<uuid7>", printed)
    story, absurdctl = re.split(r"^── .*absurd.* task-result ", printed, maxsplit=1, flags=re.M)
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


def _can_be_pasted(printed: str, clone: Path, env: dict[str, str]) -> None:
    """The lines that are printed for it work as they stand, in the folder of the demo."""
    result, dump = (line.removeprefix("── ") for line in printed.splitlines() if re.match("── .*absurd.* -d ", line))
    assert _paste(result, clone, env).startswith("completed")
    assert "checkpoint reserve-inventory" in _paste(dump, clone, env)

    page, export, *orders, worker, tasks, stop = re.findall(r"^    (\S.*)$", printed.split("What to try next")[1], re.M)
    assert page.split(" run -d ")[1] == result.split(" -d ")[1]
    assert page.startswith("make -C habitat build && habitat/bin/habitat run")
    name, value = export.removeprefix("export ").split("=", 1)
    env = {**env, name: value, "PYTHONUNBUFFERED": "1"}
    for line in orders:
        _paste(line, clone, env)
    with subprocess.Popen(
        ["sh", "-c", f"{worker} & echo $!; wait"], cwd=clone, env=env, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        process = int(shell.stdout.readline())
        try:
            assert any("Order order-1 completed successfully" in line for line in shell.stdout)
        finally:
            os.kill(process, signal.SIGTERM)
    assert "status=completed" in _paste(tasks, clone, env)
    _paste(stop, clone, env)


def _paste(line: str, clone: Path, env: dict[str, str]) -> str:
    done = subprocess.run(["sh", "-c", line], cwd=clone, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, line + "\n" + done.stdout + done.stderr
    return done.stdout

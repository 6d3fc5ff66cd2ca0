"""`absurdctl replay-check`: which waiting tasks the code at hand would break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from absurd import Absurd

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from absurd import {kind}

app = {kind}("{url}", queue_name="orders")


@app.register_task("fulfil"{options})
{prefix}def fulfil(params, ctx):
    print("handlers may print")
    {wait}ctx.step("{first}", lambda: open({trace!r}, "a").write("reserve "))
    {wait}ctx.emit_event("told")
    return {wait}ctx.await_event("{event}", "{step}")
"""


class Release:
    """A module with a handler, and replay-check run on it."""

    def __init__(self, folder: Path, url: str, kind: str) -> None:
        self.folder, self.url, self.kind, self.trace = folder, url, kind, folder / "trace"

    def write(self, **changes: str) -> None:
        given = {"first": "reserve", "event": "paid", "step": "payment", "options": "", **changes}
        asynchronous = self.kind == "AsyncAbsurd"
        words = {"prefix": "async " if asynchronous else "", "wait": "await " if asynchronous else ""}
        text = PROGRAM.format(kind=self.kind, url=self.url, trace=str(self.trace), **words, **given)
        (self.folder / "shop.py").write_text(text)

    def check(self, *options: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "absurd.cli", "replay-check", "shop:app", *options],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return done.returncode, done.stdout, done.stderr

    def checked(self, *options: str) -> tuple[int, list[dict[str, Any]]]:
        code, out, err = self.check("--json", *options)
        assert out, err
        return code, json.loads(out)


@pytest.fixture(params=["Absurd", "AsyncAbsurd"])
def release(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Release:
    """A shop whose two orders wait for their payment; the code is that of the day."""
    made = Release(tmp_path, database_url, request.param)
    app = Absurd(database_url, queue_name="orders")
    app.create_queue()

    @app.register_task("fulfil")
    def fulfil(params: Any, ctx: Any) -> None:
        ctx.step("reserve", lambda: 1)
        ctx.await_event("paid", "payment")

    for number in range(2):
        app.spawn("fulfil", {"n": number})
    app.work_batch(batch_size=2)
    app.spawn("fulfil", {"not": "begun"})
    app.close()
    made.write()
    return made


def test_code_that_fits_breaks_nothing_and_does_nothing(release: Release) -> None:
    code, checks = release.checked()
    assert code == 0
    assert [(check["breaks"], check["why"]) for check in checks] == [(False, 'goes on with step "payment"')] * 2
    assert not release.trace.exists(), "no step ran"


def test_the_table_counts_tasks_of_one_fate(release: Release) -> None:
    code, out, err = release.check()
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["fulfil", "2", "goes", "on"]
    assert "2 waiting tasks checked, 0 would break" in out
    assert "handlers may print" in err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"first": "hold"}, 'expected "reserve", found "hold"'),
        ({"step": "money"}, 'waits at step "payment", but this code goes on with "money"'),
        ({"options": ", params=list[int]"}, "raises ValidationFailed"),
    ],
    ids=["a step renamed", "a wait renamed", "params that no longer fit"],
)
def test_code_that_does_not_fit_is_told(release: Release, change: dict[str, str], why: str) -> None:
    release.write(**change)
    code, checks = release.checked()
    assert code == 1
    assert [check["breaks"] for check in checks] == [True, True]
    assert all(why in check["why"] for check in checks), checks
    assert not release.trace.exists()


def test_a_task_without_a_handler_breaks(release: Release) -> None:
    text = (release.folder / "shop.py").read_text()
    (release.folder / "shop.py").write_text(text.replace('"fulfil"', '"other"'))
    code, checks = release.checked()
    assert (code, {check["why"] for check in checks}) == (1, {"no handler is registered under this name"})


def test_kept_histories_are_checked_without_a_database(release: Release, tmp_path: Path) -> None:
    kept = tmp_path / "waiting.jsonl"
    assert release.check("--save", str(kept))[0] == 0
    release.url = "postgresql://nobody@127.0.0.1:1/nothing"
    release.write(first="hold")
    code, checks = release.checked("--from", str(kept))
    assert (code, len(checks)) == (1, 2)


def test_a_file_that_holds_no_histories_is_refused(release: Release, tmp_path: Path) -> None:
    kept = tmp_path / "waiting.jsonl"
    kept.write_text("{}\n")
    code, _, err = release.check("--from", str(kept))
    assert code == 2
    assert "line 1" in err
    assert "--save" in err


def test_tasks_are_chosen_by_name_and_number(release: Release) -> None:
    assert len(release.checked("--limit", "1")[1]) == 1
    assert release.check("--name", "nothing*", "--json") == (0, "[]\n", "")

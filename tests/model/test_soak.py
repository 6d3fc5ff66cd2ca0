"""The soak itself: what it keeps, where it goes on, and that it sees a divergence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.fixtures.postgres import Databases
from tests.model.slice import main as slice_main
from tests.model.soak import BEGIN, END, ROOT, Soak, verdict, write_report
from tests.model.stage import Stage


def _line(seed: int, outcome: str = "agreed") -> dict[str, object]:
    return {"seed": seed, "steps": 100, "seconds": 1.0, "outcome": outcome}


def test_a_soak_goes_on_with_the_slices_that_have_not_agreed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "progress.jsonl"
    soak = Soak.begin(path, seed=7, steps=350, size=100)
    assert soak.missing == [7, 8, 9, 10]
    for line in (_line(8), _line(7, "diverged")):
        soak.end(line)
    soak.note({"sitting": 12.5})
    with path.open("a") as file:
        file.write('{"seed": 9, "ste')  # cut short by a crash

    again = Soak.resume(path)
    assert again is not None
    assert (again.seed, again.steps, again.size, again.seconds) == (7, 350, 100, 12.5)
    assert again.missing == [7, 9, 10]
    assert again.walked == 100


def test_without_a_soak_before_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert Soak.resume(tmp_path / "progress.jsonl") is None


def test_a_new_soak_forgets_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    Soak.begin(path, 1, 100, 100).end(_line(1))
    assert Soak.begin(path, 1, 100, 100).missing == [1]
    assert len(path.read_text().splitlines()) == 1


def test_the_report_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n\nold\n\n{END}\nafter\n")
    soak = Soak.begin(tmp_path / "progress.jsonl", 7, 100, 100)
    soak.end(_line(7))
    write_report(page, soak)
    write_report(page, soak)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n100 steps in 1 slices (seeds 7 to 7), no divergence; ")
    assert text.endswith(f"{END}\nafter\n")


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="marks"):
        write_report(page, Soak.begin(tmp_path / "progress.jsonl", 7, 100))
    assert page.read_text() == "nothing\n"


@pytest.mark.parametrize(
    ("output", "code", "outcome"),
    [
        (json.dumps(_line(7)), 0, "agreed"),
        ("steps\n" + json.dumps(_line(7, "diverged")), 1, "diverged"),
        ("Traceback", 1, "ended with 1"),
        ("", -9, "ended with -9"),
        (json.dumps(_line(7)), 1, "ended with 1"),
    ],
)
def test_only_a_slice_that_says_so_has_agreed(tmp_path: Path, output: str, code: int, outcome: str) -> None:
    said = tmp_path / "7.txt"
    said.write_text(output)
    assert verdict(said, 7, code)["outcome"] == outcome
    assert said.exists() == (code != 0), "what went wrong is kept"


@pytest.mark.timeout(240)
def test_a_soak_that_is_interrupted_goes_on_where_it_stopped(databases: Databases, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.model.soak", "--folder", str(tmp_path), "--processes", "1"]
    surroundings = {
        "cwd": ROOT, "env": {**os.environ, "ABSURD_TEST_DATABASE_URL": databases.url("postgres")}, "text": True,
        "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
    }  # fmt: skip
    first: subprocess.Popen[str] = subprocess.Popen([*command, "--steps=90", "--slice=30", "--seed=5"], **surroundings)
    assert first.stdout is not None
    assert "3 slices" in first.stdout.readline()
    assert "of 90 steps" in first.stdout.readline()  # one has ended
    first.send_signal(signal.SIGTERM)
    assert "--resume" in first.communicate()[0]
    assert first.returncode == 130
    kept = (tmp_path / "progress.jsonl").read_text()

    again = subprocess.run([*command, "--resume"], check=False, **surroundings)

    assert again.returncode == 0, again.stdout
    after = (tmp_path / "progress.jsonl").read_text()
    assert after.startswith(kept)
    soak = Soak.resume(tmp_path / "progress.jsonl")
    assert soak is not None
    assert sorted(soak.done) == [5, 6, 7]
    assert after.count('"agreed"') == 3, "what had ended is not walked again"
    assert "(seeds 5 to 7), no divergence" in again.stdout


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "a lease that ends a microsecond late"])
@pytest.mark.timeout(120)
def test_a_slice_agrees_with_the_engine_and_not_with_a_broken_one(
    databases: Databases, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: bool
) -> None:
    from tests.model import slice as sliced

    install = sliced.schema.install

    def install_broken(conn: psycopg.Connection[object]) -> None:
        install(conn)
        (source,) = conn.execute("select pg_get_functiondef('absurd.tidy_queue'::regproc)").fetchone()  # type: ignore[misc]
        faulty = str(source).replace("l.due_at <= p_now", "l.due_at < p_now")
        assert faulty != source
        conn.execute(faulty.encode())

    monkeypatch.setattr(Stage, "steps", 0)
    if broken:
        monkeypatch.setattr(sliced.schema, "install", install_broken)
    steps = 1500 if broken else 150
    code = slice_main([databases.url("postgres"), "--seed", "1", "--steps", str(steps), "--no-shrink"])
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert (code, line["outcome"]) == ((1, "diverged") if broken else (0, "agreed"))

"""absurdctl as a process: its launcher, signals, a worker, a private Postgres."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from absurd import embedded
from absurd.cli.main import SECTIONS
from tests.cli.conftest import Shell
from tests.cli.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., "subprocess.Popen[str]"]

APP = """
from absurd import Absurd, AsyncAbsurd

app = Absurd(queue_name="orders")
asynchronous = AsyncAbsurd(queue_name="orders")


@app.register_task("ship")
def ship(params, ctx):
    return {"shipped": params["id"]}


@asynchronous.register_task("ship")
async def ship_too(params, ctx):
    return {"shipped": params["id"]}
"""


def _heeds_interrupts() -> None:
    """As in a terminal: what a script starts in the background ignores SIGINT, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(database_url: str, tmp_path: Path) -> Iterator[Start]:
    """Start absurdctl as a process of its own, in a folder of its own."""
    running: list[subprocess.Popen[str]] = []

    def run(*words: object, cwd: Path = tmp_path) -> subprocess.Popen[str]:
        env = {**os.environ, "ABSURD_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "absurd.cli", *(str(each) for each in words)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=pipe, stderr=pipe, text=True, preexec_fn=_heeds_interrupts
        )
        running.append(process)
        return process

    try:
        yield run
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", ["app", "asynchronous"])
def test_a_worker_runs_what_a_module_registers_until_interrupted(
    start: Start, shell: Shell, tmp_path: Path, name: str
) -> None:
    (tmp_path / "shop.py").write_text(APP, encoding="utf-8")
    shell.run("create-queue", "orders")
    worker = start("worker", f"shop:{name}", "--queue", "orders", "--concurrency", 2, "--no-housekeeping")
    spawned = start("spawn-task", "ship", "-q", "orders", "-P", "id=o1", "--json").communicate()[0]
    result = start("task-result", json.loads(spawned)["task_id"], "--wait", 30, "--json")
    assert json.loads(result.communicate()[0])["result"] == {"shipped": "o1"}
    worker.send_signal(signal.SIGINT)
    assert "Working on queue orders, 2 at a time" in worker.communicate(timeout=30)[1]
    assert worker.returncode == 0


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        ("shop", "names no app"),
        ("nowhere:app", "no module 'nowhere'"),
        ("shop:nothing", "'nothing' in module 'shop' is no Absurd"),
        ("shop:nothing", "Hint: shop holds shop:app, shop:asynchronous"),
        ("shop:ap", "Hint: did you mean shop:app? shop holds shop:app, shop:asynchronous"),
        ("shop:Absurd", "'Absurd' in module 'shop' is no Absurd"),
        ("empty:app", "empty holds none"),
        ("shop.py:app", "Hint: say shop:app\n"),
        ("./shop.py", "Hint: say shop:app\n"),
        ("one/two/shop.py:it", "Hint: say one.two.shop:it\n"),
        ("/srv/shop.py:app", "Hint: say shop:app in the folder /srv\n"),
        ("broken:app", "no_such_library"),
    ],
)
def test_a_worker_says_which_half_of_its_app_is_wrong(start: Start, tmp_path: Path, app: str, reason: str) -> None:
    (tmp_path / "shop.py").write_text(APP, encoding="utf-8")
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    (tmp_path / "broken.py").write_text("import no_such_library", encoding="utf-8")
    worker = start("worker", app)
    assert reason in worker.communicate(timeout=30)[1]
    assert worker.returncode == (1 if app.startswith("broken") else 2)


def test_a_worker_of_a_queue_that_is_not_there_names_those_that_are_and_never_says_that_it_works(
    start: Start, engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(APP, encoding="utf-8")
    for name in ("app", "asynchronous"):
        worker = start("worker", f"shop:{name}", "--queue", "orders", "--queue", "order")
        said = worker.communicate(timeout=30)[1]
        assert "Error: Queue 'order' does not exist\nHint: did you mean 'orders'? Existing queues: orders;" in said
        assert "Working" not in said
        assert worker.returncode == 3


def test_an_interrupted_command_leaves_with_130(start: Start, shell: Shell, engine: Engine) -> None:
    task: UUID = engine.spawn("ship")
    waiting = start("task-result", task, "--wait", 600, "-v")
    assert waiting.stderr is not None
    assert "connecting" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=30)[1].strip().endswith("Interrupted.")
    assert waiting.returncode == 130


def test_dev_starts_a_server_and_leaves_things_as_they_were(start: Start, session_folder: Path) -> None:
    first = start("dev", "--dir", session_folder / "pg")
    assert first.stdout is not None
    url = first.stdout.readline().strip()
    assert url.startswith("postgresql://")
    second = start("dev", "--dir", session_folder / "pg")
    assert second.stdout is not None
    assert second.stdout.readline().strip() == url
    second.send_signal(signal.SIGINT)
    assert "ran before and stays" in second.communicate(timeout=60)[1]
    status = start("dev", "--dir", session_folder / "pg", "--status", "--json").communicate()[0]
    assert json.loads(status) == {"running": True, "url": url}
    assert start("schema-version", "-d", f"embedded://{session_folder}/pg").communicate()[0].strip() != "unknown"
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert embedded.status(session_folder / "pg") is None
    stopped = start("dev", "--dir", session_folder / "pg", "--status")
    assert (stopped.communicate()[0], stopped.returncode) == ("Not running\n", 1)


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: Shell, shell_name: str) -> None:
    assert "_ABSURDCTL_COMPLETE" in shell.run("completion", shell_name).out


def test_completion_knows_commands_and_queues(start: Start, shell: Shell, database_url: str) -> None:
    shell.run("create-queue", "orders")

    def complete(*words: str) -> list[str]:
        env = {
            "_ABSURDCTL_COMPLETE": "bash_complete",
            "COMP_CWORD": str(len(words)),
            "ABSURD_DATABASE_URL": database_url,
        }
        env["COMP_WORDS"] = " ".join(("absurdctl", *words))
        command = [sys.executable, "-c", "from absurd.cli.main import main; main()"]
        said = subprocess.run(
            command, env={**os.environ, **env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        return said.stdout.split()

    assert complete("list-t") == ["plain,list-tasks"]
    assert complete("list-tasks", "-q", "or") == ["plain,orders"]


def test_the_launcher_prefers_the_environment_beside_it_then_the_path(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "check out", tmp_path / "bin"
    (home / ".venv" / "bin").mkdir(parents=True)
    elsewhere.mkdir()
    launcher = Path(shutil.copy(ROOT / "absurdctl", home))
    for folder, name in ((home / ".venv" / "bin", "venv"), (elsewhere, "path")):
        (folder / "absurdctl").write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="utf-8")
        (folder / "absurdctl").chmod(0o755)

    def run(path: str) -> tuple[int, str]:
        said = subprocess.run([launcher, "a b"], env={"PATH": path}, capture_output=True, text=True, check=False)
        return said.returncode, said.stdout + said.stderr

    usual = f"{home}:{elsewhere}:/usr/bin:/bin"
    assert run(usual) == (0, "venv a b\n")
    shutil.rmtree(home / ".venv")
    assert run(usual) == (0, "path a b\n")
    code, text = run(f"{home}:/usr/bin:/bin")
    assert code == 1
    assert "make setup" in text


def test_every_command_has_an_example_and_a_sentence() -> None:
    for commands in SECTIONS.values():
        for command in commands:
            assert command.help is not None
            first = command.help.splitlines()[0]
            assert first.endswith("."), command.name
            assert len(first) <= 62, f"{command.name}: too long for the list of commands on 80 columns"
            assert f"absurdctl {command.name}" in command.help, command.name


def test_the_command_line_holds_no_sql() -> None:
    for file in (ROOT / "absurd" / "cli").glob("*.py"):
        text = file.read_text(encoding="utf-8").lower()
        for word in ("select ", "insert into", "update absurd", "delete from", ".execute("):
            assert word not in text, f"{file.name} holds {word!r}"


def test_the_reference_is_what_the_commands_say() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "tools" / "cli_reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr

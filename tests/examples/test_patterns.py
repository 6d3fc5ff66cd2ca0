"""Each pattern prints what its docstring says, as often as it is run; the guide's snippets work verbatim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from absurd import Absurd
from tests.examples.conftest import Run
from tests.examples.nursery import PYTHON, ROOT
from tests.examples.order import Connection

PATTERNS = ["per_task", "broadcast", "multi_stage", "approval", "quickstart"]


def documented(name: str) -> str:
    """What the docstring shows below the command."""
    text = (PYTHON / "patterns" / f"{name}.py").read_text(encoding="utf-8")
    found = re.search(rf"^    \$ python patterns/{name}\.py\n((?:    .+\n)+)", text, re.M)
    assert found is not None, f"{name}.py does not show what it prints"
    return re.sub(r"^    ", "", found[1], flags=re.M)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_prints_what_it_documents_each_time_it_runs(name: str, run: Run, conn: Connection) -> None:
    for _ in range(2):
        done = run(f"patterns/{name}.py")
        assert (done.stderr, done.returncode) == ("", 0)
        assert done.stdout == documented(name)
    assert conn.execute("select count(*) from absurd.live").fetchone() == (0,)
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


def test_every_pattern_is_tested_and_short() -> None:
    files = {path.stem: path for path in (PYTHON / "patterns").glob("*.py")}

    assert set(files) == {*PATTERNS, "database"}
    assert {name for name, path in files.items() if len(path.read_text(encoding="utf-8").splitlines()) >= 120} == set()


def test_a_pattern_brings_the_schema_along(run: Run, empty_database_url: str) -> None:
    done = run("patterns/quickstart.py", url=empty_database_url)

    assert done.stdout == documented("quickstart")


def test_the_typed_example_refuses_a_wrong_field_by_name_and_gives_a_model(run: Run, empty_database_url: str) -> None:
    done = run("typed_order.py", url=empty_database_url)

    refused, receipt = done.stdout.splitlines()
    assert refused.startswith("Refused at spawn: ")
    assert "items" in refused
    assert receipt == "Receipt: 99.99 paid, ships from US-EAST-1"


def test_the_approval_snippet_of_the_guide_works_as_it_stands(app: Absurd) -> None:
    # fmt: off
    @app.register_task("approval-workflow")
    def approval_workflow(params, ctx):  # type: ignore[no-untyped-def]
        # Do some work
        doc = ctx.step("create-document", lambda: {"id": params["doc_id"]})

        # Wait for approval (task suspends here)
        approval = ctx.await_event(f"document.approved:{doc['id']}")

        # Continue after event received
        result = ctx.step("finalize", lambda: {
            "status": "approved",
            "approver": approval.get("approver"),
            "timestamp": approval.get("timestamp")
        })

        return result  # noqa: RET504
    # fmt: on

    task = app.spawn("approval-workflow", {"doc_id": "doc-1"})["task_id"]
    app.work_batch()
    assert app.fetch_task_result(task).state == "sleeping"  # type: ignore[union-attr]
    app.emit_event("document.approved:doc-1", {"approver": "ada", "timestamp": "2025-01-02"})
    app.work_batch()

    assert app.await_task_result(task, timeout=10).result == {
        "status": "approved",
        "approver": "ada",
        "timestamp": "2025-01-02",
    }


def test_the_emit_and_timeout_snippets_of_the_guide_work_as_they_stand(database_url: str, connect: object) -> None:
    db_url = database_url
    reminders: list[str] = []

    def send_reminder_email() -> None:
        reminders.append("sent")

    # From outside a task
    app = Absurd(conn_or_url=db_url, queue_name="orders")
    app.create_queue()
    app.emit_event("order.shipped", {"tracking": "1Z999"})

    @app.register_task("reminded")
    def reminded(params: object, ctx) -> object:  # type: ignore[no-untyped-def]
        # From within a task
        ctx.emit_event("order.packed", {"by": "robot"})
        try:
            return ctx.await_event("user.responded", timeout=0)
        except TimeoutError:
            # Handle timeout case
            ctx.step("send-reminder", lambda: send_reminder_email())
        return ctx.await_event("order.shipped")

    task = app.spawn("reminded")["task_id"]
    while not app.fetch_task_result(task).finished:  # type: ignore[union-attr]
        app.work_batch()
    assert app.await_task_result(task).result == {"tracking": "1Z999"}
    assert reminders == ["sent"]
    app.close()
    rows = connect().execute("select event_name, payload from absurd.e_orders order by 1").fetchall()  # type: ignore[operator]
    assert rows == [("order.packed", {"by": "robot"}), ("order.shipped", {"tracking": "1Z999"})]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("patterns", [["demo.py", "python/*.py"], ["python/patterns/*.py"]])
def test_the_examples_are_typed(patterns: list[str]) -> None:
    files = [str(path) for pattern in patterns for path in sorted((ROOT / "examples").glob(pattern))]
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.stdout + done.stderr == ""


@pytest.mark.timeout(180)
def test_mypy_knows_what_comes_out_of_a_step_and_of_an_event(tmp_path: Path) -> None:
    source = (PYTHON / "typed_order.py").read_text(encoding="utf-8")
    ending = "    return Receipt(order_id"
    marked = source.replace(ending, f"    reveal_type(stock)\n    reveal_type(payment)\n{ending}", 1)
    wrong = marked.replace("warehouse=stock.warehouse", "warehouse=stock.warehose")
    program = tmp_path / "typed_order.py"
    program.write_text(wrong, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    revealed = re.findall(r'Revealed type is "typed_order\.(\w+)"', done.stdout)
    assert revealed == ["Reservation", "Payment"]
    assert '"Reservation" has no attribute "warehose"' in done.stdout

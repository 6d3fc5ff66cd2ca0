"""Signals reach their listeners and nobody else; log records know their run."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from absurd import telemetry

SOURCES = Path(telemetry.__file__).parent


def test_a_listener_hears_signals_until_it_is_ended() -> None:
    heard: list[Any] = []
    end = telemetry.listen(lambda name, fields: heard.append((name, fields)))
    telemetry.signal("worker.idle", worker_id="w")
    end()
    end()
    telemetry.signal("worker.idle", worker_id="w")
    assert heard == [("worker.idle", {"worker_id": "w"})]


def test_a_listener_that_fails_is_logged_and_the_next_one_hears(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def broken(name: str, fields: Any) -> None:
        raise RuntimeError("broken")

    ends = [telemetry.listen(broken), telemetry.listen(lambda name, _: heard.append(name))]
    try:
        telemetry.signal("worker.idle")
    finally:
        for end in ends:
            end()
    assert heard == ["worker.idle"]
    assert "a telemetry listener failed on worker.idle" in caplog.text


def test_a_listener_may_end_itself() -> None:
    heard: list[str] = []

    def once(name: str, fields: Any) -> None:
        heard.append(name)
        end()

    end = telemetry.listen(once)
    telemetry.signal("worker.idle")
    telemetry.signal("worker.idle")
    assert heard == ["worker.idle"]


def test_every_signal_is_tabled_and_every_tabled_signal_is_sent() -> None:
    table = re.findall(r"^([a-z]+\.[a-z]+)  ", inspect.getdoc(telemetry) or "", re.MULTILINE)
    assert tuple(table) == telemetry.SIGNALS
    code = "".join(path.read_text(encoding="utf-8") for path in (SOURCES / "_async").glob("*.py"))
    assert set(re.findall(r'\bsignal\(\s*"([a-z.]+)"', code)) == set(telemetry.SIGNALS)


def _record(**extra: Any) -> Any:
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "text", (), None)
    record.__dict__.update(extra)
    return record


def test_the_filter_adds_the_run_inside_a_handler_and_none_outside() -> None:
    outside = _record()
    assert telemetry.TaskLogFilter().filter(outside)
    assert (outside.task_name, outside.task_id, outside.run_id, outside.attempt) == (None,) * 4
    token = telemetry.current_run.set({"task_name": "a", "task_id": "t", "run_id": "r", "attempt": 2})
    try:
        inside = _record()
        telemetry.TaskLogFilter().filter(inside)
    finally:
        telemetry.current_run.reset(token)
    assert (inside.task_name, inside.task_id, inside.run_id, inside.attempt) == ("a", "t", "r", 2)


def test_the_filter_leaves_fields_that_are_there() -> None:
    record = _record(task_name="mine")
    telemetry.TaskLogFilter().filter(record)
    assert record.task_name == "mine"


def test_a_runs_logger_adds_its_fields_to_those_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    log = telemetry.TaskLogger(telemetry.logger, {"task_name": "a", "attempt": 1})
    with caplog.at_level(logging.INFO, "absurd"):
        log.info("text", extra={"sku": "x", "attempt": 7})
    (record,) = caplog.records
    assert (record.__dict__["task_name"], record.__dict__["sku"], record.__dict__["attempt"]) == ("a", "x", 7)

"""What a handler's end means: a value, a failure, or nothing to write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from absurd._core.outcome import Outcome, Released, completed, failed, raised
from absurd.errors import (
    CancelledTask,
    ControlFlow,
    FailedTask,
    LeaseLostSignal,
    SuspendTask,
    TimeoutError,
    ValidationFailed,
)


def test_a_returned_value_completes() -> None:
    assert completed({"b": (1,), "a": None}) == Outcome("completed", '{"b":[1],"a":null}')
    assert completed(None) == Outcome("completed", "null")


@pytest.mark.parametrize("value", [object(), float("nan"), "nul \0", "x" * (16 * 2**20)])
def test_a_value_that_cannot_be_kept_is_a_failure_that_says_so(value: Any) -> None:
    ended = completed(value)
    assert (ended.kind, ended.final) == ("failed", False)
    assert json.loads(ended.body or "")["name"] in ("NotSerializable", "ValueTooLarge")
    assert "result" in json.loads(ended.body or "")["message"]


@pytest.mark.parametrize(
    ("signal", "kind"),
    [
        (SuspendTask("asleep"), "suspended"),
        (Released(), "released"),
        (CancelledTask(), "cancelled"),
        (FailedTask(), "lost"),
        (LeaseLostSignal(), "lost"),
    ],
)
def test_control_flow_writes_nothing(signal: BaseException, kind: str) -> None:
    assert raised(signal) == Outcome(kind)


def test_every_signal_is_sorted() -> None:
    for signal in ControlFlow.__subclasses__():
        assert raised(signal()).kind != "failed", signal


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), BaseException("x"), TimeoutError("x")],
)
def test_everything_else_is_a_failure_that_may_be_retried(error: BaseException) -> None:
    ended = raised(error)
    assert (ended.kind, ended.final) == ("failed", False)
    assert json.loads(ended.body or "")["name"] == type(error).__name__


def test_values_that_will_never_match_are_not_tried_again() -> None:
    assert raised(ValidationFailed("x")).final


def test_a_failure_can_be_stored_whatever_its_text_holds() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    for error in (ValueError("\0 \ud800"), Broken(), ValueError("ü" * 10**6), ExceptionGroup("g", [ValueError("\0")])):
        body = failed(error).body
        assert body is not None
        assert set(json.loads(body)) == {"name", "message", "traceback"}
        assert "\\u0000" not in body
        assert len(body) < 300_000

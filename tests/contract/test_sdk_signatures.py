"""The SDK is a superset of the contract: every name, in its place, with its default; ours comes after, and optional."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import typing
from typing import Any

import pytest

import absurd
import absurd.types
from absurd import _async, _sync  # noqa: F401  - both worlds import

EXPORTS = [
    "Absurd",
    "AsyncAbsurd",
    "TaskContext",
    "AsyncTaskContext",
    "SuspendTask",
    "CancelledTask",
    "FailedTask",
    "TimeoutError",
    "RetryStrategy",
    "CancellationPolicy",
    "SpawnOptions",
    "CreateQueueOptions",
    "QueuePolicyOptions",
    "QueuePolicy",
    "RetryTaskResult",
    "TaskResultState",
    "TaskResultSnapshot",
    "StepHandle",
    "ClaimedTask",
    "AbsurdHooks",
    "get_current_context",
    "SpawnResult",
    "JsonValue",
    "JsonObject",
    "QueueStorageMode",
    "QueueDetachMode",
    "TaskHandler",
    "AsyncTaskHandler",
]

#: What handlers and callers meet and may want to name in annotations and `except` clauses.
OURS = [
    "AsyncTransactionStep",
    "EmitMode",
    "EventError",
    "QueueError",
    "SchemaError",
    "TaskError",
    "TaskId",
    "TaskState",
    "TaskTerminal",
    "TransactionStep",
]

NEEDED = inspect.Parameter.empty
POLICY: list[tuple[str, Any]] = [
    ("partition_lookahead", None),
    ("partition_lookback", None),
    ("cleanup_ttl", None),
    ("cleanup_limit", None),
    ("detach_mode", None),
    ("detach_min_age", None),
]
#: name -> (positional parameters, keyword-only parameters), each with its default
Table = dict[str, tuple[list[tuple[str, Any]], list[tuple[str, Any]]]]

CLIENT: Table = {
    "__init__": ([("conn_or_url", None), ("queue_name", "default"), ("default_max_attempts", 5), ("hooks", None)], []),
    "register_task": (
        [("name", NEEDED), ("queue", None), ("default_max_attempts", None), ("default_cancellation", None)],
        [],
    ),
    "create_queue": ([("queue_name", None)], [("storage_mode", "unpartitioned"), *POLICY]),
    "set_queue_policy": ([("queue_name", None)], POLICY),
    "get_queue_policy": ([("queue_name", None)], []),
    "drop_queue": ([("queue_name", None)], []),
    "list_queues": ([], []),
    "spawn": (
        [
            ("task_name", NEEDED),
            ("params", NEEDED),
            ("max_attempts", None),
            ("retry_strategy", None),
            ("headers", None),
            ("queue", None),
            ("cancellation", None),
            ("idempotency_key", None),
        ],
        [],
    ),
    "fetch_task_result": ([("task_id", NEEDED), ("queue_name", None)], []),
    "await_task_result": ([("task_id", NEEDED), ("timeout", None), ("queue_name", None)], []),
    "emit_event": ([("event_name", NEEDED), ("payload", None), ("queue_name", None)], []),
    "retry_task": ([("task_id", NEEDED)], [("max_attempts", None), ("spawn_new", False), ("queue_name", None)]),
    "cancel_task": ([("task_id", NEEDED), ("queue_name", None)], []),
    "claim_tasks": ([("batch_size", 1), ("claim_timeout", 120), ("worker_id", "worker")], []),
    "work_batch": ([("worker_id", "worker"), ("claim_timeout", 120), ("batch_size", 1)], []),
    "start_worker": (
        [
            ("worker_id", None),
            ("claim_timeout", 120),
            ("concurrency", 1),
            ("batch_size", None),
            ("poll_interval", 0.25),
        ],
        [],
    ),
    "stop_worker": ([], []),
    "close": ([], []),
    "make_async": ([], []),
    "make_sync": ([], []),
}
CONTEXT: Table = {
    "step": ([("name", NEEDED), ("fn", NEEDED)], []),
    "begin_step": ([("name", NEEDED)], []),
    "complete_step": ([("handle", NEEDED), ("value", NEEDED)], []),
    "sleep_for": ([("step_name", NEEDED), ("duration_seconds", NEEDED)], []),
    "sleep_until": ([("step_name", NEEDED), ("wake_at", NEEDED)], []),
    "await_event": ([("event_name", NEEDED), ("step_name", None), ("timeout", None)], []),
    "await_task_result": (
        [("task_id", NEEDED), ("queue_name", None), ("timeout", None), ("step_name", None)],
        [],
    ),
    "emit_event": ([("event_name", NEEDED), ("payload", None)], []),
    "heartbeat": ([("seconds", None)], []),
}
#: Where a default of ours is another, and why the contract's callers do not notice.
OTHER_DEFAULTS = {
    ("__init__", "default_max_attempts"): None,  # left out, a queue's own default may decide, else 5 as ever
    ("spawn", "params"): None,  # may be left out
}
PLAIN_IN_BOTH = {"__init__", "register_task", "stop_worker", "make_sync", "make_async"}

CASES = [
    (cls, name, *expected)
    for classes, table in (
        ((absurd.Absurd, absurd.AsyncAbsurd), CLIENT),
        ((absurd.TaskContext, absurd.AsyncTaskContext), CONTEXT),
    )
    for cls in classes
    for name, expected in table.items()
]


@pytest.mark.parametrize(
    ("cls", "name", "positional", "keywords"), CASES, ids=[f"{cls.__name__}.{name}" for cls, name, *_ in CASES]
)
def test_every_method_takes_what_the_contract_says_and_more_only_by_keyword(
    cls: type, name: str, positional: list[tuple[str, Any]], keywords: list[tuple[str, Any]]
) -> None:
    found = [one for one in inspect.signature(getattr(cls, name)).parameters.values() if one.name != "self"]

    def default(parameter: str, of_contract: Any) -> Any:
        return OTHER_DEFAULTS.get((name, parameter), of_contract)

    ours = [(one.name, one.default) for one in found if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert ours == [(parameter, default(parameter, value)) for parameter, value in positional]
    by_keyword = {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY}
    assert by_keyword.items() >= dict(keywords).items()
    assert all(value is not NEEDED for value in by_keyword.values()), "what is ours may be left out"
    assert not any(one.kind is one.POSITIONAL_ONLY or one.kind is one.VAR_POSITIONAL for one in found)


@pytest.mark.parametrize("name", sorted({*CLIENT, *CONTEXT}))
def test_the_async_twin_is_a_coroutine_and_the_plain_one_is_not(name: str) -> None:
    for plain, awaited in ((absurd.Absurd, absurd.AsyncAbsurd), (absurd.TaskContext, absurd.AsyncTaskContext)):
        if name in (CLIENT if plain is absurd.Absurd else CONTEXT):
            assert not inspect.iscoroutinefunction(getattr(plain, name))
            assert inspect.iscoroutinefunction(getattr(awaited, name)) is (name not in PLAIN_IN_BOTH)


def test_the_size_of_the_pool_is_an_option_by_keyword() -> None:
    for cls in (absurd.Absurd, absurd.AsyncAbsurd):
        parameter = inspect.signature(cls).parameters["pool_size"]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, 10)


def test_run_step_is_a_decorator_of_the_plain_context_alone() -> None:
    parameters = list(inspect.signature(absurd.TaskContext.run_step).parameters.values())
    assert [one.default for one in parameters[1:]] == [None]
    assert not hasattr(absurd.AsyncTaskContext, "run_step")


def test_contexts_have_the_contracts_attributes_and_ours() -> None:
    for cls in (absurd.TaskContext, absurd.AsyncTaskContext):
        for name in ("task_id", "headers", "run_id", "task_name", "attempt", "queue_name", "is_replaying", "log"):
            assert hasattr(cls, name), name


@pytest.mark.parametrize("name", EXPORTS + OURS)
def test_every_name_of_the_contract_and_of_ours_can_be_imported(name: str) -> None:
    assert hasattr(absurd, name)


def test_what_is_exported_is_what_there_is_in_order() -> None:
    assert len(set(absurd.__all__)) == len(absurd.__all__)
    assert sorted(absurd.__all__) == list(absurd.__all__)
    assert set(EXPORTS) <= set(absurd.__all__)
    for name in absurd.__all__:
        assert hasattr(absurd, name), name


def test_get_current_context_takes_nothing() -> None:
    assert not inspect.signature(absurd.get_current_context).parameters
    assert absurd.get_current_context() is None


def test_control_flow_is_no_exception_and_timeouts_are_the_builtin_kind() -> None:
    for signal in (absurd.SuspendTask, absurd.CancelledTask, absurd.FailedTask):
        assert issubclass(signal, BaseException)
        assert not issubclass(signal, Exception)
    assert absurd.CancelledTask.sqlstate == "AB001"
    assert absurd.FailedTask.sqlstate == "AB002"
    assert issubclass(absurd.TimeoutError, builtins.TimeoutError)
    assert issubclass(absurd.TimeoutError, absurd.AbsurdError)
    for error in (absurd.ConfigError, absurd.InvalidOption, absurd.InvalidRetryStrategy, absurd.StepNameError):
        assert issubclass(error, ValueError), "where the original raises ValueError"


# -- data types ----------------------------------------------------------------------------------------------------------

RUN = {"task_id", "run_id", "attempt"}
POLICY_KEYS = {name for name, _ in POLICY}
#: name -> (keys of the contract, whether each is there, keys of ours)
TYPED_DICTS: dict[str, tuple[set[str], bool, set[str]]] = {
    "RetryStrategy": ({"kind", "base_seconds", "factor", "max_seconds"}, False, {"jitter"}),
    "CancellationPolicy": ({"max_duration", "max_delay"}, False, set()),
    "SpawnOptions": (
        {"max_attempts", "retry_strategy", "headers", "queue", "cancellation", "idempotency_key"},
        False,
        {"priority", "start_at", "delay"},
    ),
    "QueuePolicyOptions": (POLICY_KEYS, False, {"default_max_attempts"}),
    "CreateQueueOptions": ({*POLICY_KEYS, "storage_mode"}, False, {"default_max_attempts"}),
    "AbsurdHooks": ({"before_spawn", "wrap_task_execution"}, False, set()),
    "QueuePolicy": ({"queue_name", "storage_mode", *POLICY_KEYS}, True, set()),
    "ClaimedTask": (
        RUN | {"task_name", "params", "retry_strategy", "max_attempts", "headers", "wake_event", "event_payload"},
        True,
        set(),
    ),
    "SpawnResult": (RUN, True, {"created", "same_request"}),
    "RetryTaskResult": ({*RUN, "created"}, True, set()),
}


@pytest.mark.parametrize("name", TYPED_DICTS)
def test_typed_dicts_have_the_contracts_keys(name: str) -> None:
    keys, total, ours = TYPED_DICTS[name]
    found = getattr(absurd, name)
    assert typing.is_typeddict(found)
    assert set(typing.get_type_hints(found)) == keys | ours
    assert found.__required_keys__ == (frozenset(keys | ours) if total else frozenset())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("TaskResultSnapshot", [("state", NEEDED), ("result", None), ("failure", None)]),
        ("StepHandle", [("name", NEEDED), ("checkpoint_name", NEEDED), ("done", NEEDED), ("state", None)]),
    ],
)
def test_dataclasses_are_frozen_and_have_the_contracts_fields(name: str, fields: list[tuple[str, Any]]) -> None:
    found = getattr(absurd, name)
    assert [(one.name, one.default) for one in inspect.signature(found).parameters.values()] == fields
    value = found(**{field: None for field, _ in fields})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, fields[0][0], "changed")


def test_modes_states_and_strategies_are_the_contracts() -> None:
    assert typing.get_args(absurd.QueueStorageMode) == ("unpartitioned", "partitioned")
    assert typing.get_args(absurd.QueueDetachMode) == ("none", "empty")
    assert set(typing.get_args(absurd.types.TaskState)) == {
        "pending",
        "running",
        "sleeping",
        "completed",
        "failed",
        "cancelled",
    }
    assert absurd.TaskResultState is absurd.types.TaskState
    kinds = typing.get_type_hints(absurd.RetryStrategy)["kind"]
    assert typing.get_args(kinds) == ("none", "fixed", "exponential")


def test_the_two_worlds_have_the_same_public_names() -> None:
    for plain, awaited in ((absurd.Absurd, absurd.AsyncAbsurd), (absurd.TaskContext, absurd.AsyncTaskContext)):
        names = {name.replace("__a", "__") for name in vars(awaited) if not name.startswith("_") or name[:3] == "__a"}
        assert {name for name in vars(plain) if not name.startswith("_")} - names <= {"run_step"}
        for name in names - {"__enter__", "__exit__", "__annotations__"}:
            ours = inspect.signature(getattr(plain, name)) if callable(getattr(plain, name, None)) else None
            if ours is not None:
                theirs = inspect.signature(getattr(awaited, name))
                assert list(ours.parameters) == list(theirs.parameters), name

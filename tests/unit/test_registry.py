"""Which tasks a client knows, and when a declared type is refused."""

from __future__ import annotations

import dataclasses
import sys
import typing
from typing import Any

import pydantic
import pytest
from typing_extensions import TypedDict

from absurd._core.registry import Registry, declared_params, validated
from absurd.errors import ConfigError, ValidationFailed


class Order(pydantic.BaseModel):
    order_id: int
    lines: list[Line] = []


class Line(pydantic.BaseModel):
    sku: str


@dataclasses.dataclass
class Parcel:
    grams: int


class Shape(TypedDict):
    width: int


class PlainShape(typing.TypedDict):
    width: int


def _registry(**tasks: Any) -> Registry:
    registry = Registry("main")
    for name, options in tasks.items():
        _add(registry, name, **options)
    return registry


def _add(registry: Registry, name: str, handler: Any = lambda params, ctx: None, **options: Any) -> None:
    given = dict.fromkeys(
        ("queue", "default_max_attempts", "default_cancellation", "default_retry_strategy", "params", "result")
    )
    registry.add(name, handler, **{**given, **options})


def test_a_task_belongs_to_the_default_queue_or_to_the_one_it_names() -> None:
    registry = _registry(b={}, a={}, c={"queue": "other"})
    assert registry.names("main") == ["a", "b"]
    assert registry.names("other") == ["c"]
    assert registry.names("nowhere") == []
    assert registry.queues() == ["main", "other"]
    assert registry.get("nobody") is None


def test_the_last_registration_of_a_name_counts() -> None:
    registry = _registry(a={})
    _add(registry, "a", queue="other", default_max_attempts=9)
    found = registry.get("a")
    assert found is not None
    assert (found.queue, found.default_max_attempts) == ("other", 9)
    assert registry.names("main") == []


@pytest.mark.parametrize("name", ["", " \t"])
def test_a_task_needs_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="a task needs a name"):
        _add(Registry("main"), name)


def test_max_attempts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match='task "a": default_max_attempts must be >= 1'):
        _registry(a={"default_max_attempts": 0})


@pytest.mark.parametrize(
    ("declared", "expected"),
    [(Order, Order), (Parcel, Parcel), (Shape, Shape), (PlainShape, PlainShape)]
    + [(plain, None) for plain in (Any, dict, dict[str, Any], int, list[Order], Order | None)],
)
def test_models_dataclasses_and_typed_dicts_declare_params_by_annotation(declared: Any, expected: Any) -> None:
    def handler(params: Any, ctx: Any) -> None:
        """Annotated below."""

    handler.__annotations__["params"] = declared
    assert declared_params(handler) is expected


def test_what_has_no_readable_annotation_declares_nothing() -> None:
    def unknown(params: Nowhere, ctx: Any) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Its type exists for a checker only."""

    class Callable:
        async def __call__(self, params: Order, ctx: Any) -> None:
            """An object with a call method."""

    for handler in (lambda params, ctx: None, lambda: None, unknown, print, Callable()):
        assert declared_params(handler) is None


def test_declared_types_are_refused_at_registration_when_nothing_can_be_held_against_them() -> None:
    class Opaque:
        """No schema."""

    with pytest.raises(ConfigError, match='params of task "a" cannot be of type Opaque: Unable to generate'):
        _registry(a={"params": Opaque})
    with pytest.raises(ConfigError, match='the result of task "a" cannot be of type Opaque'):
        _registry(a={"result": Opaque})


def test_a_typed_dict_of_the_standard_library_works_or_says_what_to_use() -> None:
    if sys.version_info >= (3, 12):
        found = _registry(a={"params": PlainShape}).get("a")
        assert found is not None
        assert found.check_params({"width": "1"}) == {"width": 1}
    else:
        with pytest.raises(ConfigError, match=r"use `typing_extensions\.TypedDict`"):
            _registry(a={"params": PlainShape})


@pytest.mark.parametrize(
    ("declared", "value", "expected"),
    [
        (Order, {"order_id": "7", "lines": [{"sku": "x"}]}, Order(order_id=7, lines=[Line(sku="x")])),
        (Order, Order(order_id=7), Order(order_id=7)),
        (Parcel, {"grams": 3}, Parcel(3)),
        (Shape, {"width": "3"}, {"width": 3}),
        (list[int], ["1", 2], [1, 2]),
        (int | None, None, None),
        (typing.Annotated[int, pydantic.Field(gt=0)], 5, 5),
    ],
)
def test_values_become_what_is_declared(declared: Any, value: Any, expected: Any) -> None:
    assert validated(value, declared, "it") == expected


def test_each_wrong_field_is_named_and_no_value_is_repeated() -> None:
    with pytest.raises(ValidationFailed) as caught:
        validated({"lines": [{"sku": "x"}, {"sku": ["secret"]}]}, Order, "params of x")
    text = str(caught.value)
    assert text.startswith("params of x does not match Order: order_id: Field required; lines.1.sku: ")
    assert "secret" not in text


def test_a_value_that_is_wrong_as_a_whole_says_so() -> None:
    with pytest.raises(ValidationFailed, match=r"\(whole value\): "):
        validated("text", int, "it")


def test_a_task_without_types_passes_values_as_they_are() -> None:
    found = _registry(a={}).get("a")
    assert found is not None
    value = object()
    assert found.check_params(value) is value
    assert found.check_result(value) is value


def test_a_registration_cannot_be_changed_afterwards() -> None:
    found = _registry(a={}).get("a")
    assert found is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.queue = "other"  # type: ignore[misc]

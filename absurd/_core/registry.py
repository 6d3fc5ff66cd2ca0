"""Which tasks a client knows, and how their values are typed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pydantic

from absurd.errors import ConfigError, ValidationFailed


@functools.lru_cache(maxsize=1024)
def _cached_adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(declared)


def adapter(declared: Any) -> pydantic.TypeAdapter[Any]:
    """The validator of a declared type, made once (14 us to build, 0.2 us to find)."""
    try:
        return _cached_adapter(declared)
    except TypeError:  # an unhashable declaration
        return pydantic.TypeAdapter(declared)


def validated(value: Any, declared: Any, what: str) -> Any:
    """`value` as `declared`; ValidationFailed naming each wrong field."""
    try:
        return adapter(declared).validate_python(value)
    except pydantic.ValidationError as error:
        places = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or '(whole value)'}: {item['msg']}"
            for item in error.errors(include_url=False, include_input=False)
        )
        raise ValidationFailed(f"{what} does not match {_type_name(declared)}: {places}") from error


def _check_type(declared: Any, what: str) -> None:
    """Refuse a type that no value could ever be held against, when it is declared rather than at the first value."""
    if declared is None:
        return
    try:
        adapter(declared)
    except pydantic.PydanticUndefinedAnnotation:
        return  # names a class that is defined further down
    except pydantic.PydanticUserError as error:
        raise ConfigError(f"{what} cannot be of type {_type_name(declared)}: {error.message}") from error


def _type_name(declared: Any) -> str:
    return getattr(declared, "__name__", None) or str(declared)


@dataclasses.dataclass(frozen=True)
class RegisteredTask:
    """A handler and the defaults of its spawns."""

    name: str
    handler: Callable[[Any, Any], Any]
    queue: str
    default_max_attempts: int | None
    default_cancellation: Any
    default_retry_strategy: Any
    params: Any
    result: Any
    saga: bool = False
    strict_replay: bool = True

    def check_params(self, params: Any) -> Any:
        """What the handler gets: validated when a type is declared, plain JSON otherwise."""
        return params if self.params is None else validated(params, self.params, f'params of task "{self.name}"')

    def check_result(self, value: Any) -> Any:
        """The handler's value, validated when a result type is declared."""
        return value if self.result is None else validated(value, self.result, f'result of task "{self.name}"')


def declared_params(handler: Callable[..., Any]) -> Any:
    """The type of the first parameter when it says more than JSON does: a pydantic model, dataclass or TypedDict."""
    try:
        hints = typing.get_type_hints(handler)
        first = next(iter(inspect.signature(handler).parameters), None)
    except (TypeError, ValueError, NameError, AttributeError):
        return None
    declared = hints.get(first) if first else None
    if isinstance(declared, type) and (
        issubclass(declared, pydantic.BaseModel) or dataclasses.is_dataclass(declared) or _is_typed_dict(declared)
    ):
        return declared
    return None


def _is_typed_dict(declared: type) -> bool:
    """Of typing or of typing_extensions: before Python 3.12 pydantic takes only the latter, and typing knows only its own."""
    return issubclass(declared, dict) and hasattr(declared, "__required_keys__")


def undo_name(task_name: str) -> str:
    """The task that undoes tasks of a name."""
    return f"$undo:{task_name}"


class Registry:
    """The tasks of one client, by name."""

    def __init__(self, default_queue: str) -> None:
        self._default_queue = default_queue
        self._tasks: dict[str, RegisteredTask] = {}

    def add(
        self,
        name: str,
        handler: Callable[[Any, Any], Any],
        *,
        queue: str | None,
        default_max_attempts: int | None = None,
        default_cancellation: Any = None,
        default_retry_strategy: Any = None,
        params: Any = None,
        result: Any = None,
        saga: bool = False,
        strict_replay: bool = True,
    ) -> None:
        """Register; a later registration of the same name replaces the earlier one."""
        if not name or not name.strip():
            raise ConfigError("a task needs a name")
        if default_max_attempts is not None and (
            type(default_max_attempts) is not int or not 1 <= default_max_attempts < 2**31
        ):
            raise ConfigError(
                f'task "{name}": default_max_attempts must be >= 1, an integer below 2**31, not {default_max_attempts!r}'
            )
        params = params if params is not None else declared_params(handler)
        _check_type(params, f'params of task "{name}"')
        _check_type(result, f'the result of task "{name}"')
        self._tasks[name] = RegisteredTask(
            name,
            handler,
            queue or self._default_queue,
            default_max_attempts,
            default_cancellation,
            default_retry_strategy,
            params,
            result,
            saga,
            strict_replay,
        )

    def get(self, name: str) -> RegisteredTask | None:
        """The registration of a name, or None."""
        return self._tasks.get(name)

    def names(self, queue: str) -> list[str]:
        """Names registered for a queue, sorted."""
        return sorted(name for name, task in self._tasks.items() if task.queue == queue)

    def queues(self) -> list[str]:
        """Queues that have a registered task, sorted."""
        return sorted({task.queue for task in self._tasks.values()})

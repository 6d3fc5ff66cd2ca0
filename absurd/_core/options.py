"""Spawn options: what the caller, the registration and the client say, merged and checked before anything is sent."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from absurd._core import codec
from absurd._core.registry import RegisteredTask
from absurd.errors import ConfigError, InvalidOption
from absurd.types import SpawnOptions, TaskId

QUEUE_NAME_BYTES = 57
#: Event names and idempotency keys are index entries, which Postgres limits to 2,704 bytes with all that belongs to them.
KEY_BYTES = 2048
LARGEST_INTEGER = 2**31 - 1
SPAWN_OPTIONS = frozenset(SpawnOptions.__annotations__)

#: options that say where a task goes, not how it runs
_NO_SPEC = frozenset({"queue", "idempotency_key"})
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class SpawnRow(NamedTuple):
    """One task to spawn, ready to send: JSON texts, and the option set that many rows share. `limit`: of a spawn without
    other options, the attempts asked for and those for want of any other word; None when there are other options."""

    task_name: str
    params: str
    idempotency_key: str | None
    fingerprint: str | None
    spec: str
    limit: tuple[int | None, int | None] | None


class MaxAttempts(NamedTuple):
    """The client's own word on attempts: given by its user (beats the queue's default), or the SDK's fallback."""

    value: int | None
    explicit: bool


class Unset:
    """The type of UNSET: an option nobody gave, which None is not."""


UNSET = Unset()


def queue_name(name: str) -> str:
    """A legal queue name; ValueError (ConfigError) otherwise, before any connection is made."""
    if not isinstance(name, str) or not name.strip():
        raise ConfigError("Queue name must be provided")
    return _storable_queue_name(name)


@lru_cache(maxsize=256)
def _storable_queue_name(name: str) -> str:
    if len(name.encode("utf-8", "surrogatepass")) > QUEUE_NAME_BYTES:
        raise ConfigError(f'Queue name "{name}" is too long (max {QUEUE_NAME_BYTES} bytes).')
    if _UNSTORABLE.search(name):
        raise ConfigError(f"Queue name {name!a} holds NUL or half a surrogate pair, which Postgres cannot store")
    return name


def text(value: Any, what: str, most: int | None = None) -> str:
    """A text that Postgres can store, of at most so many bytes; InvalidOption naming `what` otherwise."""
    if not isinstance(value, str):
        raise InvalidOption(f"{what} must be a string, not {type(value).__name__}")
    if _UNSTORABLE.search(value):
        raise InvalidOption(f"{what} {value[:40]!a} holds NUL or half a surrogate pair, which Postgres cannot store")
    if most is not None and len(value.encode()) > most:
        raise InvalidOption(f"{what} {value[:40]!r}... is longer than {most} bytes: shorten it")
    return value


def event_name(value: Any) -> str:
    """A legal event name; InvalidOption otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidOption("event_name must be a non-empty string")
    return text(value, "event_name", KEY_BYTES)


def emit(name: Any, mode: str) -> None:
    """Refuse an event without a name, or an unknown mode."""
    event_name(name)
    if mode not in ("latch", "next"):
        raise InvalidOption(
            f'unknown emit mode {mode!r}: use "latch" (first emit wins) or "next" (replaces, wakes waiters)'
        )


def as_uuid(value: TaskId) -> uuid.UUID:
    """An id given as UUID or text; InvalidOption for anything else."""
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(str(value))
    except (ValueError, RecursionError):  # also of the text of what can have none
        raise InvalidOption(f"{shown(value)} is no id: give a UUID or its text") from None


def shown(value: Any) -> str:
    """A value for a message: not too long, and without an error of its own (integers of many digits, deep nesting)."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return f"a value of type {type(value).__name__}"


def policy(**options: Any) -> str | None:
    """The policy keys that are given, as JSON text; None without any."""
    given = {key: value for key, value in options.items() if value is not None}
    for key in ("cleanup_limit", "default_max_attempts"):
        if key in given:
            whole_number(given[key], key)
    return codec.encode(given, what="queue policy") if given else None


def whole_number(value: Any, what: str, error: type[ConfigError | InvalidOption] = InvalidOption) -> int:
    """An integer from 1 to what Postgres holds; `error` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise error(f"{what} must be an integer, not {shown(value)}")
    if not 1 <= value <= LARGEST_INTEGER:
        raise error(f"{what} must be >= 1" if value < 1 else f"{what} must be <= {LARGEST_INTEGER}")
    return value


def target_queue(task_name: str, task: RegisteredTask | None, asked: str | None) -> str:
    """The queue a spawn goes to."""
    if task is None:
        if asked is None:
            raise ConfigError(f'Task "{task_name}" is not registered. Provide queue when spawning unregistered tasks.')
        return queue_name(asked)
    if asked is not None and asked != task.queue:
        raise ConfigError(f'Task "{task_name}" is registered for queue "{task.queue}", not "{asked}".')
    return task.queue


def spawn_row(
    task_name: str, params: Any, options: Mapping[str, Any], task: RegisteredTask | None, client_attempts: MaxAttempts
) -> SpawnRow:
    """Merge and check; raises ConfigError, InvalidOption, NotSerializable, ValueTooLarge or ValidationFailed."""
    if not isinstance(task_name, str) or not task_name.strip():
        raise InvalidOption("task_name must be provided")
    _storable_task_name(task_name)
    if unknown := options.keys() - SPAWN_OPTIONS:
        raise InvalidOption(f"unknown spawn options {sorted(unknown)}: use {', '.join(sorted(SPAWN_OPTIONS))}")
    if task is not None:
        params = task.check_params(params)
    key = options.get("idempotency_key")
    if key is not None:
        text(key, "idempotency_key", KEY_BYTES)
    encoded = codec.encode(params, what="params")
    mark = fingerprint(task_name, encoded) if key else None
    return SpawnRow(task_name, encoded, key, mark, *_spec(options, task, client_attempts))


@lru_cache(maxsize=256)
def _storable_task_name(name: str) -> str:
    return text(name, "task_name")


def fingerprint(task_name: str, params: str) -> str:
    """What makes two requests the same: name and canonical params. UUIDv5 (RFC 9562), so a short text."""
    canonical = codec.encode(codec.roundtrip(params))
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{task_name}\n{canonical}").hex


def _spec(
    options: Mapping[str, Any], task: RegisteredTask | None, client_attempts: MaxAttempts
) -> tuple[str, tuple[int | None, int | None] | None]:
    """`spec` and `limit` of a row."""
    registered = None if task is None else task.default_max_attempts
    if not options.keys() - _NO_SPEC and (
        task is None or (task.default_retry_strategy is None and task.default_cancellation is None)
    ):  # the usual spawn
        return _plain_spec(registered, client_attempts)
    # precedence: call, registration, client if given explicitly, queue, then the SDK's fallback
    if options.get("max_attempts") is not None:
        spec: dict[str, Any] = {"max_attempts": whole_number(options["max_attempts"], "max_attempts")}
    else:
        spec = _attempts(registered, client_attempts)
    retry = options.get("retry_strategy") or (task.default_retry_strategy if task else None)
    if retry is not None:
        spec["retry_strategy"] = _retry(retry)
    cancellation = options.get("cancellation") or (task.default_cancellation if task else None)
    if cancellation is not None:
        spec["cancellation"] = _cancellation(cancellation)
    if options.get("headers") is not None:
        if not isinstance(options["headers"], Mapping):
            raise InvalidOption(f"headers must be a mapping, not {type(options['headers']).__name__}")
        spec["headers"] = dict(options["headers"])
    if options.get("priority") is not None:
        spec["priority"] = _priority(options["priority"])
    spec.update(_start(options.get("start_at"), options.get("delay")))
    return codec.encode(spec, what="spawn options"), _limit(spec)


def _attempts(registered: int | None, client: MaxAttempts) -> dict[str, Any]:
    if registered is not None:
        return {"max_attempts": registered}
    return {"max_attempts" if client.explicit else "default_max_attempts": client.value}


def _limit(spec: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    return (spec.get("max_attempts"), spec.get("default_max_attempts")) if len(spec) == 1 else None


@lru_cache(maxsize=64)
def _plain_spec(registered: int | None, client: MaxAttempts) -> tuple[str, tuple[int | None, int | None] | None]:
    spec = _attempts(registered, client)
    return codec.encode(spec), _limit(spec)


def _priority(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -1000 <= value <= 1000:
        raise InvalidOption(f"priority must be an integer between -1000 and 1000, not {shown(value)}")
    return value


def retry_strategy(value: Any) -> dict[str, Any]:
    """A strategy that can be followed; InvalidOption otherwise. For spawns the database looks closer."""
    rule: dict[str, Any] = _retry(value)
    if rule.get("kind", "none") not in ("none", "fixed", "exponential"):
        raise InvalidOption(f"retry_strategy kind {rule['kind']!r} is unknown: use none, fixed or exponential")
    for key, most in (("base_seconds", 86400), ("factor", math.inf), ("max_seconds", 86400), ("jitter", 1)):
        number = rule.get(key, 0)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= most:
            raise InvalidOption(f"retry_strategy {key} must be a number from 0 to {most}, not {shown(number)}")
    return rule


def _retry(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"retry_strategy must be a mapping with a kind, not {shown(value)}")
    unknown = set(value) - {"kind", "base_seconds", "factor", "max_seconds", "jitter"}
    if unknown:
        raise InvalidOption(
            f"retry_strategy has unknown keys {sorted(unknown)}: use kind, base_seconds, factor, max_seconds, jitter"
        )
    return dict(value)


def _cancellation(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidOption(
            f"cancellation must be a mapping with max_delay and max_duration in seconds, not {shown(value)}"
        )
    for key, seconds in value.items():
        if key not in ("max_delay", "max_duration"):
            raise InvalidOption(f'cancellation has an unknown key "{key}": use max_delay and max_duration')
        if seconds is not None and (
            not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0
        ):
            raise InvalidOption(f"cancellation {key} must be seconds >= 0, not {shown(seconds)}")
    return dict(value)


def _start(start_at: Any, delay: Any) -> dict[str, Any]:
    if start_at is not None and delay is not None:
        raise InvalidOption("start_at and delay exclude each other: give one of them")
    if start_at is not None:
        if not isinstance(start_at, datetime) or start_at.tzinfo is None:
            raise InvalidOption("start_at must be a datetime with a time zone")
        return {"start_at": start_at.isoformat()}
    if delay is not None:
        return {"delay_seconds": seconds_of(delay, "delay")}
    return {}


def seconds_of(value: Any, what: str) -> float:
    """A duration in seconds from a number or a timedelta; never negative, never NaN."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    try:
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and float(seconds) >= 0:
            return float(seconds)
    except OverflowError:  # an integer beyond every float
        pass
    raise InvalidOption(f"{what} must be seconds >= 0 or a timedelta, not {shown(value)}")

"""Spawn options: what the caller, the registration and the client say, merged and checked before anything is sent."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from absurd._core import codec
from absurd._core.registry import RegisteredTask
from absurd.errors import ConfigError, InvalidOption

QUEUE_NAME_BYTES = 57


class SpawnRow(NamedTuple):
    """One task to spawn, ready to send: JSON texts, and the option set that many rows share."""

    task_name: str
    params: str
    idempotency_key: str | None
    fingerprint: str | None
    spec: str


class MaxAttempts(NamedTuple):
    """The client's own word on attempts: given by its user (beats the queue's default), or the SDK's fallback."""

    value: int | None
    explicit: bool


class Unset:
    """The type of UNSET: an option nobody gave, which None is not."""


UNSET = Unset()


def queue_name(name: str) -> str:
    """A legal queue name; ValueError (ConfigError) otherwise, before any connection is made."""
    if not name or not name.strip():
        raise ConfigError("Queue name must be provided")
    if len(name.encode("utf-8", "surrogatepass")) > QUEUE_NAME_BYTES:
        raise ConfigError(f'Queue name "{name}" is too long (max {QUEUE_NAME_BYTES} bytes).')
    return name


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
    if task is not None:
        params = task.check_params(params)
    key = options.get("idempotency_key")
    if key is not None and not isinstance(key, str):
        raise InvalidOption(f"idempotency_key must be a string, not {type(key).__name__}")
    text = codec.encode(params, what="params")
    return SpawnRow(
        task_name, text, key, fingerprint(task_name, text) if key else None, _spec(options, task, client_attempts)
    )


def fingerprint(task_name: str, params: str) -> str:
    """What makes two requests the same: name and canonical params. UUIDv5 (RFC 9562), so a short text."""
    canonical = codec.encode(codec.roundtrip(params))
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{task_name}\n{canonical}").hex


def _spec(options: Mapping[str, Any], task: RegisteredTask | None, client_attempts: MaxAttempts) -> str:
    spec: dict[str, Any] = {}
    # precedence: call, registration, client if given explicitly, queue, then the SDK's fallback
    if options.get("max_attempts") is not None:
        spec["max_attempts"] = _attempts(options["max_attempts"])
    elif task is not None and task.default_max_attempts is not None:
        spec["max_attempts"] = task.default_max_attempts
    elif client_attempts.explicit:
        spec["max_attempts"] = client_attempts.value
    else:
        spec["default_max_attempts"] = client_attempts.value
    retry = options.get("retry_strategy") or (task.default_retry_strategy if task else None)
    if retry is not None:
        spec["retry_strategy"] = _retry(retry)
    cancellation = options.get("cancellation") or (task.default_cancellation if task else None)
    if cancellation is not None:
        spec["cancellation"] = _cancellation(cancellation)
    if options.get("headers") is not None:
        spec["headers"] = options["headers"]
    if options.get("priority") is not None:
        spec["priority"] = _priority(options["priority"])
    spec.update(_start(options.get("start_at"), options.get("delay")))
    return codec.encode(spec, what="spawn options")


def _attempts(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidOption(f"max_attempts must be an integer, not {value!r}")
    if value < 1:
        raise InvalidOption("max_attempts must be >= 1")
    return value


def _priority(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -1000 <= value <= 1000:
        raise InvalidOption(f"priority must be an integer between -1000 and 1000, not {value!r}")
    return value


def _retry(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"retry_strategy must be a mapping with a kind, not {value!r}")
    unknown = set(value) - {"kind", "base_seconds", "factor", "max_seconds"}
    if unknown:
        raise InvalidOption(
            f"retry_strategy has unknown keys {sorted(unknown)}: use kind, base_seconds, factor, max_seconds"
        )
    return dict(value)


def _cancellation(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InvalidOption(f"cancellation must be a mapping with max_delay and max_duration in seconds, not {value!r}")
    for key, seconds in value.items():
        if key not in ("max_delay", "max_duration"):
            raise InvalidOption(f'cancellation has an unknown key "{key}": use max_delay and max_duration')
        if seconds is not None and (
            not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0
        ):
            raise InvalidOption(f"cancellation {key} must be seconds >= 0, not {seconds!r}")
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
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or math.isnan(seconds) or seconds < 0:
        raise InvalidOption(f"{what} must be seconds >= 0 or a timedelta, not {value!r}")
    return float(seconds)

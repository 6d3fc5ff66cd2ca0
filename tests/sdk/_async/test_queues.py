"""Queues and their policies."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from absurd import AsyncAbsurd, InvalidOption, QueueNotFound
from tests.sdk.conftest import Rows


async def test_queues_are_created_listed_and_dropped(app: AsyncAbsurd, rows: Rows) -> None:
    await app.create_queue("other")
    await app.create_queue("other")
    assert await app.list_queues() == ["main", "other"]
    await app.spawn("a", {}, queue="other")
    await app.drop_queue("other")
    await app.drop_queue("other")
    assert await app.list_queues() == ["main"]
    await app.drop_queue()
    assert await app.list_queues() == []
    await app.create_queue()
    assert await app.list_queues() == ["main"]


async def test_a_policy_reads_back_as_it_was_set(app: AsyncAbsurd) -> None:
    await app.create_queue(
        "kept",
        partition_lookahead="14 days",
        partition_lookback="2 days",
        cleanup_ttl="1 hour",
        cleanup_limit=7,
        detach_mode="empty",
        detach_min_age="90 days",
        default_max_attempts=9,
    )
    expected = {
        "queue_name": "kept",
        "storage_mode": "unpartitioned",
        "partition_lookahead": dt.timedelta(days=14),
        "partition_lookback": dt.timedelta(days=2),
        "cleanup_ttl": dt.timedelta(hours=1),
        "cleanup_limit": 7,
        "detach_mode": "empty",
        "detach_min_age": dt.timedelta(days=90),
    }
    assert await app.get_queue_policy("kept") == expected
    assert list(await app.get_queue_policy("kept") or {}) == list(expected)
    await app.set_queue_policy("kept", cleanup_ttl="2 hours")
    assert await app.get_queue_policy("kept") == {**expected, "cleanup_ttl": dt.timedelta(hours=2)}
    await app.set_queue_policy("kept")
    assert await app.get_queue_policy("kept") == {**expected, "cleanup_ttl": dt.timedelta(hours=2)}


async def test_an_unknown_queue_has_no_policy_and_takes_none(app: AsyncAbsurd) -> None:
    assert await app.get_queue_policy("nowhere") is None
    await app.set_queue_policy("nowhere")
    with pytest.raises(QueueNotFound, match="nowhere"):
        await app.set_queue_policy("nowhere", cleanup_limit=1)


async def test_bad_names_modes_and_policies_are_refused_with_nothing_half_made(app: AsyncAbsurd) -> None:
    mode: Any = "sharded"
    with pytest.raises(ValueError, match='Unsupported queue storage mode "sharded"'):
        await app.create_queue("new", storage_mode=mode)
    with pytest.raises(InvalidOption, match="partitioned"):
        await app.create_queue("new", storage_mode="partitioned")
    for name in ("", " ", "q" * 58):
        with pytest.raises(ValueError, match="Queue name"):
            await app.create_queue(name)
    limits: list[Any] = [0, -1, "x", 2**31]
    for limit in limits:
        with pytest.raises(InvalidOption, match="cleanup_limit"):
            await app.set_queue_policy(cleanup_limit=limit)
    with pytest.raises(InvalidOption, match="cleanup_ttl"):
        await app.set_queue_policy(cleanup_ttl="soon")
    assert await app.list_queues() == ["main"]


async def test_a_queue_that_is_created_with_a_bad_policy_is_not_created(app: AsyncAbsurd) -> None:
    with pytest.raises(InvalidOption, match="cleanup_limit"):
        await app.create_queue("new", cleanup_limit=-1)
    assert await app.list_queues() == ["main"]


async def test_odd_names_are_only_names(app: AsyncAbsurd) -> None:
    odd = 'a "quoted"; -- %s ü'
    await app.create_queue(odd)
    spawned = await app.spawn("a", {}, queue=odd)
    assert (await app.fetch_task_result(spawned["task_id"], odd)) is not None
    assert odd in await app.list_queues()
    await app.drop_queue(odd)


async def test_purging_a_queue_keeps_the_queue(app: AsyncAbsurd, rows: Rows) -> None:
    await app.spawn_many([{"task_name": "a", "queue": "main"} for _ in range(3)])
    await app.emit_event("e")
    assert await app.purge_queue() == 3
    assert rows("select from absurd.tasks") == rows("select from absurd.events") == []
    assert await app.list_queues() == ["main"]
    with pytest.raises(QueueNotFound):
        await app.purge_queue("nowhere")

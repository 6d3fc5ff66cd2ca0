"""Emitting: the first emit of a name wins, `next` replaces, many travel together."""

from __future__ import annotations

from typing import Any

import pytest

from absurd import AsyncAbsurd, EmitMode, InvalidOption, NotSerializable, QueueNotFound
from absurd._async import bulk as bulk_module
from tests.fixtures.postgres import Connection
from tests.fixtures.proxy import Proxy
from tests.sdk.conftest import Rows

PAYLOADS = "select event_name, payload from absurd.events where emitted_at is not null order by 1"


async def test_the_first_emit_of_a_name_wins(app: AsyncAbsurd, rows: Rows) -> None:
    assert await app.emit_event("paid", {"by": "card"}) is True
    assert await app.emit_event("paid", {"by": "cash"}) is False
    assert rows(PAYLOADS) == [("paid", {"by": "card"})]


async def test_next_replaces_what_was_emitted(app: AsyncAbsurd, rows: Rows) -> None:
    assert await app.emit_event("price", 1, mode="next") is True
    assert await app.emit_event("price", 2, mode="next") is True
    assert await app.emit_event("price", 3) is False
    assert rows(PAYLOADS) == [("price", 2)]


async def test_a_payload_may_be_left_out(app: AsyncAbsurd, rows: Rows) -> None:
    await app.emit_event("ping")
    assert rows("select payload::text from absurd.events") == ["null"]


async def test_an_event_belongs_to_one_queue(app: AsyncAbsurd, rows: Rows) -> None:
    await app.create_queue("other")
    await app.emit_event("here", 1)
    await app.emit_event("here", 2, "other")
    assert rows("select queue_name, payload from absurd.events join absurd.queues using (queue_id) order by 1") == [
        ("main", 1),
        ("other", 2),
    ]


async def test_an_event_without_a_name_is_refused(app: AsyncAbsurd, rows: Rows) -> None:
    names: list[Any] = ["", "  ", None, 7]
    for name in names:
        with pytest.raises(ValueError, match="event_name must be a non-empty string"):
            await app.emit_event(name)
        with pytest.raises(ValueError, match="event_name must be a non-empty string"):
            await app.emit_many([("fine", 1), (name, 2)])
    assert rows(PAYLOADS) == []


async def test_a_bad_mode_payload_or_queue_is_refused_by_name(app: AsyncAbsurd, rows: Rows) -> None:
    with pytest.raises(InvalidOption, match=r'unknown emit mode .last.: use "latch"'):
        await app.emit_event("a", 1, mode="last")  # type: ignore[arg-type]
    with pytest.raises(NotSerializable, match=r"The payload cannot be stored: \$.x is nan"):
        await app.emit_event("a", {"x": float("nan")})
    with pytest.raises(QueueNotFound, match=r"absurdctl create-queue .nowhere"):
        await app.emit_event("a", 1, "nowhere")
    assert rows(PAYLOADS) == []


async def test_emit_many_tells_for_each_whether_it_took_effect(app: AsyncAbsurd, rows: Rows) -> None:
    await app.emit_event("b", "old")
    assert await app.emit_many([("a", 1), ("b", 2), ("c", None), ("a", 3)]) == [True, False, True, False]
    assert rows(PAYLOADS) == [("a", 1), ("b", "old"), ("c", None)]
    assert await app.emit_many([("b", 4)], mode="next") == [True]
    assert await app.emit_many([]) == []


async def test_emit_many_sends_chunks_and_tells_how_far_it_is(
    app: AsyncAbsurd, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_module, "CHUNK_ROWS", 4)
    told: list[int] = []
    assert await app.emit_many(((f"e{n}", n) for n in range(9)), on_progress=told.append) == [True] * 9
    assert told == [4, 8, 9]
    assert rows("select count(*)::int, count(distinct xmin::text)::int from absurd.events") == [(9, 3)]


COUNTED = """
    create table writes (event text);
    create function written() returns trigger language plpgsql as
      'begin insert into public.writes values (new.event_name); return null; end';
    create trigger counted after insert or update on absurd.events for each row execute function written();
"""


@pytest.mark.parametrize("mode", ["latch", "next"])
@pytest.mark.parametrize("many", [False, True])
async def test_an_emit_whose_reply_was_lost_is_repeated_and_emits_once(
    app: AsyncAbsurd, proxy: Proxy, conn: Connection, rows: Rows, mode: EmitMode, many: bool
) -> None:
    """Whoever waits for the next one would hear of one emit twice; who emitted first would be told that it was another."""
    async with AsyncAbsurd(proxy.url, "main") as client:
        await client.list_queues()
        conn.execute(COUNTED)
        proxy.cut_after("emit_")
        if many:
            assert await client.emit_many([("tick", 1), ("tock", 2)], mode=mode) == [True, True]
        else:
            assert await client.emit_event("tick", 1, mode=mode) is True
    assert proxy.cuts
    assert rows("select event from writes order by 1") == (["tick", "tock"] if many else ["tick"])

"""Where the pages get their answers: what is kept, what is given up, and what no page may keep from the others."""

from __future__ import annotations

import asyncio

import pytest

from absurd.queries import Query, queues
from habitat_lite import source as sources
from habitat_lite.source import Source
from tests.cli.engine import Engine
from tests.fixtures.postgres import Connect
from tests.habitat.conftest import MakeSite, Site

ONE = Query("select 1 as one", {}, lambda rows: int(rows[0]["one"]))


async def test_a_failure_is_not_kept_as_long_as_an_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    source: Source = site.inner.state.source
    monkeypatch.setattr(sources, "FRESH", 0.0)
    fail = Query("select 1 as one", {}, lambda rows: int(rows[0]["two"]))
    with pytest.raises(KeyError):
        await source.ask(fail, 30.0)
    assert await source.ask(ONE, 30.0) == 1  # the same question
    asked = source.asked
    assert await source.ask(ONE, 30.0) == 1
    assert source.asked == asked


async def test_nothing_is_prepared_for_a_pooler_would_not_find_it_again(site: Site, engine: Engine) -> None:
    source: Source = site.inner.state.source
    for _ in range(10):
        await source.ask(queues.find(), 0)
    prepared = Query("select count(*) as n from pg_prepared_statements", {}, lambda rows: int(rows[0]["n"]))
    assert await source.ask(prepared, 0) == 0


async def test_an_action_that_is_held_up_ends_and_leaves_the_connection_to_the_pages(
    make_site: MakeSite, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    task = engine.spawn()
    form = {"form_token": await site.token(), "queue": "orders"}
    monkeypatch.setattr(sources, "PATIENCE", 0.2)
    with connect(autocommit=False) as other:
        other.execute("lock table absurd.live in share mode")
        answer = await site.client.post(f"/tasks/{task}/cancel", data=form)
        assert answer.status_code == 504
        assert "perhaps a transaction elsewhere" in answer.text
    busy = """
        select count(*) from pg_stat_activity
         where datname = current_database() and application_name = 'habitat' and state <> 'idle'
    """
    async with asyncio.timeout(20):  # whoever asked was told before the server had stopped
        while engine.conn.execute(busy).fetchone() != (0,):
            await asyncio.sleep(0.01)
    monkeypatch.setattr(sources, "PATIENCE", 30)
    assert (await site.send(f"/tasks/{task}/cancel", queue="orders")).status_code == 303


async def test_a_restart_of_the_server_is_not_noticed(site: Site, engine: Engine) -> None:
    task = engine.spawn()
    end = """
        select count(pg_terminate_backend(pid, 20000)) from pg_stat_activity
         where datname = current_database() and application_name = 'habitat'
    """
    form = {"form_token": await site.token(), "queue": "orders"}

    async def restart() -> None:
        await asyncio.gather(*(site.page(path) for path in ("/tasks", "/events", "/waits")))
        ended = engine.conn.execute(end).fetchone()
        assert ended is not None
        assert ended[0] > 0
        site.inner.state.source.forget()

    await restart()
    for path in ("/tasks", "/events", "/waits", "/"):
        await site.page(path)
    await restart()
    assert (await site.client.post(f"/tasks/{task}/cancel", data=form)).status_code == 303


async def test_who_asks_for_the_head_of_a_stream_does_not_wait_for_its_end(site: Site) -> None:
    async with asyncio.timeout(20):
        answer = await site.client.head("/live/tasks")
    assert answer.headers["content-type"].startswith("text/event-stream")

"""The JSON twins: what absurdctl says with --json is what they say, and how much one of them carries."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest
from psycopg.conninfo import make_conninfo

from habitat_lite import source as sources
from habitat_lite import twins
from tests.cli.conftest import START, Shell
from tests.cli.engine import Engine
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connection
from tests.habitat.conftest import MakeSite, Site

EXACT = '{"n": [12345678901234567890.125, 0.1234567890123456789012345, 99.90], "large": 1%s}' % ("0" * 400)
TEXT = '</script> \u202e\u2028 \\ " é 漢 \t'


@pytest.fixture
def engine(conn: Connection, clock: Clock) -> Engine:
    clock.set(conn, START)
    return Engine(conn)


@pytest.fixture
def frozen(make_site: MakeSite, database_url: str) -> Site:
    """The application at the moment at which absurdctl is asked, too."""
    return make_site(make_conninfo(database_url, options=f"-c absurd.fake_now={START.isoformat()}"))


@pytest.fixture
def shell(database_url: str) -> Shell:
    return Shell(database_url)


@pytest.fixture
def shop(engine: Engine) -> dict[str, UUID]:
    """Tasks in every state and queue, events of every kind, and values that are hard to say."""
    conn = engine.conn
    engine.queue("mails")
    found = {"done": engine.spawn("ship", {"text": TEXT}, headers={"by": TEXT}, idempotency_key="k", priority=3)}
    run = engine.claim()
    engine.step(run, "a step/with ?", {"long": "x" * 100_000})
    conn.execute("select absurd.set_task_checkpoint_state('orders', %s, 'exact', %s, %s)", (found["done"], EXACT, run))
    engine.step(run, "nothing", None)
    conn.execute("select absurd.complete_run('orders', %s, %s)", (run, EXACT))
    found["failed"] = engine.spawn("mail", "text", max_attempts=2, retry_strategy={"kind": "none"})
    for message in ("first", TEXT):
        engine.fail(engine.claim(), name="E", message=message, traceback="line 1\nline 2", code=421)
    found["waits"] = engine.spawn("fulfil", EXACT)
    engine.wait(engine.claim(), "paid:1", 3600)
    found["pending"] = engine.spawn("ship", queue="mails")
    found["other"] = engine.spawn("mail", [], queue="mails", cancellation={"max_delay": 60})
    engine.emit("small", {"a": 1})
    engine.emit("nothing")
    engine.emit("large", {"text": "y" * 100_000})
    conn.execute("select absurd.emit_event('mails', 'exact', %s)", (EXACT,))
    return found


def exactly(text: str) -> Any:
    """JSON with every digit, and the order of keys."""
    return json.loads(text, parse_float=str, parse_int=str, object_pairs_hook=list, parse_constant=pytest.fail)


async def test_a_twin_says_literally_what_absurdctl_says(
    frozen: Site, shell: Shell, shop: dict[str, UUID], engine: Engine
) -> None:
    asked: list[tuple[str, dict[str, Any], list[Any]]] = [
        ("/events.json", {}, ["list-events", "-a"]),
        ("/events.json", {"queue": "orders"}, ["list-events", "-q", "orders"]),
        ("/events.json", {"queue": "mails", "name": "ex*"}, ["list-events", "-q", "mails", "-n", "ex*"]),
        ("/events.json", {"state": "pending"}, ["list-events", "-a", "-s", "pending", "--waiters"]),
        ("/events.json", {"limit": 2}, ["list-events", "-a", "-l", 2]),
        ("/events.json", {"since": "2026-03-02"}, ["list-events", "-a", "--since", "2026-03-02"]),
        ("/tasks.json", {}, ["list-tasks", "-a"]),
        ("/tasks.json", {"queue": "mails", "name": "ma*"}, ["list-tasks", "-q", "mails", "-n", "ma*"]),
        ("/tasks.json", {"state": ["failed", "completed"]}, ["list-tasks", "-a", "-s", "failed", "-s", "completed"]),
        ("/tasks.json", {"text": "漢"}, ["list-tasks", "-a", "--text", "漢"]),
        ("/tasks.json", {"id": shop["done"]}, ["list-tasks", "-a", "--id", shop["done"]]),
        ("/tasks.json", {"until": "2026-03-01"}, ["list-tasks", "-a", "--until", "2026-03-01"]),
        ("/tasks.json", {"limit": 3}, ["list-tasks", "-a", "-l", 3]),
        *((f"/tasks/{task}.json", {}, ["dump-task", task]) for task in shop.values()),
        ("/waits.json", {}, ["list-waits", "-a"]),
        ("/waits.json", {"queue": "orders", "event": "paid:*"}, ["list-waits", "-q", "orders", "-e", "paid:*"]),
        ("/waits.json", {"queue": "mails"}, ["list-waits", "-q", "mails"]),
        ("/queues.json", {}, ["list-queues"]),
        ("/overview.json", {}, ["overview"]),
        ("/overview.json", {"after": "mails"}, ["overview", "--after", "mails"]),
    ]
    engine.conn.execute("alter database %s set timezone = 'Asia/Tokyo'" % engine.conn.info.dbname)  # noqa: UP031
    for path, query, command in asked:
        answer = await frozen.get(f"{path}?{urlencode(query, doseq=True)}")
        said = shell.run(*command, "--json")
        assert (answer.status_code, said.code) == (200, 0), (path, query, said.err, answer.text)
        assert answer.headers["content-type"] == "application/json"
        assert exactly(answer.text) == exactly(said.out), (path, query)
        further = exactly(answer.text)
        if path in ("/events.json", "/tasks.json") and "limit" in query:
            (after,) = [value for name, value in further if name == "next"]
            answer = await frozen.get(f"{path}?{urlencode({'after': after})}")
            assert exactly(answer.text) == exactly(shell.run(*command[:2], "--after", after, "--json").out)


async def test_the_twin_of_a_search_that_was_stopped_says_how_far_it_came(
    site: Site, engine: Engine, clock: Clock
) -> None:
    engine.spawn("rare")
    clock.advance(engine.conn, 1)
    engine.conn.execute(
        "select absurd.spawn_tasks(q.queue_id, array_fill('n'::text, array[25000]), array_fill('1'::jsonb, array[25000]))"
        " from absurd.queues q"
    )
    twin = await site.json("/tasks.json?name=rare")
    assert twin["tasks"] == []
    assert twin["searched_until"]
    twin = await site.json(f"/tasks.json?name=rare&after={twin['next']}")
    assert [each["task_name"] for each in twin["tasks"]] == ["rare"]
    assert twin.keys() == {"tasks", "next"}


# -- how much one carries --------------------------------------------------------------------------------------------------


def cut(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"$preview", "$size", "$whole"}


@pytest.mark.parametrize("storage", ["extended", "external"])
async def test_fifty_events_of_ten_megabytes_make_no_large_answer(
    site: Site, engine: Engine, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PATIENCE", 30.0)  # a machine may have others to serve
    engine.conn.execute(f"alter table absurd.events alter payload set storage {storage}".encode())
    emit = """
        select count(absurd.emit_event('orders', 'large-' || n, to_jsonb(repeat('0123456789', 1000000))))
          from generate_series(1, 50) n
    """
    engine.conn.execute(emit)
    answer = await site.get("/events.json")
    assert answer.status_code == 200, answer.text
    assert len(answer.content) < 50 * 3_000
    found = answer.json()["events"]
    assert len(found) == 50
    assert all(cut(each["payload"]) for each in found)
    whole = await site.get(found[0]["payload"]["$whole"])
    assert len(whole.text) == 10_000_002
    if storage == "extended":  # small enough on disk for some to be read
        assert found[0]["payload"]["$size"] == 10_000_002
        assert whole.text.startswith(found[0]["payload"]["$preview"])
    assert found[-1]["payload"]["$preview"] is None


async def test_an_answer_carries_values_whole_until_they_are_too_many(
    site: Site, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "CARRIES", 25_000)
    engine.conn.execute("alter table absurd.events alter payload set storage external")  # as large on disk as it is
    for name, size in (("f", 9_000), ("e", 1_000), ("d", 9_000), ("c", 30_000), ("b", 9_000), ("a", 9_000)):
        engine.emit(name, name * size)
    found = (await site.json("/events.json?name=*"))["events"]
    whole = {each["event_name"]: not cut(each["payload"]) for each in found}
    assert whole == {"a": True, "b": True, "c": False, "d": False, "e": True, "f": False}, (
        "one that never fits takes no room"
    )
    for each in found:
        if whole[each["event_name"]]:
            assert each["payload"] == each["event_name"] * len(each["payload"])
        else:
            assert each["payload"]["$preview"] == '"' + each["event_name"] * 1_999
            assert len((await site.get(each["payload"]["$whole"])).text) == each["payload"]["$size"]


async def test_what_a_task_has_no_room_for_can_be_had_whole(
    make_site: MakeSite, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twins, "CARRIES", 25_000)
    site = make_site(path_prefix="/ops")
    for table, column in (("tasks", "params"), ("checkpoints", "state"), ("attempts", "result")):
        engine.conn.execute(f"alter table absurd.{table} alter {column} set storage external".encode())
    engine.queue("it's ?")
    task = engine.spawn("large", "p" * 20_000, queue="it's ?")
    run = engine.claim("it's ?")
    checkpoint = "select absurd.set_task_checkpoint_state('it''s ?', %s, %s, to_jsonb(%s::text), %s)"
    engine.conn.execute(checkpoint, (task, "a step/with ?", "s" * 9_000, run))
    engine.conn.execute("select absurd.complete_run('it''s ?', %s, to_jsonb(%s::text))", (run, "r" * 4_000))
    found = (await site.json(f"/tasks/{task}.json"))["detail"]
    assert found["params"] == "p" * 20_000
    assert found["result"] == "r" * 4_000
    for value, letter, size in (
        (found["checkpoints"][0]["state"], "s", 9_000),
        (found["runs"][0]["result"], "r", 4_000),
    ):
        assert cut(value), "the params and the result have taken the room"
        assert value["$preview"] == '"' + letter * 1_999
        assert value["$size"] == size + 2
        assert value["$whole"].startswith("/ops/tasks/")
        assert (await site.client.get(value["$whole"])).json() == letter * size


async def test_a_task_says_what_it_has_more_of_than_an_answer_holds(
    site: Site, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("RUNS", 2), ("CHECKPOINTS", 3), ("WAITS", 1)):
        monkeypatch.setattr(twins, name, most)
    task = engine.spawn(max_attempts=9, retry_strategy={"kind": "none"})
    for _ in range(3):
        engine.fail(engine.claim(), name="E", message="m")
    run = engine.claim()
    for number in range(8):
        engine.step(run, f"s{number}", {"n": number})
    found = await site.json(f"/tasks/{task}.json")
    assert [each["attempt"] for each in found["detail"]["runs"]] == [3, 4]
    assert found["left_out"].keys() == {"runs", "checkpoints"}
    assert found["left_out"]["runs"] == 2
    kept = [each["name"] for each in found["detail"]["checkpoints"]]
    assert kept == ["s5", "s6", "s7"]
    rest = await site.json(found["left_out"]["checkpoints"])
    assert [(each["name"], each["state"]) for each in rest["checkpoints"]] == [
        (f"s{number}", {"n": number}) for number in (4, 3, 2, 1, 0)
    ]
    assert rest["next"] is None


@pytest.mark.parametrize("deep", ["[" * 5_000 + "]" * 5_000, '{"a":' * 1_500 + "1" + "}" * 1_500])
async def test_a_value_deeper_than_python_reads_is_told_too(
    site: Site, shell: Shell, engine: Engine, deep: str
) -> None:
    row = engine.conn.execute("select task_id from absurd.spawn_task('orders', 'deep', %s)", (deep,)).fetchone()
    engine.conn.execute("select absurd.emit_event('orders', 'deep', %s)", (deep,))
    assert row is not None
    for path, command in (
        (f"/tasks/{row[0]}.json", ["dump-task", row[0]]),
        ("/events.json", ["list-events", "-q", "orders"]),
    ):
        answer = await site.get(path)
        assert answer.status_code == 200
        assert deep in answer.text.replace(" ", "")
        assert deep in "".join(shell.run(*command, "--json").out.split())
        assert shell.run(*command).code == 0


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1e3", "²", "9" * 5_000, " 5"])
async def test_a_limit_that_is_none_is_refused(site: Site, engine: Engine, limit: str) -> None:
    for path in ("/tasks.json", "/events.json", "/waits.json"):
        assert (await site.get(path, params={"limit": limit})).status_code == 400

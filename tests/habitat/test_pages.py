"""Every page and its JSON twin: what they say, how they filter, page and fail."""

from __future__ import annotations

import json
import re
from html import unescape
from uuid import UUID

import pytest

from absurd import AsyncAbsurd, AsyncTaskContext
from tests.cli.engine import Engine
from tests.habitat.conftest import MakeSite, Site

PAGES = ("/", "/tasks", "/events", "/waits")


def text(page: str) -> str:
    """What a reader reads: no tags, spaces made one."""
    main = page.split("<main", 1)[1].split("</main>", 1)[0]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", main.split(">", 1)[1])).split())


@pytest.fixture
def order(engine: Engine) -> UUID:
    """An order that has reserved, and waits for its payment."""
    task = engine.spawn(
        "fulfil", {"order": "order-1", "items": ["lamp"]}, idempotency_key="key-1", headers={"by": "web"}
    )
    run = engine.claim()
    engine.step(run, "reserve", {"shelf": "B4"})
    engine.wait(run, "payment.confirmed:order-1", 3600)
    return task


# -- what they say -----------------------------------------------------------------------------------------------------


async def test_the_overview_counts_each_queue_and_names_who_works(site: Site, engine: Engine, order: UUID) -> None:
    engine.queue("mails")
    for _ in range(3):
        engine.spawn("mail", queue="mails")
    engine.claim("mails")
    said = text(await site.page("/"))
    assert re.search(r"mails 2 1 0 2 \d{4}-.*? 0 3 ", said), said
    assert re.search(r"orders 0 0 1 0 – 0 1", said), said
    assert "w1 mails 1" in said
    twin = await site.json("/overview.json")
    assert [(each["queue_name"], each["pending"]) for each in twin["queues"]] == [("mails", 2), ("orders", 0)]
    assert [each["worker"] for each in twin["workers"]] == ["w1"]


async def test_the_list_of_tasks_says_what_each_is_waiting_for(site: Site, order: UUID) -> None:
    said = text(await site.page("/tasks"))
    assert f"fulfil {order}" in said
    assert "sleeping" in said
    assert "payment.confirmed:order-1" in said
    twin = await site.json("/tasks.json")
    assert [(each["task_id"], each["wake_event"]) for each in twin["tasks"]] == [
        (str(order), "payment.confirmed:order-1")
    ]


async def test_the_page_of_a_task_says_why_it_sleeps_and_what_it_has_kept(site: Site, order: UUID) -> None:
    page = await site.page(f"/tasks/{order}")
    said = text(page)
    assert "It waits for event 'payment.confirmed:order-1' since" in said
    kept = ("waits for payment.confirmed:order-1", 'reserve {"shelf": "B4"}', '"lamp"', "key-1", '"by": "web"')
    for part in kept:
        assert part in said, part
    assert f"absurdctl dump-task {order}" in page
    assert f"absurd.task_history('orders', '{order}')" in unescape(page)
    twin = await site.json(f"/tasks/{order}.json")
    assert twin["why"].startswith("It waits for event")
    assert twin["detail"]["task"]["task_id"] == str(order)
    assert [each["name"] for each in twin["detail"]["checkpoints"]] == ["reserve"]


async def test_the_sql_of_a_task_can_be_run_whatever_its_queue_is_called(site: Site, engine: Engine) -> None:
    engine.queue("it's")
    task = engine.spawn(queue="it's")
    found = re.findall(r'data-copy="(select [^"]*)"', await site.page(f"/tasks/{task}"))
    assert len(found) == 1
    assert len(engine.conn.execute(unescape(found[0])).fetchall()) == 1


async def test_the_id_of_a_run_leads_to_its_task(site: Site, order: UUID) -> None:
    assert (await site.json(f"/tasks/{UUID(int=order.int + 1)}.json"))["detail"]["task"]["task_id"] == str(order)


async def test_a_failed_task_shows_its_traceback_and_each_of_its_attempts(site: Site, engine: Engine) -> None:
    task = engine.spawn("mail", max_attempts=2, retry_strategy={"kind": "none"})
    trace = 'Traceback (most recent call last):\n  File "mail.py", line 3\nSmtpError: busy'
    engine.fail(engine.claim(), name="SmtpError", message="busy", traceback=trace, code=421)
    engine.fail(engine.claim(), name="SmtpError", message="gone", traceback=trace.replace("busy", "gone"))
    page = await site.page(f"/tasks/{task}")
    said = text(page)
    assert "It failed for good at" in said
    assert unescape(page).count('  File "mail.py", line 3\nSmtpError: gone') == 1
    assert "attempt 1: failed" in said
    assert "SmtpError: busy" in said
    assert "Retry send" not in said


async def test_a_completed_task_shows_its_result(site: Site, engine: Engine) -> None:
    task = engine.spawn()
    engine.complete(engine.claim(), {"parcel": 7})
    assert '"parcel": 7' in text(await site.page(f"/tasks/{task}"))


async def test_the_events_say_what_was_emitted_and_who_waits(site: Site, engine: Engine, order: UUID) -> None:
    engine.emit("refund:9", {"why": "late"})
    said = text(await site.page("/events"))
    assert "payment.confirmed:order-1 waited for" in said
    assert "1 waiting" in said
    assert 'refund:9 {"why": "late"}' in said
    twin = await site.json("/events.json")
    assert [(each["event_name"], each["state"]) for each in twin["events"]] == [
        ("payment.confirmed:order-1", "pending"),
        ("refund:9", "emitted"),
    ]
    engine.emit("payment.confirmed:order-1", 1)
    assert "taken" in text(await site.page("/events?name=payment.*"))


async def test_the_waits_say_who_waits_for_what_since_when_and_until_when(site: Site, order: UUID) -> None:
    said = text(await site.page("/waits"))
    assert re.search(rf"payment\.confirmed:order-1 fulfil {order} orders \d{{4}}-\S+ \S+ \d{{4}}-", said), said
    twin = await site.json("/waits.json")
    assert [(each["event_name"], each["task_id"]) for each in twin["waits"]] == [
        ("payment.confirmed:order-1", str(order))
    ]


async def test_a_wait_for_another_task_leads_to_that_task(site: Site, database_url: str) -> None:
    async with AsyncAbsurd(database_url, queue_name="orders") as app:
        await app.create_queue()

        @app.register_task("parent")
        async def parent(params: dict[str, str], ctx: AsyncTaskContext) -> None:
            await ctx.await_task_result(params["child"], "orders")

        child = (await app.spawn("child", queue="orders"))["task_id"]
        spawned = (await app.spawn("parent", {"child": str(child)}))["task_id"]
        await app.claim_tasks()  # the child, which goes on running
        await app.work_batch()
    page = await site.page("/waits")
    assert f'href="/tasks/{child}?queue=orders"' in page
    assert "task child" in text(page)
    assert f"waits for task {child}" in text(await site.page(f"/tasks/{spawned}"))


async def test_an_empty_database_is_told_what_to_do_next(site: Site) -> None:
    assert "absurdctl create-queue" in text(await site.page("/"))
    assert "absurdctl spawn-task" in text(await site.page("/tasks"))
    for path in PAGES:
        await site.page(path)


# -- filters and pages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ("", ["a1", "a2", "b"]),
        ("queue=mails", ["b"]),
        ("name=a1", ["a1"]),
        ("name=a*", ["a1", "a2"]),
        ("state=running", ["a1"]),
        ("state=pending&queue=orders", ["a2"]),
        ("since=1h", ["a1", "a2", "b"]),
        ("since=2999-01-01", []),
        ("q=NEEDLE", ["a2"]),
        ("q=no+such+text", []),
    ],
)
async def test_the_filters_of_tasks_stand_in_the_address(
    site: Site, engine: Engine, filters: str, found: list[str]
) -> None:
    engine.queue("mails")
    engine.spawn("a1", {"x": 1})
    engine.claim()
    engine.spawn("a2", {"deep": ["a needle"]})
    engine.spawn("b", queue="mails")
    in_json = [each["task_name"] for each in (await site.json(f"/tasks.json?{filters}"))["tasks"]]
    page = await site.page(f"/tasks?{filters}")
    shown = re.findall(r'<tr data-key="[^"]+" data-href="[^"]+">\s*<td[^>]*><a href="[^"]+">([^<]+)<', page)
    assert shown == in_json
    assert sorted(shown) == found
    for name, value in re.findall(r"(\w+)=([^&]+)", filters):
        kept = unescape(re.sub(r"\s+", " ", page))
        value = value.replace("+", " ")
        assert f'name="{name}"' in kept
        field = f'(value="{re.escape(value)}"( selected)?|<option selected>{value})'
        assert re.search(field, kept), f"{name}={value} is not kept in the form"


async def test_a_task_is_found_by_its_id_and_by_that_of_a_run(site: Site, engine: Engine) -> None:
    task = engine.spawn("one")
    engine.spawn("two")
    for wanted in (task, UUID(int=task.int + 1)):
        assert [each["task_name"] for each in (await site.json(f"/tasks.json?q={wanted}"))["tasks"]] == ["one"]


async def test_a_long_list_is_walked_page_by_page_with_its_filter(site: Site, engine: Engine) -> None:
    for number in range(120):
        engine.spawn("odd" if number % 2 else "even")
    seen: list[str] = []
    address: str | None = "/tasks?name=odd"
    pages = 0
    while address:
        page = await site.page(address)
        seen += re.findall(r'<tr data-key="([^"]+)"', page)
        further = re.search(r'rel="next" href="([^"]+)"', page) or re.search(r'href="([^"]+)" rel="next"', page)
        link = re.search(r'<a class="button" rel="next" href="([^"]+)"', page)
        address = unescape(link[1]) if link and further else None
        pages += 1
    assert (pages, len(seen), len(set(seen))) == (2, 60, 60)
    assert seen == sorted(seen, reverse=True)


async def test_the_filters_of_events_and_waits_stand_in_the_address(site: Site, engine: Engine, order: UUID) -> None:
    engine.queue("mails")
    engine.emit("sent:1", queue="mails")

    async def names(address: str) -> list[str]:
        found = await site.json(address)
        return [each["event_name"] for each in found.get("events", found.get("waits"))]

    assert await names("/events.json?state=pending") == ["payment.confirmed:order-1"]
    assert await names("/events.json?queue=mails") == ["sent:1"]
    assert await names("/events.json?name=sent*") == ["sent:1"]
    assert await names("/waits.json?event=payment.*") == ["payment.confirmed:order-1"]
    assert await names("/waits.json?event=other") == []
    assert await names("/waits.json?queue=mails") == []


# -- what cannot be shown ------------------------------------------------------------------------------------------------

NOBODY = "01a1fa96-4b06-7000-975a-8074f80c0000"


@pytest.mark.parametrize(
    ("address", "code"),
    [
        (f"/tasks/{NOBODY}", 404),
        ("/tasks/nonsense", 404),
        ("/nowhere", 404),
        ("/tasks?state=nonsense", 400),
        ("/tasks?since=soon", 400),
        ("/tasks?after=nonsense", 400),
        ("/tasks?q=%00", 400),
        ("/events?state=nonsense", 400),
        ("/events?after=nonsense", 400),
        ("/waits?after=nonsense", 400),
        # [null, "e", Infinity], and the same for waits
        ("/events?after=W251bGwsICJlIiwgSW5maW5pdHld", 400),
        ("/waits?after=WyIwMWExZmE5Ni00YjA2LTcwMDAtOTc1YS04MDc0ZjgwYzAwMDAiLCBJbmZpbml0eSwgInMiXQ==", 400),
        ("/tasks?after=01a1fa96-4b06-7000-975a-8074f80c0000.1e400", 400),
        ("/tasks?queue=%00", 400),
        ("/tasks?since=99999999999d", 400),
        ("/tasks?state=failed&state=nonsense", 400),
        ("/tasks?id=nonsense", 400),
        ("/events?queue=%00", 400),
        ("/waits?event=a%00b", 400),
        ("/tasks/%ff%00", 404),
    ],
)
async def test_what_cannot_be_shown_is_said_with_its_code_in_both_forms(site: Site, address: str, code: int) -> None:
    path, _, query = address.partition("?")
    for form in (address, f"{path}.json?{query}"):
        answer = await site.get(form)
        assert answer.status_code == code, form
        assert "Traceback" not in answer.text
    assert set(answer.json()) == {"error", "message"}


async def test_a_database_without_the_schema_is_said_to_be_one(make_site: MakeSite, empty_database_url: str) -> None:
    site = make_site(empty_database_url)
    for path in PAGES:
        answer = await site.get(path)
        assert answer.status_code == 503
        assert "The Absurd schema is missing here" in answer.text
        assert "absurdctl init" in answer.text
    assert (await site.get("/overview.json")).status_code == 503


async def test_a_database_that_does_not_answer_is_said_so_without_its_password(make_site: MakeSite) -> None:
    site = make_site("postgresql://me:secret@127.0.0.1:1/nothing")
    answer = await site.get("/tasks.json")
    assert answer.status_code == 503
    assert answer.json()["error"] == "The database cannot be reached"
    assert "secret" not in answer.text


# -- payloads whole ------------------------------------------------------------------------------------------------------


async def test_every_payload_can_be_had_whole_as_text(site: Site, engine: Engine) -> None:
    long = {"long": "x" * 100_000}
    task = engine.spawn(params=long, headers={"h": 1})
    run = engine.claim()
    engine.step(run, "a step/with ?", long)
    engine.complete(run, long)
    for part in ("params", "result", "checkpoint&name=a+step/with+?", "run_result&name=1"):
        part, _, name = part.partition("&")
        answer = await site.get(f"/tasks/{task}/raw/{part}?queue=orders&{name}")
        assert answer.status_code == 200, answer.text
        assert json.loads(answer.text) == long
        assert answer.headers["content-type"].startswith("text/plain")
    page = await site.page(f"/tasks/{task}")
    assert "first part of" in page
    assert "100,0" in page
    links = [unescape(each) for each in re.findall(r'href="([^"]+/raw/[^"]+)"', page)]
    assert {each.split("/raw/")[1].partition("?")[0] for each in links} == {"params", "result", "headers", "checkpoint"}
    for link in links:
        assert (await site.get(link)).status_code == 200, link


async def test_the_payload_of_an_event_can_be_had_whole_as_text(site: Site, engine: Engine) -> None:
    name, long = "an event/with ?", {"long": "x" * 100_000}
    engine.emit(name, long)
    engine.emit("nothing")
    page = await site.page("/events")
    assert "all 100,0" in page
    links = [unescape(each) for each in re.findall(r'href="(/events/raw[^"]+)"', page)]
    assert len(links) == 1
    answer = await site.get(links[0])
    assert (json.loads(answer.text), answer.headers["content-type"][:10]) == (long, "text/plain")
    assert json.loads((await site.get("/events/raw?queue=orders&name=nothing")).text) is None
    assert (await site.get("/events/raw?queue=orders&name=nope")).status_code == 404
    assert (await site.get("/events/raw")).status_code == 404


@pytest.mark.parametrize(
    "part", ["nonsense", "failure", "checkpoint?name=nope", "checkpoint", "run_result", "run_result?name=x"]
)
async def test_a_payload_that_is_not_there_is_not_made_up(site: Site, engine: Engine, part: str) -> None:
    task = engine.spawn()
    path, _, query = part.partition("?")
    answer = await site.get(f"/tasks/{task}/raw/{path}?queue=orders&{query}")
    assert answer.status_code in (400, 404)


async def test_the_checkpoints_that_a_page_leaves_out_can_be_had_page_by_page(site: Site, engine: Engine) -> None:
    task = engine.spawn()
    run = engine.claim()
    for number in range(450):
        engine.step(run, f"step-{number:03}", number)
    assert "of 450 checkpoints" in text(await site.page(f"/tasks/{task}"))
    found: list[str] = []
    after = ""
    while after is not None:
        page = await site.json(f"/tasks/{task}/checkpoints.json?queue=orders&after={after}")
        found += [each["name"] for each in page["checkpoints"]]
        after = page["next"]
    assert sorted(found) == [f"step-{number:03}" for number in range(450)]


async def test_no_digit_of_a_number_is_lost(site: Site, engine: Engine) -> None:
    spawn = "select task_id from absurd.spawn_task('orders', 'n', %s::jsonb, '{}')"
    for number in ("12345678901234567890.125", "0.1", "99.99", "1e400"):
        row = engine.conn.execute(spawn, (f'{{"n": {number}}}',)).fetchone()
        assert row is not None
        kept = engine.conn.execute("select (%s::jsonb)::text", (number,)).fetchone()
        assert kept is not None
        assert kept[0] in await site.page(f"/tasks/{row[0]}")

"""The forms: what they do, what they refuse, and that nobody else can send them."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from psycopg.conninfo import make_conninfo

from tests.cli.engine import Engine
from tests.habitat.conftest import HERE, MakeSite, Site

EVENT = "payment.confirmed:order-1"


@pytest.fixture
def order(engine: Engine) -> UUID:
    """An order that waits for its payment."""
    task = engine.spawn("fulfil", max_attempts=1)
    engine.wait(engine.claim(), EVENT)
    return task


def events(engine: Engine) -> list[tuple[str, Any]]:
    return engine.conn.execute("select event_name, payload from absurd.emitted_events order by 1").fetchall()


def state(engine: Engine, task: UUID) -> str:
    row = engine.conn.execute("select state from absurd.all_tasks where task_id = %s", (task,)).fetchone()
    assert row is not None
    return str(row[0])


def failed(engine: Engine) -> UUID:
    task = engine.spawn("mail", max_attempts=1)
    engine.fail(engine.claim(), name="E", message="busy")
    assert state(engine, task) == "failed"
    return task


# -- what they do --------------------------------------------------------------------------------------------------------


async def test_an_event_is_emitted_from_the_page_of_the_task_that_waits_for_it(
    site: Site, engine: Engine, order: UUID
) -> None:
    page = await site.page(f"/tasks/{order}")
    fields = dict(
        re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.split('action="/events/emit"')[1])
    )
    assert (fields["name"], fields["queue"], fields["back"]) == (EVENT, "orders", f"/tasks/{order}")
    answer = await site.client.post(
        "/events/emit", data={**fields, "payload": '{"amount": 99.99}'}, headers={"origin": HERE}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, f"/tasks/{order}?said=emitted")
    assert events(engine) == [(EVENT, {"amount": 99.99})]
    assert state(engine, order) == "pending"
    assert "The event is emitted" in await site.page(answer.headers["location"])


async def test_an_event_keeps_its_first_payload_unless_it_shall_be_replaced(site: Site, engine: Engine) -> None:
    await site.send("/events/emit", queue="orders", name="e", payload="1")
    kept = await site.send("/events/emit", queue="orders", name="e", payload="2")
    assert kept.headers["location"].endswith("said=kept")
    assert events(engine) == [("e", 1)]
    await site.send("/events/emit", queue="orders", name="e", payload="3", mode="next")
    assert events(engine) == [("e", 3)]


async def test_no_payload_is_null(site: Site, engine: Engine) -> None:
    await site.send("/events/emit", queue="orders", name="e", payload=" ")
    assert events(engine) == [("e", None)]


@pytest.mark.parametrize(
    "number",
    [
        "1e400", "-1E+400", "1e-400", "0.1234567890123456789012345", "12345678901234567890123", "99.90", "-0.0", "0e5", "1e2",
        "9" * 4_300, "4e4299", "1.7976931348623157e309",
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
async def test_a_number_arrives_as_it_was_typed(site: Site, engine: Engine, number: str) -> None:
    typed = f'  {{"n": [{number}, "{number}"],\n "ü": 1}} '
    answer = await site.send("/events/emit", queue="orders", name="e", payload=typed)
    assert (answer.status_code, answer.headers.get("location")) == (303, "/?said=emitted"), answer.text
    same = "select payload = %s::jsonb, payload::text = (%s::jsonb)::text from absurd.emitted_events"
    assert engine.conn.execute(same, (typed, typed)).fetchall() == [(True, True)]


async def test_a_failed_task_is_tried_again(site: Site, engine: Engine) -> None:
    task = failed(engine)
    answer = await site.send(f"/tasks/{task}/retry", queue="orders", back=f"/tasks/{task}", max_attempts="")
    assert answer.headers["location"] == f"/tasks/{task}?said=retried"
    assert state(engine, task) == "pending"


async def test_a_failed_task_is_spawned_again_as_a_copy_and_the_copy_is_shown(site: Site, engine: Engine) -> None:
    task = failed(engine)
    answer = await site.send(f"/tasks/{task}/retry", queue="orders", back=f"/tasks/{task}", spawn_new="1")
    assert answer.headers["location"].endswith("said=copied")
    copy = UUID(answer.headers["location"].removeprefix("/tasks/").partition("?")[0])
    assert (state(engine, task), state(engine, copy)) == ("failed", "pending")
    assert "This is the copy" in await site.page(answer.headers["location"])


async def test_a_task_is_cancelled(site: Site, engine: Engine, order: UUID) -> None:
    answer = await site.send(f"/tasks/{order}/cancel", queue="orders", back=f"/tasks/{order}")
    assert answer.headers["location"] == f"/tasks/{order}?said=cancelled"
    assert state(engine, order) == "cancelled"


async def test_whoever_acts_sees_at_once_what_came_of_it(site: Site, engine: Engine, order: UUID) -> None:
    await site.page(f"/tasks/{order}")  # an answer that would serve for another second
    answer = await site.send(f"/tasks/{order}/cancel", queue="orders", back=f"/tasks/{order}")
    assert "It was cancelled at" in await site.page(answer.headers["location"])


@pytest.mark.parametrize(
    ("back", "there"),
    [
        ("/waits?queue=orders&said=kept", "/waits?queue=orders&said=emitted"),
        ("//evil.example/x", "/?said=emitted"),
        ("///evil.example/x", "/?said=emitted"),
        ("https://evil.example/", "/?said=emitted"),
        ("/\\evil.example", "/?said=emitted"),
        ("/x\r\nset-cookie: a=b", "/x%0D%0Aset-cookie:%20a=b?said=emitted"),
        ("", "/?said=emitted"),
    ],
)
async def test_a_form_leads_back_to_a_page_of_ours_only(site: Site, engine: Engine, back: str, there: str) -> None:
    answer = await site.send("/events/emit", queue="orders", name="e", back=back)
    assert answer.headers["location"] == there


async def test_an_address_cannot_make_the_page_say_what_it_likes(site: Site, engine: Engine) -> None:
    assert "call 0800" not in await site.page("/?said=call+0800")


# -- what is refused, with nothing done ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"queue": "orders", "name": "e", "payload": "{not json"}, 400),
        ({"queue": "orders", "name": "e", "payload": '"\\u0000"'}, 400),
        ({"queue": "orders", "name": "e\0"}, 400),
        ({"queue": "orders", "name": ""}, 400),
        ({"queue": "orders", "name": "e", "mode": "nonsense"}, 400),
        ({"queue": "orders", "name": "e", "payload": "NaN"}, 400),
        ({"queue": "orders", "name": "e", "payload": "[-Infinity]"}, 400),
        ({"queue": "orders", "name": "e", "payload": "1e5000"}, 400),
        ({"queue": "orders", "name": "e", "payload": "1e-999999999999"}, 400),
        ({"queue": "orders", "name": "e", "payload": "9" * 5_000}, 400),
        ({"queue": "orders", "name": "e", "payload": '["\\ud800", 1.5]'}, 400),
        ({"queue": "orders", "name": "e", "payload": "[" * 300 + "0.5" + "]" * 300}, 400),
        ({"queue": "orders", "name": "e", "payload": "[" * 900 + "0.5" + "]" * 900}, 400),
        ({"queue": "orders", "name": "e", "payload": "[" * 100_000}, 400),
        ({"queue": "nope", "name": "e"}, 404),
        ({"name": "e"}, 400),
        ({}, 400),
    ],
)
async def test_a_form_that_makes_no_sense_says_so_and_does_nothing(
    site: Site, engine: Engine, fields: dict[str, str], code: int
) -> None:
    answer = await site.send("/events/emit", **fields)
    assert answer.status_code == code, answer.text
    assert "Traceback" not in answer.text
    assert events(engine) == []


@pytest.mark.parametrize("most", ["x", "-1", "0", "9" * 30, "9" * 5_000, "²"])
async def test_a_number_of_attempts_that_is_none_is_refused(site: Site, engine: Engine, most: str) -> None:
    task = failed(engine)
    answer = await site.send(f"/tasks/{task}/retry", queue="orders", max_attempts=most)
    assert answer.status_code in (400, 409), answer.text
    assert state(engine, task) == "failed"


async def test_what_is_not_there_can_be_neither_tried_again_nor_cancelled(site: Site, engine: Engine) -> None:
    for verb in ("retry", "cancel"):
        for task in ("nonsense", "01a1fa96-4b06-7000-975a-8074f80c0000"):
            assert (await site.send(f"/tasks/{task}/{verb}", queue="orders")).status_code == 404


async def test_a_sleeping_task_is_not_tried_again(site: Site, engine: Engine, order: UUID) -> None:
    answer = await site.send(f"/tasks/{order}/retry", queue="orders")
    assert answer.status_code == 409
    assert state(engine, order) == "sleeping"


async def test_a_form_larger_than_any_of_ours_is_not_read_to_its_end(site: Site, engine: Engine) -> None:
    answer = await site.send("/events/emit", queue="orders", name="e", payload='"' + "x" * 1_100_000 + '"')
    assert answer.status_code == 403
    assert events(engine) == []


async def test_actions_are_no_pages(site: Site, engine: Engine, order: UUID) -> None:
    for path in ("/events/emit", f"/tasks/{order}/cancel", f"/tasks/{order}/retry"):
        assert (await site.get(path)).status_code in (404, 405)
    assert state(engine, order) == "sleeping"


# -- who may send them -----------------------------------------------------------------------------------------------------


async def attempts(site: Site, order: UUID, mail: UUID, headers: dict[str, str], **fields: str) -> list[int]:
    """The codes of one attempt at each action."""
    given = {"queue": "orders", "name": EVENT, "back": "/", **fields}
    return [
        (await site.client.post(site.prefix + path, data=given, headers=headers)).status_code
        for path in ("/events/emit", f"/tasks/{order}/cancel", f"/tasks/{mail}/retry")
    ]


def untouched(engine: Engine, order: UUID, mail: UUID) -> bool:
    return (events(engine), state(engine, order), state(engine, mail)) == ([], "sleeping", "failed")


async def test_a_form_without_the_token_does_nothing(site: Site, engine: Engine, order: UUID) -> None:
    mail = failed(engine)
    assert await attempts(site, order, mail, {"origin": HERE}) == [403] * 3  # neither cookie nor field
    await site.token()
    assert await attempts(site, order, mail, {"origin": HERE}) == [403] * 3  # the cookie alone
    assert await attempts(site, order, mail, {"origin": HERE}, form_token="") == [403] * 3
    assert untouched(engine, order, mail)


async def test_a_form_with_another_token_does_nothing(site: Site, engine: Engine, order: UUID) -> None:
    mail = failed(engine)
    token = await site.token()
    for wrong in (token[:-1], token + "x", "x" * 43, token.swapcase()):
        assert await attempts(site, order, mail, {"origin": HERE}, form_token=wrong) == [403] * 3
    site.client.cookies.clear()
    assert await attempts(site, order, mail, {"origin": HERE}, form_token=token) == [403] * 3  # the field alone
    assert untouched(engine, order, mail)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:9999"},
        {"origin": "null"},
        {"origin": "http://[::1"},
        {"origin": HERE, "sec-fetch-site": "cross-site"},
        {"origin": HERE, "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_a_form_of_another_site_does_nothing_even_with_the_token(
    site: Site, engine: Engine, order: UUID, headers: dict[str, str]
) -> None:
    mail = failed(engine)
    assert await attempts(site, order, mail, headers, form_token=await site.token()) == [403] * 3
    assert untouched(engine, order, mail)


async def test_the_same_attempts_succeed_from_our_own_page(site: Site, engine: Engine, order: UUID) -> None:
    mail = failed(engine)
    headers = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert await attempts(site, order, mail, headers, form_token=await site.token()) == [303] * 3


@pytest.mark.parametrize(
    ("setting", "title"), [("default_transaction_read_only=on", "only reads"), ("role=pg_monitor", "does not allow")]
)
async def test_what_the_database_does_not_allow_is_told_as_that(
    make_site: MakeSite, engine: Engine, database_url: str, setting: str, title: str
) -> None:
    form = {"form_token": await make_site().token()}
    site = make_site(make_conninfo(database_url, options=f"-c {setting}"))
    site.client.cookies.set("habitat_form", form["form_token"])
    answer = await site.client.post("/events/emit", data={**form, "queue": "orders", "name": "e"})
    assert answer.status_code == 403
    assert title in answer.text
    assert events(engine) == []


async def test_read_only_takes_no_action_and_shows_no_form(make_site: MakeSite, engine: Engine, order: UUID) -> None:
    site, mail = make_site(read_only=True), failed(engine)
    assert await attempts(site, order, mail, {"origin": HERE}, form_token=await site.token()) == [403] * 3
    assert untouched(engine, order, mail)
    for path in ("/", "/tasks", "/events", "/waits", f"/tasks/{order}", f"/tasks/{mail}"):
        page = await site.page(path)
        assert "Read-only" in page
        assert 'method="post"' not in page, path
        assert "-dialog" not in page, path
        assert "Emit" not in page, path


async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(make_site: MakeSite, engine: Engine) -> None:
    site = make_site(path_prefix="/ops")
    cookie = (await site.get("/")).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/ops" in cookie
    assert "secure" not in cookie
    assert "set-cookie" not in (await site.get("/")).headers  # a browser that has one keeps it
    site.client.cookies.clear()
    assert "secure" in (await site.client.get("https://localhost/ops/")).headers["set-cookie"].lower()

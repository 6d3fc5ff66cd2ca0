"""What every answer carries, who may ask, how large it gets, and where the application may live."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.routing import Mount

from absurd import ConfigError
from habitat_lite import main
from tests.cli.engine import Engine
from tests.habitat.conftest import HERE, MakeSite, Site

#: to what it answers beyond this machine, which calls itself box7.example.com
OPEN = {"box7.example.com", "box7", "box7.local", "0.0.0.0/0", "::/0"}

# -- headers and hosts -----------------------------------------------------------------------------------------------------


async def test_every_answer_carries_the_headers(site: Site, engine: Engine) -> None:
    task = engine.spawn()
    answers = [
        await site.get(path)
        for path in (
            "/", "/tasks", "/events", "/waits", f"/tasks/{task}", "/overview.json", f"/tasks/{task}.json", "/health",
            f"/tasks/{task}/raw/params?queue=orders", f"/tasks/{task}/checkpoints.json?queue=orders",
            "/static/habitat.js", "/static/habitat.css", "/nowhere", "/tasks?state=nonsense",
        )
    ]  # fmt: skip
    answers.append(await site.client.post("/events/emit"))
    answers.append(await site.send("/events/emit", queue="orders", name="e"))
    assert {answer.status_code for answer in answers} == {200, 303, 400, 403, 404}
    for answer in answers:
        policy = dict(each.strip().split(" ", 1) for each in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert "no-store" in answer.headers["cache-control"] or "/static/" in str(answer.url)


async def test_no_page_needs_what_the_policy_forbids(site: Site, engine: Engine) -> None:
    engine.spawn("sleeper")
    engine.wait(engine.claim(), "e")
    task = engine.spawn(max_attempts=1)
    engine.fail(engine.claim(), name="E", message="m", traceback="t")
    for path in ("/", "/tasks", "/events", "/waits", f"/tasks/{task}", "/nowhere"):
        page = (await site.get(path)).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|javascript:", page), path
        assert not re.search(r'(src|href|action)="(https?:)?//', page), path


async def test_what_nobody_expected_is_told_with_the_headers_too(
    site: Site, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("<script>odd</script>")

    monkeypatch.setattr(site.inner.state.source, "ask", fail)
    for path in ("/tasks", "/tasks.json"):
        answer = await site.get(path)
        assert answer.status_code == 500
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "<script>odd" not in answer.text or path.endswith(".json")


async def test_a_request_by_another_name_is_refused(make_site: MakeSite, engine: Engine) -> None:
    site = make_site(allowed_hosts=["localhost", "127.0.0.1"])
    assert (await site.get("/")).status_code == 200
    for host in ("localhost:9", "LOCALHOST", "127.0.0.1"):
        assert (await site.get("/", headers={"host": host})).status_code == 200
    for host in ("evil.example", "localhost.evil.example", "[::1]", "[localhost", ""):
        assert (await site.get("/", headers={"host": host})).status_code == 400
        assert (await site.get("/tasks.json", headers={"host": host})).status_code == 400


async def test_beyond_this_machine_it_answers_to_addresses_and_to_no_name_that_leads_here(
    make_site: MakeSite, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(socket, "gethostname", lambda: "box7")
    monkeypatch.setattr(main, "create_app", lambda url, **more: given.update(more))
    monkeypatch.setattr(main, "_listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(main, "_run", lambda app, listening: listening.close())
    main.serve("postgresql://x", host="0.0.0.0", insecure=True, allow_host=["HTTPS://ops.example:8443/", "b:80", "c."])
    site = make_site(allowed_hosts=given["allowed_hosts"])
    known = (
        "localhost box7 BOX7.local 192.168.1.7:8080 10.1.2.3 [fe80::1]:8080 [::1] ops.example ops.example.:1 b c c.:80"
    )
    for host in known.split():
        assert (await site.get("/", headers={"host": host})).status_code == 200, host
    asked = site.inner.state.source.asked
    for host in (
        "evil.example",
        "10.1.2.3.evil.example",
        "1.2.3",
        "[fe80::1",
        "box7.evil.example",
        "",
        "x:y:z",
        "0x7f.1",
    ):
        answer = await site.get("/tasks", headers={"host": host})
        assert answer.status_code == 400, host
        assert "--allow-host" in answer.text
    assert site.inner.state.source.asked == asked


def test_what_is_no_name_and_no_network_is_said_at_the_start() -> None:
    for name in ("10.0.0.0/99", "ops.example/x", "", "a b"):
        said = CliRunner().invoke(main.cli, ["run", "-d", "postgresql://x", "--port", "0", "--allow-host", name])
        assert said.exit_code == 1, name
        assert "10.0.0.0/8" in said.output


NAVIGATE = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize("other", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("headers", "taken"),
    [
        ({"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, False),
        ({"sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}, False),
        ({"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, False),
        ({"sec-fetch-mode": "no-cors"}, False),
        ({"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, False),
        ({"sec-fetch-mode": "navigate", "sec-fetch-dest": "object"}, False),
        ({**NAVIGATE, "sec-purpose": "prefetch;prerender"}, False),
        ({}, False),
        ({"sec-fetch-mode": "navigate"}, True),
        (NAVIGATE, True),
    ],
    ids=str,
)
async def test_another_site_leads_here_by_a_link_and_by_nothing_else(
    site: Site, engine: Engine, headers: dict[str, str], taken: bool, other: str
) -> None:
    given = {"sec-fetch-site": other, **headers}
    for path in ("/", "/tasks", "/tasks.json", "/events/raw?queue=orders&name=e", "/health", "/nowhere"):
        for method in ("GET", "HEAD"):
            answer = await site.client.request(method, path, headers=given)
            assert (answer.status_code == 403) != taken, (method, path)
            assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/live/tasks", "/live/overview"):
        assert (await site.client.head(path, headers=given)).status_code == 403
    assert (site.inner.state.source.asked > 0) == taken


async def test_our_own_pages_and_whoever_types_the_address_are_answered(site: Site, engine: Engine) -> None:
    fetch = {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    for headers in (
        {"sec-fetch-site": "same-origin", **fetch},
        {"sec-fetch-site": "none", **NAVIGATE},
        {},
        {"origin": HERE},
    ):
        for path in ("/", "/tasks.json"):
            assert (await site.get(path, headers=headers)).status_code == 200
        assert (await site.client.head("/live/tasks", headers=headers)).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999", "http://[::1"])
async def test_of_a_browser_that_says_less_the_origin_is_enough(site: Site, engine: Engine, origin: str) -> None:
    for path in ("/", "/tasks.json", "/live/tasks"):
        assert (await site.get(path, headers={"origin": origin})).status_code == 403
    assert site.inner.state.source.asked == 0


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ([], {"localhost", "127.0.0.1", "[::1]"}),
        (["--host", "::1"], {"localhost", "127.0.0.1", "[::1]"}),
        (["--allow-host", "ops.example"], {"localhost", "127.0.0.1", "[::1]", "ops.example"}),
        (["--host", "0.0.0.0", "--insecure"], {"localhost", "127.0.0.1", "[::1]", "0.0.0.0", *OPEN}),
        (["--host", "fe80::7", "--insecure"], {"localhost", "127.0.0.1", "[::1]", "[fe80::7]", *OPEN}),
        (
            ["--host", "box.example", "--insecure", "--allow-host", "ops.example", "--allow-host", "tasks"],
            {"localhost", "127.0.0.1", "[::1]", "box.example", "ops.example", "tasks", *OPEN},
        ),
    ],
)
def test_the_program_answers_only_to_names_of_its_own(
    options: list[str], hosts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(socket, "gethostname", lambda: "Box7.example.com")
    monkeypatch.setattr(main, "create_app", lambda url, **more: given.update(more))
    monkeypatch.setattr(main, "_listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(main, "_run", lambda app, listening: listening.close())
    result = CliRunner().invoke(main.cli, ["run", "-d", "postgresql://x", *options])
    assert result.exit_code == 0, result.output
    assert set(given["allowed_hosts"]) == hosts  # type: ignore[call-overload]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.com"])
def test_an_address_beyond_this_machine_is_refused_unless_asked_for(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(
        main, "_listen", lambda host, port: started.append(host) or socket.create_server(("127.0.0.1", 0))
    )
    monkeypatch.setattr(main, "_run", lambda app, listening: listening.close())
    refused = CliRunner().invoke(main.cli, ["run", "-d", "postgresql://x", "--host", host])
    assert refused.exit_code == 1
    assert "this page has no login" in refused.output
    assert "--insecure" in refused.output
    assert started == []
    with pytest.raises(ConfigError):
        main.serve("postgresql://x", host=host)
    assert CliRunner().invoke(main.cli, ["run", "-d", "postgresql://x", "--host", host, "--insecure"]).exit_code == 0
    assert started == [host]


def test_an_address_of_this_machine_answers_to_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(main, "create_app", lambda url, **more: given.update(more))
    monkeypatch.setattr(main, "_listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr(main, "_run", lambda app, listening: listening.close())
    for host, prefix, told in (
        ("127.0.0.2", "", "http://127.0.0.2:"),
        ("127.0.0.1", "/", "http://localhost:"),
        ("::1", "ops/", "http://localhost:"),
    ):
        main.serve("postgresql://x", host=host, path_prefix=prefix)
        assert (f"[{host}]" if ":" in host else host) in given["allowed_hosts"]  # type: ignore[operator]
        said = capsys.readouterr().err
        assert told in said
        assert re.search(r":\d+/(ops/)? ", said), said
        assert given["path_prefix"] == ("/ops" if "ops" in prefix else "")


# -- where it lives --------------------------------------------------------------------------------------------------------


def links(page: str) -> set[str]:
    return set(re.findall(r'(?:href|src|action|data-live|data-href)="(/[^"]*)"', page))


async def test_below_a_path_prefix_every_address_has_it(make_site: MakeSite, engine: Engine) -> None:
    task = engine.spawn()
    site = make_site(path_prefix="/ops/habitat")
    for path in ("/", "/tasks", "/events", "/waits", f"/tasks/{task}", "/nowhere", "/tasks?state=nonsense"):
        found = links((await site.get(path)).text)
        assert found, path
        assert all(each.startswith("/ops/habitat/") for each in found), found
    assert (await site.client.get("/tasks")).status_code == 404
    for each in links(await site.page(f"/tasks/{task}")):
        if "/live/" not in each and not each.endswith(("/cancel", "/retry", "/emit")):
            assert (await site.client.get(each.replace("&amp;", "&"))).status_code == 200, each
    answer = await site.send("/events/emit", queue="orders", name="e", back="/events")
    assert answer.headers["location"] == "/ops/habitat/events?said=emitted"


async def test_it_mounts_in_another_application_which_knows_nothing_of_its_life(
    make_site: MakeSite, engine: Engine
) -> None:
    site = make_site(within=lambda inner: Starlette(routes=[Mount("/habitat", inner)]))
    site.prefix = "/habitat"
    task = engine.spawn()
    engine.wait(engine.claim(), "e")
    page = await site.page(f"/tasks/{task}")
    assert all(each.startswith("/habitat/") for each in links(page))
    assert await site.json("/tasks.json")
    answer = await site.send("/events/emit", queue="orders", name="e", back=f"/tasks/{task}")
    assert answer.headers["location"] == f"/habitat/tasks/{task}?said=emitted"
    assert (await site.get("/nowhere")).status_code == 404


async def test_below_a_path_of_odd_letters_a_browser_gives_its_cookie_back(make_site: MakeSite, engine: Engine) -> None:
    site = make_site(path_prefix="/öps €")
    cookie = (await site.get("/")).headers["set-cookie"]
    assert "Path=/%C3%B6ps%20%E2%82%AC;" in cookie
    assert (await site.send("/events/emit", queue="orders", name="e")).status_code == 303


async def test_an_application_that_nobody_asks_opens_no_connection(make_site: MakeSite, engine: Engine) -> None:
    site = make_site()
    question = (
        "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'habitat'"
    )
    assert engine.conn.execute(question).fetchone() == (0,)
    await site.page("/")
    assert site.inner.state.source.asked > 0


# -- how large it gets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 50, 120])
async def test_the_first_page_with_all_it_needs_is_small(site: Site, engine: Engine, queues: int) -> None:
    for number in range(queues):
        engine.queue(f"a-queue-with-a-rather-long-name-{number:03}")
    page = await site.page("/")
    needed = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert len(needed) == 4
    size = len(page.encode()) + sum([len((await site.get(each)).content) for each in needed])
    assert size < 100_000, size


HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\u202egnp.exe\u2066\u200b\x1b[31m'\""


def bare(page: str) -> bool:
    """Whether anything of the hostile text reached the page as markup, or as characters nobody sees."""
    read = re.sub(r"<[^>]+>", "", page)  # attributes hold what is sent back, as it is
    hidden = any(ord(each) in (0x202E, 0x2066, 0x200B, 0x1B) for each in read)
    return hidden or "<script>alert" in page or "<img" in page or "</pre></script>" in page


async def test_hostile_names_and_payloads_are_text_on_every_page(site: Site, engine: Engine) -> None:
    name = HOSTILE.replace("\x1b", "")
    engine.queue(name[:50])
    task = engine.spawn(name, {HOSTILE: [HOSTILE]}, queue=name[:50], headers={"h": HOSTILE}, idempotency_key=HOSTILE)
    row = engine.conn.execute("select run_id from absurd.claim_task(%s, %s, 60, 1)", (name[:50], HOSTILE)).fetchone()
    assert row is not None
    call = "select absurd.set_task_checkpoint_state(%s, %s, %s, to_jsonb(%s::text), %s)"
    engine.conn.execute(call, (name[:50], task, HOSTILE, HOSTILE * 40, row[0]))
    waits = "select * from absurd.await_event(%s, %s, %s, %s, %s, null)"
    engine.conn.execute(waits, (name[:50], task, row[0], HOSTILE + "step", HOSTILE + "event"))
    engine.emit(HOSTILE, {HOSTILE: HOSTILE}, queue=name[:50])
    failed = engine.spawn("x", max_attempts=1)
    engine.fail(engine.claim(), name=HOSTILE, message=HOSTILE, traceback=HOSTILE)
    for path in ("/", "/tasks", f"/tasks/{task}", f"/tasks/{failed}", "/events", "/waits"):
        page = await site.page(path)
        assert not bare(page), path
        assert "&lt;script&gt;" in page, path
        assert "\\u202e" in page or path == "/", path
    echoed = {"q": HOSTILE, "name": HOSTILE, "queue": HOSTILE, "event": HOSTILE, "said": HOSTILE}
    for path in ("/tasks", "/events", "/waits"):
        assert not bare((await site.get(path, params=echoed)).text), path
    for path in (
        f"/tasks/{quote(HOSTILE, safe='')}",
        f"/tasks?since={quote(HOSTILE)}",
        f"/tasks?state={quote(HOSTILE)}",
    ):
        assert not bare((await site.get(path)).text), path
    raw = await site.get(f"/tasks/{task}/raw/params", params={"queue": name[:50]})
    assert raw.headers["content-type"].startswith("text/plain")  # and `nosniff`: no browser takes it for a page


async def test_ten_megabytes_and_ten_thousand_checkpoints_make_no_large_page(site: Site, engine: Engine) -> None:
    task = engine.spawn("large", max_attempts=1)
    run = engine.claim()
    big = "<b>x</b>" * 1_300_000  # 10.4 MB
    engine.step(run, "large", big)
    insert = """
        select count(absurd.set_task_checkpoint_state('orders', %s, 'step-' || n, to_jsonb(repeat('<i>y</i>', 500)), %s))
          from generate_series(1, 10000) n
    """
    assert engine.conn.execute(insert, (task, run)).fetchone() == (10_000,)
    engine.complete(run, {"large": big, "deep": big})
    second = engine.spawn("params", {"large": big}, headers={"large": big})
    engine.emit("large", {"large": big})
    for path, most in (
        ("/", 50_000),
        ("/tasks", 100_000),
        (f"/tasks/{task}", 1_200_000),
        (f"/tasks/{second}", 600_000),
        ("/events", 60_000),
        ("/events.json", 60_000),
    ):
        page = await site.page(path)
        assert len(page.encode()) < most, (path, len(page.encode()))
        assert "<b>x" not in page or path.endswith(".json")
    assert "of 10,001 checkpoints" in await site.page(f"/tasks/{task}")


@pytest.mark.parametrize("deep", ["[" * 5_000 + "]" * 5_000, '{"a":' * 600 + "1" + "}" * 600, "[" * 900 + "]" * 900])
async def test_deep_payloads_are_shown_too(site: Site, engine: Engine, deep: str) -> None:
    call = "select task_id from absurd.spawn_task('orders', 'deep', %s::jsonb)"
    row = engine.conn.execute(call, (f'{{"deep": {deep}}}',)).fetchone()
    assert row is not None
    assert isinstance(row[0], UUID)
    assert len(await site.page(f"/tasks/{row[0]}")) < 200_000
    assert (await site.get("/tasks")).status_code == 200

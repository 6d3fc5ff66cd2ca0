"""Pages that tell of something that is not: what they say, and where they lead."""

from __future__ import annotations

import re

import pytest

from habitat_lite.render import told
from tests.cli.engine import Engine
from tests.habitat.conftest import MakeSite, Site


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("no queue 'x'", ["No queue &#x27;x&#x27;."]),
        (
            "schema missing here\nHint: run `absurdctl init`",
            ["Schema missing here.", "Run <code>absurdctl init</code>."],
        ),
        ("max_attempts must be 1", ["max_attempts must be 1."]),
        ("already said.\nHint: `a` or `b`?", ["Already said.", "<code>a</code> or <code>b</code>?"]),
        ("`<script>` and <b>\u202e", ["<code>&lt;script&gt;</code> and &lt;b&gt;\\u202e."]),
    ],
)
def test_a_message_is_told_in_sentences_with_its_hint_apart(text: str, parts: list[str]) -> None:
    assert [str(each) for each in told(text)] == parts


async def test_a_database_that_is_away_is_told_with_a_hint_and_a_way_to_ask_again(make_site: MakeSite) -> None:
    answer = await make_site("postgresql://nobody@127.0.0.1:1/none").get("/tasks?state=failed")
    assert answer.status_code == 503
    assert re.search(
        r'<p class="wrap">[A-Z][^<]*\.</p>\s*<p class="wrap quiet">Check that the server runs', answer.text
    )
    assert '<a class="button" href="">Try again</a>' in answer.text


async def test_what_asking_again_does_not_help_is_not_asked_again(site: Site, engine: Engine) -> None:
    for answer in (
        await site.get("/nowhere"),
        await site.get("/tasks?state=nonsense"),
        await site.client.post("/events/emit"),
    ):
        assert answer.status_code in (400, 403, 404)
        assert "Try again" not in answer.text
        assert "To the overview" in answer.text
        assert "twin in JSON" not in answer.text


async def test_what_is_empty_says_how_to_fill_it_and_what_does_not_fit_leads_to_all(site: Site, engine: Engine) -> None:
    for path, empty, unfit in (
        ("/tasks", "absurdctl spawn-task", "?q=nothing"),
        ("/events", "absurdctl emit-event", "?name=nothing"),
        ("/waits", "Nobody waits.", "?event=nothing"),
    ):
        assert empty in await site.page(path)
        assert f'<a href="{path}">Show all</a>' in await site.page(path + unfit)
        assert "of 0 kept" not in await site.page(path)

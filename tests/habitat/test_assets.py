"""Stylesheet, scripts and icon: kept by browsers for good, and never an old one for a new page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from habitat_lite import assets
from tests.habitat.conftest import MakeSite, Site

NAMES = {"habitat.css", "habitat.js", "theme.js", "habitat.svg"}
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


def needed(page: str) -> list[str]:
    """The addresses that a page names."""
    return re.findall(r'(?:src|href)="([^"]*/static/[^"]+)"', page)


async def test_what_a_page_needs_is_kept_for_good_under_the_hash_of_its_content(site: Site) -> None:
    found = needed(await site.page("/"))
    assert {re.sub(r".*/(\w+)-[0-9a-f]{16}", r"\1", each) for each in found} == NAMES
    for each in found:
        answer = await site.get(each)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-type"] == TYPES[Path(each).suffix]
        name = re.sub(r".*/(\w+)-[0-9a-f]{16}", r"\1", each)
        assert answer.content == (assets.FOLDER / name).read_bytes()
        assert assets.assets()[name].mark in each


@pytest.mark.parametrize("name", ["habitat.css", "habitat-0123456789abcdef.css"])
async def test_at_another_address_it_is_what_it_is_now_and_for_a_short_while(site: Site, name: str) -> None:
    answer = await site.get(f"/static/{name}")
    assert answer.status_code == 200
    assert answer.content == (assets.FOLDER / "habitat.css").read_bytes()
    assert answer.headers["cache-control"] == "public, max-age=60"
    for given in (answer.headers["etag"], f'"other", W/{answer.headers["etag"]}'):
        again = await site.get(f"/static/{name}", headers={"if-none-match": given})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == "public, max-age=60"
    assert (await site.get(f"/static/{name}", headers={"if-none-match": '"other"'})).status_code == 200


async def test_what_is_no_file_of_ours_is_not_there(site: Site) -> None:
    for name in ("nothing.css", "..%2fapp.py", "../app.py", "habitat.css/x", "", "habitat-.css", "%00"):
        answer = await site.get(f"/static/{name}")
        assert answer.status_code == 404, name
        assert answer.headers["cache-control"] == "no-store"


async def test_another_content_has_another_address(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = assets.address("habitat.css")
    for name in NAMES:
        (tmp_path / name).write_bytes((assets.FOLDER / name).read_bytes())
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    try:
        assets.assets.cache_clear()
        assert assets.address("habitat.css") == before
        (tmp_path / "habitat.css").write_text("main { color: red }")
        # what is changed on the disk is not served under the name of what was there at the start
        assert (await site.get(before)).text != "main { color: red }"
        assets.assets.cache_clear()
        assert assets.address("habitat.css") != before
        stale = await site.get(before)
        assert (stale.text, stale.headers["cache-control"]) == ("main { color: red }", "public, max-age=60")
    finally:
        assets.assets.cache_clear()


async def test_they_are_found_wherever_the_app_lives(make_site: MakeSite) -> None:
    mounted = make_site(within=lambda inner: Starlette(routes=[Mount("/a/b", inner)]))
    mounted.prefix = ""
    for site, root in ((make_site(path_prefix="/ops"), "/ops"), (mounted, "/a/b")):
        page = (await site.client.get(f"{root}/")).text
        for each in needed(page):
            assert each.startswith(f"{root}/static/")
            assert "immutable" in (await site.client.get(each)).headers["cache-control"]

"""Every link of a page leads somewhere, every page can be reached, every picture is one."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args

import pytest

from absurd.types import TaskState
from tests.docs.pages import ROOT, name, pages, prose

_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))
_PHOTOS = sorted((ROOT / "docs" / "images").glob("*.png"))


def links(page: Path) -> list[str]:
    return [first or second for first, second in _LINK.findall(_without_code(page))]


def _without_code(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the common renderers make them."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        seen = found.get(slug, 0)
        found[slug] = seen + 1
        result.add(slug if not seen else f"{slug}-{seen}")
    return result


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://|mailto:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.is_relative_to(ROOT), f"{name(page)}: {link} leads out of the repository"
        assert path.exists(), f"{name(page)}: {link} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{name(page)}: {link}: no such heading in {name(path)}"


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        todo += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in links(page)
            if not link.startswith(("http", "#"))
        ]
    lost = [name(page) for page in pages() if page not in seen and name(page) != "docs/README.md"]
    assert not lost, f"no page links to {lost}"


def test_every_decision_is_in_the_index() -> None:
    index = ROOT / "docs" / "decisions" / "000-index.md"
    listed = {link for link in links(index) if re.match(r"\d{3}-", link)}
    assert listed == {page.name for page in index.parent.glob("*.md")} - {index.name}


@pytest.mark.parametrize("image", _IMAGES, ids=lambda each: each.name)
def test_a_picture_is_well_formed_says_what_it_shows_and_is_shown(image: Path) -> None:
    root = ElementTree.parse(image).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    for part in ("title", "desc"):
        assert (root.findtext(f"{space}{part}") or "").strip(), f"{image.name} has no {part}"
    assert any(f"images/{image.name}" in page.read_text(encoding="utf-8") for page in pages())


@pytest.mark.parametrize("photo", _PHOTOS, ids=lambda each: each.name)
def test_a_screenshot_is_small_and_shown(photo: Path) -> None:
    assert photo.read_bytes().startswith(b"\x89PNG")
    assert photo.stat().st_size < 150_000
    assert any(f"images/{photo.name}" in page.read_text(encoding="utf-8") for page in pages())


def test_there_are_no_other_pictures() -> None:
    assert {*_IMAGES, *_PHOTOS} == set((ROOT / "docs" / "images").iterdir())


def test_the_picture_of_the_states_has_every_state() -> None:
    drawn = {"".join(each.itertext()) for each in ElementTree.parse(ROOT / "docs/images/states.svg").iter()}
    assert set(get_args(TaskState)) <= drawn

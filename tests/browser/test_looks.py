"""What every page owes to whoever reads it: contrast, width, names for every field, words beside every colour."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from absurd import Absurd
from tests.browser.conftest import NewPage

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing: make setup")
Page = sync_api.Page

LONG = "a-very-long-name-" * 8 + "without-any-space"
HOSTILE = "<script>alert(1)</script>\u202egnp.exe \u200b" + "W" * 90


class Shop:
    """Tasks in every state, events and waits of every sort, with names nobody hoped for."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True)
        self.pages = {"overview": "/", "tasks": "/tasks", "events": "/events", "waits": "/waits", "none": "/nowhere"}
        self.queues = ("examples", LONG[:57], HOSTILE[:50])
        for queue in self.queues:
            self.call("create_queue", queue)
            self._fill(queue)
        self._conn.close()

    def call(self, name: str, *given: Any) -> Any:
        marks = ", ".join(["%s"] * len(given))
        return self._conn.execute(f"select * from absurd.{name}({marks})", given).fetchone()

    def _fill(self, queue: str) -> None:
        for name in ("order", LONG, HOSTILE):
            failed = self._spawn(queue, f"{name} failed", max_attempts=1)
            message = {"name": name, "message": name, "traceback": f"{name}\n" * 3}
            self.call("fail_run", queue, self._claim(queue), json.dumps(message))
            done = self._spawn(queue, f"{name} done", headers={name: name}, idempotency_key=name)
            run = self._claim(queue)
            self.call("set_task_checkpoint_state", queue, done, name, json.dumps({name: name}), run)
            self.call("complete_run", queue, run, json.dumps([name, {name: None}]))
            gone = self._spawn(queue, f"{name} gone")
            self.call("cancel_task", queue, gone)
            asleep = self._spawn(queue, f"{name} asleep", cancellation={"max_duration": 86_400})
            self.call("await_event", queue, asleep, self._claim(queue), f"step {name}", f"event {name}", 3600)
            running = self._spawn(queue, f"{name} running")
            self._claim(queue)
            pending = self._spawn(queue, f"{name} pending")
            self.call("emit_event", queue, f"sent {name}", json.dumps({name: [name] * 3}))
            for state, task in (
                ("failed", failed), ("done", done), ("gone", gone),
                ("asleep", asleep), ("running", running), ("pending", pending),
            ):  # fmt: skip
                if queue != self.queues[1]:  # whose pages are the others with other names
                    self.pages[f"{state} in {self.queues.index(queue)} as {name[:6]}"] = f"/tasks/{task}"
            self.call("cancel_task", queue, pending)

    def _spawn(self, queue: str, name: str, **options: Any) -> Any:
        return self.call("spawn_task", queue, name, json.dumps({"name": name}), json.dumps(options))[0]

    def _claim(self, queue: str) -> Any:
        return self._conn.execute("select run_id from absurd.claim_task(%s, %s, 60, 1)", (queue, LONG)).fetchone()[0]  # type: ignore[index]


@pytest.fixture
def shop(app: Absurd, database_url: str) -> Shop:
    return Shop(database_url)


def opened(page: Page) -> None:
    """Every part that can be folded out is; every dialog is there to be looked at."""
    page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true })")


POOR = """() => {
    const parsed = text => {
        const part = text.match(/^color\\(srgb ([^)]+)\\)$/);
        if (part) {
            const [r, g, b, , a] = part[1].split(/\\s+/);
            return [r * 255, g * 255, b * 255, a === undefined ? 1 : +a];
        }
        const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
        return [r, g, b, a === undefined ? 1 : a];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const ground = element => {
        const layers = [];
        for (let each = element; each; each = each.parentElement) {
            const color = parsed(getComputedStyle(each).backgroundColor);
            if (color[3]) layers.push(color);
            if (color[3] === 1) break;
        }
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const light = color => {
        const [r, g, b] = color.map(each => (each /= 255) <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, other) => {
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const found = [];
    let seen = 0;
    const measure = (element, text, color, style) => {
        const below = ground(element);
        const size = parseFloat(style.fontSize);
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const measured = ratio(over(parsed(color), below), below);
        seen += 1;
        if (measured < (large ? 3 : 4.5)) found.push(`${measured.toFixed(2)} ${element.tagName} ${text.slice(0, 40)}`);
    };
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        const text = walk.currentNode.textContent.trim();
        if (!text || !element.checkVisibility({ visibilityProperty: true }) || element.closest("script, option")) continue;
        measure(element, text, getComputedStyle(element).color, getComputedStyle(element));
    }
    for (const field of document.querySelectorAll("input:not([type=hidden]), textarea, select")) {
        if (!field.checkVisibility()) continue;
        measure(field, field.value || field.name, getComputedStyle(field).color, getComputedStyle(field));
        const hint = getComputedStyle(field, "::placeholder");
        if (field.placeholder) measure(field, field.placeholder, hint.color, getComputedStyle(field));
        const frame = ratio(parsed(getComputedStyle(field).borderTopColor), ground(field.parentElement));
        if (frame < 3) found.push(`${frame.toFixed(2)} the frame of ${field.name}`);
    }
    return { found, seen };
}"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_on_every_page_can_be_read(theme: str, new_page: NewPage, shop: Shop) -> None:
    page = new_page(color_scheme=theme)
    for name, path in shop.pages.items():
        page.goto(path)
        opened(page)
        looked = page.evaluate(POOR)
        assert looked["seen"] > 10, name
        assert looked["found"] == [], name
        for dialog in page.locator("dialog").all():
            dialog.evaluate("each => each.showModal()")
            assert page.evaluate(POOR)["found"] == [], name
            dialog.evaluate("each => each.close()")
    for selector in ("a.tile", "tbody tr", "nav a:not([aria-current])", "button.plain"):
        page.goto("/")
        page.locator(selector).first.hover()
        assert page.evaluate(POOR)["found"] == [], f"under the pointer: {selector}"
    page.goto("/tasks")
    page.keyboard.press("j")
    assert page.evaluate(POOR)["found"] == [], "a chosen row"


def test_a_poor_contrast_would_be_noticed(page: Page, shop: Shop) -> None:
    page.goto("/tasks")
    page.evaluate("() => document.documentElement.style.setProperty('--soft', '#999')")
    assert page.evaluate(POOR)["found"]


BEYOND = """width => [...document.querySelectorAll("body *")].filter(each => {
    if (!each.checkVisibility() || each.closest("pre, .skip, thead, svg")) return false;
    const box = each.getBoundingClientRect();
    const cut = each.scrollWidth > each.clientWidth + 1 && ["hidden", "clip"].includes(getComputedStyle(each).overflowX);
    return box.width > 0 && (box.right > width + 0.5 || box.left < -0.5 || cut);
}).map(each => `${each.tagName}.${each.className} ${each.textContent.trim().slice(0, 40)}`)"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("width", [360, 720, 900, 1200])
def test_no_page_is_wider_than_the_window(width: int, new_page: NewPage, shop: Shop) -> None:
    page = new_page(width=width, height=740)
    for name, path in shop.pages.items():
        page.goto(path)
        opened(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(BEYOND, width) == [], name
        for dialog in page.locator("dialog").all():
            dialog.evaluate("each => each.showModal()")
            assert page.evaluate(BEYOND, width) == [], name
            dialog.evaluate("each => each.close()")


def test_a_page_that_is_too_wide_would_be_noticed(new_page: NewPage, shop: Shop) -> None:
    page = new_page(width=360)
    page.goto("/tasks")
    page.evaluate("() => { document.querySelector('h1').style.width = '500px' }")
    assert page.evaluate(BEYOND, 360)


NAMELESS = """() => {
    // the label's own words, not the options of the field in it
    const words = label => [...label.childNodes].filter(part => part.nodeType === 3).map(part => part.data).join("");
    const name = each => (each.getAttribute("aria-label") || [...(each.labels || [])].map(words).join("")
                          || (each.matches("button, a") ? each.textContent : "")).trim();
    const named = [...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a, summary")];
    const ids = [...document.querySelectorAll("[id]")].map(each => each.id);
    const level = [...document.querySelectorAll("h1")].length;
    return [
        ...named.filter(each => !each.matches("summary") && !name(each)).map(each => `no name: ${each.outerHTML}`),
        ...ids.filter((id, at) => ids.indexOf(id) !== at).map(id => `twice: ${id}`),
        ...(level === 1 ? [] : [`${level} first headings`]),
        ...[...document.querySelectorAll("th")].filter(each => !each.textContent.trim()).map(() => "a column without a name"),
        ...[...document.querySelectorAll("table")].filter(each => !each.caption).map(() => "a table without a name"),
        ...(document.documentElement.lang ? [] : ["no language"]),
    ];
}"""


def test_everything_that_can_be_used_has_a_name(page: Page, shop: Shop) -> None:
    for name, path in shop.pages.items():
        page.goto(path)
        assert page.evaluate(NAMELESS) == [], name


def test_no_state_is_told_by_its_colour_alone(page: Page, shop: Shop) -> None:
    states = {"pending", "running", "sleeping", "completed", "failed", "cancelled"}
    seen: set[str] = set()
    for name, path in shop.pages.items():
        page.goto(path)
        for word in page.locator(".state:visible").all_inner_texts():
            word = word.strip()
            assert word in states or word.endswith("failed") or word == "waited for", name
            seen.add(word)
        for tile in page.locator(".tile .name").all_inner_texts():
            assert tile.strip(), name
        for track in page.locator(".timeline .track").all_inner_texts():
            assert track.strip(), name
        assert page.locator("#live").count() == 0 or page.locator("#live").inner_text()
    assert states - {"pending"} <= seen
    shapes = page.evaluate("""() => ["pending", "running", "sleeping", "completed", "failed", "cancelled"].map(name => {
        const each = document.body.appendChild(Object.assign(document.createElement("span"), { className: `state ${name}` }));
        const look = getComputedStyle(each, "::before");
        return [look.borderRadius, look.height, look.transform, look.backgroundColor === "rgba(0, 0, 0, 0)"].join();
    })""")
    assert len(set(shapes)) == 5  # running and completed share the dot


def test_the_skip_link_comes_first_and_is_seen_when_reached(page: Page, shop: Shop) -> None:
    page.goto("/tasks")
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="To the content")
    sync_api.expect(link).to_be_focused()
    assert (link.bounding_box() or {})["width"] > 50
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_moments_are_at_hand_without_a_pointer_and_on_paper(page: Page, app: Absurd) -> None:
    task = app.spawn("order", {}, queue="examples")["task_id"]
    page.goto(f"/tasks/{task}")
    spawned = page.locator("dt:text-is('Spawned') + dd time")
    moment = spawned.get_attribute("title") or ""
    assert moment.endswith(" UTC")
    sync_api.expect(spawned).to_have_text(re.compile("ago|now"))
    page.emulate_media(media="print")
    printed = "each => [getComputedStyle(each).fontSize, getComputedStyle(each, '::after').content]"
    assert spawned.evaluate(printed) == ["0px", f'"{moment}"']
    page.emulate_media(media="screen")
    button = page.get_by_role("button", name="Moments in UTC")
    button.click()
    sync_api.expect(button).to_have_attribute("aria-pressed", "true")
    sync_api.expect(spawned).to_have_text(moment)
    page.reload()
    sync_api.expect(spawned).to_have_text(moment)
    page.keyboard.press("u")
    sync_api.expect(spawned).to_have_text(re.compile("ago"))


@pytest.mark.timeout(180)
def test_no_page_with_moments_is_wider_than_a_phone(new_page: NewPage, shop: Shop) -> None:
    page = new_page(width=360, height=740)
    page.goto("/")
    page.keyboard.press("u")
    for name, path in shop.pages.items():
        page.goto(path)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360, name
        assert page.evaluate(BEYOND, 360) == [], name


def test_a_dialog_begins_where_nothing_is_lost(page: Page, app: Absurd) -> None:
    task = app.spawn("order", {}, queue="examples")["task_id"]
    page.goto(f"/tasks/{task}")
    page.get_by_role("button", name="Cancel", exact=True).press("Enter")
    sync_api.expect(page.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    sync_api.expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_focused()
    page.keyboard.press("?")
    sync_api.expect(page.get_by_role("heading", name="Keys")).to_be_focused()
    page.keyboard.press("Tab")
    sync_api.expect(page.get_by_role("checkbox")).to_be_focused()


def test_with_forced_colors_every_state_keeps_its_dot(new_page: NewPage, app: Absurd) -> None:
    for scheme in ("light", "dark"):
        page = new_page(forced_colors="active", color_scheme=scheme)
        page.goto("/")
        dots = page.evaluate("""() => [...document.querySelectorAll(".tile .name, #live")].map(each => {
            const look = getComputedStyle(each, "::before");
            const ground = getComputedStyle(document.body).backgroundColor;
            return look.backgroundColor !== ground || look.borderColor !== ground && look.borderWidth !== "0px";
        })""")
        assert len(dots) == 7
        assert all(dots), scheme


def test_back_from_a_page_that_refuses_leads_where_one_was(page: Page, app: Absurd) -> None:
    page.goto("/tasks")
    field = page.get_by_label("Since")
    field.fill("nonsense")
    field.press("Enter")
    sync_api.expect(page.get_by_role("heading")).to_contain_text("That cannot be done")
    page.get_by_role("button", name="Back").click()
    sync_api.expect(page.get_by_role("heading", name="Tasks")).to_be_visible()


def test_no_word_of_the_light_moves_the_page_of_a_phone(new_page: NewPage, app: Absurd) -> None:
    page = new_page(width=360)
    page.goto("/tasks")
    sync_api.expect(page.locator("#live")).to_have_text("Live")
    heights = {
        page.evaluate("each => { show(each); return document.querySelector('header').offsetHeight }", word)
        for word in ("live", "lost", "stale")
    }
    assert len(heights) == 1

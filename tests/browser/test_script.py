"""What the script owes to who reads along, types, or uses the keyboard alone."""

from __future__ import annotations

import re

import psycopg
import pytest

from absurd import Absurd, schema
from tests.browser.conftest import SECONDS, NewPage, Served
from tests.fixtures.servers import OwnServer

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing: make setup")
sync_api.expect.set_options(timeout=SECONDS * 1000)
expect = sync_api.expect
Page = sync_api.Page


def spawn(app: Absurd, name: str = "order", **options: object) -> str:
    return str(app.spawn(name, {"of": name}, queue="examples", **options)["task_id"])  # type: ignore[arg-type]


def stays(page: Page) -> None:
    """Until `replaced`, what the page shows is what it shows now."""
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("() => { document.querySelector('main h1').dataset.stays = 1 }")


def replaced(page: Page) -> None:
    """Until news has come to the page since `stays`."""
    page.wait_for_function("() => !document.querySelector('main [data-stays]')")


def row(page: Page, key: str) -> sync_api.Locator:
    return page.locator(f'tr[data-key="{key}"]')


# -- the light -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_the_light_says_that_the_database_is_down_and_that_it_is_back(new_page: NewPage, own_server: OwnServer) -> None:
    with psycopg.connect(own_server.url, autocommit=True) as conn:
        schema.install(conn)
        conn.execute("select absurd.create_queue('examples')")
    served = Served(own_server.url)
    page = new_page()
    try:
        page.goto(f"{served.address}/tasks")
        light = page.locator("#live")
        expect(light).to_have_text("Live")
        own_server.stop("immediate")
        expect(light).to_have_text("No database")
        expect(light).to_have_attribute("data-state", "lost")
        assert page.evaluate("() => stream.readyState") == 1  # and the stream is open
        own_server.start()
        expect(light).to_have_text("Live", timeout=90_000)
        expect(light).to_have_attribute("data-state", "live")
    finally:
        page.close()
        served.stop()


def test_the_light_says_that_a_page_is_of_something_that_has_gone(page: Page, app: Absurd) -> None:
    task = spawn(app)
    page.goto(f"/tasks/{task}")
    expect(page.locator("#live")).to_have_text("Live")
    app.drop_queue("examples")
    expect(page.locator("#live")).to_have_text("Outdated")
    expect(page.locator("h1")).to_contain_text("order")


# -- the list by keyboard --------------------------------------------------------------------------------------------------


def test_j_and_k_move_the_focus_itself_and_escape_gives_it_up(page: Page, app: Absurd) -> None:
    first, second = spawn(app, "older"), spawn(app, "newer")
    page.goto("/tasks")
    keys = page.keyboard
    keys.press("j")
    expect(row(page, second).get_by_role("link")).to_be_focused()
    for _ in range(3):
        keys.press("j")
    expect(row(page, first).get_by_role("link")).to_be_focused()
    keys.press("Escape")
    assert page.evaluate("() => document.activeElement === document.body")
    keys.press("k")
    expect(row(page, second).get_by_role("link")).to_be_focused()
    keys.press("j")
    keys.press("Enter")
    expect(page).to_have_url(re.compile(f"/tasks/{first}"))


def test_j_leads_through_events_and_enter_opens_a_payload(page: Page, app: Absurd) -> None:
    app.emit_event("short", 1, queue_name="examples")
    app.emit_event("long", {"long": "b" * 100}, queue_name="examples")
    page.goto("/events")
    page.keyboard.press("j")
    expect(row(page, "examples long").locator("summary")).to_be_focused()
    page.keyboard.press("Enter")
    expect(row(page, "examples long").locator("pre")).to_be_visible()
    page.keyboard.press("j")
    expect(row(page, "examples short")).to_be_focused()
    stays(page)
    app.emit_event("another", 1, queue_name="examples")
    replaced(page)
    expect(row(page, "examples short")).to_be_focused()


def test_the_chosen_row_stays_the_same_element_whatever_happens_around_it(page: Page, app: Absurd) -> None:
    tasks = [spawn(app, f"task-{number}") for number in range(5)]
    page.goto("/tasks?state=pending")
    for _ in range(3):
        page.keyboard.press("j")
    chosen = row(page, tasks[2]).get_by_role("link")
    expect(chosen).to_be_focused()
    page.evaluate("""() => {
        window.lost = 0;
        window.chosen = document.activeElement;
        window.chosen.addEventListener("blur", () => { window.lost += 1 });
    }""")
    for change in (
        lambda: app.cancel_task(tasks[4]),  # above it
        lambda: app.cancel_task(tasks[0]),  # below it
        lambda: spawn(app, "new"),
    ):
        stays(page)
        change()
        replaced(page)
        expect(chosen).to_be_focused()
    assert page.evaluate("() => [window.lost, document.activeElement === window.chosen]") == [0, True]


def test_when_the_chosen_row_goes_j_goes_on_from_where_it_was(page: Page, app: Absurd) -> None:
    tasks = [spawn(app, f"task-{number}") for number in range(4)]
    page.goto("/tasks?state=pending")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(row(page, tasks[2]).get_by_role("link")).to_be_focused()
    app.cancel_task(tasks[2])
    expect(row(page, tasks[2])).to_have_count(0)
    page.keyboard.press("j")
    expect(row(page, tasks[1]).get_by_role("link")).to_be_focused()


def test_the_chosen_row_is_seen_in_every_look(new_page: NewPage, app: Absurd) -> None:
    spawn(app)
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"forced_colors": "active"}):
        page = new_page(**options)
        page.goto("/tasks")
        page.keyboard.press("j")
        look = page.evaluate("""() => {
            const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
            return [outlineStyle, outlineWidth];
        }""")
        assert look == ["solid", "2px"], options


# -- the keys --------------------------------------------------------------------------------------------------------------


def test_the_keys_are_switched_off_in_their_dialog_and_stay_off(page: Page, app: Absurd) -> None:
    spawn(app)
    page.goto("/tasks")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    switch = dialog.get_by_role("checkbox", name="These keys act")
    expect(switch).to_be_checked()
    switch.press("Space")
    expect(dialog).to_contain_text("They are off")
    page.keyboard.press("Escape")
    for visit in range(2):
        for key in ("j", "t", "/", "?", "g", "o"):
            page.keyboard.press(key)
        expect(page).to_have_url(re.compile("/tasks$"))
        expect(dialog).to_be_hidden()
        expect(page.get_by_role("button", name="Theme")).to_have_text("Auto")
        assert page.evaluate("() => !document.querySelector('main :focus')"), visit
        page.reload()
    page.get_by_role("button", name="Keys").press("Enter")
    expect(dialog).to_be_visible()
    expect(switch).not_to_be_checked()
    switch.check()
    expect(dialog).not_to_contain_text("They are off")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("main tr").get_by_role("link").first).to_be_focused()


def test_the_switch_works_where_nothing_may_be_remembered(page: Page, app: Absurd) -> None:
    spawn(app)
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused') } })")
    page.goto("/tasks")
    page.get_by_role("button", name="Keys").click()
    page.get_by_role("checkbox", name="These keys act").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    assert page.evaluate("() => !document.querySelector('main :focus')")
    page.get_by_role("button", name="Theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


def test_arrow_keys_pass_through_a_filter_without_sending_it(page: Page, app: Absurd) -> None:
    page.goto("/tasks")
    field = page.get_by_label("State")
    field.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(field).to_have_value("running")
    expect(page).to_have_url(re.compile("/tasks$"))
    page.get_by_role("button", name="Filter").press("Enter")
    expect(page).to_have_url(re.compile(r"/tasks\?state=running$"))


# -- what a live page keeps ------------------------------------------------------------------------------------------------


def test_a_payload_that_is_typed_stays_with_its_event(page: Page, app: Absurd) -> None:
    form = "<section class='card' data-key='emit {0}'><h2>Emit {0}</h2><label>Payload<textarea id='p{1}'></textarea></label>"
    one, two = form.format("one", 1), form.format("two", 2)
    page.goto("/tasks")
    expect(page.locator("#live")).to_have_text("Live")
    page.evaluate("html => { stop('Paused'); replace(html) }", f"{one}</section>{two}</section>")
    second = page.locator("section", has=page.get_by_role("heading", name="Emit two")).get_by_label("Payload")
    second.fill("2")
    page.evaluate("html => { document.activeElement.blur(); replace(html) }", f"{two.replace('p2', 'p1')}</section>")
    expect(page.get_by_role("heading", name="Emit one")).to_have_count(0)
    expect(second).to_have_value("2")
    expect(second).to_have_id("p1")


def test_a_queue_that_is_chosen_stays_chosen_when_another_comes(page: Page, app: Absurd) -> None:
    app.create_queue("zebras")
    page.goto("/events")
    expect(page.locator("#live")).to_have_text("Live")
    field = page.locator("#emit-queue")
    field.select_option("zebras")
    page.locator("h1").click()
    html = page.evaluate("() => document.querySelector('main').innerHTML")
    new = html.replace('<option value="zebras">', '<option value="lions">lions</option><option value="zebras">')
    page.evaluate("html => replace(html)", new)
    expect(field.locator("option")).to_have_text(["examples", "lions", "zebras"])
    expect(field).to_have_value("zebras")


def test_what_is_scrolled_stays_where_it_is(page: Page, app: Absurd) -> None:
    task = str(app.spawn("order", {"lines": list(range(200))}, queue="examples")["task_id"])
    page.goto(f"/tasks/{task}")
    stays(page)
    page.locator("#params").evaluate("each => { each.scrollTop = 700 }")
    app.cancel_task(task)
    replaced(page)
    expect(page.locator("h1 .state")).to_have_text("cancelled")
    assert page.locator("#params").evaluate("each => each.scrollTop") == 700


def test_what_was_done_is_said_until_the_page_is_left_and_once(page: Page, app: Absurd) -> None:
    app.create_queue("others")
    page.goto("/events?queue=examples")
    page.get_by_label("Name").last.fill("e")
    page.get_by_role("button", name="Emit").click()
    said = page.get_by_text("The event is emitted")
    expect(said).to_be_focused()  # and so it is read aloud
    expect(page).to_have_url(re.compile(r"/events\?queue=examples$"))
    stays(page)
    app.emit_event("another", 1, queue_name="examples")
    replaced(page)
    expect(said).to_be_visible()
    page.reload()
    expect(said).to_have_count(0)


MORPH = """([before, after]) => {
    const made = text => { const each = document.createElement("main"); each.innerHTML = text; return each; };
    const [old, wanted] = [made(before), made(after)];
    const kept = new Map([...old.querySelectorAll("[data-key]")].map(each => [each.dataset.key, each]));
    morphWithin(old, wanted.cloneNode(true));
    const same = [...old.querySelectorAll("[data-key]")].filter(each => kept.get(each.dataset.key) === each);
    return [old.innerHTML === wanted.innerHTML, same.map(each => each.dataset.key).join("")];
}"""


def listed(keys: str) -> str:
    rows = "".join(f"<tr data-key='{each}' class='c{len(keys)}'><td>{each}</td></tr>\n" for each in keys)
    return (
        f"<p>{len(keys)}</p>\n<section><table><tbody>\n{rows}</tbody></table></section>{'<b>x</b>' * (len(keys) % 3)}"
    )


def test_whatever_comes_the_page_becomes_it_and_keeps_its_rows(page: Page, app: Absurd) -> None:
    page.goto("/tasks")
    lists = ["", "a", "abc", "bc", "xabc", "cab", "abcdef", "fedcba", "acxe", "bdf", "aab", "ba"]
    for before in lists:
        for after in lists:
            became, kept = page.evaluate(MORPH, [listed(before), listed(after)])
            assert became, (before, after)
            if len(set(before)) == len(before) and len(set(after)) == len(after):
                assert set(kept) == set(before) & set(after), (before, after)


def test_without_the_script_no_button_is_offered_that_needs_it(new_page: NewPage, app: Absurd) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"/tasks/{spawn(app)}")
    for name in ("Theme", "Keys", "Copy as CLI"):
        expect(page.get_by_role("button", name=name)).to_be_hidden()
    expect(page.get_by_role("button", name=re.compile("Cancel"))).to_have_count(1)

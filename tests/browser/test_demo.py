"""The order demo, from end to end, from the page: by mouse, and by keyboard alone."""

from __future__ import annotations

import re
import subprocess

import pytest

from absurd import Absurd
from tests.browser.conftest import SECONDS, NewPage

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing: make setup")
sync_api.expect.set_options(timeout=SECONDS * 1000)
expect = sync_api.expect
Page = sync_api.Page

Worker = subprocess.Popen[str]


def order(app: Absurd, name: str = "order-12345") -> str:
    return str(app.spawn("order-fulfillment", {"order_id": name}, queue="examples")["task_id"])


def state(page: Page) -> sync_api.Locator:
    return page.locator("h1 .state")


def mark(page: Page) -> None:
    """So that a reload would be noticed."""
    page.evaluate("() => { window.theSamePage = true }")


def is_the_same(page: Page) -> bool:
    return bool(page.evaluate("() => window.theSamePage === true"))


def test_an_order_is_found_asleep_helped_along_and_read(
    page: Page, new_page: NewPage, app: Absurd, worker: Worker
) -> None:
    task = order(app)
    page.goto("/")
    expect(page.locator("a.tile.sleeping b")).to_have_text("1")  # the worker gets there while we look
    page.get_by_role("link", name="Sleeping").click()
    page.get_by_role("link", name="order-fulfillment").click()
    expect(page).to_have_url(re.compile(f"/tasks/{task}"))
    expect(state(page)).to_have_text("sleeping")
    expect(page.locator("#why")).to_contain_text("It waits for event 'payment.confirmed:order-12345' since")

    other = new_page()  # somebody else, who only looks
    other.goto(f"/tasks/{task}")
    expect(other.locator("#live")).to_have_text("Live")
    mark(other)

    page.get_by_label("Payload").fill('{"amount": 99.99, "method": "credit_card"}')
    page.get_by_role("button", name="Emit").click()
    expect(page.get_by_text("The event is emitted")).to_be_visible()
    for each in (page, other):
        expect(each.locator("#why")).to_contain_text("shipment.delivered:order-12345")
        expect(each.locator(".timeline")).to_contain_text("ship-order")
        expect(each.get_by_role("cell", name="ship-order")).to_be_visible()
    assert is_the_same(other)

    mark(page)
    page.get_by_label("Payload").fill('{"location": "Customer doorstep"}')
    page.get_by_role("button", name="Emit").click()
    for each in (page, other):
        expect(state(each)).to_have_text("completed")
        expect(each.locator("#result")).to_contain_text('"tracking_number": "1Z999order-12345"')
    assert is_the_same(other)
    page.get_by_role("link", name="Events").click()
    expect(page.get_by_role("row").filter(has_text="shipment.delivered:order-12345")).to_contain_text(
        "Customer doorstep"
    )


def test_the_waits_lead_to_the_form_that_ends_one(page: Page, app: Absurd, worker: Worker) -> None:
    order(app)
    page.goto("/waits")
    row = page.get_by_role("row").filter(has_text="payment.confirmed:order-12345")
    row.get_by_role("link", name="Emit").click()
    expect(page.get_by_label("Payload")).to_be_in_viewport()
    page.get_by_label("Payload").fill("99.99")
    page.get_by_role("button", name="Emit").click()
    expect(page.locator("#why")).to_contain_text("shipment.delivered")


def test_a_failed_task_is_tried_again_and_goes_on_behind_its_steps(page: Page, app: Absurd, worker: Worker) -> None:
    app.spawn("charge-card", {"card": "4242"}, queue="examples", max_attempts=1)
    page.goto("/tasks?state=failed")
    page.get_by_role("link", name="charge-card").click()
    expect(page.locator("#failure")).to_contain_text("ConnectionError: the bank does not answer")
    page.get_by_role("button", name="Retry").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Retry charge-card?")
    dialog.get_by_role("button", name="Leave it").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Retry").click()
    dialog.get_by_role("button", name="Retry").click()
    expect(page.get_by_text("It will be tried again")).to_be_visible()
    expect(state(page)).to_have_text("completed")
    expect(page.locator("#result")).to_contain_text('"charged": "4242"')
    expect(page.get_by_role("row").filter(has_text="look-up")).to_contain_text("1")


def test_a_task_is_cancelled(page: Page, app: Absurd, worker: Worker) -> None:
    task = order(app)
    page.goto(f"/tasks/{task}")
    expect(page.get_by_label("Payload")).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel the task").click()
    expect(state(page)).to_have_text("cancelled")
    expect(page.locator("#why")).to_contain_text("It was cancelled at")
    expect(page.get_by_label("Payload")).to_have_count(0)


def test_all_of_it_by_keyboard_alone(page: Page, app: Absurd, worker: Worker) -> None:
    task, keys = order(app, "order-7"), page.keyboard
    order(app, "order-8")
    page.goto("/")
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()

    keys.press("g")
    keys.press("t")
    expect(page).to_have_url(re.compile(r"/tasks$"))
    expect(page.get_by_text("waits for payment.confirmed:order-7")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Live")  # the script is there
    keys.press("j")
    keys.press("j")
    expect(page.locator("tbody tr").nth(1).get_by_role("link")).to_be_focused()
    keys.press("k")
    expect(page.locator("tbody tr").nth(0).get_by_role("link")).to_be_focused()
    keys.press("/")
    expect(page.get_by_label("Id, or text")).to_be_focused()
    keys.type("order-7")
    keys.press("Enter")
    expect(page).to_have_url(re.compile(r"/tasks\?q=order-7$"))
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("tbody tr")).to_have_count(1)
    keys.press("j")
    keys.press("Enter")
    expect(page).to_have_url(re.compile(f"/tasks/{task}"))

    for event, payload in (
        ("payment.confirmed:order-7", '{"amount": 1}'),
        ("shipment.delivered:order-7", '{"at": "door"}'),
    ):
        expect(page.locator("#why")).to_contain_text(event)
        expect(page.locator("#live")).to_have_text("Live")
        keys.press("e")
        expect(page.get_by_label("Payload")).to_be_focused()
        keys.type(payload)
        keys.press("Tab")
        expect(page.get_by_role("button", name="Emit")).to_be_focused()
        keys.press("Enter")
        expect(page.get_by_text("The event is emitted")).to_be_attached()
    expect(state(page)).to_have_text("completed")
    expect(page.locator("#result")).to_contain_text("1Z999order-7")


# -- what the script does --------------------------------------------------------------------------------------------------


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(new_page: NewPage, app: Absurd) -> None:
    page = new_page(color_scheme="dark")
    page.goto("/")
    html, button = page.locator("html"), page.get_by_role("button", name="Theme")
    expect(html).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(html).to_have_attribute("data-theme", "light")
    expect(button).to_have_text("Auto")
    button.click()
    expect(button).to_have_text("Light")
    button.click()
    expect(button).to_have_text("Dark")
    expect(html).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(html).to_have_attribute("data-theme", "dark")
    page.keyboard.press("t")
    expect(html).to_have_attribute("data-theme", "light")


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_hidden_page_asks_nothing_and_catches_up_when_it_is_seen_again(
    page: Page, app: Absurd, worker: Worker
) -> None:
    task = order(app)
    page.goto(f"/tasks/{task}")
    expect(page.locator("#why")).to_contain_text("payment.confirmed")
    expect(page.locator("#live")).to_have_text("Live")
    mark(page)
    page.evaluate(HIDE, True)
    expect(page.locator("#live")).to_have_text("Paused")
    assert page.evaluate("() => stream === null")
    app.emit_event("payment.confirmed:order-12345", {"amount": 1})
    page.evaluate(HIDE, False)
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("#why")).to_contain_text("shipment.delivered")
    assert is_the_same(page)


def test_what_is_being_typed_is_not_taken_away_by_what_happens(page: Page, app: Absurd, worker: Worker) -> None:
    task = order(app)
    page.goto(f"/tasks/{task}")
    page.get_by_label("Payload").press_sequentially('{"amount": ')
    app.emit_event("payment.confirmed:order-12345", {"amount": 1})
    page.wait_for_function("() => waiting !== null")  # news is there, and is held back
    expect(page.get_by_label("Payload")).to_have_value('{"amount": ')
    page.locator("h1").click()
    expect(page.locator("#why")).to_contain_text("shipment.delivered")


def replaced(page: Page) -> None:
    """Until news has replaced what the page showed when `stays` was put on it."""
    page.wait_for_function("() => !document.querySelector('main > [data-stays]')")


def stays(page: Page) -> None:
    page.evaluate("() => { document.querySelector('main > section').dataset.stays = 1 }")


def test_what_is_being_read_is_not_taken_away_by_what_happens(page: Page, app: Absurd) -> None:
    app.emit_event("b", {"long": "b" * 100}, queue_name="examples")
    page.goto("/events")
    expect(page.locator("#live")).to_have_text("Live")
    summary = page.locator('tr[data-key="examples b"] summary')
    summary.focus()
    page.keyboard.press("Enter")
    stays(page)
    app.emit_event("a", {"long": "a" * 100}, queue_name="examples")  # stands above it
    replaced(page)
    expect(page.locator('tr[data-key="examples b"] details[open]')).to_be_visible()
    expect(page.locator("main details[open]")).to_have_count(1)
    expect(summary).to_be_focused()
    page.evaluate("() => getSelection().selectAllChildren(document.querySelector('main details[open] pre'))")
    stays(page)
    app.emit_event("c", 1, queue_name="examples")
    page.wait_for_function("() => waiting !== null")
    assert "bbbb" in page.evaluate("() => String(getSelection())")
    page.evaluate("() => getSelection().removeAllRanges()")
    replaced(page)


def test_a_stream_that_is_refused_is_asked_for_again(page: Page, app: Absurd) -> None:
    refused: list[str] = []

    def refuse(route: sync_api.Route) -> None:
        refused.append(route.request.url)
        route.fulfill(status=204) if len(refused) == 1 else route.continue_()

    page.route("**/live/**", refuse)
    page.clock.install()
    page.goto("/tasks")
    expect(page.locator("#live")).to_have_text("Lost")
    page.clock.run_for(5_000)
    expect(page.locator("#live")).to_have_text("Live")


def test_a_dark_page_is_printed_dark_on_white_and_whole(new_page: NewPage, app: Absurd) -> None:
    page = new_page(color_scheme="dark")
    page.goto(f"/tasks/{order(app)}")
    ink = "() => getComputedStyle(document.querySelector('h1')).color"
    assert page.evaluate(ink) == "rgb(232, 234, 236)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ink) == "rgb(29, 33, 37)"
    expect(page.locator("header.top")).to_be_hidden()
    assert page.evaluate("() => getComputedStyle(document.querySelector('pre')).maxHeight") == "none"


def test_no_key_acts_behind_a_dialog(page: Page, app: Absurd) -> None:
    page.goto("/tasks")
    for key in ("?", "g", "o"):
        page.keyboard.press(key)
    expect(page.locator("#keys")).to_be_visible()
    expect(page).to_have_url(re.compile("/tasks$"))
    page.keyboard.press("Escape")
    for key in ("g", "o"):
        page.keyboard.press(key)
    expect(page).to_have_url(re.compile("/$"))


def test_without_the_script_a_task_is_cancelled(new_page: NewPage, app: Absurd) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"/tasks/{order(app)}")
    page.get_by_role("button", name="Cancel the task").click()
    expect(state(page)).to_have_text("cancelled")


def test_the_copies_can_be_pasted(new_page: NewPage, app: Absurd) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    task = app.spawn("order-fulfillment", {"order_id": "order-1"}, queue="examples")["task_id"]
    page.goto(f"/tasks/{task}")
    for button, text in (
        ("Copy as CLI", f"absurdctl dump-task {task}"),
        ("Copy as SQL", f"select * from absurd.task_history('examples', '{task}');"),
    ):
        page.get_by_role("button", name=button).click()
        expect(page.locator(f'[data-copy="{text}"]')).to_have_text("Copied")
        assert page.evaluate("() => navigator.clipboard.readText()") == text


def test_a_hostile_page_runs_nothing(page: Page, app: Absurd) -> None:
    hostile = "<img src=x onerror='document.title=\"taken\"'></textarea><script>document.title='taken'</script>"
    task = app.spawn(hostile, {hostile: hostile}, queue="examples", headers={"h": hostile})["task_id"]
    app.emit_event(hostile, {hostile: hostile})
    for path in ("/", "/tasks", "/events", "/waits", f"/tasks/{task}"):
        page.goto(path)
        expect(page).to_have_title(re.compile("Habitat$"))
        assert page.locator("main img, main script").count() == 0


def test_without_the_script_the_pages_are_read_and_events_emitted(
    new_page: NewPage, app: Absurd, worker: Worker
) -> None:
    task = order(app)
    looking = new_page()
    looking.goto(f"/tasks/{task}")
    expect(looking.get_by_label("Payload")).to_be_visible()
    page = new_page(java_script_enabled=False)
    page.goto(f"/tasks/{task}")
    page.get_by_label("Payload").fill("1")
    page.get_by_role("button", name="Emit").click()
    expect(page.get_by_text("The event is emitted")).to_be_visible()
    expect(looking.locator("#why")).to_contain_text("shipment.delivered")

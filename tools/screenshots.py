"""Take the pictures of the web page in docs/images: every page, light, dark and at phone width.

Usage: python tools/screenshots.py [FOLDER]. Needs the extras `ui` and `embedded`, Playwright and Chromium (`ABSURD_CHROMIUM`,
else /usr/bin/chromium), and Pillow where it is installed, which makes the pictures small. Starts a throw-away Postgres.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from absurd import Absurd, TaskContext, embedded, schema
from habitat_lite import create_app

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
CHROMIUM = os.environ.get("ABSURD_CHROMIUM") or "/usr/bin/chromium"
FAILURE = {
    "name": "ConnectionRefusedError",
    "message": "[Errno 111] smtp.example.com does not answer",
    "traceback": """Traceback (most recent call last):
  File "/app/mails.py", line 21, in send_mail
    smtp.connect("smtp.example.com", 587)
  File "/usr/lib/python3.12/smtplib.py", line 343, in connect
    self.sock = self._get_socket(host, port, self.timeout)
ConnectionRefusedError: [Errno 111] smtp.example.com does not answer""",
}
LOOKS = {"light": ("light", 1100, 720), "dark": ("dark", 1100, 720), "phone": ("light", 360, 740)}
LONGEST = {"light": 1100, "dark": 1100, "phone": 1000}


class Shop:
    """A small shop in the middle of its day."""

    def __init__(self, url: str, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self.orders = Absurd(url, queue_name="orders")
        self.mails = Absurd(url, queue_name="mails")
        for each in (self.orders, self.mails):
            each.create_queue()
        self.orders.register_task("order-fulfillment")(self._order)
        self.orders.register_task("nightly-report")(self._report)
        self.mails.register_task("send-mail")(self._mail)
        self.pages = {"overview": "/", "tasks": "/tasks", "events": "/events", "waits": "/waits"}

    @staticmethod
    def _order(params: Any, ctx: TaskContext) -> Any:
        ctx.step("reserve-inventory", lambda: {"items": params["items"], "warehouse": "US-EAST-1"})
        payment = ctx.await_event(f"payment.confirmed:{params['order']}")
        shipment = ctx.step("ship-order", lambda: {"carrier": "UPS", "tracking": f"1Z999{params['order']}"})
        delivery = ctx.await_event(f"shipment.delivered:{params['order']}", timeout=7 * 86400)
        return {"paid": payment["amount"], **shipment, "delivered": delivery}

    @staticmethod
    def _mail(params: Any, ctx: TaskContext) -> Any:
        ctx.step("render", lambda: {"subject": f"Your order {params['order']}"})
        return {"sent": True}

    @staticmethod
    def _report(params: Any, ctx: TaskContext) -> None:
        ctx.step("collect", lambda: {"orders": 12})
        ctx.sleep_for("until morning", 6 * 3600)

    def live(self) -> None:
        """Some hours of it, in a moment."""
        self._fail()
        names = [f"order-{12345 + number}" for number in range(9)]
        tasks = {name: self._spawn(name) for name in names}
        self.orders.spawn("nightly-report", {})
        for worker in ("web-1", "web-2"):
            self.orders.work_batch(worker, 120, 50)
        self.mails.work_batch("mailer-1", 120, 50)
        for name in names[:4]:
            self.orders.emit_event(f"payment.confirmed:{name}", {"amount": 99.99, "method": "credit_card"})
        self.orders.work_batch("web-1", 120, 50)
        self.orders.emit_event(f"shipment.delivered:{names[0]}", {"location": "Customer doorstep"})
        self.orders.work_batch("web-2", 120, 50)
        self.orders.emit_event("refund.requested:order-11987", {"reason": "too late"})
        self.orders.cancel_task(tasks[names[8]])
        self.orders.spawn("order-fulfillment", {"order": "order-12360", "items": ["lamp"]}, delay=1800)
        self.pages["task-done"] = f"/tasks/{tasks[names[0]]}"
        self.pages["task-waits"] = f"/tasks/{tasks[names[6]]}"

    def _fail(self) -> None:
        """A mail that nobody takes; its traceback is that of some machine, not of this one."""
        options: Any = {"max_attempts": 3, "retry_strategy": {"kind": "none"}}
        task = self.mails.spawn("send-mail", {"order": "order-12340"}, **options)["task_id"]
        for _ in range(3):
            claim = "select run_id from absurd.claim_task('mails', 'mailer-1', 120, 1)"
            run = self._conn.execute(claim).fetchone()[0]  # type: ignore[index]
            step = "select absurd.set_task_checkpoint_state('mails', %s, 'render', %s, %s)"
            self._conn.execute(step, (task, '{"subject": "Your order order-12340"}', run))
            self._conn.execute("select absurd.fail_run('mails', %s, %s)", (run, json.dumps(FAILURE)))
        self.pages["task-failed"] = f"/tasks/{task}"

    def _spawn(self, name: str) -> uuid.UUID:
        self.mails.spawn("send-mail", {"order": name})
        params = {"order": name, "items": ["widget-A", "gadget-B"], "customer": {"name": "Ada Lovelace"}}
        return self.orders.spawn("order-fulfillment", params, idempotency_key=name)["task_id"]


@contextmanager
def served(url: str) -> Iterator[str]:
    """The pages, at an address of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(url), log_level="warning", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://localhost:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def take(browser: Browser, address: str, pages: dict[str, str], folder: Path) -> None:
    """Every page in every look."""
    for look, (theme, width, height) in LOOKS.items():
        context = browser.new_context(base_url=address, viewport={"width": width, "height": height}, color_scheme=theme)
        page = context.new_page()
        for name, path in pages.items():
            page.goto(path)
            page.locator("#live[data-state=live]").wait_for()
            tall = min(page.evaluate("() => document.documentElement.scrollHeight"), LONGEST[look])
            picture = folder / f"habitat-{name}-{look}.png"
            page.screenshot(path=picture, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": tall})
            shrink(picture)
        context.close()


def shrink(picture: Path) -> None:
    """Few colours need few bytes."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


def main(folder: Path = FOLDER) -> None:
    """All of them, into a folder."""
    with tempfile.TemporaryDirectory() as place:
        server = embedded.start(Path(place) / "pg")
        try:
            with psycopg.connect(server.url(), autocommit=True) as conn:
                schema.install(conn)
                shop = Shop(server.url(), conn)
                shop.live()
            arguments = ["--no-first-run", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
            arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
            with served(server.url()) as address, sync_playwright() as running:
                browser = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
                take(browser, address, shop.pages, folder)
                browser.close()
        finally:
            server.stop("immediate")


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:]))

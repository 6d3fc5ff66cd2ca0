"""A browser, the pages it looks at, and the order demo's worker behind them.

Needs Chromium (`ABSURD_CHROMIUM`, else /usr/bin/chromium) and the Python package of Playwright; skips where one is missing.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from absurd import Absurd
from habitat_lite import create_app

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).parents[2]
SHOP = Path(__file__).parent / "shop.py"
SECONDS = 30.0  # long enough for a slow machine; nothing waits for it to pass
CHROMIUM = os.environ.get("ABSURD_CHROMIUM") or "/usr/bin/chromium"
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
]

Start = Callable[[], "subprocess.Popen[str]"]
NewPage = Callable[..., "Page"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


def pytest_runtest_setup(item: pytest.Item) -> None:
    # raised here, the skips of all tests are one line
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"no Chromium at {CHROMIUM}: install it (apt-get install chromium), or name it: ABSURD_CHROMIUM")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser of the session, with a profile of its own that is thrown away."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing: make setup")
    arguments = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # root has no sandbox
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Served:
    """The pages on a port of this machine."""

    def __init__(self, url: str, **options: Any) -> None:
        self.app = create_app(url, **options)
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://localhost:{listening.getsockname()[1]}"
        config = uvicorn.Config(self.app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(SECONDS)


@pytest.fixture
def habitat(database_url: str) -> Iterator[Served]:
    """The pages of this test's database."""
    served = Served(database_url)
    yield served
    served.stop()


@pytest.fixture
def new_page(chromium: Browser, habitat: Served) -> Iterator[NewPage]:
    """`new_page(width=360, color_scheme="dark", ...)`: a page in a profile of its own.

    What its console complains about fails the test."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def make(width: int = 1200, height: int = 800, **options: Any) -> Page:
        context = chromium.new_context(base_url=habitat.address, viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(SECONDS * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda said: None if "status of 40" in said.text else complaints.append(f"{page.url}: {said.text}"),
        )
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(new_page: NewPage) -> Page:
    """A page of a desktop browser."""
    return new_page()


@pytest.fixture
def app(database_url: str) -> Iterator[Absurd]:
    """A client of the demo's queue."""
    with Absurd(database_url, queue_name="examples") as client:
        client.create_queue()
        yield client


@pytest.fixture
def worker(app: Absurd, database_url: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process of the order demo, which also charges cards."""
    process = subprocess.Popen(
        [sys.executable, str(SHOP)],
        env={**os.environ, "ABSURD_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
        assert process.poll() is None, "the worker ended"
    finally:
        process.kill()
        process.wait(SECONDS)

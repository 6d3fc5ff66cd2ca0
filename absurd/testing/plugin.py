"""Fixtures for pytest, there when the package is installed (`absurd-engine[testing]`); or `-p absurd.testing.plugin`.

absurd_server          session: the server, embedded or that of ABSURD_TEST_DATABASE_URL
absurd_prepare         session: override it, to put your own tables into every database
absurd_database        the URL of a fresh database with the schema and no queue
absurd_client          a test client of `Absurd` on it, with an empty queue "test"
absurd_clock           its clock
async_absurd_client    a test client of `AsyncAbsurd`, with an empty queue "test"; needs no particular asyncio plugin
async_absurd_clock     its clock
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from absurd import Absurd, AsyncAbsurd, testing
from absurd.testing import server
from absurd.testing._async.session import session_of

QUEUE = "test"

_folder = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """One server serves all processes of the session: its folder is named by the first of them."""
    given = getattr(config, "workerinput", {}).get("absurd_testing_folder")
    config.stash[_folder] = Path(given) if given else server.new_folder()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where the server is."""
    node.workerinput["absurd_testing_folder"] = str(node.config.stash[_folder])


def pytest_unconfigure(config: pytest.Config) -> None:
    """The process that began the session removes its server."""
    if _folder in config.stash and not hasattr(config, "workerinput"):
        server.remove(config.stash[_folder])


@pytest.fixture(scope="session")
def absurd_server(pytestconfig: pytest.Config) -> server.Server:
    """The server of this session: embedded and removed at the end, or that of ABSURD_TEST_DATABASE_URL."""
    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "main")
    return server.start(pytestconfig.stash[_folder], worker)


@pytest.fixture(scope="session")
def absurd_prepare() -> Callable[[server.Connection], Any]:
    """What every database gets besides the schema: override it with a fixture that returns a function of a connection."""
    return lambda conn: None


@pytest.fixture(scope="session")
def absurd_template(absurd_server: server.Server, absurd_prepare: Callable[[server.Connection], Any]) -> Iterator[str]:
    """The name of the database that those of the tests are copies of."""
    with absurd_server.template(absurd_prepare) as name:
        yield name


@pytest.fixture
def absurd_database(absurd_server: server.Server, absurd_template: str) -> Iterator[str]:
    """The URL of a fresh database, with the schema and no queue; dropped after the test."""
    with absurd_server.database(absurd_template) as name:
        yield absurd_server.url(name)


@pytest.fixture
def absurd_client(absurd_database: str) -> Iterator[Absurd]:
    """A test client with an empty queue "test"."""
    with testing.client(absurd_database, QUEUE) as app:
        app.create_queue()
        yield app


@pytest.fixture
def absurd_clock(absurd_client: Absurd) -> testing.FakeClock:
    """The clock of `absurd_client`; it stands at the moment the test began."""
    return testing.FakeClock(absurd_client)


@pytest.fixture
def async_absurd_client(absurd_database: str) -> Iterator[AsyncAbsurd]:
    """A test client of `AsyncAbsurd` with an empty queue "test"; it connects in the loop of the test's first call."""
    with testing.client(absurd_database, QUEUE) as maker:
        maker.create_queue()
    app = testing.async_client(absurd_database, QUEUE)
    yield app
    session_of(app).drop()  # the loop of the test may have gone


@pytest.fixture
def async_absurd_clock(async_absurd_client: AsyncAbsurd) -> testing.AsyncFakeClock:
    """The clock of `async_absurd_client`."""
    return testing.AsyncFakeClock(async_absurd_client)

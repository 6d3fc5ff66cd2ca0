"""What the compatibility tests can ask for. Each ends with the invariants of every queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import psycopg
import pytest

from tests.compat import environments
from tests.compat.clients import PROGRAMS, Client, environment, uri

RELEASED = ("python", "python-async", "node")
# The same programs on our own package: what was written for the other SDK runs on this one, line for line.
OURS = ("absurd", "absurd-async")
KINDS = RELEASED + OURS
_ROOT = Path(__file__).parent.parent.parent


class StartClient(Protocol):
    """Start one process of a client on this test's database."""

    def __call__(self, kind: str, queue: str = "orders") -> Client: ...


AbsurdCtl = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("compat") is not None:
            item.add_marker(pytest.mark.timeout(300))  # the first one may have to install the clients


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A missing tool is one counted line, so its skips must share a place: the summary folds by place and reason."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        report.longrepr = ("tests/compat/environments.py", 1, report.longrepr[2])
    return report


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each client in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def python_clients() -> Path:
    """The environment of the Python clients."""
    return environments.python_environment()


@pytest.fixture(scope="session")
def node_clients() -> Path:
    """The environment of the TypeScript client."""
    return environments.node_environment()


@pytest.fixture(autouse=True)
def invariants(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, the invariants hold at its end."""
    if "database_url" not in request.fixturenames:
        yield
        return
    url = request.getfixturevalue("database_url")
    yield
    with psycopg.connect(url) as conn:
        assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.fixture
def client(request: pytest.FixtureRequest, database_url: str) -> Iterator[StartClient]:
    """Start clients: `client("node")`, `client("python", queue="other")`."""
    with ExitStack() as stack:

        def start(kind: str, queue: str = "orders") -> Client:
            more = {"PYTHONPATH": str(_ROOT)} if kind in OURS else {}
            started = Client(_command(kind, queue, request), environment(database_url, **more))
            stack.callback(started.close)
            return started

        yield start


def _command(kind: str, queue: str, request: pytest.FixtureRequest) -> list[str]:
    if kind == "node":
        folder = request.getfixturevalue("node_clients")
        return ["node", str(PROGRAMS / "node_client.cjs"), str(folder), queue]
    program = str(PROGRAMS / ("async_client.py" if kind.endswith("-async") else "sync_client.py"))
    if kind in OURS:
        return [sys.executable, program, queue, "absurd"]
    # -I: neither our packages nor the user's can stand in for theirs.
    python = request.getfixturevalue("python_clients") / "bin" / "python"
    return [str(python), "-I", program, queue, "absurd_sdk"]


@pytest.fixture
def absurdctl(python_clients: Path, database_url: str) -> AbsurdCtl:
    """Run the released absurdctl on this test's database: `absurdctl("list-tasks", "-q", "orders")`."""
    psql = environments.psql_folder()

    def run(*arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        env = environment(database_url)
        env["PATH"] = f"{psql}:{env.get('PATH', '')}"
        command = [str(python_clients / "bin" / "absurdctl"), *arguments, "-d", uri(database_url)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode == 0) is ok, f"{arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    return run

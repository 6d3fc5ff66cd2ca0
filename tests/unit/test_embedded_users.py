"""Root's servers run as somebody else, wherever root keeps its files; an ordinary user's run as that user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from absurd import _embedded_host, embedded

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")


@pytest.fixture
def shared(session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /var/lib/absurd."""
    monkeypatch.setattr(_embedded_host, "_SHARED", session_folder / "shared")
    return session_folder / "shared"


@pytest.fixture
def hidden(session_folder: Path) -> Iterator[Path]:
    """A folder like a 0700 /root."""
    folder = session_folder / "hidden"
    folder.mkdir(mode=0o700)
    yield folder
    embedded.stop(folder / "pg", "immediate")


def _owner(server: embedded.EmbeddedServer) -> int:
    return (Path("/proc") / str(server.pid)).stat().st_uid


@as_root
def test_roots_server_runs_as_a_system_user(session_folder: Path) -> None:
    server = embedded.start(session_folder / "pg")

    assert _owner(server) != 0
    assert pwd.getpwuid(_owner(server)).pw_name in {"postgres", "absurd-pg"}
    assert server.data.stat().st_mode & 0o077 == 0
    assert server.socket_directory.stat().st_mode & 0o077 == 0


@as_root
def test_a_clone_the_system_user_cannot_enter_keeps_its_data_elsewhere(shared: Path, hidden: Path) -> None:
    server = embedded.start(hidden / "pg")

    assert shared in server.data.parents
    assert (hidden / "pg" / "data").resolve() == server.data
    assert embedded.start(hidden / "pg").pid == server.pid
    found = embedded.status(hidden / "pg")
    assert found is not None
    assert found.url() == server.url()
    psycopg.connect(server.url()).close()


@as_root
def test_a_moved_clone_keeps_its_cluster_and_a_copied_one_gets_its_own(shared: Path, hidden: Path) -> None:
    first = embedded.start(hidden / "pg")
    first.stop()
    shutil.copytree(hidden / "pg", hidden / "copy", symlinks=True)

    copied = embedded.start(hidden / "copy")
    copied.stop()
    (hidden / "pg").rename(hidden / "moved")
    moved = embedded.start(hidden / "moved")
    moved.stop()

    assert copied.data != first.data
    assert moved.data == first.data


@as_root
def test_binaries_the_system_user_cannot_reach_are_copied_once(
    shared: Path, hidden: Path, session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = _embedded_host.find_binaries(16).parents[1]
    for part in (f"{wheel.name}/pginstall", f"{wheel.name}.libs"):
        shutil.copytree(wheel.parent / part, hidden / part, symlinks=True)
    monkeypatch.setattr(embedded, "find_binaries", lambda version: hidden / wheel.name / "pginstall" / "bin")

    first = embedded.start(session_folder / "one", version=16)
    second = embedded.start(session_folder / "two", version=16)

    assert first.binaries == second.binaries
    assert first.binaries is not None
    assert shared in first.binaries.parents
    assert len(list(shared.iterdir())) == 1


@as_root
def test_an_ordinary_users_server_runs_as_that_user_even_when_root_starts_it_again(
    session_folder: Path, shared: Path
) -> None:
    nobody = pwd.getpwnam("nobody")
    home = session_folder / "pg"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    bindir = _embedded_host.Host(nobody).reachable_binaries(_embedded_host.find_binaries(18))

    error = _as_user(nobody, lambda: embedded.start(home, bindir=bindir))

    assert error == ""
    found = embedded.status(home)
    assert found is not None
    assert _owner(found) == nobody.pw_uid
    psycopg.connect(found.url()).close()
    found.stop()
    assert _owner(embedded.start(home, bindir=bindir)) == nobody.pw_uid


@as_root
def test_a_directory_of_another_user_is_refused_by_name(session_folder: Path) -> None:
    embedded.start(session_folder / "pg").stop()

    error = _as_user(pwd.getpwnam("nobody"), lambda: embedded.start(session_folder / "pg"))

    assert "belongs to user 0" in error
    assert "embedded:///absolute/directory" in error


def _as_user(user: pwd.struct_passwd, act: Callable[[], object]) -> str:
    """Do something as another user in a fork (root's interpreter is often out of that user's reach)."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # 3.12 warns of forks beside threads; ours touches nothing another thread could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        error = "the fork died"
        try:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.chdir("/")
            act()
            error = ""
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
        finally:
            os.write(writing, error.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as answer:
        error = answer.read()
    os.waitpid(child, 0)
    return error


def test_a_missing_system_user_that_cannot_be_made_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded_host.shutil, "which", lambda name: None)
    monkeypatch.setattr(_embedded_host.pwd, "getpwnam", _nobody_there)

    with pytest.raises(embedded.EmbeddedError, match="useradd --system absurd-pg"):
        _embedded_host._system_user()


def test_making_the_system_user_is_said_once_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        made.append(command)
        return subprocess.CompletedProcess(command, 0)

    def find(name: str) -> pwd.struct_passwd:
        return pwd.getpwuid(os.geteuid()) if made and name == "absurd-pg" else _nobody_there(name)

    monkeypatch.setattr(_embedded_host.shutil, "which", lambda name: f"/usr/sbin/{name}")
    monkeypatch.setattr(_embedded_host.subprocess, "run", run)
    monkeypatch.setattr(_embedded_host.pwd, "getpwnam", find)

    _embedded_host._system_user()
    _embedded_host._system_user()

    assert len(made) == 1
    assert capsys.readouterr().err.count("absurd-pg") == 1


def _nobody_there(name: str) -> pwd.struct_passwd:
    raise KeyError(name)

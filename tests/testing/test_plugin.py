"""The pytest plugin, in sessions of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psycopg
import pytest

from absurd.testing import plugin, server
from tests.fixtures.servers import TestServer

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]

SYNC = """
    from absurd import testing

    def test_a_week_goes_by(absurd_client, absurd_clock):
        @absurd_client.register_task("nag")
        def nag(params, ctx):
            ctx.sleep_for("a week", 7 * 86400)
            return "nagged"

        task = absurd_client.spawn("nag")
        assert testing.run_to_wait(absurd_client, task).state == "sleeping"
        absurd_clock.advance(7 * 86400)
        assert testing.run_to_wait(absurd_client, task).result == "nagged"

    def test_each_test_has_a_database_of_its_own(absurd_client):
        assert absurd_client.fetch_task_result("01a1fa96-4b06-7000-975a-8074f80c0000") is None
        assert absurd_client.list_queues() == ["test"]
"""
ASYNC = """
    import asyncio
    from absurd import testing

    def test_without_any_plugin_for_asyncio(async_absurd_client, async_absurd_clock):
        async def story():
            @async_absurd_client.register_task("nag")
            async def nag(params, ctx):
                await ctx.sleep_for("a week", 7 * 86400)
                return "nagged"

            task = await async_absurd_client.spawn("nag")
            await testing.run_to_wait(async_absurd_client, task)
            due = await async_absurd_clock.advance_to_next()
            assert due.why == "sleep"
            return await testing.run_to_wait(async_absurd_client, task)

        assert asyncio.run(story()).result == "nagged"
"""
PREPARED = """
    import pytest

    @pytest.fixture(scope="session")
    def absurd_prepare():
        return lambda conn: conn.execute("create table ledger (entry text)")
"""
USES_TABLE = """
    import psycopg

    def test_the_table_is_there(absurd_database):
        with psycopg.connect(absurd_database) as conn:
            assert conn.execute("select count(*) from ledger").fetchone() == (0,)
"""


@pytest.fixture
def session(pytester: pytest.Pytester, server: TestServer, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A session of pytest that knows the plugin and nothing of ours, on the server of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("ABSURD_TEST_DATABASE_URL", server.maintenance_url)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def run(session: pytest.Pytester, *options: str) -> pytest.RunResult:
    """Run it; without the other plugins of this environment, unless they are asked for."""
    session._monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # type: ignore[attr-defined]
    return session.runpytest_subprocess("-p", "absurd.testing.plugin", "-p", "no:cacheprovider", *options)


def left_over(server: TestServer, result: pytest.RunResult) -> list[str]:
    """Databases that a session has left behind: one of its tests has printed the URL of its own."""
    mine = re.search(r"absurd_pytest_\d+_\w{8}", result.stdout.str())
    assert mine is not None
    with psycopg.connect(server.maintenance_url) as conn:
        found = conn.execute("select datname from pg_database where starts_with(datname, %s)", (mine[0],)).fetchall()
    return [name for (name,) in found]


def test_both_clients_have_a_database_a_test_and_a_clock_and_leave_nothing(
    session: pytest.Pytester, server: TestServer
) -> None:
    session.makepyfile(
        test_sync=SYNC, test_async=ASYNC, test_url="def test_url(absurd_database):\n    print(absurd_database)"
    )
    result = run(session, "-rP")
    result.assert_outcomes(passed=4)
    assert left_over(server, result) == []


def test_processes_of_one_session_do_not_meet(session: pytest.Pytester, server: TestServer) -> None:
    session.makepyfile(test_one=SYNC, test_two=SYNC, test_three=SYNC)
    run(session, "-p", "xdist", "-n", "2").assert_outcomes(passed=6)


def test_tables_of_the_user_are_put_into_every_database(session: pytest.Pytester) -> None:
    session.makeconftest(PREPARED)
    session.makepyfile(test_one=USES_TABLE)
    run(session).assert_outcomes(passed=1)


def test_a_failed_test_says_what_it_says_and_leaves_nothing(session: pytest.Pytester, server: TestServer) -> None:
    session.makepyfile(
        "def test_fails(absurd_client, absurd_database):\n    print(absurd_database)\n    assert 1 == 2\n"
    )
    result = run(session)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert left_over(server, result) == []


def test_a_session_that_needs_no_database_starts_none(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABSURD_TEST_DATABASE_URL", "postgresql://nowhere.invalid/none")
    session.makepyfile("def test_plain():\n    pass\n")
    run(session).assert_outcomes(passed=1)


@pytest.mark.timeout(180)
def test_without_a_server_of_the_users_an_embedded_one_is_started_for_all_and_removed(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABSURD_TEST_DATABASE_URL")
    session.makepyfile(
        test_one=SYNC,
        test_two="def test_where(absurd_server):\n    print(f'<{absurd_server.maintenance_url}>')\n",
        test_three="def test_where(absurd_server):\n    print(f'<{absurd_server.maintenance_url}>')\n",
    )
    result = run(session, "-p", "xdist", "-n", "2", "-rP")
    result.assert_outcomes(passed=4)
    urls = set(re.findall(r"<(.*)>", result.stdout.str()))
    assert len(urls) == 1
    folder = re.search(r"host=(/[^&]*/absurd-pytest-[\w-]+)", urls.pop())
    assert folder is not None
    assert not Path(folder[1]).exists()


def test_folders_of_sessions_that_were_killed_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_parent", lambda: tmp_path)
    monkeypatch.setattr(server, "_alive", lambda process: process == os.getpid())
    mine, dead, foreign = server.new_folder(), tmp_path / "absurd-pytest-1-abc", tmp_path / "absurd-pytest-mine"
    for folder in (mine, dead, foreign):
        folder.mkdir()
    server._sweep()
    assert (mine.exists(), dead.exists(), foreign.exists()) == (True, False, True)


def test_whether_a_process_lives_is_seen() -> None:
    assert server._alive(os.getpid())
    assert server._alive(1)
    assert not server._alive(2**22 + 1)


def test_the_plugin_is_an_entry_point_whose_fixtures_are_none_of_ours() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {plugin.__name__: plugin.__name__}
    named = set(re.findall(r"^def (\w*absurd\w*)\(", Path(plugin.__file__).read_text(encoding="utf-8"), re.M))
    assert named >= {"absurd_server", "absurd_database", "absurd_client", "async_absurd_client", "absurd_clock"}
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert not named & set(re.findall(r"^def (\w+)\(", path.read_text(encoding="utf-8"), re.M)), path

"""Ids and the clock (contract, section 12)."""

from __future__ import annotations

import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from absurd import schema
from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect
from tests.sql.driver import NOON, Queue, after, minted, refused, run_of


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


# ---------------------------------------------------------------- the clock


def test_the_clock_is_the_wall_clock_until_it_is_set(conn) -> None:
    row = conn.execute(
        "select absurd.current_time() between clock_timestamp() - interval '1 min' and clock_timestamp()"
    )
    assert row.fetchone() == (True,)


@pytest.mark.parametrize("blank", ["", "   "])
def test_a_blank_setting_is_no_setting(conn, blank: str) -> None:
    conn.execute("select set_config('absurd.fake_now', %s, false)", (blank,))
    assert conn.execute("select absurd.current_time() > now() - interval '1 minute'").fetchone() == (True,)


def test_the_fake_clock_is_exact_and_can_be_released(conn, clock: Clock) -> None:
    clock.set(conn, NOON)
    assert conn.execute("select absurd.current_time()").fetchone() == (NOON,)
    conn.execute("set absurd.fake_now = '2031-05-06 07:08:09.000001+02'")
    assert conn.execute("select absurd.current_time()").fetchone() == (datetime(2031, 5, 6, 5, 8, 9, 1, UTC),)
    conn.execute("set absurd.fake_now = default")
    assert conn.execute("select absurd.current_time() < now() + interval '1 minute'").fetchone() == (True,)


def test_a_setting_that_is_no_moment_raises(conn) -> None:
    conn.execute("set absurd.fake_now = 'teatime'")
    with refused("22007"):
        conn.execute("select absurd.current_time()")


def test_the_clock_of_one_session_is_not_that_of_another(conn, connect: Connect, clock: Clock) -> None:
    clock.set(conn, NOON)
    assert clock.now(connect()) > after(3600)


def test_with_the_fake_clock_off_the_setting_is_ignored_until_it_is_on_again(noon: Queue) -> None:
    noon.conn.execute("select absurd.set_fake_clock(false)")
    noon.conn.execute("select absurd.set_fake_clock(false)")
    assert noon.value("select absurd.current_time() > now() - interval '1 minute'")
    assert noon.task(noon.spawn()["task_id"])["enqueue_at"] > after(3600)

    noon.conn.execute("select absurd.set_fake_clock(true)")
    assert noon.value("select absurd.current_time()") == NOON


@pytest.mark.parametrize("on", [True, False])
def test_an_upgrade_keeps_the_choice_of_clock(conn, clock: Clock, on: bool) -> None:
    conn.execute("select absurd.set_fake_clock(%s)", (on,))
    schema.install(conn)
    clock.set(conn, NOON)
    assert (conn.execute("select absurd.current_time()").fetchone() == (NOON,)) is on


def test_with_the_fake_clock_off_a_malformed_setting_stops_nobody(q: Queue) -> None:
    q.conn.execute("select absurd.set_fake_clock(false)")
    q.conn.execute("set absurd.fake_now = 'teatime'")
    assert q.spawn()["created"]


# ---------------------------------------------------------------- ids


def test_ids_are_version_7_and_carry_the_engines_time(noon: Queue) -> None:
    for made in (noon.value("select absurd.portable_uuidv7()"), noon.spawn()["task_id"]):
        assert made.version == 7
        assert made.variant == uuid.RFC_4122
        assert made.int >> 80 == milliseconds(NOON)
        assert made.int & 0xFFFF == 0


def test_ids_made_at_one_instant_differ(noon: Queue) -> None:
    made = noon.rows("select absurd.portable_uuidv7() as id from generate_series(1, 5000)")
    assert len({row["id"] for row in made}) == 5000


def test_ids_made_by_two_sessions_at_one_instant_differ(conn, connect: Connect, clock: Clock) -> None:
    made: list[uuid.UUID] = []
    barrier = threading.Barrier(2)
    sessions = [connect(), connect()]
    for session in sessions:
        clock.set(session, NOON)

    def mint(session) -> None:
        barrier.wait(20)
        rows = session.execute("select absurd.portable_uuidv7() from generate_series(1, 2000)").fetchall()
        made.extend(id for (id,) in rows)

    threads = [threading.Thread(target=mint, args=(session,)) for session in sessions]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert len(set(made)) == 4000


def test_a_batch_of_a_thousand_keeps_its_order_in_the_ids(noon: Queue) -> None:
    rows = noon.spawns([f"t{i}" for i in range(1000)])
    ids = [row["task_id"] for row in sorted(rows, key=lambda r: r["ordinal"])]
    assert ids == sorted(ids)
    assert {i.int >> 80 for i in ids} == {milliseconds(NOON)}


def test_a_later_id_sorts_after_an_earlier_one(noon: Queue, clock: Clock) -> None:
    first = noon.spawn()
    clock.advance(noon.conn, 0.001)
    assert noon.spawn()["task_id"] > first["task_id"]


def test_a_run_id_is_the_task_id_with_the_attempt(conn) -> None:
    task_id = minted()
    for attempt in (1, 2, 255, 256, 65535):
        run_id = run_of(task_id, attempt)
        row = conn.execute(
            "select absurd.run_id_of(%s, %s), absurd.task_id_of(%s), absurd.attempt_of(%s)",
            (task_id, attempt, run_id, run_id),
        ).fetchone()
        assert row == (run_id, task_id, attempt)


# ---------------------------------------------------------------- ids minted by clients


@pytest.mark.parametrize(
    "bad",
    [
        uuid.UUID("019c0000-0000-4000-8000-000000000000"),
        uuid.UUID(int=minted().int & ~(3 << 62)),
        minted(tail=1),
        minted(datetime.now(UTC) - timedelta(days=1, minutes=5)),
        minted(datetime.now(UTC) + timedelta(days=1, minutes=5)),
        uuid.UUID(int=0),
    ],
    ids=["version 4", "another variant", "attempt bits", "yesterday", "tomorrow", "nil"],
)
def test_a_client_minted_id_of_another_shape_is_refused(q: Queue, bad: uuid.UUID) -> None:
    with refused("22023", f'task id "{bad}" is'):
        q.spawn(task_id=str(bad))
    with refused("22023", f'task id "{bad}" is'):
        q.spawns(["a", "b"], task_ids=[None, bad])
    assert q.view("t") == []


def test_a_client_minted_id_is_compared_with_the_wall_clock_not_the_fake_one(noon: Queue) -> None:
    now = minted()
    assert noon.spawn(task_id=str(now))["task_id"] == now
    with refused("22023", "more than a day off"):
        noon.spawn(task_id=str(minted(NOON)))


# ---------------------------------------------------------------- partition helpers


@pytest.mark.parametrize(
    ("at", "bucket", "tag"),
    [
        ("2021-01-01 00:00+00", "2020-12-28", "053"),
        ("2024-12-31 12:00+00", "2024-12-30", "501"),
        ("2024-01-01 00:00+00", "2024-01-01", "401"),
        ("2026-03-01 23:59:59.999999+00", "2026-02-23", "609"),
        ("2026-03-02 01:00+02", "2026-02-23", "609"),
    ],
)
def test_weeks_begin_on_monday_in_utc(conn, at: str, bucket: str, tag: str) -> None:
    conn.execute("set timezone = 'Pacific/Auckland'")
    row = conn.execute("select absurd.week_bucket_utc(%s), absurd.partition_week_tag(%s)", (at, at)).fetchone()
    assert row == (datetime.fromisoformat(bucket).replace(tzinfo=UTC), tag)


def test_the_floor_id_of_a_moment_is_the_lowest_and_gives_the_moment_back(conn) -> None:
    floor, back = conn.execute(
        "select absurd.uuidv7_floor(%s), absurd.uuidv7_timestamp(absurd.uuidv7_floor(%s))", (NOON, NOON)
    ).fetchone()
    assert floor.int == milliseconds(NOON) << 80 | 7 << 76 | 2 << 62
    assert back == NOON.replace(microsecond=123000)


@pytest.mark.parametrize("at", ["1969-12-31 23:59:59.999+00", "10889-08-03 00:00+00"])
def test_a_moment_outside_48_bits_of_milliseconds_has_no_floor(conn, at: str) -> None:
    with refused("22003", "outside the range"):
        conn.execute("select absurd.uuidv7_floor(%s)", (at,))


def test_only_version_7_ids_have_a_time(conn) -> None:
    row = conn.execute("select absurd.uuidv7_timestamp(gen_random_uuid()), absurd.uuidv7_timestamp(null)").fetchone()
    assert row == (None, None)

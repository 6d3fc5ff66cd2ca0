"""What lives where: heartbeats touch no index, the request is written once, payloads stay out of the hot table."""

from __future__ import annotations

from tests.sql.driver import Claim, Queue, run_of
from tests.sql.statistics import written


def _hold(q: Queue, count: int) -> list[Claim]:
    q.spawns(["work"] * count)
    return [Claim(c["task_id"], run_of(c["task_id"], c["attempt"]), c["claim_no"]) for c in q.claims(count)]


def test_heartbeats_touch_no_index(q: Queue) -> None:
    claims = _hold(q, 4)  # so few that every version fits on the page, pruned or not
    before = written(q.conn, "live")

    for _ in range(8):
        assert q.letters("extend_claims", claims, tail=", 60") == "oooo"

    after = written(q.conn, "live")
    assert after["updated"] - before["updated"] == 32
    assert after["hot"] - before["hot"] == 32


def test_a_checkpoint_that_extends_the_lease_is_a_heartbeat_too(q: Queue) -> None:
    (claim,) = q.hold()
    before = written(q.conn, "live")

    for number in range(20):
        steps = ("text", [f"s{number}"]), ("jsonb", [number])
        assert q.letters("set_checkpoints", [claim], *steps, tail=", 60") == "o"

    after = written(q.conn, "live")
    assert after["updated"] - before["updated"] == 20
    assert after["hot"] - before["hot"] == 20


def test_a_request_is_written_once_however_its_task_ends(q: Queue) -> None:
    claims = _hold(q, 100)
    q.letters("complete_runs", claims[:40], ("jsonb", [1] * 40))
    q.letters("fail_runs", claims[40:70], ("jsonb", [{}] * 30))
    q.cancels([c.task_id for c in claims[70:]])
    again = q.claims(100)
    q.letters(
        "complete_runs",
        [Claim(c["task_id"], run_of(c["task_id"], 2), c["claim_no"]) for c in again],
        ("jsonb", [1] * 30),
    )

    assert q.value("select count(*) from absurd.live") == 0
    assert written(q.conn, "tasks") == {"inserted": 100, "updated": 0, "hot": 0, "deleted": 0}
    assert written(q.conn, "attempts") == {"inserted": 130, "updated": 0, "hot": 0, "deleted": 0}


def test_a_payload_that_many_tasks_wait_for_is_never_copied_into_the_hot_table(q: Queue) -> None:
    claims = _hold(q, 20)
    q.awaits(claims, ["s"] * 20, ["big"] * 20)

    q.emits([("big", "x" * 1_000_000)])

    toast = "select pg_relation_size(reltoastrelid) from pg_class where oid = 'absurd.live'::regclass"
    assert q.value(toast) == 0
    assert q.value("select pg_relation_size('absurd.live')") <= 8 * 8192
    assert len(q.claim(qty=20)[0]["event_payload"]) == 1_000_000


def test_no_function_with_sql_on_a_hot_path_relies_on_its_callers_settings(q: Queue) -> None:
    """A statement keeps the plan of whoever ran it first, so each function pins its own."""
    query = """
        select p.proname from pg_proc p join pg_language l on l.oid = p.prolang
         where p.pronamespace = 'absurd'::regnamespace and l.lanname = 'plpgsql'
           and p.prosrc ~* ('\\m(from|into|update|using|join) absurd\\.'
                            '(tasks|live|attempts|checkpoints|events|waits|idempotency_keys)\\M')
           and not coalesce(p.proconfig, '{}') @> array['plan_cache_mode=force_generic_plan']
         order by 1
    """
    unpinned = {row["proname"] for row in q.rows(query)}
    # not on a hot path: by hand, once in a while, or one row by its key
    assert unpinned <= {
        "add_sentinels",
        "spawn_minted",
        "spawn_one",
        "cancel_task",
        "check_invariants",
        "create_queue",
        "drop_queue",
        "extend_claim",
        "purge_dropped_queues",
        "retry_task",
        "watch_task",
    }

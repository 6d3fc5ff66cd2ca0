"""The array verbs: one letter a row, fenced by (run id, claim number), repeatable after a lost reply.

o ok   r replayed   b busy   l lost   c cancelled   f failed   m missing   e elapsed or ended   x there already   u unknown
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.fixtures.clock import Clock
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, after, minted, refused, run_of, unknown_run
from tests.sql.situations import SITUATIONS

Verb = Callable[..., str]


def completes(q: Queue, claims: Sequence[Any]) -> str:
    return q.letters("complete_runs", claims, ("jsonb", [{"n": i} for i in range(len(claims))]))


def fails(q: Queue, claims: Sequence[Any]) -> str:
    return q.letters("fail_runs", claims, ("jsonb", [{"name": "Boom"}] * len(claims)))


def schedules(q: Queue, claims: Sequence[Any], delay: float = 60) -> str:
    at: list[None] = [None] * len(claims)
    return q.letters("schedule_runs", claims, ("timestamptz", at), ("float8", [delay] * len(claims)))


def extends(q: Queue, claims: Sequence[Any]) -> str:
    return q.letters("extend_claims", claims, tail=", 90")


def checkpoints(q: Queue, claims: Sequence[Any]) -> str:
    return q.letters("set_checkpoints", claims, ("text", ["a"] * len(claims)), ("jsonb", [1] * len(claims)))


def awaits(q: Queue, claims: Sequence[Any]) -> str:
    rows = q.awaits(claims, ["w"] * len(claims), ["e"] * len(claims))
    assert [r["ordinal"] for r in rows] == list(range(1, len(claims) + 1))
    return "".join(r["status"] for r in rows)


VERBS: dict[str, Verb] = {v.__name__: v for v in (completes, fails, schedules, extends, checkpoints, awaits)}
OK = {name: "s" if name == "awaits" else "o" for name in VERBS}

LETTERS = {
    #                             completes fails schedules extends checkpoints awaits
    "running":                    ("o", "o", "o", "o", "o", "s"),
    "pending":                    ("l", "l", "l", "l", "l", "l"),
    "asleep":                     ("l", "o", "r", "r", "l", "r"),
    "waiting":                    ("l", "o", "r", "r", "l", "r"),
    "woken":                      ("l", "l", "r", "r", "l", "r"),
    "completed":                  ("r", "l", "l", "r", "l", "l"),
    "failed":                     ("f", "f", "f", "f", "f", "f"),
    "retried":                    ("f", "f", "f", "f", "f", "f"),
    "retried_and_running":        ("f", "f", "f", "f", "f", "f"),
    "retried_by_hand":            ("f", "f", "f", "f", "f", "f"),
    "retried_then_completed":     ("f", "f", "f", "f", "f", "f"),
    "retried_then_cancelled":     ("c", "c", "c", "c", "c", "c"),
    "failed_past_its_duration":   ("c", "c", "c", "c", "c", "c"),
    "cancelled":                  ("c", "c", "c", "c", "c", "c"),
    "cancelled_before_its_start": ("c", "c", "c", "c", "c", "c"),
    "unknown":                    ("m", "m", "m", "m", "m", "m"),
    "attempt_zero":               ("m", "m", "m", "m", "m", "m"),
    "attempt_to_come":            ("m", "m", "m", "m", "m", "m"),
    "cleaned_up":                 ("m", "m", "m", "m", "m", "m"),
    "of_another_queue":           ("m", "m", "m", "m", "m", "m"),
}  # fmt: skip


@pytest.mark.parametrize("situation", LETTERS)
@pytest.mark.parametrize("verb", VERBS)
def test_one_row_gets_its_letter_for_every_way_a_run_can_stand(own_queue: Queue, situation: str, verb: str) -> None:
    q = own_queue
    run = SITUATIONS[situation](q)
    letter = dict(zip(VERBS, LETTERS[situation], strict=True))[verb]
    before = [q.view(prefix, "true order by 1, 2") for prefix in "trcw"]
    assert VERBS[verb](q, [run]) == letter
    if letter not in "os":
        assert [q.view(prefix, "true order by 1, 2") for prefix in "trcw"] == before


def test_the_table_of_letters_knows_every_situation() -> None:
    assert list(LETTERS) == list(SITUATIONS)


@pytest.mark.parametrize("verb", VERBS)
def test_bad_rows_at_any_place_do_not_touch_their_neighbours(q: Queue, verb: str) -> None:
    bad = [SITUATIONS[s](q) for s in ("cancelled", "failed", "unknown")]
    good = q.hold(4)
    stale = good[3]._replace(claim_no=9)
    nobody = (None, 1)
    rows = [bad[0], good[0], bad[1], good[1], stale, bad[2], nobody, good[2]]
    ok = OK[verb]
    assert VERBS[verb](q, rows) == f"c{ok}f{ok}lmm{ok}"


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_batch_is_answered_with_nothing(q: Queue, verb: str) -> None:
    q.hold()
    if verb == "awaits":
        assert awaits(q, []) == ""
    else:
        assert VERBS[verb](q, []) in ("", "None")


@pytest.mark.parametrize("verb", VERBS)
def test_a_row_somebody_holds_is_busy_and_the_rest_is_done(q: Queue, connect: Connect, verb: str) -> None:
    held = q.hold(5)
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = %s for update", (held[2].task_id,))
    ok = OK[verb]
    assert VERBS[verb](q, held) == f"{ok}{ok}b{ok}{ok}"
    holder.rollback()
    assert VERBS[verb](q, [held[2]]) == ok


@pytest.mark.parametrize(
    ("verb", "again"),
    [("completes", "r"), ("fails", "f"), ("schedules", "r"), ("awaits", "r"), ("extends", "o"), ("checkpoints", "o")],
)
def test_a_batch_repeated_after_a_lost_reply_changes_nothing_more(q: Queue, verb: str, again: str) -> None:
    held = q.hold(3)
    assert VERBS[verb](q, held) == OK[verb] * 3
    states = [q.states(h.task_id) for h in held]
    assert VERBS[verb](q, held) == again * 3
    assert [q.states(h.task_id) for h in held] == states


@pytest.mark.parametrize("verb", VERBS)
def test_the_claim_before_this_one_is_lost(q: Queue, verb: str) -> None:
    """The run id alone is no fence: a resumed run keeps it."""
    (old,) = q.hold()
    assert schedules(q, [old], 0) == "o"
    (new,) = q.claims(worker="w2")
    assert new["claim_no"] == 2
    assert VERBS[verb](q, [old]) == "l"
    row = q.run(old.run_id)
    assert (row["state"], row["claimed_by"]) == ("running", "w2")
    assert q.view("c") == []


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_claim_number_the_run_id_decides(q: Queue, verb: str) -> None:
    (held,) = q.hold()
    assert VERBS[verb](q, [held._replace(claim_no=None)]) == OK[verb]  # type: ignore[arg-type, unused-ignore]


# ---------------------------------------------------------------- what each writes


def test_a_batch_of_completions_hands_each_task_its_own_result(q: Queue) -> None:
    held = q.hold(3)
    assert completes(q, held) == "ooo"
    assert [q.result(h.task_id)["result"] for h in held] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_a_batch_of_failures_follows_each_tasks_own_rules(noon: Queue) -> None:
    again, last, late, final, cancelled = (
        noon.hold(**options)[0]
        for options in (
            {},
            {"max_attempts": 1},
            {"retry_strategy": {"kind": "fixed", "base_seconds": 9}},
            {},
            {"retry_strategy": {"kind": "fixed", "base_seconds": 9}, "cancellation": {"max_duration": 5}},
        )
    )
    given = noon.hold()[0]
    held = [again, last, late, final, cancelled, given]
    letters = noon.letters(
        "fail_runs", held, ("jsonb", [{"i": i} for i in range(6)]),
        ("timestamptz", [None] * 5 + [after(7)]), ("bool", [None, False, False, True, False, False]),
    )  # fmt: skip
    assert letters == "oooooo"
    assert [noon.states(h.task_id) for h in held] == [
        ("pending", ["failed", "pending"]),
        ("failed", ["failed"]),
        ("sleeping", ["failed", "sleeping"]),
        ("failed", ["failed"]),
        ("cancelled", ["failed"]),
        ("sleeping", ["failed", "sleeping"]),
    ]
    assert [noon.run(h.run_id)["failure_reason"] for h in held] == [{"i": i} for i in range(6)]
    starts = [noon.run(run_of(h.task_id, 2))["available_at"] for h in (again, late, given)]
    assert starts == [after(0), after(9), after(7)]


def test_a_sleep_with_a_step_keeps_its_wake_time_and_runs_on_when_it_has_passed(noon: Queue, clock: Clock) -> None:
    ahead, past, plain = noon.hold(3)
    letters = noon.letters(
        "schedule_runs", [ahead, past, plain], ("timestamptz", [after(60), after(-1), after(-1)]),
        ("float8", [None] * 3), ("text", ["nap", "nap", None]),
    )  # fmt: skip
    assert letters == "oeo"
    assert [noon.states(h.task_id)[0] for h in (ahead, past, plain)] == ["sleeping", "running", "sleeping"]
    stored = noon.rows("select task_id, (state #>> '{}')::timestamptz as at from absurd.checkpoints order by task_id")
    assert stored == [{"task_id": ahead.task_id, "at": after(60)}, {"task_id": past.task_id, "at": after(-1)}]
    assert noon.checkpoints(plain.task_id) == {}


@pytest.mark.parametrize(("delay", "due"), [(1.5, after(1.5)), (0, after(0)), (-3, after(0)), (1e15, "infinity")])
def test_a_sleep_of_seconds_is_counted_by_the_engines_clock(noon: Queue, delay: float, due: Any) -> None:
    (held,) = noon.hold()
    assert schedules(noon, [held], delay) == "o"
    assert noon.run(held.run_id)["available_at"] == due


def test_the_last_of_equal_names_in_a_batch_of_checkpoints_wins(q: Queue) -> None:
    one, two = q.hold(2)
    letters = q.letters(
        "set_checkpoints", [one, one, two, one], ("text", ["a", "b", "a", "a"]), ("jsonb", [1, 2, 3, 4])
    )  # fmt: skip
    assert letters == "oooo"
    assert (q.checkpoints(one.task_id), q.checkpoints(two.task_id)) == ({"a": 4, "b": 2}, {"a": 3})


def test_checkpoints_that_ended_with_their_run_are_replayed_if_they_are_there(q: Queue) -> None:
    (held,) = q.hold()
    assert checkpoints(q, [held]) == "o"
    assert completes(q, [held]) == "o"
    assert checkpoints(q, [held]) == "r"
    assert q.letters("set_checkpoints", [held], ("text", ["b"]), ("jsonb", [1])) == "l"


def test_a_batch_refused_as_a_whole_leaves_nothing(q: Queue) -> None:
    held = q.hold(2)
    with refused("23502"):
        q.letters("set_checkpoints", held, ("text", ["a", None]), ("jsonb", [1, 2]))
    assert q.view("c") == []


def test_a_batch_renews_leases_but_gives_none(noon: Queue) -> None:
    one, two = noon.hold(2)
    noon.conn.execute("update absurd.live set lease_until = null, due_at = null where task_id = %s", (two.task_id,))
    assert extends(noon, [one, two]) == "oo"
    assert [noon.run(h.run_id)["claim_expires_at"] for h in (one, two)] == [after(90), None]
    completes(noon, [two])


def test_checkpoints_may_renew_the_leases_of_their_runs(noon: Queue) -> None:
    held = noon.hold(2)
    noon.letters("set_checkpoints", held, ("text", ["a", "a"]), ("jsonb", [1, 1]), tail=", 600")
    assert [noon.run(h.run_id)["claim_expires_at"] for h in held] == [after(600)] * 2


# ---------------------------------------------------------------- claim_tasks


def test_claimed_tasks_come_with_what_their_worker_needs(noon: Queue, clock: Clock) -> None:
    noon.spawn("greet", {"n": 1}, headers={"h": 1}, max_attempts=4, retry_strategy={"kind": "none"})
    clock.set(noon.conn, after(2))
    (row,) = noon.claims(lease=2.5)
    task_id = row.pop("task_id")
    assert row == {
        "attempt": 1, "claim_no": 1, "task_name": "greet", "params": {"n": 1}, "headers": {"h": 1},
        "retry_strategy": {"kind": "none"}, "max_attempts": 4, "enqueue_at": after(0), "claimed_at": after(2),
        "wake_event": None, "checkpoints": None, "timeouts": None, "next_due_in": None, "snapshot_xmin": None,
        "snapshot_xmax": None,
    }  # fmt: skip
    assert noon.run(run_of(task_id, 1))["claim_expires_at"] == after(4.5)


def test_a_resumed_task_brings_its_checkpoints_and_timeouts(noon: Queue, clock: Clock) -> None:
    (held,) = noon.hold()
    checkpoints(noon, [held])
    noon.awaits([held], ["w"], ["e"], timeouts=[5.0])
    clock.set(noon.conn, after(5))
    (row,) = noon.claims()
    assert (row["claim_no"], row["checkpoints"], row["timeouts"]) == (2, {"a": 1}, ["w"])


def test_a_worker_claims_only_the_names_it_knows(q: Queue) -> None:
    for name in ("a", "b", "c", "a"):
        q.spawn(name)
    assert sorted(r["task_name"] for r in q.claims(names=["a", "c"])) == ["a", "a", "c"]
    assert [r["task_id"] for r in q.claims(names=["a", "c"])] == [None]
    assert [r["task_name"] for r in q.claims()] == ["b"]


@pytest.mark.parametrize(
    ("arrange", "due"),
    [
        (lambda q: None, None),
        (lambda q: q.spawn(delay_seconds=7), 7),
        (lambda q: (q.spawn(delay_seconds=7), q.spawn(delay_seconds=3, priority=-9)), 3),
        (lambda q: q.hold(), 60),
        (lambda q: q.spawn(delay_seconds=90, cancellation={"max_delay": 1}), 90),
        (lambda q: q.start(cancellation={"max_duration": 20}), 20),
        (lambda q: q.await_event(q.start(), "e"), None),
        (lambda q: q.await_event(q.start(), "e", timeout=4), 4),
        (lambda q: q.spawn(start_at="infinity"), None),
        (lambda q: q.spawn("unknown"), None),
    ],
    ids=["empty", "delayed", "priorities", "lease", "delay", "deadline", "wait", "timeout", "never", "other name"],
)
def test_an_empty_claim_says_when_to_look_again(noon: Queue, arrange: Any, due: float | None) -> None:
    arrange(noon)
    (row,) = noon.claims(names=["work"])
    assert row["task_id"] is None
    assert row["claimed_at"] == after(0)
    assert row["next_due_in"] == due
    assert row["snapshot_xmin"] <= row["snapshot_xmax"]


def test_a_claim_repeated_with_its_token_hands_the_same_rows_out_and_nothing_else(q: Queue) -> None:
    for _ in range(3):
        q.spawn()
    first = q.claims(2, token=77)
    again = q.claims(2, token=77, repeat=True)
    assert [(r["task_id"], r["attempt"], r["claim_no"]) for r in again] == [
        (r["task_id"], r["attempt"], r["claim_no"]) for r in first
    ]
    assert [r["task_id"] for r in q.claims(2, token=78, repeat=True)] == [None]
    assert [r["task_id"] for r in q.claims(2, token=77, repeat=True, worker="w2")] == [None]
    assert len(q.view("t", "state = 'pending'")) == 1


def test_a_claim_repeated_after_its_rows_went_on_hands_out_only_the_rest(q: Queue) -> None:
    q.spawn()
    q.spawn()
    first = q.claims(2, token=77)
    q.complete(run_of(first[0]["task_id"], 1))
    again = q.claims(2, token=77, repeat=True)
    assert [r["task_id"] for r in again] == [first[1]["task_id"]]


def test_a_running_run_can_be_described_to_whoever_claimed_it_by_the_plain_verb(q: Queue) -> None:
    run = q.start(task_name="greet", params={"n": 1})
    q.checkpoint(run, "a", 1)
    (row,) = q.call("running_run", run["run_id"])
    assert (row["task_id"], row["attempt"], row["claim_no"]) == (run["task_id"], 1, 1)
    assert (row["task_name"], row["params"], row["checkpoints"], row["timeouts"]) == ("greet", {"n": 1}, {"a": 1}, None)
    assert row["queue_id"] == q.id
    q.fail(run["run_id"])
    assert q.call("running_run", run["run_id"]) == q.call("running_run", unknown_run()) == []


# ---------------------------------------------------------------- await_events


def test_a_batch_of_waits_answers_each_row_for_itself(noon: Queue) -> None:
    noon.emit("there", {"n": 1})
    stored, emitted, waits, timed = noon.hold(4)
    noon.letters("set_checkpoints", [stored], ("text", ["w"]), ("jsonb", ["kept"]))
    rows = noon.awaits(
        [stored, emitted, waits, timed], ["w"] * 4, ["there", "there", "absent", "absent"], timeouts=[None] * 3 + [2.5]
    )
    assert [(r["status"], r["payload"]) for r in rows] == [
        ("a", "kept"), ("a", {"n": 1}), ("s", None), ("s", None),
    ]  # fmt: skip
    registered = {w["task_id"]: w["timeout_at"] for w in noon.waits()}
    assert registered == {waits.task_id: None, timed.task_id: after(2.5)}


def test_a_timed_out_step_answers_t_for_good(noon: Queue, clock: Clock) -> None:
    (held,) = noon.hold()
    noon.awaits([held], ["w"], ["e"], timeouts=[1.0])
    clock.set(noon.conn, after(1))
    (row,) = noon.claims()
    noon.emit("e", 1)
    for claim in (held._replace(claim_no=row["claim_no"]), held):
        (answer,) = noon.awaits([claim], ["w"], ["e"])
        assert (answer["status"], answer["payload"]) == ("t", None)


def test_only_what_was_emitted_after_the_given_moment_answers(noon: Queue, clock: Clock) -> None:
    noon.emits([("e", 1)])
    old, now = noon.hold(2)
    rows = noon.awaits([old, now], ["w", "w"], ["e", "e"], since=[after(-0.000001), after(0)])
    assert [(r["status"], r["payload"]) for r in rows] == [("a", 1), ("s", None)]
    clock.set(noon.conn, after(1))
    assert noon.emits([("e", 2)], "next") == "o"
    (woken,) = noon.claims()
    assert (woken["task_id"], woken["checkpoints"]) == (now.task_id, {"w": 2})


# ---------------------------------------------------------------- emit_events


def test_a_batch_of_emits_wakes_who_waits_and_leaves_what_is_latched(q: Queue) -> None:
    one, two = q.hold(2)
    q.awaits([one, two], ["w", "w"], ["a", "b"])
    q.emit("there", 0)
    assert q.emits([("a", 1), ("there", 9), ("b", 2), ("new", None)]) == "oxoo"
    assert {r["task_id"]: r["checkpoints"] for r in q.claims()} == {one.task_id: {"w": 1}, two.task_id: {"w": 2}}
    assert {e["event_name"]: e["payload"] for e in q.view("e")} == {"a": 1, "b": 2, "there": 0, "new": None}
    assert q.emits([("a", 1), ("there", 9), ("b", 2), ("new", None)]) == "xxxx"


@pytest.mark.parametrize(("mode", "letters", "kept"), [("latch", "oxox", 1), ("next", "xoxo", 3)])
def test_of_equal_names_in_one_call_the_mode_decides(q: Queue, mode: str, letters: str, kept: int) -> None:
    assert q.emits([("a", 1), ("a", 3), ("b", 1), ("b", 3)], mode) == letters
    assert {e["payload"] for e in q.view("e")} == {kept}


def test_the_next_mode_replaces_the_payload_and_wakes_who_waits_now(noon: Queue, clock: Clock) -> None:
    assert noon.emits([("e", 1)], "next") == "o"
    clock.set(noon.conn, after(1))
    (held,) = noon.hold()
    noon.awaits([held], ["w"], ["e"], since=[after(0)])
    assert noon.emits([("e", 2)], "next") == "o"
    assert noon.view("e") == [{"event_name": "e", "payload": 2, "emitted_at": after(1)}]
    assert [r["checkpoints"] for r in noon.claims()] == [{"w": 2}]
    assert noon.emits([("e", 3)], "latch") == "x"


def test_an_emit_that_makes_no_sense_emits_nothing(q: Queue) -> None:
    for mode in (None, "loud"):
        with refused("AB004", "unknown emit mode"):
            q.emits([("a", 1)], mode)
    for name in (None, "", " "):
        with refused("P0001", "event_name must be provided"):
            q.emits([("a", 1), (name, 2)])
    assert q.view("e") == []


# ---------------------------------------------------------------- cancel_tasks and spawn_tasks


def test_a_batch_of_cancellations_says_what_became_of_each(q: Queue, connect: Connect) -> None:
    done = SITUATIONS["completed"](q)
    held = q.hold(3)
    nobody = minted()
    holder = connect(autocommit=False)
    holder.execute("select 1 from absurd.live where task_id = %s for update", (held[1].task_id,))
    ids: list[uuid.UUID] = [held[0].task_id, held[1].task_id, done.task_id, nobody, held[2].task_id, held[0].task_id]
    assert q.cancels(ids) == "obemoo"
    holder.rollback()
    assert q.cancels(ids) == "eoemee"
    assert [q.states(h.task_id)[0] for h in held] == ["cancelled"] * 3


def test_a_batch_is_spawned_with_shared_option_sets(noon: Queue) -> None:
    rows = noon.spawns(["a", "b", "c"], spec=[2, None, 1], specs=[{"max_attempts": 1}, {"delay_seconds": 5}])
    assert [(r["ordinal"], r["attempt"], r["created"], r["same_request"]) for r in rows] == [
        (i, 1, True, True) for i in (1, 2, 3)
    ]
    tasks = [noon.task(r["task_id"]) for r in rows]
    assert [(t["task_name"], t["max_attempts"]) for t in tasks] == [("a", None), ("b", None), ("c", 1)]
    assert [noon.run(r["run_id"])["available_at"] for r in rows] == [after(5), after(0), after(0)]


def test_a_batch_repeated_with_its_ids_spawns_nothing_more(q: Queue) -> None:
    ids = [minted() for _ in range(3)]
    first = q.spawns(["a", "b", "c"], task_ids=ids, fingerprints=["x", "y", "z"])
    again = q.spawns(["a", "b", "c"], task_ids=ids, fingerprints=["x", "y", "z"])
    assert [r["task_id"] for r in first] == ids
    assert again == [r | {"created": False} for r in first]


def test_a_batch_partly_there_spawns_the_rest(q: Queue) -> None:
    ids = [minted() for _ in range(3)]
    q.spawns(["a"], task_ids=ids[:1])
    assert [r["created"] for r in q.spawns(["a", "b", "c"], task_ids=ids)] == [False, True, True]


@pytest.mark.parametrize(
    ("columns", "sqlstate", "text"),
    [
        ({"specs": [{"max_attempts": 0}], "spec": [None, 1]}, "P0001", "max_attempts must be >= 1"),
        ({"specs": [{"retry_strategy": 1}], "spec": [None, 1]}, "AB003", "retry_strategy must be"),
        ({"task_ids": [None, uuid.UUID(int=5)]}, "22023", "is not usable"),
    ],
)
def test_one_bad_row_spawns_nothing_at_all(q: Queue, columns: dict[str, Any], sqlstate: str, text: str) -> None:
    with refused(sqlstate, text):
        q.spawns(["a", "b"], keys=["k", None], **columns)
    with refused("P0001", "task_name must be provided"):
        q.spawns(["a", " "])
    assert q.view("t") == []
    assert q.spawns(["a"], keys=["k"])[0]["created"]


def test_a_batch_that_names_one_id_twice_is_refused_as_a_whole(q: Queue) -> None:
    mine = minted()
    with refused("23505"):
        q.spawns(["a", "b", "c"], task_ids=[mine, None, mine])
    assert q.view("t") == q.view("r") == []


def test_names_and_params_must_be_of_one_number(q: Queue) -> None:
    with refused("AB004", "task names and params differ in number: 2 and 1"):
        q.conn.execute("select * from absurd.spawn_tasks(%s, array['a', 'b'], %s)", (q.id, [Jsonb(1)]))


def test_a_queue_that_was_dropped_meanwhile_takes_no_batch(q: Queue) -> None:
    queue_id = q.id
    q.call("drop_queue")
    with refused("42P01", "does not exist"):
        q.conn.execute("select * from absurd.spawn_tasks(%s, array['a'], %s)", (queue_id, [Jsonb(1)]))


def test_two_batches_at_once_share_the_rows_of_a_claim(q: Queue, connect: Connect) -> None:
    for _ in range(6):
        q.spawn()
    first = q.on(connect(autocommit=False))
    mine = {r["task_id"] for r in first.claims(3)}
    yours = {r["task_id"] for r in q.claims(10)}
    first.conn.commit()
    assert len(mine) == len(yours) == 3
    assert not mine & yours


def test_what_a_task_has_recorded_can_be_read_in_any_state_in_the_order_of_its_commits(q: Queue) -> None:
    run = q.start(task_name="greet", params={"n": 1})
    for step in ("zebra", "ape"):
        q.checkpoint(run, step, step.upper())
    q.await_event(run, "go", "wait")
    (row,) = q.call("task_history", run["task_id"])
    assert (row["task_name"], row["params"], row["state"], row["attempt"]) == ("greet", {"n": 1}, "sleeping", 1)
    assert (row["checkpoints"], row["timeouts"], row["queue_id"]) == ({"zebra": "ZEBRA", "ape": "APE"}, None, q.id)
    assert (row["steps"], row["step_attempts"], row["waits_at"]) == (["zebra", "ape"], [1, 1], "wait")
    assert row["ordered"] is True

    q.emit("go", 7)
    q.cancel(run["task_id"])
    (row,) = q.call("task_history", run["task_id"])
    assert (row["state"], row["steps"], row["waits_at"]) == ("cancelled", ["zebra", "ape", "wait"], None)
    assert q.call("task_history", uuid.uuid4()) == []


def test_order_counts_from_a_day_after_an_upgrade_to_clients_that_mark_what_has_none(q: Queue) -> None:
    run = q.start()

    def ordered_when(initial: str, marks: str) -> bool:
        with q.conn.transaction(force_rollback=True):
            for number, since in ((1, initial), (3, marks)):
                change = "update absurd.migrations set applied_at = now() - %s::interval where number = %s"
                q.conn.execute(change, (since, number))
            return bool(q.call("task_history", run["task_id"])[0]["ordered"])

    assert ordered_when("1 year", "1 second") is False, "workers of the release before may still run"
    assert ordered_when("1 year", "25 hours") is True
    assert ordered_when("1 second", "1 second") is True, "a new database"

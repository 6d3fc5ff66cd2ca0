"""Every public function of the schema is tested in four ways: good path, each error, repeat, concurrent.

The table names the tests. A new function without a line here fails, and so does a line whose test is gone.
A way that does not apply is a line that begins with a dash and says why.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from absurd import schema
from absurd.errors import RULES
from tests.fixtures.postgres import Connection

TESTS = Path(__file__).parents[1]


class Covered(NamedTuple):
    """Test ids, `folder/file::test` with test_ and .py left out of the file, or `- why there is none`."""

    good: str
    errors: str
    repeat: str
    concurrent: str


PURE = "- a function of its arguments"
READS = "- reads only, see good"

VERDICT = "sql/verdicts::test_a_verb_answers_for_every_way_a_run_can_stand"
LETTER = "sql/arrays::test_one_row_gets_its_letter_for_every_way_a_run_can_stand"
REPLAY = "sql/arrays::test_a_batch_repeated_after_a_lost_reply_changes_nothing_more"
BUSY = "sql/arrays::test_a_row_somebody_holds_is_busy_and_the_rest_is_done"
UNKNOWN = "sql/queues::test_an_unknown_queue_is_an_undefined_table_with_a_hint"
NAME = "sql/queues::test_a_name_that_cannot_be_one_is_refused"

COVERAGE = {
    # queues
    "create_queue": Covered(
        "sql/queues::test_a_queue_of_any_name_up_to_57_bytes_works_from_spawn_to_drop",
        "sql/queues::test_an_unknown_storage_mode_is_refused",
        "sql/queues::test_creating_a_queue_twice_changes_nothing",
        "sql/queues::test_two_creators_of_one_queue_both_succeed",
    ),
    "drop_queue": Covered(
        "sql/queues::test_dropping_removes_the_views_and_the_name_at_once",
        "sql/queues::test_dropping_an_unknown_queue_is_no_error",
        "sql/queues::test_dropping_removes_the_views_and_the_name_at_once",
        "sql/queues::test_a_second_dropper_of_one_queue_finds_nothing_to_do",
    ),
    "list_queues": Covered("sql/queues::test_queues_are_listed_by_name", "- none", READS, READS),
    "ensure_queue_tables": Covered(
        "sql/queues::test_creating_restores_views_that_were_dropped",
        NAME,
        "sql/queues::test_ensure_queue_tables_makes_a_queue_that_is_missing",
        "sql/queues::test_a_creator_that_waited_for_a_drop_creates_a_new_queue",
    ),
    "validate_queue_name": Covered(
        "sql/queues::test_validate_queue_name_returns_a_good_name_as_it_is", NAME, PURE, PURE
    ),
    "get_queue_policy": Covered("sql/queues::test_a_new_queue_has_the_default_policy", "- none", READS, READS),
    "set_queue_policy": Covered(
        "sql/queues::test_only_the_given_keys_of_a_policy_change",
        "sql/queues::test_a_policy_that_makes_no_sense_is_refused_as_a_whole",
        "sql/queues::test_no_policy_and_an_empty_one_change_nothing",
        "sql/queues::test_two_changes_of_one_policy_at_once_are_both_kept",
    ),
    "get_schema_version": Covered(
        "contract/signatures::test_the_version_function_can_be_found_and_replaced", "- none", READS, READS
    ),
    # spawn, retry, result
    "spawn_task": Covered(
        "sql/spawn::test_a_spawned_task_and_its_run_are_pending_and_due_now",
        "sql/spawn::test_an_option_that_makes_no_sense_is_refused_with_nothing_stored",
        "sql/spawn::test_a_spawn_repeated_with_its_id_makes_one_task",
        "sql/spawn::test_two_spawns_of_one_key_at_once_make_one_task",
    ),
    "spawn_tasks": Covered(
        "sql/arrays::test_a_batch_is_spawned_with_shared_option_sets",
        "sql/arrays::test_one_bad_row_spawns_nothing_at_all",
        "sql/arrays::test_a_batch_repeated_with_its_ids_spawns_nothing_more",
        "sql/gated_queues::test_bulk_spawns_with_the_same_keys_in_other_orders_do_not_cross",
    ),
    "retry_task": Covered(
        "sql/cancel_retry::test_a_failed_task_gets_another_run_and_one_more_attempt",
        "sql/cancel_retry::test_only_a_failed_task_can_be_retried",
        "sql/cancel_retry::test_retrying_twice_is_refused",
        "sql/cancel_retry::test_of_two_retries_at_once_one_is_refused",
    ),
    "get_task_result": Covered(
        "sql/cancel_retry::test_how_a_task_stands",
        "sql/cancel_retry::test_a_task_that_is_not_there_has_no_row",
        "sql/cancel_retry::test_how_a_task_stands",
        "sql/cancel_retry::test_reading_a_result_waits_for_nobody",
    ),
    "retry_delay_seconds": Covered(
        "sql/retry_delay::test_the_delay_after_each_attempt",
        "sql/retry_delay::test_a_strategy_that_is_none_is_refused_here_and_at_spawn",
        PURE,
        PURE,
    ),
    # claim
    "claim_task": Covered(
        "sql/claim::test_a_claim_hands_out_the_task_and_shows_in_both_rows",
        UNKNOWN,
        "sql/claim::test_a_claim_hands_out_the_task_and_shows_in_both_rows",
        "sql/claim::test_two_workers_at_once_get_different_tasks",
    ),
    "claim_tasks": Covered(
        "sql/arrays::test_claimed_tasks_come_with_what_their_worker_needs",
        "- none: an unknown queue id has nothing to claim",
        "sql/arrays::test_a_claim_repeated_with_its_token_hands_the_same_rows_out_and_nothing_else",
        "sql/arrays::test_two_batches_at_once_share_the_rows_of_a_claim",
    ),
    "running_run": Covered(
        "sql/arrays::test_a_running_run_can_be_described_to_whoever_claimed_it_by_the_plain_verb",
        "sql/arrays::test_a_running_run_can_be_described_to_whoever_claimed_it_by_the_plain_verb",
        READS,
        READS,
    ),
    "task_history": Covered(
        "sql/arrays::test_what_a_task_has_recorded_can_be_read_in_any_state_in_the_order_of_its_commits",
        UNKNOWN,
        READS,
        READS,
    ),
    # run transitions
    "complete_run": Covered(
        "sql/settle::test_a_completed_run_keeps_its_claim_and_hands_its_result_to_the_task",
        VERDICT,
        "sql/settle::test_completing_twice_is_refused_and_the_first_result_stays",
        "sql/settle::test_of_two_completions_at_once_one_is_refused",
    ),
    "complete_runs": Covered(
        "sql/arrays::test_a_batch_of_completions_hands_each_task_its_own_result", LETTER, REPLAY, BUSY
    ),
    "fail_run": Covered(
        "sql/settle::test_a_failed_run_keeps_its_claim_and_a_new_run_is_due",
        VERDICT,
        "sql/settle::test_failing_twice_is_refused_and_makes_one_new_run",
        "sql/settle::test_of_two_failures_at_once_one_is_refused",
    ),
    "fail_runs": Covered("sql/arrays::test_a_batch_of_failures_follows_each_tasks_own_rules", LETTER, REPLAY, BUSY),
    "schedule_run": Covered(
        "sql/settle::test_a_scheduled_run_sleeps_without_a_claim",
        VERDICT,
        "sql/settle::test_a_run_cannot_be_scheduled_without_a_moment_or_twice",
        "sql/settle::test_a_schedule_behind_a_cancellation_finds_the_run_gone",
    ),
    "schedule_runs": Covered(
        "sql/arrays::test_a_sleep_with_a_step_keeps_its_wake_time_and_runs_on_when_it_has_passed", LETTER, REPLAY, BUSY
    ),
    "cancel_task": Covered(
        "sql/cancel_retry::test_an_unfinished_task_is_cancelled_with_its_live_run",
        "sql/cancel_retry::test_a_task_that_is_not_there_cannot_be_cancelled",
        "sql/cancel_retry::test_the_moment_of_a_cancellation_is_kept",
        "sql/cancel_retry::test_a_cancellation_behind_the_end_of_a_run_leaves_it_ended",
    ),
    "cancel_tasks": Covered(
        "sql/arrays::test_a_batch_of_cancellations_says_what_became_of_each",
        "sql/arrays::test_a_batch_of_cancellations_says_what_became_of_each",
        "sql/arrays::test_a_batch_of_cancellations_says_what_became_of_each",
        "sql/arrays::test_a_batch_of_cancellations_says_what_became_of_each",
    ),
    # checkpoints and leases
    "set_task_checkpoint_state": Covered(
        "sql/checkpoints::test_a_checkpoint_is_kept_with_its_owner_and_moment",
        VERDICT,
        "sql/checkpoints::test_writing_again_replaces_the_state",
        "sql/checkpoints::test_a_stale_attempt_does_not_overwrite_a_newer_one",
    ),
    "set_checkpoints": Covered(
        "sql/arrays::test_the_last_of_equal_names_in_a_batch_of_checkpoints_wins", LETTER, REPLAY, BUSY
    ),
    "get_task_checkpoint_state": Covered(
        "sql/checkpoints::test_a_checkpoint_is_kept_with_its_owner_and_moment",
        "sql/checkpoints::test_a_checkpoint_that_is_not_there_has_no_row",
        READS,
        "sql/checkpoints::test_reading_checkpoints_waits_for_nobody",
    ),
    "get_task_checkpoint_states": Covered(
        "sql/checkpoints::test_a_run_sees_what_it_and_earlier_attempts_wrote",
        "sql/checkpoints::test_the_checkpoints_of_a_run_that_is_not_there_cannot_be_read",
        READS,
        "sql/checkpoints::test_reading_checkpoints_waits_for_nobody",
    ),
    "extend_claim": Covered(
        "sql/leases::test_a_renewed_lease_ends_that_long_from_now",
        VERDICT,
        "sql/leases::test_a_renewed_lease_ends_that_long_from_now",
        "sql/leases::test_a_renewal_behind_the_sweep_is_told_that_the_run_failed",
    ),
    "extend_claims": Covered("sql/arrays::test_a_batch_renews_leases_but_gives_none", LETTER, REPLAY, BUSY),
    # events
    "emit_event": Covered(
        "sql/await_emit::test_an_emit_wakes_who_waits_and_stores_the_payload",
        "sql/await_emit::test_a_wait_and_an_emit_need_the_name_of_an_event",
        "sql/await_emit::test_the_first_emit_of_a_name_wins",
        "sql/await_emit::test_of_two_emits_at_once_the_first_wins",
    ),
    "emit_events": Covered(
        "sql/arrays::test_a_batch_of_emits_wakes_who_waits_and_leaves_what_is_latched",
        "sql/arrays::test_an_emit_that_makes_no_sense_emits_nothing",
        "sql/arrays::test_a_batch_of_emits_wakes_who_waits_and_leaves_what_is_latched",
        "sql/gated_events::test_an_array_of_emits_does_not_cross_an_array_of_emits_in_the_other_order",
    ),
    "try_emit_events": Covered(
        "sql/watch::test_a_worker_emits_as_everybody_does_where_nothing_is_held",
        "sql/watch::test_a_worker_emits_as_everybody_does_where_nothing_is_held",
        "sql/watch::test_a_worker_emits_as_everybody_does_where_nothing_is_held",
        "sql/watch::test_a_worker_emits_past_a_name_that_somebody_holds",
    ),
    "await_event": Covered(
        "sql/await_emit::test_a_run_that_must_wait_sleeps_with_a_wait",
        VERDICT,
        "sql/await_emit::test_a_stored_answer_is_given_whatever_became_of_the_run",
        "sql/await_emit::test_an_emit_waits_for_an_await_that_is_held_up_itself",
    ),
    "await_events": Covered(
        "sql/arrays::test_a_batch_of_waits_answers_each_row_for_itself",
        LETTER,
        REPLAY,
        "sql/gated_events::test_an_array_of_awaits_answers_busy_for_the_name_an_open_transaction_emits",
    ),
    "await_tasks": Covered(
        "sql/child_waits::test_a_parent_wakes_however_its_child_ends",
        "sql/child_waits::test_a_child_nobody_knows_is_unknown",
        "sql/child_waits::test_repeating_the_wait_under_the_same_claim_is_a_replay",
        "sql/child_waits::test_a_child_somebody_holds_is_busy",
    ),
    # retention
    "cleanup_tasks": Covered(
        "sql/cleanup::test_a_task_goes_when_it_ended_longer_ago_than_the_ttl",
        "sql/cleanup::test_a_ttl_is_not_negative",
        "sql/cleanup::test_a_task_goes_when_it_ended_longer_ago_than_the_ttl",
        "sql/cleanup::test_two_cleanups_at_once_share_the_work",
    ),
    "cleanup_events": Covered(
        "sql/cleanup::test_an_event_goes_when_it_was_emitted_longer_ago_than_the_ttl",
        "sql/cleanup::test_a_ttl_is_not_negative",
        "sql/cleanup::test_an_event_goes_when_it_was_emitted_longer_ago_than_the_ttl",
        "sql/cleanup::test_two_cleanups_at_once_share_the_work",
    ),
    "cleanup_all_queues": Covered(
        "sql/cleanup::test_all_queues_are_cleaned_by_their_policies_in_the_order_of_their_names",
        "sql/cleanup::test_cleaning_an_unknown_queue_is_refused",
        "sql/cleanup::test_all_queues_are_cleaned_by_their_policies_in_the_order_of_their_names",
        "sql/gated_retention::test_a_retention_run_does_not_fail_because_a_queue_is_dropped_meanwhile",
    ),
    "housekeep": Covered(
        "sql/cleanup::test_housekeeping_spares_events_that_no_task_has_received",
        "- none: ids nobody knows are passed by",
        "sql/cleanup::test_housekeeping_spares_events_that_no_task_has_received",
        "sql/watch::test_housekeeping_of_a_queue_is_taken_by_one_at_a_time",
    ),
    "take_housekeeping": Covered(
        "sql/watch::test_housekeeping_of_a_queue_is_taken_by_one_at_a_time",
        "- none",
        "sql/watch::test_the_clock_of_a_test_is_not_asked_for_housekeeping",
        "sql/watch::test_housekeeping_of_a_queue_is_taken_by_one_at_a_time",
    ),
    "purge_queue": Covered(
        "sql/cleanup::test_purging_empties_a_queue_and_keeps_it",
        UNKNOWN,
        "sql/child_waits::test_children_of_a_purged_queue_wake_their_parents_once",
        "sql/cleanup::test_purging_leaves_what_somebody_holds_for_the_next_call",
    ),
    "purge_dropped_queues": Covered(
        "sql/cleanup::test_the_rows_of_a_dropped_queue_go_with_the_next_cleanups_and_the_tombstone_later",
        "- none",
        "sql/cleanup::test_the_rows_of_a_dropped_queue_go_with_the_next_cleanups_and_the_tombstone_later",
        "sql/gated_retention::test_a_purge_leaves_what_an_open_transaction_holds_and_takes_it_the_next_time",
    ),
    # time and ids
    "current_time": Covered(
        "sql/ids_and_clock::test_the_fake_clock_is_exact_and_can_be_released",
        "sql/ids_and_clock::test_a_setting_that_is_no_moment_raises",
        "sql/ids_and_clock::test_the_fake_clock_is_exact_and_can_be_released",
        "sql/ids_and_clock::test_the_clock_of_one_session_is_not_that_of_another",
    ),
    "set_fake_clock": Covered(
        "sql/ids_and_clock::test_an_upgrade_keeps_the_choice_of_clock",
        "- none: a boolean",
        "sql/ids_and_clock::test_with_the_fake_clock_off_the_setting_is_ignored_until_it_is_on_again",
        "- set by hand, once",
    ),
    "portable_uuidv7": Covered(
        "sql/ids_and_clock::test_ids_are_version_7_and_carry_the_engines_time",
        "- none",
        "sql/ids_and_clock::test_ids_made_at_one_instant_differ",
        "sql/ids_and_clock::test_ids_made_by_two_sessions_at_one_instant_differ",
    ),
    "run_id_of": Covered("sql/ids_and_clock::test_a_run_id_is_the_task_id_with_the_attempt", "- none", PURE, PURE),
    "task_id_of": Covered("sql/ids_and_clock::test_a_run_id_is_the_task_id_with_the_attempt", "- none", PURE, PURE),
    "attempt_of": Covered("sql/ids_and_clock::test_a_run_id_is_the_task_id_with_the_attempt", "- none", PURE, PURE),
    "uuidv7_floor": Covered(
        "sql/ids_and_clock::test_the_floor_id_of_a_moment_is_the_lowest_and_gives_the_moment_back",
        "sql/ids_and_clock::test_a_moment_outside_48_bits_of_milliseconds_has_no_floor",
        PURE,
        PURE,
    ),
    "uuidv7_timestamp": Covered(
        "sql/ids_and_clock::test_only_version_7_ids_have_a_time", "- none: null for other ids", PURE, PURE
    ),
    "week_bucket_utc": Covered("sql/ids_and_clock::test_weeks_begin_on_monday_in_utc", "- none", PURE, PURE),
    "partition_week_tag": Covered("sql/ids_and_clock::test_weeks_begin_on_monday_in_utc", "- none", PURE, PURE),
    # wake-up and checks
    "wake": Covered(
        "sql/gated_wake::test_whatever_makes_a_task_ready_tells_a_sleeping_worker",
        UNKNOWN,
        "sql/gated_wake::test_a_sleeping_worker_is_told_at_the_spawners_commit_and_only_once",
        "sql/gated_wake::test_somebody_is_told_though_an_open_transaction_has_taken_the_only_idle_row",
    ),
    "set_idle": Covered(
        "sql/gated_wake::test_a_sleeping_worker_is_told_at_the_spawners_commit_and_only_once",
        "- none",
        "sql/gated_wake::test_a_worker_falls_asleep_again_while_an_open_transaction_holds_its_idle_row",
        "sql/gated_wake::test_a_worker_falls_asleep_again_while_an_open_transaction_holds_its_idle_row",
    ),
    "clear_idle": Covered(
        "sql/watch::test_a_worker_that_is_busy_again_is_not_told",
        "- none",
        "sql/watch::test_a_worker_that_is_busy_again_is_not_told",
        "sql/watch::test_a_worker_that_is_busy_again_is_not_told",
    ),
    "watch_task": Covered(
        "sql/watch::test_a_watcher_is_told_when_the_task_ends",
        "sql/watch::test_a_watcher_is_told_when_the_task_ends",
        "sql/watch::test_a_watcher_is_told_when_the_task_ends",
        "sql/watch::test_watching_does_not_wait_for_an_end_that_is_under_way",
    ),
    "enforce_policies": Covered(
        "sql/cancel_retry::test_policies_are_enforced_without_a_claim_a_hundred_at_a_time",
        "- none: an unknown queue id has no tasks",
        "sql/cancel_retry::test_policies_are_enforced_without_a_claim_a_hundred_at_a_time",
        "sql/cancel_retry::test_enforcing_policies_passes_by_what_somebody_holds",
    ),
    "unserved_tasks": Covered(
        "sql/watch::test_tasks_that_nobody_takes_are_counted_by_name_once_they_are_overdue",
        "- none: an unknown queue id has no tasks",
        "sql/watch::test_tasks_that_nobody_takes_are_counted_by_name_once_they_are_overdue",
        "sql/watch::test_a_long_backlog_that_nobody_takes_is_not_counted_to_its_end",
    ),
    "check_invariants": Covered(
        "sql/invariants::test_each_rule_fires_on_a_violation_made_by_hand",
        "sql/invariants::test_the_check_keeps_to_the_queue_it_was_asked_for",
        READS,
        "sql/invariants::test_the_check_waits_for_nobody",
    ),
    "queue_id_of": Covered("sql/arrays::test_a_batch_is_spawned_with_shared_option_sets", UNKNOWN, READS, READS),
}

#: What only the functions above call. A test would hold their shape instead of a promise.
INTERNAL = {
    "add_sentinels": "await: the rows of names nobody has used yet",
    "cancel_overdue": "claim and enforce_policies: tasks past their policy",
    "check_client_id": "spawn: the shape of a client's id",
    "queue_known": "emit and await: whether anybody would clean up",
    "queue_ids": "the worker's look-up of its queues",
    "read_client_id": "spawn: a client's id given as text",
    "claim_live": "the one body of claim_task and claim_tasks",
    "claimed_again": "claim_tasks: the rows of a lost reply",
    "create_queue_views": "create_queue: its views",
    "locate_task": "absurd.queries.tasks.get: unit/test_queries.py",
    "queue_stands": "absurd.queries.overview.find: unit/test_queries_pages.py, sql/test_plans_search.py",
    "search_events": "absurd.queries.events.find: unit/test_queries_pages.py, sql/test_plans_search.py",
    "search_tasks": "absurd.queries.tasks.find: unit/test_queries_pages.py, sql/test_plans_search.py",
    "search_waits": "absurd.queries.waits.find: unit/test_queries_pages.py, sql/test_plans_search.py",
    "workers_seen": "absurd.queries.overview.workers: unit/test_queries_pages.py, sql/test_plans_search.py",
    "delete_old_events": "the one body of cleanup_events and housekeep",
    "delete_old_tasks": "the one body of cleanup_tasks and housekeep",
    "delete_sentinels": "cleanup: rows nobody waits on",
    "delete_tasks": "cleanup and purge: a task with all that hangs on it",
    "expiry": "cleanup: the ttl as a moment",
    "fail_held": "the one body of fail_run, fail_runs and the sweep of leases",
    "finish_tasks": "the one way a task ends",
    "hold_run": "single verbs: wait for the locks the array form takes",
    "hold_runs": "array verbs: lock and judge the rows",
    "id_millis": "ids: the moment in one",
    "id_base": "ids: the random bits of a batch",
    "last_of_each": "array verbs: of equal rows the last counts",
    "later": "a moment some seconds after another, infinity beyond the calendar",
    "letters": "array verbs: the answer",
    "lock_waiters": "the end of a task: the rows of who waits for it",
    "mint_id": "ids: one of a batch",
    "next_ready": "claim_tasks: when to look again",
    "next_start": "fail: when the next attempt may start",
    "purge_rows": "the one body of purge_queue and purge_dropped_queues",
    "put_letter": "array verbs: one letter replaced",
    "raise_refusal": "single verbs: the contract's error for a verdict",
    "read_spawn_options": "spawn: options checked and typed",
    "refusal": "array verbs: the letter for a verdict",
    "require_length": "arguments of array verbs",
    "require_read_committed": "emit and ends: a snapshot older than its locks",
    "require_text": "arguments: must hold something",
    "spawn_one": "calls of 0.1.0 that are under way during the upgrade",
    "spawn_minted": "one usual task, for spawn_task and the SDK",
    "spawned_before": "spawn_tasks: answers for rows that were there",
    "state_name": "the word for a state's letter",
    "task_outcome": "what a waiting parent reads",
    "tell_watchers": "the end of a task: clients that watch it",
    "tidy_queue": "claim: the sweep of leases and cancellations",
    "usable_id": "ids: whether a client's has the right shape",
    "verdict": "what became of a run",
    "waits_for_events": "one probe of waits a name",
    "waits_for_tasks": "one probe of waits a task",
    "emit_one": "one usual event, for emit_event and the SDK",
    "wake_waiting": "emit: the tasks that wait for the names",
    "wake_waiters": "the end of a task: parents that sleep for it",
    "wake_workers": "whatever makes a task due: idle workers",
}

#: Functions that read or write tables of tasks without pinning their plans, and why they may.
UNPINNED = {
    "spawn_one": "inserts values: there is no plan to choose",
    "spawn_minted": "inserts, and two probes by primary key; never a sequential scan",
    "add_sentinels": "inserts by primary key only",
    "check_invariants": "for tests and doctors",
    "claimed_again": "only after a lost reply",
    "drop_queue": "by hand",
    "purge_dropped_queues": "the tombstones; the rows go through purge_rows",
    "watch_task": "one row by its primary key",
}


@cache
def test_names(file: str) -> frozenset[str]:
    folder, _, name = file.partition("/")
    path = TESTS / folder / f"test_{name}.py"
    if not path.exists():
        return frozenset()
    return frozenset(n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef))


test_names.__test__ = False  # type: ignore[attr-defined]


ROOT = TESTS.parent
#: Never leaves the engine: the inner block that raises it also catches it.
CAUGHT_INSIDE = {"AB099"}


def test_the_page_of_errors_has_every_sqlstate_the_engine_raises_and_every_class() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    documented = set(re.findall(r"`([0-9A-Z]{5})`", page))
    raised = set(re.findall(r"errcode = '(\w{5})'", schema.sql()))
    assert {"AB001", "AB002", "AB003", "AB004", "AB005", "42P01", "22023", "40001", "0A000"} <= raised
    assert raised - CAUGHT_INSIDE - documented == set()
    named = {rule.error.__name__ for rule in RULES if rule.sqlstate[:2] in ("AB", "42", "22", "0A", "P0")}
    assert named - {"SchemaMissing"} <= set(re.findall(r"`(\w+)` \|\n", page + "\n"))


def functions(conn: Connection) -> set[str]:
    question = "select proname from pg_proc where pronamespace = 'absurd'::regnamespace"
    return {name for (name,) in conn.execute(question).fetchall()}


def test_every_function_stands_in_one_of_the_tables(conn: Connection) -> None:
    assert not set(COVERAGE) & set(INTERNAL)
    assert functions(conn) == set(COVERAGE) | set(INTERNAL)


@pytest.mark.parametrize("function", COVERAGE)
def test_the_tests_of_a_function_exist_and_name_it_or_go_through_the_driver(function: str) -> None:
    for way, test in COVERAGE[function]._asdict().items():
        if test.startswith("- "):
            assert way != "good", "every function has a good path"
            continue
        file, _, name = test.partition("::")
        assert name in test_names(file), f"{function}, {way}: there is no {test}"


def test_every_function_pins_its_search_path_or_is_bound_when_it_is_created(conn: Connection) -> None:
    question = """
        select p.proname from pg_proc p join pg_language l on l.oid = p.prolang
         where p.pronamespace = 'absurd'::regnamespace
           and not (l.lanname = 'sql' and p.prosqlbody is not null)
           and not coalesce(p.proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']
    """
    assert conn.execute(question).fetchall() == []


def test_every_function_that_touches_tasks_pins_its_plans(conn: Connection) -> None:
    question = """
        select p.proname from pg_proc p
         where p.pronamespace = 'absurd'::regnamespace and p.prosqlbody is null
           and p.prosrc ~ 'absurd\\.(tasks|live|attempts|checkpoints|events|waits|idempotency_keys)\\M'
           and not (coalesce(p.proconfig, '{}') @> array['plan_cache_mode=force_generic_plan', 'jit=off']
                    and p.proconfig && array['enable_seqscan=off', 'enable_nestloop=off'])
    """
    assert {name for (name,) in conn.execute(question).fetchall()} == set(UNPINNED)

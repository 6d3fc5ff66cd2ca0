"""The harness of the benchmarks: its arithmetic, its lines, its verdicts. No server, no timing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks import figures, pgbench, plots, report, rows, states, targets, workloads
from benchmarks.adapters.protocol import Hits, Roles, System
from benchmarks.environments import ROOT
from benchmarks.harness import measure, missing
from benchmarks.measure import Cost, process_cpu, stat
from benchmarks.process import AdapterFailed, Counter
from benchmarks.results import Results
from benchmarks.rows import Contender, Row
from benchmarks.targets import Target, judge
from benchmarks.workloads import Run

FAST, SLOW = Contender("ours-async", "fast", {"concurrency": 9}, 10), Contender("absurd-sdk-sync", "slow", {}, 10)
ROW = Row("drain-1w", "no-op tasks", "drain", "tasks/s", (FAST, SLOW))


def line(row: str, system: str, median: float | None, setting: str = "a", **more: Any) -> dict[str, Any]:
    spread = {"min": median, "max": median}
    return {"kind": "row", "row": row, "system": system, "setting": setting, "median": median, **spread, **more}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "deeper" / "full.jsonl")


# ---------------------------------------------------------------- arithmetic


def test_a_percentile_is_the_least_value_that_the_share_does_not_exceed() -> None:
    values = [float(n) for n in range(1, 101)]
    assert figures.percentile(reversed(values), 0.5) == 50
    assert figures.percentile(values, 0.99) == 99
    assert figures.percentile([7.0], 0.99) == 7


def test_no_values_are_refused_rather_than_reported_as_zero() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        figures.percentile([], 0.5)
    with pytest.raises(ValueError, match="nothing was measured"):
        figures.summary([])


def test_a_summary_keeps_every_run() -> None:
    assert figures.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": [3.0, 1.0, 2.0]}


def test_a_ratio_above_one_is_better_for_rates_and_for_latencies() -> None:
    assert figures.ratio(30.0, 10.0) == 3
    assert figures.ratio(10.0, 30.0, lower=True) == 3
    assert figures.ratio(None, 10.0) is None
    assert figures.ratio(10.0, 0.0) is None


def test_the_better_of_two_settings_counts_and_failures_never_do() -> None:
    lines = [line("r", "s", 5.0, "x"), line("r", "s", 9.0, "y"), line("r", "s", None, "z")]
    assert figures.better(lines) == lines[1]
    assert figures.better(lines, lower=True) == lines[0]
    assert figures.better([lines[2]]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (0.0104, "0.010"), (1.234, "1.23"), (45.67, "45.7"), (456.7, "457"), (28779.4, "28,779")],
)
def test_figures_are_rounded_to_three_digits(value: float | None, text: str) -> None:
    assert figures.rounded(value) == text


def test_costs_are_divided_by_the_units_of_work() -> None:
    per = Cost(client_cpu=0.5, server_cpu=1.0, wal=2000, writes=10, commits=20).per(10)
    assert per == {"client_us": 50_000, "server_us": 100_000, "wal_bytes": 200, "writes": 1, "commits": 2}


def test_cpu_of_a_process_is_read_and_that_of_a_dead_one_is_zero() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    assert stat(child.pid) == []
    assert process_cpu(child.pid) == 0
    sum(range(3_000_000))
    assert process_cpu(os.getpid()) > 0


# ---------------------------------------------------------------- lines


def test_the_last_line_of_a_row_system_and_setting_counts(results: Results) -> None:
    results.put([line("r", "s", 1.0), line("r", "s", 2.0, "b")])
    results.put([line("r", "s", 3.0)])
    again = Results(results.path)
    assert sorted(one["median"] for one in again.of("r")) == [2.0, 3.0]
    again.compact()
    assert len(results.path.read_text().splitlines()) == 2
    assert Results(results.path).of("r") == again.of("r")


def test_a_line_that_a_kill_cut_off_is_measured_again(results: Results) -> None:
    results.put([line(ROW.name, FAST.system, 1.0, FAST.setting)])
    whole = json.dumps(line(ROW.name, SLOW.system, 1.0, SLOW.setting))
    with results.path.open("a") as file:
        file.write(whole[:-5])
    assert missing(ROW, Results(results.path)) == (SLOW,)


def test_missing_leaves_what_has_a_figure_and_repeats_what_failed(results: Results) -> None:
    assert missing(ROW, results) == (FAST, SLOW)
    results.put([line(ROW.name, FAST.system, 1.0, FAST.setting), line(ROW.name, SLOW.system, None, SLOW.setting)])
    assert missing(ROW, results) == (SLOW,)


# ---------------------------------------------------------------- turns


def test_contenders_run_in_turns_and_keep_their_medians() -> None:
    order: list[tuple[str, int]] = []
    values = iter([10.0, 1.0, 30.0, 3.0, 20.0, 2.0])

    def run(row: Row, contender: Contender) -> Run:
        order.append((contender.setting, len(order)))
        return Run(next(values), 10, Cost(0.001, 0.002, 100, 10, 10), samples=[float(len(order))], extra={"x": 1.0})

    fast, slow = measure(ROW, ROW.contenders, run, 3, lambda _: None)
    assert [setting for setting, _ in order] == ["fast", "slow"] * 3
    assert (fast["median"], fast["min"], fast["max"], fast["runs"]) == (20, 10, 30, [10, 30, 20])
    assert (slow["median"], slow["samples"], slow["p50"], slow["p99"]) == (2, 3, 4, 6)
    assert fast["cost"]["client_us"] == pytest.approx(100)
    assert fast["extra"] == {"x": 1}
    assert json.loads(json.dumps(fast)) == fast


def test_a_contender_that_fails_keeps_a_line_without_a_figure_and_stops_nobody() -> None:
    said: list[str] = []

    def run(row: Row, contender: Contender) -> Run:
        if contender is SLOW:
            raise AdapterFailed("the process ended")
        return Run(5.0, 10)

    fast, slow = measure(ROW, ROW.contenders, run, 2, said.append)
    assert fast["median"] == 5
    assert slow["median"] is None
    assert "the process ended" in slow["error"]
    assert sum("failed" in text for text in said) == 1


# ---------------------------------------------------------------- targets


def test_a_target_without_its_figure_is_not_met_and_stands_in_the_table(results: Results) -> None:
    text = targets.table(results)
    assert len(text.splitlines()) == len(targets.TARGETS) + 2
    assert text.count("| not met (no figure) |") == len(targets.TARGETS)
    assert "| met |" not in text


def test_a_ratio_target_is_held_against_the_better_opponent(results: Results) -> None:
    target = Target("f", "2x", "r", "ours-sync", ("absurd-sdk-sync", "absurd-sdk-async"), factor=2)
    results.put([line("r", "ours-sync", 30.0), line("r", "absurd-sdk-sync", 10.0), line("r", "pgqueuer", 99.0)])
    assert judge(target, results).met
    results.put([line("r", "absurd-sdk-async", 16.0, "other")])
    verdict = judge(target, results)
    assert (verdict.met, verdict.opponent, verdict.words) == (False, "absurd-sdk-async (other)", "not met")
    assert verdict.ratio == pytest.approx(30 / 16)


def test_the_better_opponent_is_the_quicker_one_where_less_is_better(results: Results) -> None:
    target = Target("f", "2x", "r", "ours-sync", ("dbos",), factor=2, lower=True)
    results.put(
        [line("r", "ours-sync", 5.0), line("r", "dbos", 30.0, "poll 1 s"), line("r", "dbos", 8.0, "poll 0.02 s")]
    )
    verdict = judge(target, results)
    assert (verdict.theirs, verdict.met) == (8, False)


def test_a_ratio_target_without_an_opponent_is_not_met(results: Results) -> None:
    results.put([line("r", "ours-sync", 30.0)])
    verdict = judge(Target("f", "2x", "r", "ours-sync", ("dbos",), factor=2), results)
    assert verdict.words == "not met (no figure to compare)"


def test_less_is_better_for_latencies_and_costs(results: Results) -> None:
    cost = {"cost": {"client_us": 40.0}, "p99": 9.0}
    results.put([line("r", "ours-sync", 2.0, **cost), line("r", "dbos", 6.0, cost={"client_us": 100.0})])
    assert judge(Target("f", "", "r", "ours-sync", ("dbos",), factor=3, lower=True), results).met
    assert not judge(Target("f", "", "r", "ours-sync", ("dbos",), factor=3, metric="client_us"), results).met
    assert judge(Target("f", "", "r", "ours-sync", bound=10, aim=4, metric="p99"), results).met
    assert judge(Target("f", "", "r", "ours-sync", bound=10, aim=4, metric="p99"), results).aim_met is False
    assert not judge(Target("f", "", "r", "ours-sync", bound=3), results).met


def test_growth_is_held_against_the_same_system_in_another_row(results: Results) -> None:
    results.put([line("small", "ours-async", 100.0), line("large", "ours-async", 89.0)])
    target = Target("f", "", "large", "ours-async", ("ours-async",), "small", factor=0.9)
    assert not judge(target, results).met
    results.put([line("large", "ours-async", 91.0)])
    assert judge(target, results).met


def test_a_ratio_of_two_windows_says_so(results: Results) -> None:
    target = Target("f", "2x", "r", "ours-sync", ("dbos",), factor=2)
    results.put([line("r", "ours-sync", 30.0, window="today"), line("r", "dbos", 10.0, window="today")])
    assert judge(target, results).opponent == "dbos (a)"
    results.put([line("r", "dbos", 10.0, window="tomorrow")])
    assert judge(target, results).opponent == "dbos (a), measured in another window"


def test_every_target_names_a_row_and_systems_that_are_measured() -> None:
    measured = {row.name: {one.system for one in row.contenders} for row in rows.full()}
    for target in targets.TARGETS:
        assert target.system in measured[target.row], target
        assert set(target.against) & measured[target.other or target.row] or not target.against, target
        assert (target.factor is None) != (target.bound is None), target


# ---------------------------------------------------------------- rows


def test_rows_and_their_settings_are_told_apart_by_name() -> None:
    names = [row.name for row in rows.full()]
    assert len(set(names)) == len(names)
    for row in rows.full():
        assert row.workload in workloads.WORKLOADS
        assert len({(one.system, one.setting) for one in row.contenders}) == len(row.contenders), row.name
        assert all(one.n > 0 for one in row.contenders), row.name


def test_backlogs_and_waiters_are_for_ours_and_absurd_sdk_alone() -> None:
    for row in rows.full():
        if row.workload in ("backlog", "waiters", "claim"):
            assert {rows.family(one.system) for one in row.contenders} == {"ours", "absurd-sdk"}


def test_the_quick_profile_is_five_rows_of_ours_and_absurd_sdk() -> None:
    quick = rows.quick()
    assert len(quick) == 5
    assert {rows.family(one.system) for row in quick for one in row.contenders} == {"ours", "absurd-sdk"}
    whole = {row.name: row for row in rows.full()}
    assert all(
        one.doing(0) in {each.doing(0) for each in whole[row.name].contenders}
        for row in quick
        for one in row.contenders
    )


def test_the_command_refuses_a_row_it_does_not_know() -> None:
    command = [sys.executable, "-m", "benchmarks", "full", "--only", "drain-9w"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "drain-9w" in done.stderr


# ---------------------------------------------------------------- page and pictures


def test_the_page_shows_figures_costs_failures_and_what_was_not_measured(results: Results, tmp_path: Path) -> None:
    cost = {"client_us": 12.0, "server_us": 34.0, "wal_bytes": 567.0, "writes": 0.01, "commits": 0.02}
    results.put([line(ROW.name, FAST.system, 25_000.0, "fast <&>", cost=cost, n=10)])
    results.put([line(ROW.name, SLOW.system, None, "slow", error="AdapterFailed: gone | away\nmore")])
    page = tmp_path / "docs" / "benchmarks.md"
    report.write(page, tmp_path / "plots", [ROW, Row("other", "another row", "drain", "s", ())], results)
    text = page.read_text()
    assert "| 25,000 [25,000-25,000] | 12.0 | 34.0 | 567 | 0.010 | 0.020 |" in text
    assert "| failed: AdapterFailed: gone / away |" in text
    assert "### another row\n\nNot measured." in text
    assert "](../plots/drain-1w.svg)" in text
    assert ElementTree.parse(tmp_path / "plots" / "drain-1w.svg").getroot().tag.endswith("svg")


def test_bars_are_as_long_as_their_figures() -> None:
    drawn = ElementTree.fromstring(
        plots.bars("t", "s", [line("r", "a", 10.0), line("r", "b", 5.0), line("r", "c", None)])
    )
    widths = [float(box.get("width", 0)) for box in drawn.iter() if box.tag.endswith("rect")][1:]
    assert len(widths) == 2
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)


def test_the_report_of_pgbench_is_read() -> None:
    text = "number of transactions actually processed: 15367\ntps = 5123.4 (without initial connection time)\n"
    assert pgbench.read(text) == (5123.4, 15367)
    with pytest.raises(RuntimeError, match="nothing that could be read"):
        pgbench.read("pgbench: error")


# ---------------------------------------------------------------- adapters


def test_no_handler_is_lost_when_threads_count_at_once() -> None:
    counter = Counter()
    try:
        hits = Hits(counter.add())
        threads = [threading.Thread(target=lambda: [hits.hit() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        hits.close()
        assert counter.value == 8000
        counter.wait(8000, 0)
        with pytest.raises(AdapterFailed, match="8000 of 8001"):
            counter.wait(8001, 0)
    finally:
        counter.close()


class Recorder(System):
    """A sync system that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("url", {}, Hits(None))
        self.calls: list[Any] = []

    def open(self) -> None:
        self.calls.append("open")

    def spawn(self, kind: str, params: dict[str, Any]) -> None:
        self.calls.append((kind, params["n"]))

    def spawn_bulk(self, kind: str, many: list[dict[str, Any]]) -> None:
        self.calls.append([one["n"] for one in many])


class AsyncRecorder(Recorder):
    """The same, as coroutines."""

    async def open(self) -> None:  # type: ignore[override]
        self.calls.append("open")

    async def spawn(self, kind: str, params: dict[str, Any]) -> None:  # type: ignore[override]
        self.calls.append((kind, params["n"]))


@pytest.mark.parametrize("system", [Recorder(), AsyncRecorder()], ids=["sync", "async"])
def test_a_producer_is_ready_then_goes_then_reports(system: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    Roles(system, {"role": "spawn", "n": 3, "first": 5, "kind": "steps"}, iter(['{"go": true}\n'])).run()
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [one["event"] for one in events] == ["ready", "done"]
    assert events[1]["ended"] >= events[1]["began"]
    assert system.calls == ["open", *(("noop", n) for n in range(10)), ("steps", 5), ("steps", 6), ("steps", 7)]


def test_bulk_calls_are_cut_to_size() -> None:
    system = Recorder()
    Roles(system, {"role": "spawn_bulk", "n": 5, "every": 2}, iter(["go"])).run()
    assert system.calls == ["open", [0, 1], [2, 3], [4]]


# ---------------------------------------------------------------- large states


@pytest.mark.parametrize("state", ["finished", "sleeping", "due"])
def test_a_large_past_made_by_copying_is_one_the_engine_could_have_made(
    state: str, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("select absurd.create_queue('bench')")
    task = "select run_id, task_id from absurd.spawn_task('bench', 'work', '{}')"
    run, task_id = conn.execute(task).fetchone() or ("", "")
    if state != "due":
        conn.execute("select absurd.claim_task('bench', 'w', 60, 1)")
    if state == "finished":
        conn.execute("select absurd.complete_run('bench', %s, '1')", (run,))
    if state == "sleeping":
        conn.execute("select absurd.await_event('bench', %s, %s, 'step', 'event-0', null)", (task_id, run))
        assert states.scalar(conn, states.SLEEPING["ours"]) == 1
    states.multiply(conn, "ours", state, 20)
    assert conn.execute("select * from absurd.check_invariants()").fetchall() == []
    assert states.scalar(conn, "select count(distinct task_id) from absurd.tasks") == 21
    assert states.scalar(conn, states.UNFINISHED["ours"]) is (state != "finished")
    if state == "sleeping":
        # Each waits for an event of its own: waking one wakes nobody else.
        conn.execute("select absurd.emit_event('bench', 'asleep-7', '1')")
        assert states.scalar(conn, states.SLEEPING["ours"]) == 20

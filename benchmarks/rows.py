"""The rows: which workload, which systems with which settings, how much of it. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

OURS = ("ours-sync", "ours-async")
ABSURD_SDK = ("absurd-sdk-sync", "absurd-sdk-async")


@dataclass(frozen=True)
class Contender:
    """One system with one setting; `n` units of work a run."""

    system: str
    setting: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    n: int = 0

    def doing(self, n: int) -> Contender:
        """The same with another amount."""
        return replace(self, n=n)


@dataclass(frozen=True)
class Row:
    """One comparison. `lower`: less is better."""

    name: str
    title: str
    workload: str
    unit: str
    contenders: tuple[Contender, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 3
    lower: bool = False


def contender(system: str, setting: str = "default", **options: Any) -> Contender:
    """Short for the tables below."""
    return Contender(system, setting, options)


OURS_SYNC = contender("ours-sync", "50 threads", concurrency=50)
OURS_ASYNC = contender("ours-async", "100 slots", concurrency=100)
OURS_ONE_SYNC = contender("ours-sync", "one client")
OURS_ONE_ASYNC = contender("ours-async", "one client")
SDK_SYNC = contender("absurd-sdk-sync", "batch 100, poll 0.01 s", concurrency=1, batch_size=100, poll_interval=0.01)
SDK_SYNC_SLOW = contender(
    "absurd-sdk-sync", "batch 100, poll 0.25 s", concurrency=1, batch_size=100, poll_interval=0.25
)
SDK_ASYNC = contender("absurd-sdk-async", "concurrency 100, poll 0.01 s", concurrency=100, poll_interval=0.01)
SDK_ASYNC_SLOW = contender("absurd-sdk-async", "concurrency 100, poll 0.25 s", concurrency=100, poll_interval=0.25)
SDK_ONE = contender("absurd-sdk-sync", "one client")
DBOS = contender("dbos", "8 threads, poll 0.02 s", max_executor_threads=8, poll=0.02)
DBOS_SLOW = contender("dbos", "8 threads, poll 1 s", max_executor_threads=8, poll=1.0)
DBOS_ONE = contender("dbos", "one client")
PROCRASTINATE = tuple(contender("procrastinate", f"concurrency {n}", concurrency=n) for n in (1, 10, 20))
PROCRASTINATE_ONE = contender("procrastinate", "one client")
PGQUEUER = tuple(contender("pgqueuer", f"batch {n}", batch_size=n) for n in (100, 500))
PGQUEUER_ONE = contender("pgqueuer", "one client")
FLOOR = contender("floor", "commit + NOTIFY + claim")

SDK_WORKERS = (SDK_SYNC, SDK_SYNC_SLOW, SDK_ASYNC, SDK_ASYNC_SLOW)
DBOS_WORKERS = (DBOS, DBOS_SLOW)

#: Units of work per run, by system, for about two to four seconds each.
_DRAIN = {"ours": 40_000, "absurd-sdk": 3_000, "dbos": 2_000, "procrastinate": 1_500, "pgqueuer": 20_000}
_STEPS = {"ours": 8_000, "absurd-sdk": 800, "dbos": 500}
_SPAWN = {"ours": 4_000, "absurd-sdk": 4_000, "dbos": 2_000, "procrastinate": 2_000, "pgqueuer": 4_000}
_BULK = {"ours": 100_000, "absurd-sdk": 10_000, "dbos": 5_000, "procrastinate": 20_000, "pgqueuer": 50_000}
SAMPLES = 150


def family(system: str) -> str:
    """`ours` for ours-sync, `absurd-sdk` for both of its clients; a peer's own name otherwise."""
    return next((known for known in ("ours", "absurd-sdk") if system.startswith(known)), system)


def sized(amounts: Mapping[str, int], *contenders: Contender) -> tuple[Contender, ...]:
    """The contenders with the amount of their family."""
    return tuple(one.doing(amounts[family(one.system)]) for one in contenders)


def each(n: int, *contenders: Contender) -> tuple[Contender, ...]:
    """The contenders with one amount for all."""
    return tuple(one.doing(n) for one in contenders)


def _drains() -> list[Row]:
    no_op = sized(_DRAIN, OURS_SYNC, OURS_ASYNC, SDK_SYNC, SDK_ASYNC, *DBOS_WORKERS, *PROCRASTINATE, *PGQUEUER)
    steps = sized(_STEPS, OURS_SYNC, OURS_ASYNC, SDK_SYNC, SDK_ASYNC, *DBOS_WORKERS)
    rows = []
    for workers in (1, 2):
        many = "one worker process" if workers == 1 else "two worker processes"
        how = {"workers": workers}
        rows.append(Row(f"drain-{workers}w", f"no-op tasks, {many}", "drain", "tasks/s", no_op, how | {"kind": "noop"}))
        rows.append(
            Row(f"steps-{workers}w", f"three steps, {many}", "drain", "tasks/s", steps, how | {"kind": "steps"})
        )
    return rows


def _spawns() -> list[Row]:
    one_by_one = sized(_SPAWN, OURS_ONE_SYNC, OURS_ONE_ASYNC, SDK_ONE, DBOS_ONE, PROCRASTINATE_ONE, PGQUEUER_ONE)
    bulk = sized(_BULK, OURS_ONE_SYNC, OURS_ONE_ASYNC, SDK_ONE, DBOS_ONE, PROCRASTINATE_ONE, PGQUEUER_ONE)
    spawn, concurrent = {"role": "spawn"}, {"role": "spawn_concurrent", "callers": 100}
    eight = each(16_000, contender("ours-sync", "8 processes"))
    coalesced = each(20_000, contender("ours-async", "100 callers, one client"))
    return [
        Row("spawn", "spawn one at a time, one client", "produce", "tasks/s", one_by_one, spawn),
        Row("spawn-8c", "spawn one at a time, 8 clients", "produce", "tasks/s", eight, spawn | {"clients": 8}),
        Row("spawn-concurrent", "100 concurrent async spawns", "produce", "tasks/s", coalesced, concurrent),
        Row("spawn-bulk", "spawn 10,000 a call", "produce", "tasks/s", bulk, {"role": "spawn_bulk", "every": 10_000}),
    ]


def _latencies() -> list[Row]:
    pickup = (OURS_SYNC, OURS_ASYNC, *SDK_WORKERS, *DBOS_WORKERS, PROCRASTINATE[1], PGQUEUER[0], FLOOR)
    resume = (OURS_SYNC, OURS_ASYNC, *SDK_WORKERS, *DBOS_WORKERS)
    spawn, emit = {"verb": "spawn"}, {"verb": "emit"}
    return [
        Row("pickup", "spawn to start, idle worker", "latency", "ms", each(SAMPLES, *pickup), spawn, lower=True),
        Row("resume", "emit to resume, idle worker", "latency", "ms", each(SAMPLES, *resume), emit, lower=True),
    ]


def _events() -> list[Row]:
    rows = [
        Row(
            f"emit-{clients}c",
            f"emit one at a time, {clients} client{'s' * (clients > 1)}",
            "produce",
            "events/s",
            each(4_000, OURS_ONE_SYNC, SDK_ONE),
            {"role": "emit", "clients": clients},
        )
        for clients in (1, 4)
    ]
    arrays = each(40_000, OURS_ONE_SYNC)
    rows.append(
        Row(
            "emit-arrays",
            "emit 100 a call, one client",
            "produce",
            "events/s",
            arrays,
            {"role": "emit_bulk", "every": 100},
        )
    )
    for waiters in (1_000, 10_000):
        title = f"{waiters:,} waiters on one event, all completed"
        who = each(waiters, OURS_SYNC, OURS_ASYNC, SDK_SYNC, SDK_ASYNC)
        rows.append(Row(f"waiters-{waiters}", title, "waiters", "s", who, lower=True))
    return rows


def _sizes() -> list[Row]:
    amounts = {"ours": 20_000, "absurd-sdk": 2_000}
    who = sized(amounts, OURS_ASYNC, SDK_SYNC)
    rows = [
        Row("backlog-small", "drain beside nothing", "backlog", "tasks/s", who),
        Row("backlog-finished", "drain beside 500,000 finished", "backlog", "tasks/s", who, {"finished": 500_000}),
        Row("backlog-sleeping", "drain beside 50,000 sleeping", "backlog", "tasks/s", who, {"sleeping": 50_000}),
        Row("backlog-due", "drain the first of 200,000 due", "backlog", "tasks/s", who, {"due": 200_000}),
    ]
    sql = (contender("ours-sync", "claim_task in SQL"), contender("absurd-sdk-sync", "claim_task in SQL"))
    for due in (10, 10_000, 100_000):
        how, title = {"due": due}, f"claim of 1 at {due:,} due, server time"
        rows.append(Row(f"claim-{due}", title, "claim", "ms", each(100, *sql), how, lower=True))
    queues = each(300, OURS_ONE_SYNC, SDK_ONE)
    rows.append(Row("queues-300", "create 300 queues", "produce", "queues/s", queues, {"role": "create_queues"}))
    return rows


def _quiet() -> list[Row]:
    idle = each(10, OURS_ASYNC, SDK_ASYNC_SLOW, SDK_ASYNC, DBOS_SLOW, PROCRASTINATE[1], PGQUEUER[0])
    memory = each(
        1_000,
        contender("ours-async", "1,000 slots", concurrency=1_000),
        contender("absurd-sdk-async", "concurrency 1,000", concurrency=1_000, poll_interval=0.01),
    )
    return [
        Row("idle-10", "10 idle workers", "idle", "transactions/s each", idle, {"seconds": 20}, runs=1, lower=True),
        Row("memory-1000", "1,000 concurrent async tasks", "memory", "MB resident", memory, runs=1, lower=True),
    ]


def _floors() -> list[Row]:
    rows = []
    for name, title, clients in (
        ("select", "empty select", 1),
        ("insert", "bare insert of a row", 1),
        ("insert", "bare insert of a row", 8),
        ("rows", "bare insert of a spawn's two rows", 8),
        ("minted", "absurd.spawn_minted, what the client calls", 8),
        ("spawn", "absurd.spawn_task", 1),
        ("spawn", "absurd.spawn_task", 8),
    ):
        who = each(3, contender("floor" if name in ("select", "insert") else "ours-sync", "pgbench"))
        how = {"script": name, "clients": clients}
        many = f"{clients} client{'s' * (clients > 1)}"
        rows.append(Row(f"floor-{name}-{clients}c", f"pgbench: {title}, {many}", "pgbench", "transactions/s", who, how))
    return rows


def full() -> tuple[Row, ...]:
    """Every row of `make bench`."""
    groups = (_floors, _spawns, _drains, _latencies, _events, _sizes, _quiet)
    return tuple(row for group in groups for row in group())


def quick() -> tuple[Row, ...]:
    """The five rows of `make bench-quick`: ours and absurd-sdk in its faster setting, smaller amounts."""
    amounts = {
        "spawn": {"ours": 2_000, "absurd-sdk": 2_000},
        "drain-1w": {"ours": 20_000, "absurd-sdk": 1_500},
        "steps-1w": {"ours": 4_000, "absurd-sdk": 400},
        "pickup": {"ours": 40, "absurd-sdk": 40},
        "waiters-1000": {"ours": 1_000, "absurd-sdk": 1_000},
    }
    kept = {OURS_SYNC, OURS_ASYNC, OURS_ONE_SYNC, SDK_ONE, SDK_SYNC, SDK_ASYNC}
    settings = {(one.system, one.setting) for one in kept}
    rows = []
    for row in full():
        if row.name in amounts:
            who = [one for one in row.contenders if (one.system, one.setting) in settings]
            rows.append(replace(row, contenders=sized(amounts[row.name], *who)))
    return tuple(rows)

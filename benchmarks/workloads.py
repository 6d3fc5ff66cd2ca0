"""How each workload is run: one run, one system, one database. Returns the figure, its cost and what else is worth printing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks import pgbench, states
from benchmarks.figures import percentile
from benchmarks.measure import Cost, Meter, resident_bytes
from benchmarks.process import LIMIT, AdapterFailed, Counter, Process, one_shot, started
from benchmarks.rows import Contender, Row, family
from benchmarks.server import Server

_SETTLE = 1.0


@dataclass
class Run:
    """What one run gave. `n`: units of work that the cost is divided by."""

    value: float
    n: int
    cost: Cost | None = None
    samples: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)


class Bench:
    """One run of one contender in one row."""

    def __init__(self, server: Server, row: Row, contender: Contender, scale: float) -> None:
        self.server, self.row, self.contender, self.scale = server, row, contender, scale
        self.family = family(contender.system)
        self.n = self.scaled(contender.n)
        self.counter = Counter()

    def scaled(self, n: int) -> int:
        """An amount at this scale, never less than 10 unless it is less by itself."""
        return max(int(n * self.scale), min(n, 10))

    def run(self) -> Run:
        """Do it."""
        try:
            return WORKLOADS[self.row.workload](self)
        finally:
            self.counter.close()

    # ------------------------------------------------------------ databases

    def job(self, url: str, role: str, **more: Any) -> dict[str, Any]:
        """The first line for an adapter."""
        options = dict(self.contender.options)
        if role == "install":
            options["server_bin"] = str(self.server.program("psql").parent)
        return {"url": url, "role": role, "options": options, "n": self.n, **more}

    def base(self) -> str:
        """The template with the schema and the queue."""
        # Fillers and installers are the sync adapters where there are two: same schema, same SQL.
        return self.server.template(f"{self.family}_base", lambda url: one_shot(self.filler, self.job(url, "install")))

    @property
    def filler(self) -> str:
        """The adapter that installs and fills."""
        return f"{self.family}-sync" if self.family in ("ours", "absurd-sdk") else self.contender.system

    def filled(self, kind: str, n: int, **params: Any) -> str:
        """The template with n tasks of a kind."""
        base = self.base()

        def make(url: str) -> None:
            self._from(base, url)
            self.fill(url, kind, n, **params)

        return self.server.template(f"{self.family}_{kind}_{n}", make)

    def fill(self, url: str, kind: str, n: int, first: int = 0, **params: Any) -> None:
        """Spawn n tasks by the bulk path, untimed."""
        one_shot(
            self.filler, self.job(url, "spawn_bulk") | dict(kind=kind, n=n, every=10_000, first=first, params=params)
        )

    def _from(self, template: str, url: str) -> None:
        # `template()` has made an empty database of the right name: replace it by a copy.
        name = str(conninfo_to_dict(url)["dbname"])
        self.server.drop(name)
        self.server.conn.execute(f'create database "{name}" template "{template}"')

    @contextlib.contextmanager
    def on(self, template: str) -> Iterator[tuple[str, psycopg.Connection, Meter]]:
        """A copy to run on, a session on it for looking, and a meter."""
        with self.server.copy(template) as url, psycopg.connect(url, autocommit=True) as conn:
            yield url, conn, Meter(self.server.pid, self.server.conn, conn.info.dbname)

    def workers(self, url: str, many: int = 1) -> list[dict[str, Any]]:
        """The jobs of so many worker processes."""
        jobs = [self.job(url, "work", counter=self.counter.add()) for _ in range(many)]
        for number, job in enumerate(jobs):
            job["options"]["number"] = number
            if self.family != "dbos":
                del job["options"]["number"]
        return jobs

    def wait_idle(self, processes: list[Process]) -> None:
        """Start workers and let them find nothing to do."""
        for process in processes:
            process.go()
        for process in processes:
            process.expect("began")
        time.sleep(_SETTLE)


# ---------------------------------------------------------------- workers


def _start(processes: list[Process], meter: Meter) -> tuple[float, float]:
    """Start the workers; the moment the first loop began, and their CPU until then."""
    for process in processes:
        process.go()
    began = [process.expect("began") for process in processes]
    meter.start()
    return min(one["at"] for one in began), sum(one["cpu"] for one in began)


def drain(bench: Bench) -> Run:
    """From the start of the first worker loop until every task has ended in the database."""
    template = bench.filled(bench.row.options["kind"], bench.n)
    with bench.on(template) as (url, conn, meter):
        with started(bench.contender.system, bench.workers(url, bench.row.options["workers"])) as processes:
            began, cpu = _start(processes, meter)
            bench.counter.wait(bench.n)
            ended = states.wait_until(conn, states.UNFINISHED[bench.family], False, 30.0)
            cpu = sum(process.cpu() for process in processes) - cpu
            meter.stop()
            for process in processes:
                process.stop()
        return Run(bench.n / (ended - began), bench.n, meter.cost(cpu))


def waiters(bench: Bench) -> Run:
    """From the emit until every waiter has been resumed and has completed."""
    filled = bench.filled("wait", bench.n, event="go")

    def fall_asleep(url: str) -> None:
        bench._from(filled, url)
        with (
            started(bench.contender.system, bench.workers(url)) as (worker,),
            psycopg.connect(url, autocommit=True) as conn,
        ):
            bench.wait_idle([worker])
            states.wait_until(conn, states.SLEEPING[bench.family], bench.n, LIMIT)
            worker.stop()

    asleep = bench.server.template(f"{bench.family}_asleep_{bench.n}", fall_asleep)
    with bench.on(asleep) as (url, conn, meter):
        with started(bench.contender.system, bench.workers(url)) as (worker,):
            bench.wait_idle([worker])
            meter.start()
            cpu, began = worker.cpu(), time.monotonic()
            conn.execute("select absurd.emit_event('bench', 'go', '{\"ok\": true}')")
            bench.counter.wait(bench.n)
            ended = states.wait_until(conn, states.UNFINISHED[bench.family], False, 30.0)
            cpu = worker.cpu() - cpu
            meter.stop()
            worker.stop()
        return Run(ended - began, bench.n, meter.cost(cpu))


def backlog(bench: Bench) -> Run:
    """The rate of the first n handlers beside a large past or a long queue."""
    options = bench.row.options
    name, more = next(((state, bench.scaled(options[state])) for state in states_of(options)), ("small", 0))
    base = bench.base()

    def make(url: str) -> None:
        bench._from(base, url)
        if more:
            _one(bench, url, name)
            with psycopg.connect(url) as conn:
                states.multiply(conn, bench.family, name, max(more - bench.n, 0) if name == "due" else more)
        bench.fill(url, "noop", bench.n, first=1)

    with bench.on(bench.server.template(f"{bench.family}_backlog_{name}_{more}", make)) as (url, _, meter):
        with started(bench.contender.system, bench.workers(url)) as (worker,):
            began, cpu = _start([worker], meter)
            ended = bench.counter.wait(bench.n)
            done, cpu = bench.counter.value, worker.cpu() - cpu
            meter.stop()
            worker.stop()
        return Run(done / (ended - began), done, meter.cost(cpu))


def states_of(options: Any) -> list[str]:
    """The large states a row asks for."""
    return [name for name in ("finished", "sleeping", "due") if name in options]


def _one(bench: Bench, url: str, state: str) -> None:
    """Bring one task into a state by the system itself."""
    bench.fill(url, "wait" if state == "sleeping" else "noop", 1)
    if state == "due":
        return
    with (
        started(bench.contender.system, bench.workers(url)) as (worker,),
        psycopg.connect(url, autocommit=True) as conn,
    ):
        bench.wait_idle([worker])
        if state == "sleeping":
            states.wait_until(conn, states.SLEEPING[bench.family], 1, 30.0)
        else:
            states.wait_until(conn, states.UNFINISHED[bench.family], False, 30.0)
        worker.stop()
    bench.counter.reset()


def idle(bench: Bench) -> Run:
    """What workers with nothing to do cost: transactions a second each, CPU a minute for all of them."""
    seconds = max(bench.row.options["seconds"] * bench.scale, 2.0)
    many = bench.contender.n
    with bench.on(bench.base()) as (url, _, meter):
        with started(bench.contender.system, bench.workers(url, many)) as processes:
            bench.wait_idle(processes)
            # A session reports its commits when it next speaks: those of the start must not count.
            time.sleep(12 * _SETTLE)
            cpu = sum(process.cpu() for process in processes)
            meter.start()
            time.sleep(seconds)
            meter.stop()
            cpu = sum(process.cpu() for process in processes) - cpu
            # Now: their own shutdown is not idleness. Busy sessions report at least once a second.
            cost = meter.cost(cpu)
            for process in processes:
                process.stop()
        minute = 60 / seconds
        extra = {
            "client_cpu_s_per_minute": cost.client_cpu * minute,
            "server_cpu_s_per_minute": cost.server_cpu * minute,
        }
        return Run(cost.commits / seconds / many, many, cost, extra=extra)


def memory(bench: Bench) -> Run:
    """Resident memory of one worker while n async tasks are inside their handlers."""
    with bench.on(bench.base()) as (url, _, _), started(bench.contender.system, bench.workers(url)) as (worker,):
        bench.wait_idle([worker])
        before = resident_bytes(worker.pid)
        bench.fill(url, "hold", bench.n)
        bench.counter.wait(bench.n, 60.0)
        time.sleep(_SETTLE)
        after = resident_bytes(worker.pid)
        worker.stop()
    extra = {"idle_mb": before / 2**20, "kb_per_task": (after - before) / bench.n / 1024}
    return Run(after / 2**20, bench.n, extra=extra)


# ---------------------------------------------------------------- producers


def produce(bench: Bench) -> Run:
    """Calls of a role by one or more client processes, from the first beginning to the last end."""
    options = dict(bench.row.options)
    clients = options.pop("clients", 1)
    role = options.pop("role")
    share = bench.n // clients
    if "every" in options:
        options["every"] = min(options["every"], share)
        share -= share % options["every"]
    with bench.on(bench.base()) as (url, _, meter):
        jobs = [bench.job(url, role) | options | {"n": share, "first": share * k} for k in range(clients)]
        with started(bench.contender.system, jobs) as processes:
            meter.start()
            for process in processes:
                process.go()
            done = [process.expect("done") for process in processes]
            meter.stop()
        total = share * clients
        seconds = max(one["ended"] for one in done) - min(one["began"] for one in done)
        return Run(total / seconds, total, meter.cost(sum(one["cpu"] for one in done)))


def latency(bench: Bench) -> Run:
    """From the return of the call to the handler, worker idle in between; milliseconds."""
    verb = bench.row.options["verb"]
    kind = "wait" if verb == "emit" else "mark"
    template = bench.filled(kind, bench.n) if verb == "emit" else bench.base()
    with bench.on(template) as (url, conn, meter):
        producer = bench.job(url, "spaced", verb=verb, kind=kind)
        with started(bench.contender.system, bench.workers(url)) as (worker,):
            bench.wait_idle([worker])
            if verb == "emit" and bench.family in states.SLEEPING:
                states.wait_until(conn, states.SLEEPING[bench.family], bench.n, 60.0)
            elif verb == "emit":
                bench.counter.wait(bench.n, 60.0)
            entered = bench.counter.value if verb == "emit" else 0
            with started(bench.contender.system, [producer]) as (sender,):
                time.sleep(_SETTLE)
                meter.start()
                cpu = worker.cpu()
                sender.go()
                times = sender.expect("done")["times"]
                bench.counter.wait(entered + bench.n, 30.0)
                cpu = worker.cpu() - cpu
                meter.stop()
            marks = {int(number): at for number, at in worker.stop()["marks"].items()}
        cost = meter.cost(cpu)
    missing = [number for number in range(bench.n) if number not in marks]
    if missing:
        raise AdapterFailed(f"{len(missing)} of {bench.n} samples never arrived")
    samples = [(marks[number] - at) * 1000 for number, at in enumerate(times)]
    return Run(percentile(samples, 0.5), bench.n, cost, samples)


# ---------------------------------------------------------------- SQL alone


def claim(bench: Bench) -> Run:
    """Server time of one `claim_task` of 1: EXPLAIN ANALYZE of the call, rolled back, milliseconds; p50 of n."""
    due = bench.scaled(bench.row.options["due"])
    base = bench.base()

    def make(url: str) -> None:
        bench._from(base, url)
        _one(bench, url, "due")
        with psycopg.connect(url) as conn:
            states.multiply(conn, bench.family, "due", due - 1)

    query = "explain (analyze, timing off, format json) select * from absurd.claim_task('bench', 'w', 120, 1)"
    times = []
    with bench.on(bench.server.template(f"{bench.family}_due_{due}", make)) as (_, conn, _):
        for _number in range(bench.n + 5):
            with conn.transaction(force_rollback=True):
                plan = states.scalar(conn, query)
            times.append(float(plan[0]["Execution Time"]))
    # The first calls of a session compile and plan.
    return Run(percentile(times[5:], 0.5), bench.n, samples=times[5:])


def pgbench_floor(bench: Bench) -> Run:
    """The least that Postgres can do on this machine: transactions a second of pgbench."""
    script, clients = bench.row.options["script"], bench.row.options["clients"]
    seconds = max(round(bench.contender.n * bench.scale), 1)
    with bench.on(bench.base()) as (url, _, meter):
        meter.start()
        rate, done, cpu = pgbench.run(bench.server.program("pgbench"), url, script, clients, seconds)
        meter.stop()
        return Run(rate, done, meter.cost(cpu))


WORKLOADS: dict[str, Callable[[Bench], Run]] = {
    "drain": drain,
    "waiters": waiters,
    "backlog": backlog,
    "idle": idle,
    "memory": memory,
    "produce": produce,
    "latency": latency,
    "claim": claim,
    "pgbench": pgbench_floor,
}

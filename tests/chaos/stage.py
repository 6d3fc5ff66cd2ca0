"""One server with all that stands around it: proxy, workers, producer. Runs rounds of faults, drains, checks."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.chaos import checks
from tests.chaos.fleet import Departure, Fleet
from tests.chaos.network import PRODUCER, Network
from tests.chaos.plan import LEASE, WORKERS, Fault, Round, faults
from tests.chaos.producer import Producer
from tests.chaos.server import Server, SmallDisk

QUEUES = ["chaos", "chaos: the other"]
STUCK_AFTER = 40.0  # seconds without any progress, with no fault under way
SETTLED_WITHIN = 20.0
#: what is counted in the logs of the workers
SAID = {"refused": r"the end of run \S+ was refused", "out of space": r"No space left on device"}
#: after a fault a worker may need so long until its leases are renewed again
GRACE = 3.0


class Failed(Exception):
    """Something must not be; the message says what, with evidence."""


class Stage:
    """Server, proxy, workers, producer, and the books."""

    def __init__(self, server: Server, folder: Path, seed: int, disk: SmallDisk | None = None) -> None:
        self.server, self.folder, self.disk = server, folder, disk
        self._rng = random.Random(seed)
        self.log: list[str] = []
        self._began = time.monotonic()
        for queue in QUEUES:
            server.ask("select absurd.create_queue(%s)", queue)
        self.proxy = Network(server.socket, seed, self._cut)
        self.fleet = Fleet(folder, [self.proxy.url(f"w{slot}") for slot in range(WORKERS)], QUEUES)
        self.producer = Producer(self.proxy.url(PRODUCER), QUEUES, seed)
        self.records = checks.Records(folder)
        self.counts: Counter[str] = Counter()
        self.unexplained = 0
        self._wondered: set[tuple[str, Any, int]] = set()
        self._crashing = threading.Lock()

    def note(self, what: str) -> None:
        """One line of the log of faults."""
        self.log.append(f"{time.monotonic() - self._began:8.2f} {what}")

    def _cut(self, told: dict[str, Any]) -> None:
        """What the proxy has done."""
        self.note(f"proxy: {told['did']} {told['name']} {told['until'] - told['since']:.1f} s {told['what']}")
        self._hit(told["name"], told["did"], told["since"])

    # -- faults --------------------------------------------------------------------------------------------------------

    def run_round(self, round_: Round, seconds: float, plan: list[Fault] | None = None) -> None:
        """Faults under load for so many seconds; then drain and check. Failed says what went wrong."""
        if not self.fleet.wait_started():
            raise Failed(f"no workers: {self.fleet.failures}\n{self.fleet.report()}")
        plan = faults(round_, seconds, self._rng) if plan is None else plan
        self.producer.begin(round_.tasks, seconds)
        began = time.monotonic()
        threads = []
        for fault in plan:
            while (left := began + fault.at - time.monotonic()) > 0:
                time.sleep(min(left, 0.2))
                self._still_well()
            self.note(f"{fault.kind} {fault.worker} {fault.seconds:.1f} s {fault.verb if fault.kind == 'lose' else ''}")
            thread = threading.Thread(target=self._do, args=(fault,), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                self._still_well()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        self._drain()
        self._check()

    def _do(self, fault: Fault) -> None:
        try:
            getattr(self, f"_do_{fault.kind}")(fault)
        except Exception as error:
            self.fleet.failures.append(f"the fault {fault} failed itself: {type(error).__name__}: {error}")

    def _do_kill(self, fault: Fault) -> None:
        self.fleet.kill(fault.worker, fault.seconds)

    def _do_stop(self, fault: Fault) -> None:
        self.fleet.stop(fault.worker, fault.seconds)

    def _do_term(self, fault: Fault) -> None:
        self.fleet.term(fault.worker, fault.seconds)

    def _do_crash(self, fault: Fault) -> None:
        with self._crashing:
            since = time.time()
            self.server.crash(kill=self.counts["crash"] % 4 == 3)
            time.sleep(fault.seconds)
            self.server.start()
            self.counts["crash"] += 1
            self.fleet.hit_all("crash", since)
            self.note("recovered")

    def _do_terminate(self, fault: Fault) -> None:
        """Any backend; those of a worker's own three connections bear its name."""
        rows = self.server.ask(
            """select pg_terminate_backend(pid), application_name from pg_stat_activity
                where datname = current_database() and backend_type = 'client backend' and application_name <> 'chaos'
                order by random() limit 1"""
        )
        self.counts["terminate"] += len(rows)
        for _, name in rows:
            self._hit(name, "terminate", time.time())

    def _do_cut(self, fault: Fault) -> None:
        self.proxy.order("cut")

    def _do_lose(self, fault: Fault) -> None:
        self.proxy.order("lose", verb=fault.verb, seconds=fault.seconds)

    def _do_stall(self, fault: Fault) -> None:
        self._order_and_wait("stall", seconds=fault.seconds)

    def _do_hole(self, fault: Fault) -> None:
        self._order_and_wait("hole", seconds=fault.seconds)

    def _do_partition(self, fault: Fault) -> None:
        self._order_and_wait("partition", name=f"w{fault.worker}", seconds=fault.seconds)

    def _order_and_wait(self, do: str, *, seconds: float, **how: Any) -> None:
        self.proxy.order(do, seconds=seconds, **how)
        time.sleep(seconds)

    def _hit(self, name: str, what: str, since: float) -> None:
        """A connection of a worker was hit, or of the producer."""
        for worker in list(self.fleet.every):  # whoever was there meanwhile
            if worker.id.startswith(f"{name}-"):
                self.fleet.hit(worker, what, since)

    def _do_disk(self, fault: Fault) -> None:
        assert self.disk is not None
        since = time.time()
        self.disk.fill()
        time.sleep(fault.seconds / 2)
        if fault.verb:
            self.disk.fill()  # what the server has tidied away meanwhile
            self.server.need_log()
        time.sleep(fault.seconds / 2)
        self.counts["server gave up"] += not self.server.embedded.running
        self.disk.free()
        self.server.start()
        self.counts["disk"] += 1
        self.fleet.hit_all("disk", since)
        self.note("space again")

    def _still_well(self) -> None:
        failures = [*self.fleet.failures, *self.producer.failures]
        if failures:
            raise Failed("\n".join(failures))

    # -- the drain and the checks --------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Until everything that was spawned has ended; Failed when nothing moves any more."""
        self.note("drain")
        self.proxy.order("quiet")
        moved, before = time.monotonic(), (-1, -1)
        while True:
            self._still_well()
            live = self.server.one("select count(*) from absurd.live")
            if live == 0 and self.producer.done:
                break
            now = (
                self.server.one("select coalesce(sum(claim_no), 0) from absurd.live") + len(self.producer.ledger),
                live,
            )
            if now != before:
                moved, before = time.monotonic(), now
            if time.monotonic() - moved > STUCK_AFTER:
                raise Failed(f"stuck: {live} tasks, and nothing moves\n{self._waiting()}")
            time.sleep(0.1)  # what killed workers would signal is lost: the database alone is asked, by no hot loop
        deadline = time.monotonic() + SETTLED_WITHIN
        while self._under_way():
            if time.monotonic() > deadline:
                raise Failed(f"stuck: all tasks have ended, and handlers still run\n{self._open()}\n{self._waiting()}")
            time.sleep(0.1)  # their journals are files: nobody tells when a line is added

    def _under_way(self) -> int:
        self.records.read()
        return self.records.under_way(worker.id for worker in self.fleet.workers if worker is not None)

    def _open(self) -> Any:
        return {w.id: {k: n for k, n in self.records.open[w.id].items() if n} for w in self.fleet.workers if w}

    def _waiting(self) -> str:
        answers = {what: self.server.ask(query) for what, query in checks.WAITING.items()}
        lines = [f"{what}:\n" + "\n".join(f"    {row}" for row in rows) for what, rows in answers.items()]
        return "\n".join([*lines, *(f"{id}: {log}" for id, log in self.fleet.report().items())])

    def _check(self) -> None:
        """Every check, over all rounds so far: late damage to early tasks counts."""
        with self.server.connect() as conn:
            problems = checks.ask(conn, self.producer.ledger)
            problems += checks.count_effects(conn, self.producer.ledger, self.records)
            problems += checks.burnt_by_leaving(conn, self.fleet.departures, self._disturbed)
            expired = checks.expiries(conn, self.fleet.hits, LEASE, GRACE)
            problems += checks.too_many_unexplained(expired)
            self.unexplained = len(expired.unexplained)
            for case in expired.unexplained[:5]:
                self._wonder(*case)
        if problems:
            raise Failed("\n".join(str(problem) for problem in problems))
        self.note("checked")

    def _wonder(self, worker: str, task: Any, attempt: int, until: float) -> None:
        """Say once what is known about a lease that ran out for no reason we know of."""
        if (worker, task, attempt) in self._wondered:
            return
        self._wondered.add((worker, task, attempt))
        hits = [
            (round(hit.since - until, 1), round(hit.until - until, 1), hit.what)
            for hit in self.fleet.hits.get(worker, [])
        ]
        left = [round(one.gone - until, 1) for one in self.fleet.departures if one.worker == worker]
        print(
            f"a lease of {worker} ran out (task {task}, attempt {attempt}); seconds from then: hit {hits}, left {left}"
        )

    def _disturbed(self, departure: Departure) -> bool:
        """Whether a fault hit a worker while it left, or just before."""
        hits = self.fleet.hits.get(departure.worker, [])
        return any(hit.since <= departure.gone and hit.until >= departure.asked - LEASE - GRACE for hit in hits)

    # -- the end -------------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Any]:
        """What has happened so far."""
        with self.server.connect() as conn:
            attempts, ended, most, expired = conn.execute(checks.ATTEMPTS).fetchone()  # type: ignore[misc]
            moves = conn.execute("select count(*) from chaos.moves").fetchone()[0]  # type: ignore[index]
        said = self.fleet.said(SAID)
        counts = Counter(self.fleet.counts) + Counter(self.counts) + Counter(self.proxy.counts)
        return {
            "tasks": ended,
            "attempts": attempts,
            "most attempts of a task": most,
            "leases run out": expired,
            "of which no fault explains": self.unexplained,
            "executions": sum(self.records.begun.values()),
            "told that the run is lost": self.records.outcomes["lost"],
            "ends refused": said["refused"],
            "out of space": said["out of space"],
            "left undisturbed": sum(not self._disturbed(one) for one in self.fleet.departures),
            "handed back": self.records.outcomes["released"],
            "plain effects": sum(sum(steps.values()) for steps in self.records.effects.values()),
            "plain effects doubled": self.records.doubled,
            "transactional effects": moves,
            **{name: count for name, count in counts.items() if name not in ("quiet", "listen")},
            **dict(self.producer.counts),
        }

    def leave(self) -> None:
        """All workers leave in order, and nothing is left behind."""
        self.fleet.leave()
        self._still_well()
        with self.server.connect() as conn:
            held = conn.execute("select * from absurd.live").fetchall()
        if held:
            raise Failed(f"leases without a worker: {held}")
        felt = (
            self.fleet.said(SAID)["out of space"]
            + self.counts["server gave up"]
            + self.producer.counts["calls repeated"]
        )
        if self.counts["disk"] and not felt:
            raise Failed("the disk was full, and nobody noticed")

    def close(self) -> None:
        """End every process."""
        self.fleet.close()
        self.proxy.close()
        self.producer.close()
        self.server.close()

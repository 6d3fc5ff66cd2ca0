"""`python -m tests.chaos`: break everything at random for a while, and count what was lost. `make chaos`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos import plan, report
from tests.chaos.plan import Fault, Round
from tests.chaos.server import SMALL, NoDisk, Server, own_folder, small_disk
from tests.chaos.stage import Failed, Stage

TOLD_EVERY = 10.0
DISK_EVERY = 600.0
DISK_SECONDS, DISK_TASKS = 9.0, 200
#: part of a round's time that is left for its drain and its checks
DRAIN_SHARE, DRAIN_SECONDS = 0.12, 4.0


class Chaos:
    """One run: rounds on one server, then a round or more on a small disk."""

    def __init__(self, seconds: float, seed: int, breakage: str) -> None:
        self.seconds, self.seed = seconds, seed
        self._breakage = breakage
        self._began = time.monotonic()
        self._figures: list[dict[str, Any]] = []
        self.left_out = ""
        self.postgres = ""
        self.stage: Stage | None = None

    @property
    def passed(self) -> float:
        return time.monotonic() - self._began

    @property
    def figures(self) -> dict[str, Any]:
        return report.total(self._figures)

    def run(self) -> None:
        """Failed when something must not be."""
        rng = random.Random(self.seed)
        disks = max(1, round(self.seconds / DISK_EVERY))
        reserve = disks * (DISK_SECONDS + 6)
        rounds = plan.rounds(self.seconds)
        with (
            own_folder() as folder,
            self._staged(Server(folder / "server", breakage=self._breakage), folder, rng) as stage,
        ):
            self.postgres = stage.server.one("show server_version").split()[0]
            for round_ in rounds:
                left = (self.seconds - reserve - self.passed) / (len(rounds) - round_.number)
                stage.run_round(round_, max(left * (1 - DRAIN_SHARE) - DRAIN_SECONDS, 5.0))
        for _ in range(disks):
            self._run_disk(rng)
            if self.left_out:
                break
        if short := plan.missing(self.figures, self.seconds):
            raise Failed(f"too little of what was planned has happened: {', '.join(short)}")

    def _run_disk(self, rng: random.Random) -> None:
        """Fill the disk under load, with a kill on top; and again, when there is no space for the log itself."""
        with contextlib.ExitStack() as stack:
            try:
                disk = stack.enter_context(small_disk())
            except NoDisk as why:
                self.left_out = f"the full disk: {why}"
                print(f"left out: {self.left_out}", flush=True)
                return
            folder = stack.enter_context(own_folder())
            server = Server(disk.folder / "server", SMALL, self._breakage)
            stage = stack.enter_context(self._staged(server, folder, rng, disk))
            faults = [
                Fault(1.0, "disk", 0, rng.uniform(1, 3)),
                Fault(1.5 + rng.random(), "kill", rng.randrange(plan.WORKERS), 0.2),
                Fault(5.0, "disk", 0, rng.uniform(1, 2), "log"),
            ]
            stage.run_round(Round(0, DISK_TASKS, {}), DISK_SECONDS, faults)

    @contextlib.contextmanager
    def _staged(self, server: Server, folder: Path, rng: random.Random, disk: Any = None) -> Iterator[Stage]:
        try:
            stage = self.stage = Stage(server, folder, rng.getrandbits(32), disk)
        except BaseException:
            server.close()
            raise
        try:
            yield stage
            stage.leave()
            self._figures.append(stage.figures())
        finally:
            stage.close()

    def tell(self) -> str:
        """Where it stands."""
        stage = self.stage
        if stage is None:
            return "starting"
        counts = {**stage.fleet.counts, **stage.counts, **stage.proxy.counts}
        some = plan.describe({kind: counts[kind] for kind in (*plan.HALF_HOUR, "disk") if counts.get(kind)})
        return f"{len(stage.producer.ledger):,} of {stage.producer.target:,} tasks spawned; {some or 'no faults yet'}"


def progress(chaos: Chaos, over: threading.Event) -> None:
    """A line every ten seconds."""
    while not over.wait(TOLD_EVERY):
        print(f"{chaos.passed:6.0f} s  {chaos.tell()}", flush=True)


def main() -> int:
    options = arguments()
    breakage = options.breakage.read_text() if options.breakage else ""
    chaos = Chaos(options.seconds, options.seed, breakage)
    print(f"chaos: {options.seconds:.0f} s, seed {options.seed} (CHAOS_SEED={options.seed} repeats it)", flush=True)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the producer repeats whatever breaks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and workers are ended, too
    over = threading.Event()
    threading.Thread(target=progress, args=(chaos, over), daemon=True).start()
    try:
        chaos.run()
    except Failed as failed:
        print_failure(chaos, failed)
        return 1
    finally:
        over.set()
    print_success(chaos, options)
    return 0


def arguments() -> argparse.Namespace:
    """From the command line, or from CHAOS_SECONDS and CHAOS_SEED."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    seconds = float(os.environ.get("CHAOS_SECONDS") or 1800)
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--report", type=Path, help="a Markdown page to write the report into")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument(
        "--break", dest="breakage", type=Path, help="SQL that breaks the engine first: the run has to fail"
    )
    return parser.parse_args()


def print_success(chaos: Chaos, options: argparse.Namespace) -> None:
    """The figures, where they were asked for, and one line at the end."""
    facts = {
        "result": "Nothing lost, nothing doubled, nobody stuck",
        "seconds": chaos.passed,
        "seed": chaos.seed,
        "postgres": chaos.postgres,
        "machine": report.machine(),
        "left out": chaos.left_out,
    }
    for name, number in chaos.figures.items():
        print(f"  {number:>9,}  {report.NAMES[name]}")
    if options.json:
        options.json.write_text(json.dumps({**facts, **chaos.figures}, indent=1) + "\n")
    if options.report:
        report.write(options.report, report.page(chaos.figures, facts))
    print(report.summary(chaos.figures, chaos.passed, chaos.seed))


def print_failure(chaos: Chaos, failed: Failed) -> None:
    """What, when, and how to see it again."""
    if chaos.stage is not None:
        print("the last faults:", *(f"  {line}" for line in chaos.stage.log[-60:]), sep="\n")
    print(failed)
    print(
        f"chaos: FAILED after {chaos.passed:.0f} s; CHAOS_SEED={chaos.seed} CHAOS_SECONDS={chaos.seconds:.0f} repeats it"
    )


if __name__ == "__main__":
    sys.exit(main())

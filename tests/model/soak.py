"""A million random steps against the model, in slices that can be interrupted and resumed.

python -m tests.model.soak [--steps N] [--resume] [--seed N] [--processes N] [--report PAGE]

Each slice is a process with a seed, 10,000 steps and a database of its own; as many run at a time as there are cores.
`.soak/progress.jsonl` keeps a line for the soak (its seed and steps) and one for each slice that ended. `--resume` goes on with
the slices that are missing. A divergence ends the soak with exit code 1: its steps, made as few as possible, are in
`.soak/SEED.txt`, and one command repeats it. `--report` writes the summary into a page, between two marks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psycopg

from absurd import embedded
from tests.fixtures.servers import _bindir, _session_folder

ROOT = Path(__file__).resolve().parents[2]
SLICE = 10_000
FAST = {"fsync": "off", "full_page_writes": "off"}
BEGIN = "<!-- soak: begin (written by `make soak ARGS='--report docs/reliability.md'`) -->"
END = "<!-- soak: end -->"


@dataclass
class Soak:
    """What is to be done, and what has been; kept in a file, a line at a time."""

    path: Path
    seed: int
    steps: int
    size: int = SLICE
    done: dict[int, dict[str, Any]] = field(default_factory=dict)  # seed of a slice -> its line
    seconds: float = 0.0  # of earlier sittings

    @classmethod
    def begin(cls, path: Path, seed: int, steps: int, size: int = SLICE) -> Soak:
        """A new one; what the file held is gone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        soak = cls(path, seed, steps, size)
        soak.note({"soak": seed, "steps": steps, "slice": size})
        return soak

    @classmethod
    def resume(cls, path: Path) -> Soak | None:
        """The one that the file tells of; None when it tells of none. A line cut short by a crash is left out."""
        lines = []
        for text in path.read_text().splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        if not lines or "soak" not in lines[0]:
            return None
        soak = cls(path, lines[0]["soak"], lines[0]["steps"], lines[0]["slice"])
        for line in lines[1:]:
            if "sitting" in line:
                soak.seconds += line["sitting"]
            elif line["outcome"] == "agreed":
                soak.done[line["seed"]] = line
        return soak

    @property
    def missing(self) -> list[int]:
        """The seeds of the slices that have not agreed yet."""
        count = -(-self.steps // self.size)
        return [seed for seed in range(self.seed, self.seed + count) if seed not in self.done]

    def said(self, seed: int) -> Path:
        """Where a slice says what it has to say; gone when it agreed."""
        return self.path.with_name(f"{seed}.txt")

    @property
    def walked(self) -> int:
        """Steps so far."""
        return sum(line["steps"] for line in self.done.values())

    def note(self, line: dict[str, Any]) -> None:
        """Keep a line, whole or not at all."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def end(self, line: dict[str, Any]) -> None:
        """A slice has ended."""
        self.note(line)
        if line["outcome"] == "agreed":
            self.done[line["seed"]] = line

    def summary(self) -> str:
        """One line: steps, seeds, time, machine."""
        last = self.seed + -(-self.steps // self.size) - 1
        state = "no divergence" if not self.missing else f"{len(self.missing)} slices missing"
        return (
            f"{self.walked:,} steps in {len(self.done)} slices (seeds {self.seed} to {last}), {state}; "
            f"{self.seconds / 60:.0f} minutes on {machine()}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when engine and model agreed in every slice."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.soak", description="random steps against the model")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--resume", action="store_true", help="go on with the soak before; its seed and steps count")
    parser.add_argument("--seed", type=int, help="of the first slice; each further one has the next number")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slice", type=int, default=SLICE, help="steps a slice")
    parser.add_argument("--report", type=Path, metavar="PAGE", help="write the summary into this page")
    parser.add_argument("--folder", type=Path, default=ROOT / ".soak", help="where progress is kept")
    options = parser.parse_args(argv)
    path = options.folder.resolve() / "progress.jsonl"
    if options.report is not None:
        between_marks(options.report)  # not after an hour
    soak = Soak.resume(path) if options.resume else None
    if soak is None:
        seed = random.SystemRandom().randrange(1, 1_000_000) if options.seed is None else options.seed
        soak = Soak.begin(path, seed, options.steps, options.slice)
    agreed = run(soak, options.processes)
    print(soak.summary(), flush=True)
    if options.report is not None and agreed:
        write_report(options.report, soak)
    return 0 if agreed else 1


def run(soak: Soak, processes: int) -> bool:
    """All that is missing, so many slices at a time; whether every one agreed. The first divergence ends it."""
    if not soak.missing:
        return True
    print(f"seed {soak.seed}: {len(soak.missing)} slices of {soak.size:,} steps to go", flush=True)
    began = time.monotonic()
    try:
        with server() as url, closing(slices(url, soak, processes)) as ended:
            for line in ended:
                soak.end(line)
                elapsed = soak.seconds + time.monotonic() - began
                print(progress(soak, elapsed), flush=True)
                if line["outcome"] != "agreed":
                    print(divergence(soak.said(line["seed"]), line["seed"], soak.size), flush=True)
                    return False
    finally:
        soak.seconds += time.monotonic() - began
        soak.note({"sitting": round(time.monotonic() - began, 1)})
    return True


def slices(url: str, soak: Soak, processes: int) -> Generator[dict[str, Any], None, None]:
    """The line of each slice as it ends; those that still run are ended when nobody wants more."""
    waiting, running = soak.missing, dict[int, subprocess.Popen[bytes]]()
    ended: SimpleQueue[int | None] = SimpleQueue()

    def tell(seed: int, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        ended.put(seed)

    # an interruption waits until the slice that is being started is known, or that one would go on by itself
    before = {number: signal.signal(number, lambda *_: ended.put(None)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                seed = waiting.pop(0)
                running[seed] = start(url, seed, soak.size, soak.said(seed))
                threading.Thread(target=tell, args=(seed, running[seed]), daemon=True).start()
            over = ended.get()
            if over is None:
                raise KeyboardInterrupt
            yield verdict(soak.said(over), over, running.pop(over).returncode)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def start(url: str, seed: int, size: int, output: Path) -> subprocess.Popen[bytes]:
    """A slice in a process of its own."""
    command = [sys.executable, "-m", "tests.model.slice", url, "--seed", str(seed), "--steps", str(size)]
    with output.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def verdict(said: Path, seed: int, code: int) -> dict[str, Any]:
    """The line that a slice ended with; a slice that could not say one has not agreed."""
    lines = said.read_text().strip().splitlines()
    try:
        line = json.loads(lines[-1])
        assert line["seed"] == seed
    except (IndexError, ValueError, KeyError, AssertionError):
        line = {"seed": seed, "steps": 0, "seconds": 0, "outcome": f"ended with {code}"}
    if line["outcome"] == "agreed" and code != 0:
        line["outcome"] = f"ended with {code}"
    if line["outcome"] == "agreed":
        said.unlink()
    return dict(line)


def divergence(said: Path, seed: int, size: int) -> str:
    """Its last lines, and how to see it again."""
    tail = "\n".join(said.read_text().splitlines()[-80:])
    return (
        f"{tail}\n\nseed {seed} did not agree. All it said: {said}\nAgain: python -m tests.model.slice URL --seed {seed} "
        f"--steps {size}   (URL: any database of a server to try it on)"
    )


def progress(soak: Soak, elapsed: float) -> str:
    """A bar, the steps, how fast, how long still."""
    share = min(soak.walked / soak.steps, 1.0)
    bar = "#" * int(share * 30)
    left = elapsed * (1 - share) / share if share else 0.0
    return (
        f"[{bar:<30}] {soak.walked:>9,} of {soak.steps:,} steps  {soak.walked / elapsed:,.0f} a second  "
        f"{elapsed / 60:.1f} min, {left / 60:.0f} to go"
    )


def write_report(page: Path, soak: Soak) -> None:
    """Put the summary between the marks of a page. ValueError without them."""
    before, after = between_marks(page)
    page.write_text(f"{before}{BEGIN}\n\n{soak.summary()}.\n\n{END}{after}", encoding="utf-8")


def between_marks(page: Path) -> tuple[str, str]:
    """What stands before and after the marks of a page. ValueError without them."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} needs the marks once each: {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    return before, rest.split(END)[1]


def machine() -> str:
    """What it ran on."""
    system = f"{platform.system()} {platform.machine()}"
    return f"{os.cpu_count()} cores, {system}, Python {platform.python_version()}, PostgreSQL {version()}"


def version() -> str:
    """Which server."""
    return "of ABSURD_TEST_DATABASE_URL" if os.environ.get("ABSURD_TEST_DATABASE_URL") else os.environ.get("PG") or "18"


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server for this sitting: the one of ABSURD_TEST_DATABASE_URL, or one that goes with it."""
    if given := os.environ.get("ABSURD_TEST_DATABASE_URL"):
        yield given
        return
    with _session_folder() as folder:
        started = embedded.start(folder / "pg", int(version()), settings=FAST, bindir=_bindir(version()))
        url = started.url("postgres")
        psycopg.connect(url).close()
        try:
            yield url
        finally:
            started.stop("immediate")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no slice and no server behind
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; --resume goes on where it stopped", file=sys.stderr)
        sys.exit(130)

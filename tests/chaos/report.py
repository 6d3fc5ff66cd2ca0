"""What a run of the chaos suite has to show, for a terminal, for a machine, and for the page in docs."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BEGIN, END = (
    "<!-- chaos: begin (written by `make chaos ARGS='--report docs/reliability.md'`) -->",
    "<!-- chaos: end -->",
)

#: what is counted -> how the report says it
NAMES = {
    "tasks": "tasks of three steps and one event, all completed",
    "kill": "workers killed (SIGKILL)",
    "stop": "workers stopped and continued (SIGSTOP, SIGCONT)",
    "term": "workers asked to leave under faults (SIGTERM)",
    "crash": "Postgres crash restarts under load",
    "cut": "connections cut",
    "lose": "connections cut between COMMIT and reply",
    "stall": "connections stalled",
    "hole": "connections swallowed by a black hole, then reset",
    "partition": "workers cut off altogether",
    "terminate": "backends terminated",
    "disk": "full disks",
    "server gave up": "of which ended the server",
    "out of space": "failures of workers for want of space",
    "start in vain": "worker starts that found no database",
    "attempts": "attempts",
    "most attempts of a task": "most attempts of one task",
    "executions": "executions of handlers",
    "leases run out": "leases run out",
    "of which no fault explains": "of which no fault explains",
    "told that the run is lost": "handlers told that their run is lost",
    "ends refused": "ends of runs refused",
    "left undisturbed": "workers that left with no fault about, and burnt no attempt",
    "handed back": "runs handed back by leaving workers",
    "plain effects": "plain effects",
    "plain effects doubled": "plain effects repeated, each by an execution that was broken off",
    "transactional effects": "transactional effects, one a task",
    "calls repeated": "calls of the producer repeated after an error",
    "spawns repeated": "spawns repeated on purpose",
    "emits repeated": "emits repeated on purpose",
}


def total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several stages as one."""
    summed: Counter[str] = Counter()
    for part in parts:
        for name, number in part.items():
            summed[name] = max(summed[name], number) if name.startswith("most") else summed[name] + number
    return {name: summed[name] for name in NAMES if name in summed}


def machine() -> str:
    """Where it ran."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def summary(figures: dict[str, Any], seconds: float, seed: int) -> str:
    """The one line at the end."""
    cuts = figures.get("cut", 0) + figures.get("lose", 0)
    return (
        f"chaos: ok: {figures['tasks']:,} tasks in {seconds:.0f} s, 0 lost, 0 doubled, 0 stuck;"
        f" {figures.get('kill', 0)} worker kills, {figures.get('crash', 0)} crash restarts, {cuts} cut connections,"
        f" {figures.get('leases run out', 0)} leases run out; seed {seed}"
    )


def page(figures: dict[str, Any], facts: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        BEGIN,
        "",
        f"{facts['result']}. {facts['seconds']:.0f} seconds, seed {facts['seed']},"
        f" PostgreSQL {facts['postgres']}, {facts['machine']}.",
        "",
        "| | |",
        "|---|---:|",
        "| tasks lost, doubled, stuck | 0, 0, 0 |",
        *(f"| {NAMES[name]} | {number:,} |" for name, number in figures.items()),
        "",
        *([f"Left out: {facts['left out']}.", ""] if facts["left out"] else []),
        END,
    ]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put the report between the marks of a page; without marks there, at the page's end."""
    before = path.read_text() if path.exists() else ""
    if BEGIN in before and END in before:
        start, end = before.index(BEGIN), before.index(END) + len(END)
        path.write_text(before[:start] + text + before[end:])
    else:
        path.write_text(f"{before.rstrip()}\n\n{text}\n" if before else f"{text}\n")
    print(f"the report is in {path}", file=sys.stderr)

"""Floors by pgbench: prepared statements, one transaction each."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
from pathlib import Path

from benchmarks.environments import clean_environment

_PARAMS = '{"n": 1, "note": "some forty bytes of params"}'
SCRIPTS = {
    "select": "select;\n",
    "insert": "\\set n random(1, 9000000000000000)\ninsert into floor_tasks values (:n, 0);\n",
    "rows": (
        "\\set n random(1, 4000000000000)\n"
        "with i as (select absurd.mint_id(now(), 7 * :n::bigint, 0) as id), t as (insert into absurd.tasks"
        " (queue_id, task_id, task_name, params, max_attempts, enqueue_at)"
        f" select 1, id, 'noop', '{_PARAMS}', 5, now() from i)"
        " insert into absurd.live (queue_id, task_id, state, attempt, due_at, created_at, task_name)"
        " select 1, id, 'p', 1, now(), now(), 'noop' from i;\n"
    ),
    "minted": (
        "\\set n random(1, 4000000000000)\n"
        f"select absurd.spawn_minted('bench', absurd.mint_id(now(), 7 * :n::bigint, 0), 'noop', '{_PARAMS}');\n"
    ),
    "spawn": f"select * from absurd.spawn_task('bench', 'noop', '{_PARAMS}');\n",
}


def run(program: Path, url: str, script: str, clients: int, seconds: int) -> tuple[float, int, float]:
    """Transactions a second, transactions, and seconds of CPU that pgbench itself used."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(SCRIPTS[script])
        file.flush()
        before = _children_cpu()
        command = [str(program), "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2))]
        command += ["-T", str(seconds), "-f", file.name, url]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench failed:\n{done.stderr.strip()[-1000:]}")
    return *read(done.stdout), _children_cpu() - before


def read(report: str) -> tuple[float, int]:
    """Rate without connecting, and number of transactions, from pgbench's report."""
    rate = re.search(r"tps = ([\d.]+) \(without initial connection time\)", report)
    number = re.search(r"number of transactions actually processed: (\d+)", report)
    if rate is None or number is None:
        raise RuntimeError(f"pgbench said nothing that could be read:\n{report}")
    return float(rate[1]), int(number[1])


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

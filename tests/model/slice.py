"""One slice of the soak, in a process of its own: a seed, so many steps, a fresh database that goes with it.

python -m tests.model.slice URL --seed N --steps N

URL is any database of a server where databases may be made. Ends with one line of JSON: seed, steps, seconds, outcome. On a
divergence (exit code 1) hypothesis first makes it as short as it can and prints its steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import psycopg
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from psycopg import sql

from absurd import schema
from tests.model.machine import Machine

STEPS_A_RUN = 60
CONNECTIONS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when engine and model agreed."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.slice")
    parser.add_argument("url")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--no-shrink", action="store_true", help="show the first divergence as it was found")
    options = parser.parse_args(argv)
    began, outcome = time.monotonic(), "agreed"
    with database(options.url, options.seed) as url, ExitStack() as stack:
        Machine.connections = [stack.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(CONNECTIONS)]
        try:
            steps = explore(options.seed, options.steps, not options.no_shrink)
        except BaseException:
            traceback.print_exc()
            steps, outcome = Machine.steps, "diverged"
    elapsed = round(time.monotonic() - began, 1)
    print(json.dumps({"seed": options.seed, "steps": steps, "seconds": elapsed, "outcome": outcome}))
    return outcome != "agreed"


def explore(number: int, steps: int, shrink: bool = True) -> int:
    """Random runs until there were that many steps; how many there were. Raises at the first divergence."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    round_ = 0
    while Machine.steps < steps:
        budget = settings(
            max_examples=max((steps - Machine.steps) // STEPS_A_RUN, 1), stateful_step_count=STEPS_A_RUN, deadline=None,
            database=None, phases=phases, print_blob=False, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        # a seed decides the choices, so what is left of a round needs one of its own
        run_state_machine_as_test(seed(number + round_ * 1_000_003)(type("Machine", (Machine,), {})), settings=budget)
        round_ += 1
    return Machine.steps


@contextmanager
def database(url: str, number: int) -> Iterator[str]:
    """A fresh database with the schema, dropped at the end, so that no slice leaves anything to the next."""
    name = f"soak_{number}"
    with psycopg.connect(url, autocommit=True) as conn:
        drop = sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        conn.execute(drop)
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        target = psycopg.conninfo.make_conninfo(url, dbname=name)
        try:
            with psycopg.connect(target, autocommit=True) as fresh:
                schema.install(fresh)
            yield target
        finally:
            conn.execute(drop)


if __name__ == "__main__":
    sys.exit(main())

"""Put each fault of the catalogue into a copy of the tree and see the tests named there fail.

python -m tests.mutants [--only NAME]... [--list]

The copy holds what git would track of the working tree, changes included; the tree itself is never touched. The named
tests must first pass without any fault. Exit code 0: every fault was caught by every test it names. 1: one survived, is
stale (its text no longer stands in the sources), or broke more than it should (then no test of ours was needed to see it).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutants.catalogue import ROOT, Mutation, mutations

GENERATORS = {"sql/": "tools/build_sql.py", "absurd/_async/": "tools/unasync.py"}
SECONDS_A_TEST = 60
#: what a mutation written badly raises: that it is noticed says nothing about the tests
NOT_A_CATCH = (
    "SyntaxError",
    "errors.Undefined",
    "errors.Ambiguous",
    "errors.DatatypeMismatch",
    "ImportError",
    "NameError",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when every chosen mutation was caught."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description="see the tests catch faults put in on purpose"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="only mutations whose name contains this")
    parser.add_argument("--list", action="store_true", help="print names, reasons and tests, run nothing")
    options = parser.parse_args(argv)
    chosen = [m for m in mutations() if not options.only or any(part in m.name for part in options.only)]
    if not chosen:
        print(f"no mutation is named like {options.only}; --list names them", file=sys.stderr)
        return 1
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}\n    {mutation.why}\n" + "".join(f"    {test}\n" for test in mutation.tests))
        return 0
    return 0 if run(chosen) else 1


def run(chosen: Sequence[Mutation]) -> bool:
    """Try each in a copy of the tree; prints a line each. Whether all were caught."""
    with tempfile.TemporaryDirectory(prefix="absurd-mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        named = list(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
        began = time.monotonic()
        fallen = {test: why for test, why in outcomes(tree, named).items() if why is not None}
        if fallen:
            for test, why in fallen.items():
                print(f"fails without any fault: {test}\n{_indented(why or '')}")
            return False
        print(f"{len(named)} tests pass without any fault, {time.monotonic() - began:.0f} s", flush=True)
        verdicts = [trial(tree, mutation, f"{number}/{len(chosen)}") for number, mutation in enumerate(chosen, 1)]
    caught = verdicts.count("caught")
    print(f"{caught} of {len(chosen)} mutations caught, {time.monotonic() - began:.0f} s")
    return caught == len(chosen)


def trial(tree: Path, mutation: Mutation, place: str) -> str:
    """caught, survived, stale or broken; the tree is as it was afterwards."""
    began = time.monotonic()
    notes: list[str] = mutation.stale(tree)
    if notes:
        verdict = "stale"
    else:
        path = tree / mutation.file
        original = path.read_text(encoding="utf-8")
        try:
            mutation.apply(tree)
            generate(tree, mutation.file)
            verdict, notes = judge(outcomes(tree, mutation.tests))
        finally:
            path.write_text(original, encoding="utf-8")
            generate(tree, mutation.file)
    print(f"{place:>5}  {verdict:<8}  {mutation.name}  ({time.monotonic() - began:.0f} s)", flush=True)
    for note in notes if verdict != "caught" else mutation.tests:
        print(_indented(note), flush=True)
    return verdict


def judge(found: dict[str, str | None]) -> tuple[str, list[str]]:
    """The verdict over the named tests' outcomes (None: passed; else how it failed), and what to say about it."""
    broken = [f"{test}: {why}" for test, why in found.items() if why and any(text in why for text in NOT_A_CATCH)]
    if broken:
        return "broken", broken
    passed = [f"passed all the same: {test}" for test, why in found.items() if why is None]
    return ("survived", passed) if passed else ("caught", [])


def outcomes(tree: Path, tests: Iterable[str]) -> dict[str, str | None]:
    """Run tests in the tree: for each, None when all its cases passed, else how the first other one failed."""
    report = tree / ".mutants.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={SECONDS_A_TEST}"]
    done = subprocess.run(
        [*command, f"--junitxml={report}", *tests],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if not report.exists():
        raise SystemExit(f"pytest ended with {done.returncode} and no report:\n{done.stdout[-4000:]}")
    cases = [
        (f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}", _failure(case))
        for case in ElementTree.parse(report).iter("testcase")
    ]
    return {test: _first(test, cases, done.stdout) for test in tests}


def _failure(case: ElementTree.Element) -> str | None:
    """How a case failed. A case that could not even be set up is broken rather than failed."""
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            said = f"{found.get('message') or ''}\n{found.text or ''}"
            return f"ImportError: {said}" if kind == "error" and "teardown" not in said.splitlines()[0] else said
    return None


def _first(test: str, cases: Sequence[tuple[str, str | None]], output: str) -> str | None:
    mine = [why for name, why in cases if name == test or name.startswith(f"{test}[")]
    if not mine:
        raise SystemExit(f"{test} did not run:\n{output[-4000:]}")
    return next((why for why in mine if why is not None), None)


def copy_tree(target: Path) -> None:
    """What git tracks, or would, of the working tree as it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def generate(tree: Path, changed: str) -> None:
    """Rebuild what is generated from a file."""
    for prefix, tool in GENERATORS.items():
        if changed.startswith(prefix):
            subprocess.run([sys.executable, tool], cwd=tree, check=True, stdout=subprocess.DEVNULL)


def _indented(text: str) -> str:
    return "\n".join(f"                 {line}" for line in text.strip().splitlines()[:12])


if __name__ == "__main__":
    sys.exit(main())

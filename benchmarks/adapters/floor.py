"""The floor of a wake-up: one insert with its NOTIFY in one commit, one LISTEN, one bare claim. No engine."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks.adapters.protocol import System, main

_CLAIM = """
update floor_tasks set state = 1 where n =
  (select n from floor_tasks where state = 0 order by n for update skip locked limit 1) returning n
"""
_SPAWN = "with i as (insert into floor_tasks values (%s, 0)) select pg_notify('floor', '')"


class Floor(System):
    """Bare psycopg."""

    def install(self) -> None:
        with psycopg.connect(self.url) as conn:
            conn.execute("create table floor_tasks (n bigint primary key, state smallint not null)")
            conn.execute("create index on floor_tasks (n) where state = 0")

    def open(self) -> None:
        self.connection = psycopg.connect(self.url, autocommit=True)

    def close(self) -> None:
        self.connection.close()

    def spawn(self, kind: str, params: dict[str, Any]) -> None:
        self.connection.execute(_SPAWN, (params["n"],), prepare=True)

    def open_worker(self) -> None:
        self.open()
        self.connection.execute("listen floor")

    def work(self, began: Callable[[], None]) -> None:
        began()
        while not self.stopping.is_set():
            if not select.select([self.connection.fileno()], [], [], 0.1)[0]:
                continue
            list(self.connection.notifies(timeout=0, stop_after=1))
            while row := self.connection.execute(_CLAIM, prepare=True).fetchone():
                self.hits.mark(row[0])

    def stop(self) -> None:
        """`stopping` is set already."""


if __name__ == "__main__":
    main(Floor)

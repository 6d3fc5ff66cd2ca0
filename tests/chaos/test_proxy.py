"""The chaos proxy does to a connection what it is told to."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.chaos.network import PRODUCER, Network
from tests.fixtures.servers import OwnServer


class Place:
    """A proxy in front of a server, and what it tells."""

    def __init__(self, server: OwnServer) -> None:
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        socket = str(server.embedded.socket_directory / ".s.PGSQL.5432")
        self.proxy = Network(socket, 1, self._told.put)
        self.direct = psycopg.connect(server.url, autocommit=True)
        self.direct.execute("create table noted (n integer)")

    def order(self, do: str, **how: Any) -> None:
        """Return once the proxy has taken the order."""
        self.proxy.order(do, **how)
        self.proxy.order("echo")
        self.told("echo")

    def told(self, did: str) -> dict[str, Any]:
        """What it says of the next such deed."""
        while (told := self._told.get(timeout=20))["did"] != did:
            pass
        return told

    def connect(self, name: str = PRODUCER) -> psycopg.Connection[Any]:
        return psycopg.connect(self.proxy.url(name), autocommit=True)

    def noted(self) -> list[int]:
        return [row[0] for row in self.direct.execute("select n from noted order by n")]

    def close(self) -> None:
        self.direct.close()
        self.proxy.close()


@pytest.fixture
def place(own_server: OwnServer) -> Iterator[Place]:
    made = Place(own_server)
    try:
        yield made
    finally:
        made.close()


def test_an_answer_gets_lost_after_its_commit(place: Place) -> None:
    with place.connect() as conn:
        place.order("lose", verb="into noted")
        conn.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("insert into noted values (1)")
    assert place.noted() == [1]
    assert place.told("lose")["what"].startswith("insert into noted")


def test_the_answer_to_the_commit_of_a_transaction_gets_lost(place: Place) -> None:
    with place.connect() as conn:
        place.order("lose", verb="into noted")
        conn.execute("begin")
        conn.execute("insert into noted values (1)")
        assert conn.execute("select count(*) from noted").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("commit")
    assert place.noted() == [1]


def test_a_prepared_statement_is_known_by_its_text(place: Place) -> None:
    with place.connect() as conn:
        conn.execute("insert into noted values (%s)", [1], prepare=True)
        place.order("lose", verb="into noted")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("insert into noted values (%s)", [2], prepare=True)
    assert place.noted() == [1, 2]


def test_the_network_goes_away_with_the_answer(place: Place) -> None:
    with place.connect() as conn:
        place.order("lose", verb="into noted", seconds=0.5)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("insert into noted values (1)")
        with pytest.raises(psycopg.OperationalError):
            place.connect()
    assert place.told("partition")["name"] == PRODUCER
    place.connect().close()
    assert place.noted() == [1]


def test_a_stalled_connection_goes_on_where_it_stopped(place: Place) -> None:
    with place.connect() as conn:
        place.order("stall", seconds=0.2)
        conn.execute("insert into noted values (1)")
        place.told("stall")
    assert place.noted() == [1]


def test_a_black_hole_swallows_and_then_resets(place: Place) -> None:
    with place.connect() as conn:
        place.order("hole", seconds=0.2)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("insert into noted values (1)")
    assert place.noted() == []


def test_a_partition_is_of_one_name_and_takes_new_connections_too(place: Place) -> None:
    with place.connect("w0") as cut_off, place.connect("w1") as well:
        place.order("partition", name="w0", seconds=0.5)
        well.execute("insert into noted values (1)")
        with pytest.raises(psycopg.OperationalError):
            place.connect("w0")
        with pytest.raises(psycopg.OperationalError):
            cut_off.execute("insert into noted values (2)")
        assert place.told("partition")["name"] == "w0"
    with place.connect("w0") as again:
        again.execute("insert into noted values (3)")
    assert place.noted() == [1, 3]


def test_a_connection_is_cut(place: Place) -> None:
    with place.connect() as conn:
        place.order("cut")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")

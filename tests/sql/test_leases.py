"""Leases: extend_claim (contract, section 8). Renewing many at once stands in test_arrays."""

from __future__ import annotations

import pytest

from tests.fixtures.clock import Clock
from tests.fixtures.gates import Gate
from tests.fixtures.postgres import Connect
from tests.sql.driver import Queue, after, refused, run_of


def test_a_renewed_lease_ends_that_long_from_now(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    before = noon.run(run["run_id"])
    clock.set(noon.conn, after(20.5))
    noon.extend(run["run_id"], 90)
    assert noon.run(run["run_id"]) == before | {"claim_expires_at": after(110.5)}
    noon.extend(run["run_id"], 90)
    assert noon.run(run["run_id"]) == before | {"claim_expires_at": after(110.5)}


@pytest.mark.parametrize("seconds", [None, 0, -1])
def test_a_lease_is_renewed_by_something(noon: Queue, seconds: int | None) -> None:
    run = noon.start()
    with refused("P0001", "extend_by must be > 0"):
        noon.extend(run["run_id"], seconds)
    assert noon.run(run["run_id"])["claim_expires_at"] == after(60)


def test_a_run_without_a_lease_gets_none(noon: Queue) -> None:
    run = noon.spawn()["run_id"]
    noon.claim(timeout=0)
    with refused("P0001", f'Run "{run}" does not have an active claim in queue "q"'):
        noon.extend(run, 60)
    assert noon.run(run)["claim_expires_at"] is None
    noon.complete(run)


def test_a_lease_that_ran_out_unnoticed_can_be_renewed(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    clock.set(noon.conn, after(100))
    noon.extend(run["run_id"], 60)
    assert noon.claim() == []
    assert noon.run(run["run_id"])["claim_expires_at"] == after(160)


def test_a_shortened_lease_is_noticed_when_it_ends(noon: Queue, clock: Clock) -> None:
    run = noon.spawn()["run_id"]
    (claimed,) = noon.claim(timeout=3600)
    noon.extend(run, 1)
    assert noon.run(run)["claim_expires_at"] == after(1)
    clock.set(noon.conn, after(0.999999))
    assert noon.claim("w2") == []
    clock.set(noon.conn, after(1))
    (again,) = noon.claim("w2")
    assert again["run_id"] == run_of(claimed["task_id"], 2)


def test_a_lease_shortened_and_renewed_again_lasts(noon: Queue, clock: Clock) -> None:
    run = noon.start()
    noon.extend(run["run_id"], 1)
    noon.extend(run["run_id"], 3600)
    clock.set(noon.conn, after(3599))
    assert noon.claim() == []
    clock.set(noon.conn, after(3600))
    assert noon.claim()[0]["attempt"] == 2


def test_a_renewal_behind_the_sweep_is_told_that_the_run_failed(
    noon: Queue, clock: Clock, connect: Connect, gate: Gate
) -> None:
    run = noon.start()
    sweeping = noon.on(connect(autocommit=False))
    clock.set(sweeping.conn, after(60))
    sweeping.claim("w2")
    renewing = gate(lambda c: noon.on(c).extend(run["run_id"], 60)).wait_until_blocked()
    sweeping.conn.commit()
    with refused("AB002"):
        renewing.result()
    assert noon.states(run["task_id"]) == ("running", ["failed", "running"])


def test_the_sweep_passes_by_a_run_that_is_being_renewed(noon: Queue, clock: Clock, connect: Connect) -> None:
    run = noon.start()
    renewing = noon.on(connect(autocommit=False))
    clock.set(renewing.conn, after(59))
    renewing.extend(run["run_id"], 60)
    clock.set(noon.conn, after(60))
    assert noon.claim() == []
    renewing.conn.commit()
    assert noon.claim() == []
    assert noon.run(run["run_id"])["claim_expires_at"] == after(119)

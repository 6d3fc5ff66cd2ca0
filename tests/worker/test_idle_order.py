"""A worker registers as idle first and looks for work once more after that; never the other way round."""

from __future__ import annotations

from tests.fixtures.proxy import Proxy
from tests.worker.conftest import Queue, Start
from tests.worker.process import Line

ONLY_PROTOCOL = {"claimer.IDLE_POLL": 1000, "claimer.RESOLVE_EVERY": 1000}


def test_a_task_that_comes_between_the_last_claim_and_the_registration_is_found(
    q: Queue, start: Start, proxy: Proxy
) -> None:
    """The spawner finds no idle worker and tells nobody; the claim behind the registration is the only one to see it."""
    registration = proxy.stall("set_idle")
    worker = start(url=proxy.url, patch=ONLY_PROTOCOL)
    registration.wait()  # it has found nothing, and says so now
    q.spawn(["say", "ran"])
    registration.release()

    def ran_or_slept() -> list[Line]:
        return [line for line in worker.lines if line.get("said") == "ran" or line.get("signal") == "worker.idle"]

    worker.wait_until(lambda: bool(ran_or_slept()), "what it did next")
    assert ran_or_slept()[0].get("said") == "ran", "it sleeps beside a task that is due"

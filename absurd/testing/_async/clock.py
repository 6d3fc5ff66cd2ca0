"""The clock of a test client."""

from __future__ import annotations

from datetime import datetime

from absurd._async.client import AsyncAbsurd
from absurd.errors import ConfigError
from absurd.testing import questions
from absurd.testing._async.session import TestSession, session_of
from absurd.testing.clock import Clock
from absurd.testing.values import Due


class FakeClock(Clock):
    """The engine's clock, as one test client (see `client`) sees it. It stands still until it is moved.

    `start`: a datetime with a time zone; default: now. Give it to further clients of the same test as `clock=`.
    """

    def __init__(self, app: AsyncAbsurd, start: datetime | None = None) -> None:
        super().__init__(start)
        self._app = app
        session_of(app).clock = self

    async def advance_to_next(self) -> Due | None:
        """Move to the next moment at which a task of the client's queues has something to do, and say what; None, and
        nothing is moved, when there is none. Others may be due at the same moment."""
        due = await session_of(self._app).run(questions.next_due(list((await queues_of(self._app)).values())))
        if due is not None:
            self.move_to(due.at)
        return due


def clock_of(session: TestSession) -> Clock:
    """The clock of a session; ConfigError when it has none."""
    if session.clock is None:
        raise ConfigError("this moves the clock, and the client has none: clock = FakeClock(app)")
    return session.clock


async def queues_of(app: AsyncAbsurd) -> dict[str, int]:
    """name -> id of the client's queue and those its tasks are registered for, as far as they are there."""
    known = await session_of(app).run(questions.queue_ids())
    wanted = dict.fromkeys([app.queue_name, *app._registry.queues()])
    return {name: known[name] for name in wanted if name in known}

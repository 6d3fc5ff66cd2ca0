"""Both clients with whatever Python can hold: a typed error, or a value that reads back as JSON makes it."""

from __future__ import annotations

import pytest

from absurd import Absurd
from absurd.errors import AbsurdError


@pytest.mark.parametrize("name", ["", " ", "a" * 58])
def test_a_name_that_cannot_be_one_is_a_typed_error(database_url: str, name: str) -> None:
    with Absurd(database_url) as app, pytest.raises(AbsurdError):
        app.create_queue(name)

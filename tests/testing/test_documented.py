"""What the kit offers is described on its page, as it is."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from absurd import testing
from absurd.testing import plugin
from tests.docs.pages import ROOT, prose
from tests.docs.test_reference import methods, signatures

PAGE = "testing.md"
TEXT = prose(ROOT / "docs" / PAGE)


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_is_described_and_has_a_docstring(name: str) -> None:
    member = getattr(testing, name)
    assert inspect.getdoc(member), f"{name} has no docstring"
    written = signatures(PAGE)
    if inspect.isfunction(member):
        shown = inspect.signature(member)
        bare = [each.replace(annotation=inspect.Parameter.empty) for each in shown.parameters.values()]
        signature = f"{name}{shown.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"
        assert signature in written, f"docs/{PAGE} does not have {signature}"
    else:
        assert f"`{name}`" in TEXT or any(line.startswith(f"{name}(") for line in written), f"docs/{PAGE}: {name}"


def test_every_method_of_a_clock_is_described() -> None:
    written = signatures(PAGE)
    inside = {"rewind(moment)"}  # only between runs that know nothing of each other
    for _, signature in methods(testing.FakeClock):
        assert signature in written | inside, f"docs/{PAGE} does not have FakeClock.{signature}"
    assert "FakeClock(app, start=None)" in written


@pytest.mark.parametrize("kind", [testing.Standing, testing.Due, testing.Drained])
def test_every_field_of_an_answer_is_described(kind: type) -> None:
    for field in dataclasses.fields(kind):
        if field.name not in ("task_id", "task_name", "due"):
            assert f"`{field.name}`" in TEXT, f"docs/{PAGE} does not describe {kind.__name__}.{field.name}"
            assert re.search(rf"\b{field.name}\b", kind.__doc__ or ""), f"{kind.__name__}.{field.name}"


def test_every_fixture_is_described_in_both_places() -> None:
    found = [name for name in vars(plugin) if "absurd_" in name and name != "absurd_template"]
    assert len(found) >= 7
    for name in found:
        assert f"`{name}`" in TEXT, f"docs/{PAGE} does not describe the fixture {name}"
        assert name in (plugin.__doc__ or "")

"""The Postgres that docker-compose.yml starts is the one the examples connect to when told nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_EXAMPLE = _ROOT / "examples" / "python" / "event_demo.py"


@pytest.fixture
def service() -> dict[str, Any]:
    compose = yaml.safe_load((_ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert list(compose["services"]) == ["postgres"]
    return compose["services"]["postgres"]


def _url(service: dict[str, Any]) -> str:
    given = service["environment"]
    (mapping,) = service["ports"]
    outside, inside = mapping.split(":")
    assert inside == "5432", "the image listens on 5432"
    user, password, database = (given[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    return f"postgresql://{user}:{password}@localhost:{outside}/{database}"


def test_the_compose_file_serves_the_documented_url(service: dict[str, Any]) -> None:
    assert _url(service) == "postgresql://absurd:absurd@localhost:5432/absurd"


def test_the_examples_connect_to_the_compose_server_by_default(service: dict[str, Any]) -> None:
    named = set(re.findall(r"postgresql://[^\s\"')]+", _EXAMPLE.read_text(encoding="utf-8")))

    assert named == {_url(service)}


def test_the_compose_server_is_of_the_version_the_tests_run_on(service: dict[str, Any]) -> None:
    assert service["image"] == "postgres:18"


def test_the_data_is_kept_where_the_image_of_version_18_keeps_it(service: dict[str, Any]) -> None:
    """Version 18 moved it: a volume at the old /var/lib/postgresql/data makes the image refuse to start."""
    (volume,) = service["volumes"]

    assert volume.split(":")[1] == "/var/lib/postgresql"

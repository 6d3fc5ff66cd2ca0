"""What every test can ask for stands in tests/fixtures, one topic a file."""

from __future__ import annotations

pytest_plugins = [
    "tests.fixtures.servers",
    "tests.fixtures.pooler",
    "tests.fixtures.postgres",
    "tests.fixtures.gates",
    "tests.fixtures.clock",
    "tests.fixtures.proxy",
]

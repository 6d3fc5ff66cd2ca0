"""A database of an earlier release becomes what a fresh one is, and keeps its tasks."""

from __future__ import annotations

import gzip
from pathlib import Path

import psycopg
import pytest

from absurd import schema
from tests.contract.test_signatures import catalogue, install_simply

RELEASES = sorted((Path(__file__).parent.parent / "fixtures" / "releases").glob("*.sql.gz"))


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_an_upgraded_schema_is_a_fresh_one(empty_database_url: str, conn: psycopg.Connection, release: Path) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as old:
        install_simply(old, gzip.decompress(release.read_bytes()).decode())
        old.execute("select absurd.create_queue('q'), absurd.spawn_task('q', 't', '{\"a\": 1}')")

        installed = schema.install(old)

        assert installed.changed
        assert old.execute("select task_name, params from absurd.claim_task('q', 'w')").fetchall() == [("t", {"a": 1})]
        old.execute("select absurd.drop_queue('q')")
        assert catalogue(old) == catalogue(conn)


def test_the_releases_are_those_of_the_changelog() -> None:
    changelog = (Path(__file__).parent.parent.parent / "CHANGELOG.md").read_text()
    assert RELEASES
    for release in RELEASES:
        assert f"## {release.name.removesuffix('.sql.gz')}\n" in changelog

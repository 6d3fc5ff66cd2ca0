"""Where the patterns run: ABSURD_DATABASE_URL, else the database of docker-compose.yml; `embedded:` works too."""

from __future__ import annotations

import os

import psycopg

from absurd import Absurd, embedded, schema

DATABASE_URL = os.environ.get("ABSURD_DATABASE_URL") or "postgresql://absurd:absurd@localhost:5432/absurd"


def open_app(queue_name: str) -> Absurd:
    """A client whose queue is there, in a database that has the schema."""
    url = embedded.resolve(DATABASE_URL) if embedded.is_embedded_url(DATABASE_URL) else DATABASE_URL
    with psycopg.connect(url) as conn:
        if schema.installed_version(conn) is None:
            schema.install(conn)
    app = Absurd(url, queue_name=queue_name)
    app.create_queue()
    return app

"""The database a page is followed on: empty, as a reader's is. What a page needs in it, the page has to say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def page_folder(session_folder: Path) -> Path:
    """The folder a reader of a page works in."""
    return session_folder


@pytest.fixture
def page_url(request: pytest.FixtureRequest, page_folder: Path) -> str:
    """What the reader has as ABSURD_DATABASE_URL; with DOCS_DATABASE=embedded an `embedded:` URL, a server a page."""
    wanted = os.environ.get("DOCS_DATABASE") or "server"
    if wanted == "embedded":
        return f"embedded://{page_folder}/pg"  # stopped with the folder
    if wanted != "server":
        raise pytest.UsageError(f"DOCS_DATABASE is {wanted!r}: say server or embedded")
    url: str = request.getfixturevalue("empty_database_url")
    return url

"""The web page of an Absurd database: what waits for what, its history, and a helping hand.

`create_app` gives an ASGI application: run it with `habitat run` or `absurdctl ui`, or mount it::

    app.mount("/habitat", habitat_lite.create_app("postgresql://localhost/shop"))

It has no login: whoever reaches it sees every payload and may act, unless `read_only=True`. Put it behind your own.
"""

from __future__ import annotations

from habitat_lite.app import create_app

__all__ = ["create_app"]

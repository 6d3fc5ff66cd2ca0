"""Stylesheet, scripts and icon: read once, at an address that names their content, so that browsers keep them for good."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "static"
#: of the address that a page names: what is there never changes
FOR_GOOD = "public, max-age=31536000, immutable"
#: of any other, such as that of an older page: it is what it is now
SHORT = "public, max-age=60"
# not what this machine happens to have registered
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NAMED = re.compile(r"(.+)-([0-9a-f]{16})(\.\w+)")


@dataclass(frozen=True)
class Asset:
    """A file as it was at the start: what is changed on the disk later must not be kept under the name of this."""

    body: bytes
    media_type: str
    mark: str


@cache
def assets() -> dict[str, Asset]:
    """All of them, by file name."""
    found = {}
    for path in sorted(each for each in FOLDER.iterdir() if each.suffix in _TYPES):
        body = path.read_bytes()
        found[path.name] = Asset(body, _TYPES[path.suffix], hashlib.blake2b(body, digest_size=8).hexdigest())
    return found


def address(name: str) -> str:
    """The path of a file, below where the app is mounted: `/static/habitat-<hash>.css`. KeyError for one that is not there."""
    stem, dot, suffix = name.rpartition(".")
    return f"/static/{stem}-{assets()[name].mark}{dot}{suffix}"


def routes() -> list[Route]:
    """The address of every file."""
    return [Route("/static/{name}", _serve)]


async def _serve(request: Request) -> Response:
    name = request.path_params["name"]
    named = _NAMED.fullmatch(name)
    asset = assets().get(f"{named[1]}{named[3]}" if named else name)
    if asset is None:
        raise HTTPException(404)
    current = named is not None and named[2] == asset.mark
    headers = {"cache-control": FOR_GOOD if current else SHORT, "etag": f'"{asset.mark}"'}
    given = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if headers["etag"] in given:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)

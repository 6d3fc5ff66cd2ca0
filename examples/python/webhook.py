"""A webhook endpoint that emits events: a payment provider calls it, the order goes on.

    export WEBHOOK_SECRET=whsec_...            # python webhook.py --new-secret makes one
    python webhook.py --port 8081

`POST /hooks/payment` with `{"order_id": "order-12345", "amount": 99.99, "method": "credit_card"}` emits
`payment.confirmed:order-12345` with the rest of the body. The call must be signed as https://www.standardwebhooks.com
says: headers `webhook-id`, `webhook-timestamp` and `webhook-signature`. A provider that calls twice does no harm: the
first emit of a name wins, and the answer says which it was.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from absurd import Absurd, AbsurdError

DATABASE_URL = os.environ.get("ABSURD_DATABASE_URL") or "postgresql://absurd:absurd@localhost:5432/absurd"
MOST_BYTES = 1_000_000
TOLERANCE = 300
"""Seconds a call may be old, or early: an overheard call cannot be repeated for ever."""


class Refused(Exception):
    """A call that is answered with an error status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def key_of(secret: str) -> bytes:
    """The key of a secret as providers show it: `whsec_` and base64. ValueError for anything else."""
    prefix, _, text = secret.partition("_")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if prefix != "whsec" or not key:
        raise ValueError("WEBHOOK_SECRET must be whsec_ and base64: python webhook.py --new-secret makes one")
    return key


def sign(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """The signature of a message: `v1,` and the base64 of HMAC-SHA256 over id, timestamp and body."""
    content = message_id.encode() + b"." + timestamp.encode() + b"." + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


def verify(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> None:
    """Raise Refused (401) unless one of the signatures is right and the timestamp is near `now` (epoch seconds)."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not message_id or not timestamp.isascii() or not timestamp.isdigit() or len(timestamp) > 12:
        raise Refused(HTTPStatus.UNAUTHORIZED, "webhook-id or webhook-timestamp is missing or malformed")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise Refused(HTTPStatus.UNAUTHORIZED, "webhook-timestamp is too old or too new")
    expected = sign(key, message_id, timestamp, body).encode()
    given = headers.get("webhook-signature", "").split()  # several while a secret is being rotated
    # In constant time: how long a comparison takes must not tell how much of a guess was right.
    if not any([hmac.compare_digest(expected, one.encode("utf-8", "replace")) for one in given]):
        raise Refused(HTTPStatus.UNAUTHORIZED, "no valid signature")


def event_of(body: bytes) -> tuple[str, Any]:
    """Name and payload of the event a body asks for. Refused (400) when it does not say which order."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    order_id = content.pop("order_id", None) if isinstance(content, dict) else None
    if not isinstance(order_id, str) or not order_id.strip():
        raise Refused(HTTPStatus.BAD_REQUEST, "the body needs an order_id")
    return f"payment.confirmed:{order_id}", content


class Hook(BaseHTTPRequestHandler):
    """`POST /hooks/payment`."""

    app: Absurd
    key: bytes
    timeout = 10

    def do_POST(self) -> None:
        """Verify, emit, answer 202 once the event is committed: a provider repeats what is not answered."""
        try:
            if self.path != "/hooks/payment":
                raise Refused(HTTPStatus.NOT_FOUND, "POST to /hooks/payment")
            body = self._body()
            verify(self.key, {name.lower(): value for name, value in self.headers.items()}, body, time.time())
            event, payload = event_of(body)
            answer: dict[str, Any] = {"event": event, "emitted": self.app.emit_event(event, payload)}
            status = HTTPStatus.ACCEPTED
        except Refused as refused:
            status, answer = refused.status, {"error": str(refused)}
        except (TypeError, ValueError) as error:  # a payload that Postgres cannot keep
            status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except AbsurdError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, {"error": "try again later"}
        self._answer(status, answer)

    def _body(self) -> bytes:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "content-length is missing")
        if int(length[:20]) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES} bytes")
        return self.rfile.read(int(length))

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> int:
    """Serve until Ctrl-C; 2 when there is no usable secret."""
    parser = argparse.ArgumentParser(description="Turn signed webhook calls into events.")
    parser.add_argument("--port", type=int, default=8081, help="port on this machine (8081; 0: any free one)")
    parser.add_argument("--queue", default="examples", help="queue of the orders (examples)")
    parser.add_argument("--new-secret", action="store_true", help="print a fresh secret and leave")
    options = parser.parse_args()
    if options.new_secret:
        print("whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
        return 0
    try:
        Hook.key = key_of(os.environ.get("WEBHOOK_SECRET", ""))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with Absurd(DATABASE_URL, queue_name=options.queue) as Hook.app:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), Hook)
        print(f"Listening on http://127.0.0.1:{server.server_port}/hooks/payment", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
        finally:
            server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

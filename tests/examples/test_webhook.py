"""The webhook endpoint: a signed call resumes the order, everything else is refused and changes nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from absurd import Absurd
from tests.examples import order
from tests.examples.conftest import Run
from tests.examples.nursery import PYTHON, SECONDS, Nursery
from tests.examples.order import Connection
from tests.examples.terminal import environment

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
ORDER = "order-12345"
BODY = json.dumps({"order_id": ORDER, **order.PAYMENT}).encode()

Answer = tuple[int, dict[str, Any]]
Call = Callable[..., Answer]


@pytest.fixture
def call(database_url: str, app: Absurd) -> Iterator[Call]:
    """POST to a running endpoint; status and answer."""
    env = {**environment(database_url), "WEBHOOK_SECRET": SECRET}
    command = [sys.executable, str(PYTHON / "webhook.py"), "--port", "0"]
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().removeprefix("Listening on ").strip()

    def post(body: bytes, headers: dict[str, str], path: str = "/hooks/payment") -> Answer:
        target = url.replace("/hooks/payment", path)
        request = urllib.request.Request(target, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    yield post
    server.kill()
    server.wait()
    server.stdout.close()


def signed(body: bytes, *, key: bytes = KEY, age: int = 0, message: str = "msg_1") -> dict[str, str]:
    """The headers of a call as the Standard Webhooks specification has them, written down a second time."""
    timestamp = str(int(time.time()) - age)
    digest = hmac.new(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": message, "webhook-timestamp": timestamp, "webhook-signature": signature}


def test_a_signed_call_resumes_the_order(call: Call, app: Absurd, nursery: Nursery) -> None:
    app.spawn("order-fulfillment", {"order_id": ORDER}, queue="examples")
    worker = nursery.start()
    worker.until("⏳ Waiting for payment")
    worker.go()

    status, answer = call(BODY, signed(BODY))

    assert (status, answer) == (202, {"event": f"payment.confirmed:{ORDER}", "emitted": True})
    assert worker.until("✓ Payment") == [order.transcript(ORDER)[3]]
    worker.kill()


def test_the_same_call_twice_changes_nothing(call: Call) -> None:
    assert call(BODY, signed(BODY)) == (202, {"event": f"payment.confirmed:{ORDER}", "emitted": True})
    other = BODY.replace(b"99.99", b"11.11")
    assert call(other, signed(other)) == (202, {"event": f"payment.confirmed:{ORDER}", "emitted": False})


def test_one_right_signature_among_several_is_enough(call: Call) -> None:
    headers = signed(BODY)
    headers["webhook-signature"] = f"v1,AAAA {headers['webhook-signature']} v2,x"

    assert call(BODY, headers)[0] == 202


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**signed(BODY), "webhook-signature": ""},
        {**signed(BODY), "webhook-signature": "v1,AAAA"},
        {**signed(BODY), "webhook-id": "msg_2"},
        {**signed(BODY), "webhook-timestamp": "soon"},
        {**signed(BODY), "webhook-timestamp": str(int(time.time()) + 1)},
        signed(BODY, key=b"another key"),
        signed(BODY + b" "),
        signed(BODY, age=3600),
        signed(BODY, age=-3600),
    ],
    ids=["none", "empty", "wrong", "other-id", "no-time", "other-time", "other-key", "other-body", "old", "future"],
)
def test_a_call_without_a_right_signature_is_401_and_emits_nothing(
    headers: dict[str, str], call: Call, conn: Connection
) -> None:
    status, answer = call(BODY, headers)

    assert status == 401
    assert set(answer) == {"error"}
    assert conn.execute("select count(*) from absurd.events").fetchone() == (0,)


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"order_id": 7}', b'{"order_id": " "}', b"\xff", b'"order"'])
def test_a_signed_body_without_an_order_is_400(body: bytes, call: Call, conn: Connection) -> None:
    assert call(body, signed(body))[0] == 400
    assert conn.execute("select count(*) from absurd.events").fetchone() == (0,)


def test_a_payload_that_cannot_be_kept_is_400(call: Call) -> None:
    body = b'{"order_id": "order-1", "note": "\\u0000"}'

    assert call(body, signed(body))[0] == 400


def test_another_path_is_404_and_a_huge_body_413(call: Call) -> None:
    assert call(BODY, signed(BODY), "/hooks/other")[0] == 404
    assert call(b"", {"content-length": "9000000"})[0] == 413


def test_without_a_usable_secret_it_does_not_start(run: Run, app: Absurd, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("", "secret", "whsec_", "whsec_%%%"):
        monkeypatch.setenv("WEBHOOK_SECRET", secret)
        done = run("webhook.py", "--port", "0")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1


def test_a_new_secret_is_usable(run: Run, app: Absurd) -> None:
    first, second = (run("webhook.py", "--new-secret").stdout.strip() for _ in range(2))

    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"), validate=True)) == 32

"""Emit an event from the command line.

    python send_event.py payment.confirmed:order-12345 --payload '{"amount": 99.99}'
    python send_event.py daily.report.ready --queue reports

The database is ABSURD_DATABASE_URL, else the one of docker-compose.yml. Never installs anything.
Exit codes: 0 emitted, 1 no database or no schema, 2 wrong arguments, 3 unknown queue.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, NoReturn

import psycopg

from absurd import Absurd, AbsurdError, NotSerializable, ValueTooLarge

DATABASE_URL = os.environ.get("ABSURD_DATABASE_URL") or "postgresql://absurd:absurd@localhost:5432/absurd"

EXAMPLE = '{"amount": 99.99}'


def main() -> int:
    """Emit one event; the exit code."""
    parser = argparse.ArgumentParser(description="Emit an event; tasks that wait for it go on.")
    parser.add_argument("event", metavar="EVENT", help="its name, such as payment.confirmed:order-12345")
    parser.add_argument("--payload", metavar="JSON", default="null", help="what the event carries (default: null)")
    parser.add_argument("--queue", default="examples", help="queue of the tasks that wait (default: examples)")
    options = parser.parse_args()
    if not options.event.strip():
        return fail(2, "an event needs a name")
    try:
        payload = json.loads(options.payload, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        return fail(2, f"--payload is not valid JSON: {error}; write it like this: --payload '{EXAMPLE}'")
    try:
        with Absurd(DATABASE_URL, queue_name=options.queue) as app:
            queues = app.list_queues()
            if options.queue not in queues:
                return fail(3, f"queue '{options.queue}' does not exist; there are: {', '.join(queues) or '(none)'}")
            emit(app, options.event, payload)
    except (NotSerializable, ValueTooLarge, ValueError) as error:
        return fail(2, str(error))
    except (AbsurdError, psycopg.Error) as error:
        return fail(1, str(error))
    return 0


def emit(app: Absurd, event: str, payload: Any) -> None:
    """Emit, and say so."""
    print(f"Emitting event to queue '{app.queue_name}':\n  Event name: {event}")
    print(f"  Payload: {json.dumps(payload, indent=2, ensure_ascii=False)}")
    if app.emit_event(event, payload):
        print("✓ Event emitted successfully!\n")
        print("If a task was waiting for this event, it will now resume.")
    else:
        print("= This event was emitted before: tasks see the payload it had then, nothing has changed.")


def refuse(constant: str) -> NoReturn:
    """JSON has no NaN and no infinities, though Python's reader takes them."""
    raise ValueError(f"{constant} is not JSON")


def fail(code: int, message: str) -> int:
    """One line on stderr."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

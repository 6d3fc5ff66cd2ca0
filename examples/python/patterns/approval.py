"""A human in the loop: a document waits, for days if need be, until somebody approves it.

While it waits it holds no worker and no connection: a row in the database is all there is of it.

    $ python patterns/approval.py
    waiting for document.approved
    approved by ada@example.com
"""

from __future__ import annotations

import uuid
from typing import Any

from absurd import TaskContext
from database import open_app

app = open_app("pattern-approval")


@app.register_task("approval-workflow")
def approval_workflow(params: dict[str, Any], ctx: TaskContext) -> dict[str, Any]:
    """Create, wait for a decision, finalize. While it waits it holds no worker and no connection."""
    doc = ctx.step("create-document", lambda: {"id": params["doc_id"]})
    approval = ctx.await_event(f"document.approved:{doc['id']}")
    return ctx.step(
        "finalize",
        lambda: {
            "status": "approved",
            "approver": approval.get("approver"),
            "timestamp": approval.get("timestamp"),
        },
    )


def main() -> None:
    """A document, and the person who approves it."""
    doc_id = uuid.uuid4().hex
    task = app.spawn("approval-workflow", {"doc_id": doc_id})["task_id"]
    app.work_batch()
    print("waiting for document.approved")
    decision = {"approver": "ada@example.com", "timestamp": "2025-01-02T15:00:00Z"}
    app.emit_event(f"document.approved:{doc_id}", decision)  # from a web page, a chat, absurdctl, ...
    app.work_batch()
    outcome = app.await_task_result(task, timeout=10).result
    print(f"{outcome['status']} by {outcome['approver']}")
    app.close()


if __name__ == "__main__":
    main()

"""What a page may do: emit an event, retry a task, cancel one. Each is a form with a token; the answer is its page."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from absurd import InvalidOption, typed
from habitat_lite import filters, guard


def routes() -> list[Route]:
    """The addresses of the forms."""
    return [
        Route("/events/emit", emit, methods=["POST"]),
        Route("/tasks/{id}/retry", retry, methods=["POST"]),
        Route("/tasks/{id}/cancel", cancel, methods=["POST"]),
    ]


async def emit(request: Request) -> Response:
    """Fields: queue, name, payload (JSON; none is null), mode."""
    form = await _form(request)
    text = form.get("payload", "").strip()
    try:
        payload = typed.written(typed.read(text or "null"))
    except ValueError as error:
        raise InvalidOption(
            f"the payload is no JSON that can be kept: {error}", hint='text goes in quotes: "like this"'
        ) from None
    mode: Any = form.get("mode") or "latch"
    took = await request.app.state.source.act(
        form.get("queue", ""), lambda client: client.emit_event(form.get("name", ""), payload, mode=mode)
    )
    return _back(request, form, "emitted" if took else "kept")


async def retry(request: Request) -> Response:
    """Fields: queue, max_attempts (default: one more than there were), spawn_new."""
    form = await _form(request)
    most = form.get("max_attempts", "").strip()
    if most and (not most.isdecimal() or len(most) > 9):
        raise InvalidOption(f"attempts must be a whole number below a thousand million, not {most[:20]!r}")
    options: dict[str, Any] = {"max_attempts": int(most)} if most else {}
    task = filters.task_id(request.path_params["id"])
    retried = await request.app.state.source.act(
        form.get("queue", ""),
        lambda client: client.retry_task(task, spawn_new=bool(form.get("spawn_new")), **options),
    )
    if retried["created"]:
        form["back"] = f"/tasks/{retried['task_id']}?{urlencode({'queue': form.get('queue', '')})}"
    return _back(request, form, "copied" if retried["created"] else "retried")


async def cancel(request: Request) -> Response:
    """Fields: queue."""
    form = await _form(request)
    task = filters.task_id(request.path_params["id"])
    await request.app.state.source.act(form.get("queue", ""), lambda client: client.cancel_task(task))
    return _back(request, form, "cancelled")


async def _form(request: Request) -> dict[str, str]:
    if request.app.state.source.read_only:
        raise guard.Refused("this page is read-only: nothing can be done from here")
    return await guard.form_of(request)


def _back(request: Request, form: dict[str, str], said: str) -> Response:
    """To the page the form stands on, with a word of what was done."""
    request.app.state.source.forget()
    path, _, query = form.get("back", "/").partition("?")
    if not path.startswith("/") or path.startswith("//") or "\\" in path or urlsplit(path).netloc:
        path, query = "/", ""
    kept = "&".join(each for each in query.split("&") if each and not each.startswith("said="))
    root = request.scope.get("root_path", "")
    address = f"{root}{path}?{kept + '&' if kept else ''}{urlencode({'said': said})}"
    return RedirectResponse(address, status_code=303)

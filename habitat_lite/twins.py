"""What the pages show, as JSON: the same columns and values as absurdctl's `--json`, and payloads whole.

Payloads are whole up to `CARRIES` bytes an answer. One that finds no room is `{"$preview": ..., "$size": ..., "$whole": ...}`:
its beginning, its size in bytes, and the address where it is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from absurd import TaskNotFound
from absurd.queries import Page, detail, document, events, overview, queues, tasks, waits
from absurd.queries.tasks import Checkpoint, TaskDetail
from absurd.queries.values import Preview
from habitat_lite import filters
from habitat_lite.source import Source

#: bytes of payloads in one answer
CARRIES = 8 * 2**20
#: of one task in one answer, the newest
RUNS, CHECKPOINTS, WAITS = 1_000, 1_000, 1_000
PAYLOADS = ("params", "headers", "result", "failure", "checkpoint", "run_result", "run_failure")
#: bytes sent at a time: whoever compresses an answer has others to serve in between
_CHUNK = 64 * 1024


def routes() -> list[Route]:
    """The twins of the pages, the queues, and every payload whole."""
    return [
        Route("/overview.json", _twin(_overview)),
        Route("/queues.json", _twin(_queues)),
        Route("/tasks.json", _twin(_tasks)),
        Route("/events.json", _twin(_events)),
        Route("/waits.json", _twin(_waits)),
        Route("/tasks/{id}.json", _twin(_task)),
        Route("/tasks/{id}/checkpoints.json", _twin(_checkpoints)),
        Route("/tasks/{id}/raw/{part}", _raw),
        Route("/events/raw", _raw_event),
    ]


def _twin(gather: Callable[[Request, Source], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        told = await gather(request, request.app.state.source)
        return sent(document.written(told), "application/json")

    return answer


async def _overview(request: Request, source: Source) -> Any:
    page = await source.ask(overview.find(after=request.query_params.get("after") or None))
    return document.listed("queues", page, workers=await source.ask(overview.workers()))


async def _queues(request: Request, source: Source) -> Any:
    return {"queues": await source.ask(queues.find())}


async def _tasks(request: Request, source: Source) -> Any:
    return document.listed("tasks", await source.ask(tasks.find(filters.tasks_of(request.query_params))))


async def _waits(request: Request, source: Source) -> Any:
    return document.listed("waits", await source.ask(waits.find(filters.waits_of(request.query_params))))


async def _events(request: Request, source: Source) -> Any:
    # it may be large: nobody keeps it
    page = await source.ask(events.find(filters.events_of(request.query_params, most=CARRIES)), 0)
    root = _root(request)
    told = document.listed("events", page)
    return told | {
        "events": [
            _shown(each, payload=(f"{root}/events/raw", {"queue": each.queue_name, "name": each.event_name}))
            for each in page.items
        ]
    }


async def _task(request: Request, source: Source) -> Any:
    task, queue = filters.task_id(request.path_params["id"]), request.query_params.get("queue") or None
    found = await source.ask(
        tasks.get(task, queue, most=CARRIES, runs=RUNS, checkpoints=CHECKPOINTS + 1, waits=WAITS + 1), 0
    )
    if found is None:
        raise TaskNotFound(f"no queue holds task {task}: it may have been cleaned up")
    base = f"{_root(request)}/tasks/{found.task.task_id}"
    left_out = _left_out(found, base)
    found = dataclasses.replace(found, checkpoints=found.checkpoints[-CHECKPOINTS:], waits=found.waits[:WAITS])
    told = document.told(found) | {"detail": _detail(found, base)}
    return told | {"left_out": left_out} if left_out else told


def _left_out(found: TaskDetail, base: str) -> dict[str, Any]:
    """What a task has more of than one answer holds: how many runs and waits, and where the checkpoints go on."""
    left_out: dict[str, Any] = {}
    if found.runs and found.runs[0].attempt > 1:
        left_out["runs"] = found.runs[0].attempt - 1
    if len(found.checkpoints) > CHECKPOINTS:
        after = detail.following(found.checkpoints[-CHECKPOINTS])
        left_out["checkpoints"] = _address(f"{base}/checkpoints.json", queue=found.task.queue_name, after=after)
    if len(found.waits) > WAITS:
        left_out["waits"] = f"more than {WAITS}"
    return left_out


def _detail(found: TaskDetail, base: str) -> dict[str, Any]:
    queue = found.task.queue_name

    def raw(part: str, name: object = None) -> tuple[str, dict[str, Any]]:
        return f"{base}/raw/{part}", {"queue": queue} if name is None else {"queue": queue, "name": name}

    told = _shown(found, **{part: raw(part) for part in ("params", "headers", "result", "failure")})
    runs = [_shown(r, result=raw("run_result", r.attempt), failure=raw("run_failure", r.attempt)) for r in found.runs]
    return told | {"runs": runs, "checkpoints": [_shown(c, state=raw("checkpoint", c.name)) for c in found.checkpoints]}


async def _checkpoints(request: Request, source: Source) -> Any:
    query, task = request.query_params, filters.task_id(request.path_params["id"])
    queue = query.get("queue", "")
    page: Page[Checkpoint] = await source.ask(
        detail.checkpoints(queue, task, after=query.get("after") or None, most=CARRIES), 0
    )
    raw = f"{_root(request)}/tasks/{task}/raw/checkpoint"
    told = document.listed("checkpoints", page)
    return told | {"checkpoints": [_shown(c, state=(raw, {"queue": queue, "name": c.name})) for c in page.items]}


def _shown(value: Any, **values: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The fields of an answer, and for each of the `values` for which there was no room, how to get it whole."""
    told = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    for name, (path, query) in values.items():
        if isinstance(preview := told[name], Preview):
            told[name] = {"$preview": preview.text, "$size": preview.size, "$whole": _address(path, **query)}
    return told


async def _raw(request: Request) -> Response:
    part, queue = request.path_params["part"], request.query_params.get("queue", "")
    name: Any = request.query_params.get("name")
    if part not in PAYLOADS:
        raise HTTPException(404)
    if part.startswith("run_") and name is not None and name.isdecimal() and len(name) < 10:
        name = int(name)
    question = detail.payload(queue, filters.task_id(request.path_params["id"]), part, name)
    found = await request.app.state.source.ask(question, 0)
    if found is None:
        raise TaskNotFound(f"task {request.path_params['id']} of queue {queue!r} has no such {part}")
    return sent(found.text, "text/plain", f"{part}.json")


async def _raw_event(request: Request) -> Response:
    queue, name = request.query_params.get("queue", ""), request.query_params.get("name", "")
    found = await request.app.state.source.ask(events.payload(queue, name), 0)
    if found is None:
        raise HTTPException(404)
    return sent(found.text, "text/plain", "payload.json")


def sent(text: str, kind: str, name: str | None = None) -> Response:
    """The text as an answer of that kind, in pieces where it is large; `name`: that of the file, to whoever saves it."""
    headers = {"content-disposition": f'inline; filename="{name}"'} if name else None
    body = text.encode()
    if len(body) <= _CHUNK:
        return Response(body, headers=headers, media_type=kind)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _CHUNK):
            yield body[start : start + _CHUNK]

    return StreamingResponse(pieces(), headers=headers, media_type=kind)


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _address(path: str, **query: Any) -> str:
    return f"{path}?{urlencode(query)}"

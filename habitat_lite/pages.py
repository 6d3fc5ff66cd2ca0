"""The pages: each is a question or two, a template, and a JSON twin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from absurd import ConfigError, InvalidOption, TaskNotFound, queries
from absurd.queries import Query, detail, events, overview, queues, tasks, waits, why
from absurd.queries.events import EventFilter
from absurd.queries.tasks import STATES, TaskFilter
from absurd.queries.waits import WaitFilter
from habitat_lite import guard, render, timeline
from habitat_lite.live import print_of, stream
from habitat_lite.source import Source

T = TypeVar("T")
Given = dict[str, Any]
PAGE = 50
CHECKPOINTS = 100
PAYLOADS = ("params", "headers", "result", "failure", "checkpoint", "run_result", "run_failure")


class Asker:
    """The questions of one page, counted."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count = 0

    async def __call__(self, question: Query[T], fresh: float = 1.0) -> T:
        """The answer; `fresh`: seconds for which an older one will do."""
        asked = self._source.asked
        answer = await self._source.ask(question, fresh)
        self.count += self._source.asked != asked
        return answer


@dataclass(frozen=True)
class Kind:
    """A kind of page. `gather` asks; what it gives is the template's context, and under `json` the twin."""

    name: str
    path: str
    template: str
    gather: Callable[[Asker, Mapping[str, str], Mapping[str, str]], Awaitable[Given]]


async def _overview(ask: Asker, path: Mapping[str, str], query: Mapping[str, str]) -> Given:
    page = await ask(overview.find(after=query.get("after") or None))
    workers = await ask(overview.workers())
    return {"title": "Overview", "queues": page, "workers": workers, "json": {"queues": page, "workers": workers}}


async def _tasks(ask: Asker, path: Mapping[str, str], query: Mapping[str, str]) -> Given:
    which = _task_filter(query)
    page = await ask(tasks.find(which))
    names = await ask(queues.find(), 30.0)
    kept = await ask(overview.find(which.queue), 30.0)
    again = {key: query[key] for key in ("queue", "state", "name", "since", "q") if query.get(key)}
    return {
        "title": "Tasks",
        "page": page,
        "which": which,
        "kept": sum(each.tasks for each in kept.items),
        "kept_about": kept.next is not None or any(each.tasks_estimated for each in kept.items),
        "states": tuple(STATES),
        "queues": names,
        "again": again,
        "filtered": bool(again),
        "since": query.get("since", ""),
        "search": query.get("q", ""),
        "json": page,
    }


async def _task(ask: Asker, path: Mapping[str, str], query: Mapping[str, str]) -> Given:
    found = await ask(
        detail.get(_id(path["id"]), query.get("queue") or None, checkpoints=CHECKPOINTS, checkpoint_preview=1_000)
    )
    if found is None:
        raise TaskNotFound(f"no queue holds task {path['id']}: it may have been cleaned up")
    return {
        "title": f"{found.task.task_name} {str(found.task.task_id)[:8]}",
        "found": found,
        "why": why.explain(found),
        "marks": timeline.marks(found),
        "axis": timeline.axis(found.task),
        "json": {"why": why.explain(found), **queries.as_json(found)},
    }


async def _events(ask: Asker, path: Mapping[str, str], query: Mapping[str, str]) -> Given:
    state = query.get("state") or None
    if state not in (None, "emitted", "pending"):
        raise InvalidOption(f"state must be emitted or pending, not {state!r}")
    which = EventFilter(
        queue=query.get("queue") or None,
        name=query.get("name") or None,
        state=state,  # type: ignore[arg-type]
        waiters=True,
        preview=2_000,
        limit=PAGE,
        after=query.get("after") or None,
    )
    page = await ask(events.find(which))
    names = await ask(queues.find(), 30.0)
    return {"title": "Events", "page": page, "which": which, "queues": names, "json": page}


async def _waits(ask: Asker, path: Mapping[str, str], query: Mapping[str, str]) -> Given:
    which = WaitFilter(
        queue=query.get("queue") or None, event=query.get("event") or None, limit=PAGE, after=query.get("after") or None
    )
    page = await ask(waits.find(which))
    names = await ask(queues.find(), 30.0)
    return {"title": "Waits", "page": page, "which": which, "queues": names, "json": page}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("overview", "/", "overview.html", _overview),
        Kind("tasks", "/tasks", "tasks.html", _tasks),
        Kind("task", "/tasks/{id}", "task.html", _task),
        Kind("events", "/events", "events.html", _events),
        Kind("waits", "/waits", "waits.html", _waits),
    )
}


def routes() -> list[Route]:
    """Every page, its JSON twin and its stream; payloads whole."""
    found = [
        Route("/tasks/{id}/raw/{part}", _raw),
        Route("/events/raw", _raw_event),
        Route("/tasks/{id}/checkpoints.json", _checkpoints),
    ]
    for kind in KINDS.values():
        path = kind.path if kind.path != "/" else "/overview"
        found += [
            Route(f"{path}.json", _twin(kind)),
            Route(f"/live{path}", _live(kind)),
            Route(kind.path, _html(kind)),
        ]
    return found


#: what a form has done, told on the page it leads back to; an address can say no other words
SAID = {
    "emitted": "The event is emitted. Whoever waited for it wakes up.",
    "kept": "That event has a payload already and keeps it: nobody was woken.",
    "retried": "It will be tried again, with the steps it has kept.",
    "copied": "This is the copy. It begins from the start.",
    "cancelled": "It is cancelled.",
}


def rendered(request: Request, template: str, kind: str, given: Mapping[str, Any]) -> str:
    """A whole page with its frame."""
    return render.page(template, {**_frame(request, kind), **given})


def _frame(request: Request, kind: str) -> Given:
    source: Source = request.app.state.source
    root = request.scope.get("root_path", "")
    place, query = _place(request, kind)
    return {
        "root": root,
        "kind": kind,
        "live": f"{root}/live{place if place != '/' else '/overview'}{query}" if kind else "",
        "seen": "",
        "read_only": source.read_only,
        "token": guard.token_of(request),
        "token_field": guard.FIELD,
        "said": SAID.get(request.query_params.get("said", ""), "") if kind else "",
        "here": f"{place}{query}",
    }


def _place(request: Request, kind: str) -> tuple[str, str]:
    """Where a page of ours is, below wherever the app is mounted, and its question mark with the fields that matter."""
    if not kind:
        return "/", ""
    path = KINDS[kind].path.format(**{name: quote(value) for name, value in request.path_params.items()})
    fields = [(name, value) for name, value in request.query_params.multi_items() if name not in _OURS]
    return path, f"?{urlencode(fields)}" if fields else ""


_OURS = ("said", "seen")


def _html(kind: Kind) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        given = await kind.gather(Asker(request.app.state.source), request.path_params, request.query_params)
        frame = _frame(request, kind.name)
        seen = print_of(_content(kind, frame, given))
        response = HTMLResponse(render.page(kind.template, {**frame, **given, "seen": seen}))
        guard.remember(request, response)
        return response

    return answer


def _content(kind: Kind, frame: Given, given: Given) -> str:
    """What is the same for everybody: a browser puts its own token in."""
    return render.content(kind.template, {**frame, "token": "", "said": "", **given})


def _twin(kind: Kind) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        given = await kind.gather(Asker(request.app.state.source), request.path_params, request.query_params)
        return JSONResponse(queries.as_json(given["json"]))

    return answer


def _live(kind: Kind) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if request.method == "HEAD":  # a stream has no end
            return Response(media_type="text/event-stream")
        source: Source = request.app.state.source
        path, query = dict(request.path_params), dict(request.query_params)
        seen = request.headers.get("last-event-id") or query.get("seen", "")
        frame = _frame(request, kind.name)

        async def content() -> tuple[str, int]:
            ask = Asker(source)
            given = await kind.gather(ask, path, query)
            return _content(kind, frame, given), ask.count

        feed = request.app.state.feeds[kind.name]
        address = f"{frame['root']} {frame['here']}"
        return StreamingResponse(stream(feed, address, content, seen), media_type="text/event-stream")

    return answer


async def _raw(request: Request) -> Response:
    part, queue = request.path_params["part"], request.query_params.get("queue", "")
    name: Any = request.query_params.get("name")
    if part not in PAYLOADS:
        raise HTTPException(404)
    if part.startswith("run_") and name is not None and name.isdecimal() and len(name) < 10:
        name = int(name)
    question = detail.payload(queue, _id(request.path_params["id"]), part, name)
    found = await Asker(request.app.state.source)(question, 0)  # it may be large: nobody keeps it
    if found is None:
        raise TaskNotFound(f"task {request.path_params['id']} of queue {queue!r} has no such {part}")
    return PlainTextResponse(found.text, headers={"content-disposition": f'inline; filename="{part}.json"'})


async def _raw_event(request: Request) -> Response:
    queue, name = request.query_params.get("queue", ""), request.query_params.get("name", "")
    found = await Asker(request.app.state.source)(events.payload(queue, name), 0)
    if found is None:
        raise HTTPException(404)
    return PlainTextResponse(found.text, headers={"content-disposition": 'inline; filename="payload.json"'})


async def _checkpoints(request: Request) -> Response:
    query = request.query_params
    question = detail.checkpoints(
        query.get("queue", ""), _id(request.path_params["id"]), after=query.get("after") or None
    )
    return JSONResponse(queries.as_json(await Asker(request.app.state.source)(question)))


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise TaskNotFound(f"{text!r} is no id of a task") from None


def _task_filter(query: Mapping[str, str]) -> TaskFilter:
    state, since = query.get("state") or "", query.get("since") or ""
    if state and state not in STATES:
        raise InvalidOption(f"state must be one of {', '.join(STATES)}, not {state!r}")
    which = TaskFilter(
        queue=query.get("queue") or None,
        name=query.get("name") or None,
        states=(state,) if state else (),
        since=_since(since) if since else None,
        limit=PAGE,
        after=query.get("after") or None,
    )
    text = (query.get("q") or "").strip()
    if not text:
        return which
    try:
        return replace(which, id=UUID(text))
    except ValueError:
        return replace(which, text=text)


def _since(text: str) -> datetime:
    """`15m`, `24h`, `7d`, or a moment."""
    units = {"m": 60, "h": 3600, "d": 86400}
    try:
        if text[-1] in units:
            # to the minute, so that those who ask the same share an answer
            now = datetime.now(UTC).replace(second=0, microsecond=0)
            return now - timedelta(seconds=int(text[:-1]) * units[text[-1]])
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"since must be as 15m, 24h, 7d or 2026-03-01T12:00, not {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

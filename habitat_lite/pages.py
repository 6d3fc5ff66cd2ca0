"""The pages: each is a question or two, and a template. (`twins` are the same as JSON.)"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from absurd import TaskNotFound
from absurd.queries import Query, detail, events, overview, queues, tasks, waits, why
from absurd.queries.tasks import STATES
from habitat_lite import filters, guard, render, timeline
from habitat_lite.live import print_of, stream
from habitat_lite.source import Source

T = TypeVar("T")
Given = dict[str, Any]
CHECKPOINTS = 100
_AGAIN = ("queue", "state", "name", "since", "until", "id", "text", "limit", "q")


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
    """A kind of page. `gather` asks; what it gives is the template's context."""

    name: str
    path: str
    template: str
    gather: Callable[[Asker, Mapping[str, str], QueryParams], Awaitable[Given]]


async def _overview(ask: Asker, path: Mapping[str, str], query: QueryParams) -> Given:
    page = await ask(overview.find(after=query.get("after") or None))
    workers = await ask(overview.workers())
    return {"title": "Overview", "queues": page, "workers": workers}


async def _tasks(ask: Asker, path: Mapping[str, str], query: QueryParams) -> Given:
    which = filters.tasks_of(query)
    page = await ask(tasks.find(which))
    names = await ask(queues.find(), 30.0)
    kept = await ask(overview.find(which.queue), 30.0)
    again = {key: query.getlist(key) for key in _AGAIN if query.get(key)}
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
    }


async def _task(ask: Asker, path: Mapping[str, str], query: QueryParams) -> Given:
    found = await ask(
        detail.get(
            filters.task_id(path["id"]), query.get("queue") or None, checkpoints=CHECKPOINTS, checkpoint_preview=1_000
        )
    )
    if found is None:
        raise TaskNotFound(f"no queue holds task {path['id']}: it may have been cleaned up")
    return {
        "title": f"{found.task.task_name} {str(found.task.task_id)[:8]}",
        "found": found,
        "why": why.explain(found),
        "marks": timeline.marks(found),
        "axis": timeline.axis(found.task),
    }


async def _events(ask: Asker, path: Mapping[str, str], query: QueryParams) -> Given:
    which = filters.events_of(_only(query, "queue", "name", "state", "after"), preview=2_000)
    page = await ask(events.find(which))
    names = await ask(queues.find(), 30.0)
    return {"title": "Events", "page": page, "which": which, "queues": names}


async def _waits(ask: Asker, path: Mapping[str, str], query: QueryParams) -> Given:
    which = filters.waits_of(_only(query, "queue", "event", "after"))
    page = await ask(waits.find(which))
    names = await ask(queues.find(), 30.0)
    return {"title": "Waits", "page": page, "which": which, "queues": names}


def _only(query: QueryParams, *names: str) -> QueryParams:
    """The fields that the form of a page has, and its links go on with."""
    return QueryParams([(name, value) for name, value in query.multi_items() if name in names])


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
    """Every page and its stream."""
    found = []
    for kind in KINDS.values():
        live = kind.path if kind.path != "/" else "/overview"
        found += [Route(f"/live{live}", _live(kind)), Route(kind.path, _html(kind))]
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


def _live(kind: Kind) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        guard.refuse_other_sites(request)  # not by a link either: nobody reads a stream
        if request.method == "HEAD":  # it has no end
            return Response(media_type="text/event-stream")
        source: Source = request.app.state.source
        path, query = dict(request.path_params), request.query_params
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

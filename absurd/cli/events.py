"""Events: emit, list, and who waits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from absurd.cli import options, output
from absurd.cli.connection import Target
from absurd.cli.options import Command, Json, Moment, json_option, pass_target, queue_option
from absurd.queries import document, events, filled, waits
from absurd.queries.events import Event, EventFilter
from absurd.queries.waits import Wait, WaitFilter


@click.command("emit-event", cls=Command)
@click.argument("name", metavar="NAME")
@queue_option
@click.option(
    "-P", "--param", "pairs", multiple=True, metavar="K=V", help="A key of the payload: k=text, k:=json, a.b=text."
)
@click.option("--payload", type=Json(), metavar="JSON", help="The payload as a whole; -P sets keys in it.")
@click.option(
    "--mode",
    type=click.Choice(["latch", "next"]),
    default="latch",
    show_default=True,
    help="latch: the first payload of a name stays; next: this one replaces it and wakes who waits now.",
)
@pass_target
def emit_event(
    target: Target, name: str, queue: str, pairs: tuple[str, ...], payload: list[Any] | None, mode: Any
) -> None:
    """Emit an event and wake the tasks that wait for it.

    An event is kept: a task that waits for it later gets the payload at once.

    \b
    Examples:
      absurdctl emit-event payment.confirmed:order-1 -q orders -P amount:=99.99
      absurdctl emit-event approved:7 --payload '{"by": "ada"}'
    """
    value = options.payload(payload, pairs, "--payload", None)
    target.require_queue(queue)
    if target.client(queue).emit_event(name, value, queue, mode=mode):
        output.line(f"Event '{name}' emitted successfully to queue '{queue}'")
        return
    output.line(f"Event '{output.plain(name)}' has a payload already and keeps it: nobody was woken")
    output.note("Hint: --mode next replaces the payload and wakes who waits now")


@click.command("list-events", cls=Command)
@queue_option
@click.option("-a", "--all-queues", is_flag=True, help="Every queue.")
@click.option("-n", "--name", metavar="NAME", help="This name, or a prefix: payment.*")
@click.option(
    "-s", "--state", type=click.Choice(["emitted", "pending"]), help="pending: somebody waits, nobody has emitted."
)
@click.option("--waiters", is_flag=True, help="Also who waits; with --json always.")
@click.option("--since", type=Moment(), metavar="WHEN", help="Emitted, or waited for, since: 30m, 7d, or a moment.")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Events at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where another list ended.")
@json_option
@pass_target
def list_events(
    target: Target,
    queue: str,
    all_queues: bool,
    name: str | None,
    state: Any,
    waiters: bool,
    since: datetime | None,
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """List events waited for, then those emitted.

    Those waited for by name, those emitted with the newest first.

    \b
    Examples:
      absurdctl list-events -q orders --state pending --waiters
      absurdctl list-events -q orders -n 'payment.*' --since 1h --json
    """
    if not all_queues:
        target.require_queue(queue)
    which = EventFilter(None if all_queues else queue, name, state, since, waiters or as_json, limit, after)
    page = filled(target.ask, events.find, which)
    if as_json:
        output.data(document.listed("events", page))
        return
    if page.items:
        _print(page.items, all_queues)
    output.line(f"Total: {len(page.items)} event(s)" if page.items else "No events found")
    if page.next:
        output.note(f"There are more: --after {page.next}")


@click.command("list-waits", cls=Command)
@queue_option
@click.option("-a", "--all-queues", is_flag=True, help="Every queue.")
@click.option("-e", "--event", metavar="NAME", help="For this event, or a prefix: payment.*")
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Waits at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where another list ended.")
@json_option
@pass_target
def list_waits(
    target: Target, queue: str, all_queues: bool, event: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """List who waits for what, those of the newest tasks first.

    For an event, or for another task; since when, and until when.

    \b
    Examples:
      absurdctl list-waits -q orders
      absurdctl list-waits -a -e 'payment.*' --json
    """
    if not all_queues:
        target.require_queue(queue)
    which = WaitFilter(None if all_queues else queue, event, limit=limit, after=after)
    page = filled(target.ask, waits.find, which)
    if as_json:
        output.data(document.listed("waits", page))
        return
    if page.items:
        columns = ("queue", "task", "name", "step", "waits for", "since", "until")
        output.table(columns, [_wait(each) for each in page.items])
        output.line()
    output.line(f"Total: {len(page.items)} wait(s)" if page.items else "Nobody waits")
    if page.next:
        output.note(f"There are more: --after {page.next}")


def _wait(wait: Wait) -> tuple[Any, ...]:
    what = wait.event_name if wait.event_name is not None else f"task {wait.awaited_task_id}"
    since, until = output.moment(wait.created_at), output.moment(wait.timeout_at)
    return wait.queue_name, wait.task_id, wait.task_name, wait.step_name, what, since, until


def _print(found: tuple[Event, ...], with_queue: bool) -> None:
    columns = ("event", "state", "at", "waiters", "payload")
    rows = [(e.event_name, e.state, _moment(e), _waiters(e), _payload(e)) for e in found]
    if with_queue:
        output.table(("queue", *columns), [(e.queue_name, *row) for e, row in zip(found, rows, strict=True)])
    else:
        output.table(columns, rows)
    for event in found:
        if event.waiter_list:
            output.section(f"Waiting for {output.plain(event.event_name)}")
            output.table(("task", "step", "since", "until"), [_waiter(each) for each in event.waiter_list])
    output.line()


def _moment(event: Event) -> str | None:
    return output.moment(event.emitted_at or event.waiting_since)


def _payload(event: Event) -> str | None:
    return output.short(event.payload, 60) if event.state == "emitted" else None


def _waiters(event: Event) -> str:
    return f"{event.waiters}+" if event.waiters_capped else str(event.waiters)


def _waiter(waiter: events.Waiter) -> tuple[Any, ...]:
    return waiter.task_id, waiter.step_name, output.moment(waiter.created_at), output.moment(waiter.timeout_at)

"""Everything at once: how each queue stands, and who works."""

from __future__ import annotations

import click

from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, json_option, pass_target
from absurd.queries import document, why
from absurd.queries import overview as questions
from absurd.queries.overview import QueueStand, Worker

_QUEUES = (
    "queue",
    "pending",
    "sleeping",
    "running",
    "due",
    "oldest due",
    "completed 1m",
    "failed 1m",
    "cancelled 1m",
    "tasks",
)


@click.command("overview", cls=Command)
@click.option(
    "-l", "--limit", type=click.IntRange(min=1), metavar="N", default=50, show_default=True, help="Queues at most."
)
@click.option("--after", metavar="CURSOR", help="Go on where another list ended.")
@json_option
@pass_target
def overview(target: Target, limit: int, after: str | None, as_json: bool) -> None:
    """Show how the queues stand and which workers were seen lately.

    Quick whatever the queues hold: large numbers are at least (>=) or about (~) so many.

    \b
    Examples:
      absurdctl overview
      absurdctl overview --json
    """
    page = target.ask(questions.find(after=after, limit=limit))
    workers = target.ask(questions.workers())
    if as_json:
        output.data(document.listed("queues", page, workers=workers))
        return
    if page.items:
        output.table(_QUEUES, [_queue(each) for each in page.items])
    else:
        output.line("No queues found")
    if page.next:
        output.note(f"There are more: --after {page.next}")
    if workers:
        output.section("Workers")
        output.table(("worker", "running", "last seen", "claims until", "queues"), [_worker(each) for each in workers])


def _queue(each: QueueStand) -> tuple[object, ...]:
    least, ended = (">=" if capped else "" for capped in (each.capped, each.ended_capped))
    stands = (f"{least}{count}" for count in (each.pending, each.sleeping, each.running, each.due))
    ends = (f"{ended}{count}" for count in (each.completed, each.failed, each.cancelled))
    oldest = why.span(each.as_of - each.oldest_due_at) if each.oldest_due_at else None
    return (each.queue_name, *stands, oldest, *ends, f"{'~' if each.tasks_estimated else ''}{each.tasks}")


def _worker(each: Worker) -> tuple[object, ...]:
    seen = f"{why.span(each.as_of - each.last_seen)} ago"
    return each.worker, each.running, seen, output.moment(each.lease_until), ", ".join(each.queues)

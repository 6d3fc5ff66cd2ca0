"""Queues: make, drop, list, policy, cleanup, purge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from absurd.cli import output
from absurd.cli.connection import Target
from absurd.cli.options import Command, confirm, json_option, pass_target, queue_argument, yes_option
from absurd.queries import queues, retention

_POLICY = (
    "storage_mode",
    "default_partition",
    "partition_lookahead",
    "partition_lookback",
    "cleanup_ttl",
    "cleanup_limit",
    "detach_mode",
    "detach_min_age",
    "default_max_attempts",
)


@click.command("create-queue", cls=Command)
@click.argument("name", metavar="NAME")
@click.option(
    "--storage-mode",
    type=click.Choice(["unpartitioned", "partitioned"]),
    default="unpartitioned",
    show_default=True,
    help="How its rows are stored; partitioned is not available yet.",
)
@pass_target
def create_queue(target: Target, name: str, storage_mode: Any) -> None:
    """Make a queue; one that exists stays as it is.

    \b
    Example:
      absurdctl create-queue orders
    """
    found = target.ask(queues.get(name))
    target.client().create_queue(name, storage_mode=storage_mode)
    output.line(f"Queue '{name}' already exists" if found else f"Queue '{name}' created successfully")


@click.command("drop-queue", cls=Command)
@queue_argument
@yes_option
@pass_target
def drop_queue(target: Target, queue: str, yes: bool) -> None:
    """Drop a queue with every task and event in it.

    Tasks elsewhere that wait for one of its tasks see it cancelled.

    \b
    Example:
      absurdctl drop-queue orders --yes
    """
    target.require_queue(queue, create=False)
    confirm(f"This deletes queue '{queue}' with every task and event in it.", yes)
    target.client().drop_queue(queue)
    output.line(f"Queue '{queue}' dropped successfully")


@click.command("list-queues", cls=Command)
@click.option("--counts", is_flag=True, help="Also how full each one stands; reads every unfinished task.")
@json_option
@pass_target
def list_queues(target: Target, counts: bool, as_json: bool) -> None:
    """List the queues, one per line.

    \b
    Examples:
      absurdctl list-queues
      absurdctl list-queues --counts
    """
    if counts:
        found = target.ask(queues.counts())
        if as_json:
            output.data({"queues": found})
        else:
            columns = (
                "queue",
                "pending",
                "sleeping",
                "running",
                "due",
                "oldest due",
                "completed 1d",
                "failed 1d",
                "cancelled 1d",
            )
            output.table(columns, [_count_cells(each) for each in found])
    elif as_json:
        output.data({"queues": target.ask(queues.find())})
    else:
        for each in target.ask(queues.find()):
            output.line(output.plain(each.queue_name))


@click.command("queue-policy", cls=Command)
@queue_argument
@click.option("--default-partition", metavar="MODE", help="enabled or disabled; for partitioned queues only.")
@click.option("--partition-lookahead", metavar="INTERVAL", help="Kept for partitioned queues.")
@click.option("--partition-lookback", metavar="INTERVAL", help="Kept for partitioned queues.")
@click.option("--cleanup-ttl", metavar="INTERVAL", help="How long ended tasks and events are kept: '30 days'.")
@click.option("--cleanup-limit", metavar="N", type=int, help="How many of each go in one batch.")
@click.option("--detach-mode", metavar="MODE", help="none or empty; kept for partitioned queues.")
@click.option("--detach-min-age", metavar="INTERVAL", help="Kept for partitioned queues.")
@click.option("--default-max-attempts", metavar="N", type=int, help="Attempts of tasks whose spawn names no limit.")
@json_option
@pass_target
def queue_policy(target: Target, /, queue: str, as_json: bool, **given: Any) -> None:
    """Show the policy of a queue, after setting what is given.

    \b
    Examples:
      absurdctl queue-policy orders
      absurdctl queue-policy orders --cleanup-ttl '7 days' --default-max-attempts 3
    """
    target.require_queue(queue)
    changes = {name: value for name, value in given.items() if value is not None}
    if "default_partition" in changes:
        raise click.BadParameter(
            f"it applies to partitioned queues only, queue '{queue}' is unpartitioned.",
            param_hint="'--default-partition'",
        )
    if changes:
        target.client().set_queue_policy(queue, **changes)
    found = target.require_queue(queue)
    if as_json:
        output.data(found)
        return
    output.line(f"Queue policy for '{queue}':")
    for name in _POLICY:
        value = getattr(found, name)
        output.line(f"  {name}: {'none' if value is None else value}")


@click.command(cls=Command)
@click.argument("queue", metavar="NAME", required=False)
@click.argument("ttl_days", metavar="TTL_DAYS", required=False, type=click.FloatRange(min=0))
@click.option("--all", "every", is_flag=True, help="Every queue, by its own policy; takes no NAME and no TTL_DAYS.")
@click.option(
    "-l",
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Rows of each kind in a batch.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Count what would go and delete nothing.")
@pass_target
def cleanup(target: Target, queue: str | None, ttl_days: float | None, every: bool, limit: int, dry_run: bool) -> None:
    """Delete tasks and events older than TTL_DAYS days.

    That is, tasks that ended and events that were emitted longer ago. In batches that commit one by one, so that nobody
    waits for it and an interrupted run keeps what it did.

    \b
    Examples:
      absurdctl cleanup orders 30
      absurdctl cleanup orders 7 --dry-run
      absurdctl cleanup --all
    """
    if every:
        if queue is not None:
            raise click.UsageError("--all takes the policy of every queue: leave NAME and TTL_DAYS out.")
        if dry_run:
            _print_would(_sum(target.ask(retention.expired_by_policy())))
        else:
            _cleanup_all(target)
        return
    if queue is None or ttl_days is None:
        raise click.UsageError("Missing NAME and TTL_DAYS (or --all).")
    target.require_queue(queue)
    ttl = int(min(ttl_days * 86400, 2**31 - 1))
    if dry_run:
        _print_would(target.ask(retention.expired(queue, ttl)))
    else:
        _cleanup(target, queue, ttl, limit)


@click.command("purge-queue", cls=Command)
@queue_argument
@yes_option
@pass_target
def purge_queue(target: Target, queue: str, yes: bool) -> None:
    """Delete every task and event of a queue; the queue stays.

    Whatever their state. Tasks elsewhere that wait for one of them see it cancelled.

    \b
    Example:
      absurdctl purge-queue orders --yes
    """
    target.require_queue(queue)
    confirm(f"This deletes every task and event of queue '{queue}'.", yes)
    tasks = target.client().purge_queue(queue)
    output.line(f"Queue '{queue}' purged: {tasks} tasks deleted")


def _cleanup(target: Target, queue: str, ttl: int, limit: int) -> None:
    def batch() -> tuple[retention.Amount, bool]:
        amount = target.ask(retention.delete(queue, ttl, limit))
        return amount, amount.tasks >= limit or amount.events >= limit

    _delete(batch, lambda: target.ask(retention.expired(queue, ttl)))


def _cleanup_all(target: Target) -> None:
    limits = {each.queue_name: each.cleanup_limit for each in target.ask(queues.find())}

    def batch() -> tuple[retention.Amount, bool]:
        done = target.ask(retention.delete_by_policy())
        full = (max(each.tasks_deleted, each.events_deleted) >= limits.get(each.queue_name, 1) for each in done)
        return _sum(done), any(full)

    _delete(batch, lambda: _sum(target.ask(retention.expired_by_policy())))


def _delete(batch: Callable[[], tuple[retention.Amount, bool]], count: Callable[[], retention.Amount]) -> None:
    """Batch after batch while there is more; counted first where somebody watches the bar."""
    total, iterations, more = retention.Amount(0, 0), 0, True
    expected = count() if output.interactive() else total
    with output.progress("Deleting", expected.tasks + expected.events) as advance:
        while more:
            amount, more = batch()
            total, iterations = total + amount, iterations + 1
            advance(amount.tasks + amount.events, f"Deleted {amount.tasks} tasks, {amount.events} events")
    output.line(f"Cleanup complete: {total.tasks} tasks, {total.events} events deleted in {iterations} iterations")


def _print_would(amount: retention.Amount) -> None:
    output.line(f"Would delete {amount.tasks} tasks, {amount.events} events")


def _sum(parts: tuple[retention.QueueAmount, ...]) -> retention.Amount:
    return retention.Amount(sum(each.tasks_deleted for each in parts), sum(each.events_deleted for each in parts))


def _count_cells(each: queues.QueueCounts) -> tuple[Any, ...]:
    ended = (each.completed_last_day, each.failed_last_day, each.cancelled_last_day)
    return (
        each.queue_name,
        each.pending,
        each.sleeping,
        each.running,
        each.due,
        output.moment(each.oldest_due_at),
        *ended,
    )

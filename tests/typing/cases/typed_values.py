"""mypy --strict reads this file: the types a handler sees. It is never run."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from absurd import (
    Absurd,
    AsyncAbsurd,
    AsyncTaskContext,
    ClaimedTask,
    QueuePolicy,
    RetryTaskResult,
    SpawnResult,
    StepHandle,
    TaskContext,
    TaskResultSnapshot,
    get_current_context,
)
from absurd._async.transaction import TransactionStep


class Order(BaseModel):
    order_id: int


class Receipt(BaseModel):
    total: int


app = Absurd("postgresql://localhost/shop")
async_app = AsyncAbsurd("postgresql://localhost/shop")


def charge() -> dict[str, int]:
    return {"total": 1}


async def charge_later() -> int:
    return 1


@app.register_task("plain", params=Order, result=Receipt)
def plain(order: Order, ctx: TaskContext) -> Receipt:
    assert_type(ctx.step("model", charge, returns=Receipt), Receipt)
    assert_type(ctx.step("untyped", charge), dict[str, int])
    assert_type(ctx.step("lambda", lambda: 1), int)
    assert_type(ctx.await_event("paid", returns=Receipt), Receipt)
    assert_type(ctx.await_event("paid", "step", 0.5, since="task_start", returns=Receipt), Receipt)
    assert_type(ctx.await_event("paid"), Any)
    assert_type(ctx.begin_step("open"), StepHandle)
    assert_type(ctx.spawn("child", order, priority=1), SpawnResult)
    assert_type(ctx.await_task_result("id", "other"), TaskResultSnapshot)
    assert_type(ctx.emit_event("done"), bool)
    assert_type(ctx.run_transaction("book", lambda tx: 1), int)
    assert_type(ctx.attempt, int)
    assert_type(ctx.is_replaying, bool)
    with ctx.transaction("book") as tx:
        tx.execute("select 1")
        tx.result = order
    return Receipt(total=1)


@async_app.register_task("awaited", params=Order)
async def awaited(order: Order, ctx: AsyncTaskContext) -> None:
    assert_type(await ctx.step("model", charge, returns=Receipt), Receipt)
    assert_type(await ctx.step("later", charge_later), int)
    assert_type(await ctx.step("now", charge), dict[str, int])
    assert_type(await ctx.await_event("paid", returns=Receipt), Receipt)
    assert_type(await ctx.await_event("paid"), Any)
    assert_type(await ctx.begin_step("open"), StepHandle)
    assert_type(await ctx.spawn("child", order), SpawnResult)
    assert_type(await ctx.await_task_result("id"), TaskResultSnapshot)
    assert_type(await ctx.run_transaction("book", book), str)
    assert_type(await ctx.run_transaction("count", lambda tx: 1), int)
    async with ctx.transaction("book") as tx:
        await tx.execute("select 1")


async def book(tx: TransactionStep) -> str:
    return "booked"


def register_gives_the_handler_back() -> None:
    receipt: Receipt = plain(Order(order_id=1), context())
    assert_type(receipt, Receipt)


def context() -> TaskContext:
    found = get_current_context()
    assert_type(found, TaskContext | AsyncTaskContext | None)
    assert isinstance(found, TaskContext)
    return found


def plain_client() -> None:
    spawned = app.spawn("plain", Order(order_id=1), delay=1.5)
    assert_type(spawned, SpawnResult)
    assert_type(app.spawn_many([{"task_name": "plain", "params": {}, "priority": 3}]), list[SpawnResult])
    assert_type(app.await_task_result(spawned["task_id"], timeout=1), TaskResultSnapshot)
    assert_type(app.fetch_task_result(str(spawned["task_id"])), TaskResultSnapshot | None)
    assert_type(app.retry_task(spawned["task_id"]), RetryTaskResult)
    assert_type(app.emit_many([("a", 1)], mode="next"), list[bool])
    assert_type(app.claim_tasks(), list[ClaimedTask])
    assert_type(app.get_queue_policy(), QueuePolicy | None)
    assert_type(app.list_queues(), list[str])
    with app as client:
        assert_type(client, Absurd)


async def async_client() -> None:
    assert_type(await async_app.spawn("awaited", {}), SpawnResult)
    assert_type(await async_app.emit_event("paid", 1), bool)
    async with async_app as client:
        assert_type(client, AsyncAbsurd)

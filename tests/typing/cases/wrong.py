"""mypy must refuse each marked line with the code it names, and no other. It is never run."""

from __future__ import annotations

from pydantic import BaseModel

from absurd import Absurd, AsyncAbsurd, AsyncTaskContext, StepHandle, TaskContext, TaskResultSnapshot


class Receipt(BaseModel):
    total: int


app = Absurd("postgresql://localhost/shop")
async_app = AsyncAbsurd("postgresql://localhost/shop")


def handler(params: object, ctx: TaskContext) -> None:
    total: str = ctx.step("model", lambda: 1, returns=Receipt)  # E: assignment
    print(ctx.step("model", lambda: 1, returns=Receipt).amount)  # E: attr-defined
    number: str = ctx.step("untyped", lambda: 1)  # E: assignment
    paid: int = ctx.await_event("paid", returns=Receipt)  # E: assignment
    ctx.await_event("paid", since=5)  # E: call-overload
    ctx.step("needs a function")  # E: call-overload
    ctx.emit_event("paid", mode="last")  # E: arg-type
    ctx.attempt = 2  # E: misc
    print(total, number, paid)


async def async_handler(params: object, ctx: AsyncTaskContext) -> None:
    receipt: Receipt = ctx.step("model", lambda: 1, returns=Receipt)  # E: assignment
    ctx.run_step("none here")  # E: attr-defined
    print(receipt)


app.spawn("a", {}, priority="high")  # E: arg-type
app.spawn("a", {}, max_attempt=1)  # E: call-arg
app.spawn("a", {}, retry_strategy={"kind": "sometimes"})  # E: arg-type
app.spawn("a", {}, cancellation={"max_wait": 1})  # E: arg-type
app.spawn_many([{"task_name": "a", "prio": 1}])  # E: typeddict-unknown-key
app.create_queue("a", storage_mode="sharded")  # E: arg-type
app.emit_event("a", mode="last")  # E: arg-type
TaskResultSnapshot("completed").state = "failed"  # E: misc
TaskResultSnapshot("finished")  # E: arg-type
StepHandle("a", "a", False).done = True  # E: misc
Absurd(7)  # E: arg-type
AsyncAbsurd(queue="a")  # E: call-arg

"""Documentation is a test: what is public is described, as it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import absurd
from absurd import telemetry
from absurd._sync import context
from tests.docs.pages import ROOT, blocks, pages

Connection = psycopg.Connection[Any]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def signatures(name: str) -> set[str]:
    """Every line of the text blocks of a page, continued lines joined, spaces made one."""
    found = set()
    for block in blocks(ROOT / "docs" / name):
        if block.language == "text":
            joined = re.sub(r"\n[ ]+", " ", block.text)
            found |= {" ".join(line.split()) for line in joined.splitlines()}
    return found


# -- SQL ---------------------------------------------------------------------------------------------------------------

_TYPES = (("timestamp with time zone", "timestamptz"), ("DEFAULT", "default"), ("TABLE(", "table("), ("SETOF", "setof"))


def functions(conn: Connection) -> dict[str, list[str]]:
    """name -> signatures, of every function of the schema, as the page writes them."""
    found: dict[str, list[str]] = {}
    question = """
        select proname, pg_get_function_arguments(oid), pg_get_function_result(oid) from pg_proc
         where pronamespace = 'absurd'::regnamespace order by 1, pronargs
    """
    for name, arguments, result in conn.execute(question):
        text = f"{name}({arguments}) → {result}"
        for long, short in _TYPES:
            text = text.replace(long, short)
        text = re.sub(r"default NULL::[\w\[\] ]+?(?=[,)])", "default null", text)
        text = re.sub(r"default ('[^']*')::\w+", r"default \1", text)
        found.setdefault(name, []).append(text)
    return found


def internal() -> set[str]:
    """The functions that the SQL reference names as internal."""
    section = page("sql.md").split("## Internal functions", 1)[1]
    return set(re.findall(r"`(\w+)`", section))


def test_every_function_of_the_schema_is_described_with_its_signature_or_named_as_internal(conn: Connection) -> None:
    written, inside = signatures("sql.md"), internal()
    for name, found in functions(conn).items():
        if name in inside:
            continue
        for signature in found:
            assert signature in written, (
                f"docs/sql.md does not have, and `{name}` is not among the internal:\n{signature}"
            )
        assert re.search(rf"^### .*`{name}`", page("sql.md"), re.M), f"docs/sql.md has no heading for {name}"


def test_the_sql_reference_describes_nothing_that_is_not_there(conn: Connection) -> None:
    found = functions(conn)
    known = {signature for each in found.values() for signature in each}
    for line in signatures("sql.md"):
        assert "→" not in line or line in known, f"docs/sql.md describes {line}"
    assert internal() <= set(found)


def test_the_views_of_the_sql_reference_are_the_read_model(conn: Connection) -> None:
    described = set(re.findall(r"^\| `absurd\.(\w+)`", page("sql.md"), re.M))
    question = "select viewname from pg_views where schemaname = 'absurd' and viewname not like 'compat%'"
    assert described == {name for (name,) in conn.execute(question)}


# -- Python ------------------------------------------------------------------------------------------------------------


def methods(kind: type) -> Iterator[tuple[str, str]]:
    """name, signature without annotations; of public methods and properties."""
    for name, member in inspect.getmembers(kind):
        if name.startswith("_"):
            continue
        if callable(member):
            yield name, f"{name}{_bare(member)}"
        elif isinstance(member, property) or inspect.isdatadescriptor(member):
            yield name, name


def _bare(function: Callable[..., Any]) -> str:
    shown = inspect.signature(function)
    kept = [
        each.replace(annotation=inspect.Parameter.empty) for each in shown.parameters.values() if each.name != "self"
    ]
    return str(shown.replace(parameters=kept, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize(
    "kind", [absurd.Absurd, context.TaskContext, absurd.TransactionStep], ids=lambda each: each.__name__
)
def test_every_public_method_is_described_with_its_signature(kind: type) -> None:
    text, written = page("sdk.md"), signatures("sdk.md")
    for name, signature in methods(kind):
        if "(" in signature:
            assert signature in written, (
                f"docs/sdk.md does not have the signature of {kind.__name__}.{name}:\n{signature}"
            )
        else:
            assert f"`{name}`" in text, f"docs/sdk.md does not mention {kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("async_kind", "sync_kind"),
    [
        (absurd.AsyncAbsurd, absurd.Absurd),
        (absurd.AsyncTaskContext, absurd.TaskContext),
        (absurd.AsyncTransactionStep, absurd.TransactionStep),
    ],
    ids=["client", "context", "transaction"],
)
def test_one_reference_serves_both_worlds(async_kind: type, sync_kind: type) -> None:
    only_sync = {"run_step"}  # a decorator cannot await
    assert {each for each in methods(sync_kind) if each[0] not in only_sync} == set(methods(async_kind))


def test_every_public_name_is_mentioned_in_the_sdk_reference() -> None:
    text = page("sdk.md") + page("errors.md")
    for name in absurd.__all__:
        assert re.search(rf"(?<!\w){name}(?!\w)", text), (
            f"neither docs/sdk.md nor docs/errors.md mentions absurd.{name}"
        )


def test_every_method_of_the_sdk_reference_has_an_example_that_runs() -> None:
    examples = "\n".join(block.text for block in blocks(ROOT / "docs" / "sdk.md") if block.language == "python")
    for kind, owner in ((absurd.Absurd, r"\w+"), (context.TaskContext, "ctx"), (absurd.TransactionStep, "tx")):
        for name, _ in methods(kind):
            assert re.search(rf"\b{owner}\.{name}\b", examples), (
                f"docs/sdk.md has no example with {kind.__name__}.{name}"
            )


def test_every_signal_is_described() -> None:
    for name in telemetry.SIGNALS:
        assert f"`{name}`" in page("testing.md"), f"docs/testing.md does not describe the signal {name}"


@pytest.mark.parametrize("kind", [absurd.Absurd, absurd.AsyncAbsurd, absurd.TaskContext, absurd.AsyncTaskContext])
def test_every_public_method_has_a_docstring(kind: type) -> None:
    # those the class docstring speaks of
    plain = {"task_id", "task_name", "attempt", "run_id", "queue_name", "headers", "log"}
    for name, member in inspect.getmembers(kind):
        if not name.startswith("_") and name not in plain:
            assert inspect.getdoc(member), f"{kind.__name__}.{name} has no docstring"
    for name in plain - {"log"}:
        if hasattr(kind, name) and "Context" in kind.__name__:
            assert name in (kind.__doc__ or "")


async def test_the_example_in_the_client_docstring_runs(database_url: str) -> None:
    for kind in (absurd.AsyncAbsurd, absurd.Absurd):
        example = inspect.cleandoc(kind.__doc__ or "").split("Example:", 1)[1]
        source = inspect.cleandoc(example).replace("postgresql://localhost/shop", database_url)
        assert database_url in source
        space: dict[str, Any] = {kind.__name__: kind}
        exec(source, space)
        app = space["app"]
        for call, arguments in (
            (app.create_queue, ()),
            (app.spawn, ("fulfil", {"items": ["lamp"], "order": 1})),
            (app.emit_event, ("paid:1", "paid")),
            (app.work_batch, ()),
        ):
            answer = call(*arguments)
            if inspect.isawaitable(answer):
                answer = await answer
            if call == app.spawn:
                task = answer
        snapshot = app.fetch_task_result(task["task_id"])
        if inspect.isawaitable(snapshot):
            snapshot = await snapshot
        assert (snapshot.state, snapshot.result) == ("completed", "paid")
        closed = app.close()
        if inspect.isawaitable(closed):
            await closed


# -- both --------------------------------------------------------------------------------------------------------------


def test_the_pages_promise_what_can_be_kept_and_name_nothing_that_is_not_published() -> None:
    for each in pages():
        text = each.read_text(encoding="utf-8")
        assert not re.search(r"exactly.once\W+(workflow|execution)", text, re.I), each
        assert not re.search(r"(pip|uv) (install|add) absurd\b", text), each
        assert not re.search("[\U0001f300-\U0001faff\u2600-\u27bf]", text), f"{each} has an emoji"
        assert not re.search(r"/(work|root|home)/\w", text), f"{each} names a folder of one machine"

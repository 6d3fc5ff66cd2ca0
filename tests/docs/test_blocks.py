"""What the pages show is what happens: each page is followed from its first block to its last."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from tests.docs.pages import GENERATED, RUN, TEXT, Block, blocks, name, pages
from tests.docs.reader import Mismatch, Reader, plain, transcript

_PAGES = [
    page for page in pages() if name(page) not in GENERATED and any(each.language in RUN for each in blocks(page))
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", _PAGES, ids=name)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, page_url: str, page_folder: Path) -> None:
    reader = Reader(page_url, page_folder)
    try:
        for block in blocks(page):
            if block.language not in RUN:
                continue
            if block.directive.startswith("skip"):
                print(f"{block} is not run: {block.directive.removeprefix('skip').lstrip(', ')}")
                continue
            reader.run(block)
    finally:
        reader.close()
    with psycopg.connect(plain(page_url), autocommit=True) as conn:
        if conn.execute("select to_regnamespace('absurd')").fetchone() != (None,):
            assert conn.execute("select * from absurd.check_invariants()").fetchall() == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_block_has_a_language_and_every_skip_a_reason(page: Path) -> None:
    for block in blocks(page):
        # a block that neither runs nor says that it is text is a block that nobody checks
        if name(page).startswith(("README", "docs")) and name(page) not in GENERATED:
            assert block.language in RUN + TEXT, f"{block} has no language: use one of {RUN + TEXT}"
        known = re.fullmatch(r"|skip, .{8,}|file [\w./-]+|raises \w+", block.directive, re.S)
        assert known, f"{block}: unknown comment {block.directive!r}"


_ID = ("01a1fa96-4b06-7000-975a-8074f80c0000", "01a1fa96-0000-7000-975a-8074f80c0000")

# -- the reader itself: a check that cannot fail is none ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "text", "complaint"),
    [
        ("python", "raise ValueError('no')", "ValueError: no"),
        ("python", "print(1)  # => 2", "says '2'"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nprint('a')  # => b", "says 'b'"),
        ("sql", "select 1 / 0;", "division by zero"),
        ("sql", "select 1; -- => 2", "says '2'"),
        ("sql", "select 1", "holds no statement"),
        ("console", "$ false", "ended with code 1"),
        ("console", "$ echo one; echo two\ntwo\none", "says 'one'"),
        ("console", "$ make nonsense", "no `make nonsense`"),
        ("console", "$ absurdctl create-queue", "ended with code 2"),
        ("bash", "exit 3", "ended the shell"),
    ],
)
def test_the_reader_notices_a_page_that_is_wrong(
    language: str, text: str, complaint: str, database_url: str, tmp_path: Path
) -> None:
    reader = Reader(database_url, tmp_path)
    try:
        with pytest.raises(Mismatch, match=re.escape(complaint)):
            reader.run(Block("page.md", 1, language, text))
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("language", "text", "directive"),
    [
        ("python", "import asyncio\nawait asyncio.sleep(0)\nprint('a')  # => a", ""),
        ("python", "1 / 0", "raises ZeroDivisionError"),
        ("sql", "select 'a;b' as x, 2 as y \\gset\nselect :'x' -- a remark; here\n;  -- => a;b", ""),
        ("sql", "select 1 / 0;", "raises 22012"),
        ("console", "$ echo 'a b' c\na ... c\n$ A=1\n$ echo $A\n1", ""),
        ("console", "$ absurdctl cleanup nope 1\nError: Queue 'nope' does not exist...", ""),
        ("console", f"$ echo {_ID[0]}\n{_ID[1]}\n$ echo {_ID[1]} | grep -c {_ID[0]}\n1", ""),
    ],
)
def test_the_reader_follows_a_page_that_is_right(
    language: str, text: str, directive: str, database_url: str, tmp_path: Path
) -> None:
    reader = Reader(database_url, tmp_path)
    try:
        reader.run(Block("page.md", 1, language, text, directive))
    finally:
        reader.close()


def test_a_transcript_is_commands_and_what_they_print() -> None:
    assert transcript("$ one \\\n> two\nsaid\n\n$ three\n") == [("one \\\ntwo", ["said"]), ("three", [])]

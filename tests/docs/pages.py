"""The pages of the documentation, and the blocks in them.

A page is one story: its blocks run in order, against one fresh database, in one folder. A comment before a block says
what differs, and is invisible to the reader:

    <!-- test: skip, the reason -->    the block is not run; the reason is printed
    <!-- test: file app.py -->         the block is written to that file, not run
    <!-- test: raises QueueNotFound -->   the block (python or sql) must end in this error, by class name or SQLSTATE
    <!-- test: hidden python           a block that runs and that no reader sees; ends at the closing -->
    ...
    -->

Lines in a block that say what comes out, checked in order, other lines in between allowed:

    python     print(x)  # => text
    sql        select …; -- => text | text      (the last row of the statement)
    console    the lines without `$ ` in front

`...` stands for anything, an id for any id; in later commands it is the one that came out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("python", "sql", "console", "bash")
TEXT = ("text", "json", "yaml", "ini", "toml")
# written by tools/cli_reference.py from the commands' own help, and checked by it
GENERATED = ("docs/cli.md",)

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$", re.M | re.S)
_COMMENT = re.compile(r"<!--\s*test:\s*(.*?)-->", re.S)


@dataclass(frozen=True)
class Block:
    """One fenced block, or a hidden one."""

    page: str
    line: int
    language: str
    text: str
    directive: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every page there is."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if page.exists()]


def name(page: Path) -> str:
    """The path of a page below the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, hidden ones too, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[int, Block]] = []
    taken: list[tuple[int, int]] = []
    for match in _FENCE.finditer(text):
        indent = match[1]
        body = "".join(line.removeprefix(indent) for line in match[3].splitlines(keepends=True))
        directive = ""
        for comment in _COMMENT.finditer(text[: match.start()]):
            if not text[comment.end() : match.start()].strip():
                directive = comment[1].strip()
        found.append((match.start(), _block(page, text, match.start(), match[2], body, directive)))
        taken.append(match.span())
    for comment in _COMMENT.finditer(text):
        inside = any(start <= comment.start() < end for start, end in taken)
        hidden = re.match(r"hidden (\w+)\n(.*)", comment[1], re.S)
        if hidden and not inside:
            found.append((comment.start(), _block(page, text, comment.start(), hidden[1], hidden[2], "")))
    return [block for _, block in sorted(found, key=lambda each: each[0])]


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!--.*?-->", "", text, flags=re.S)


def _block(page: Path, text: str, at: int, language: str, body: str, directive: str) -> Block:
    directive = "" if directive.startswith("hidden ") else directive
    return Block(name(page), text.count("\n", 0, at) + 1, language, body, directive)

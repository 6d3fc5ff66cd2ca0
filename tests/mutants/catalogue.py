"""The catalogue of mutations: what `mutations.toml` says, as values, and whether it still fits the sources."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = Path(__file__).with_name("mutations.toml")


@dataclass(frozen=True)
class Edit:
    """A text that stands in the file exactly once, and what it becomes."""

    text: str
    becomes: str


@dataclass(frozen=True)
class Mutation:
    """One fault, and the tests of which every one must fail."""

    name: str
    why: str
    file: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def stale(self, root: Path = ROOT) -> list[str]:
        """One line for each edit that no longer fits the file."""
        path = root / self.file
        if not path.exists():
            return [f"{self.name}: {self.file} is not there"]
        content = path.read_text(encoding="utf-8")
        return [
            f"{self.name}: {content.count(edit.text)} times in {self.file}, not once: {edit.text.strip()}"
            for edit in self.edits
            if content.count(edit.text) != 1
        ]

    def apply(self, root: Path) -> None:
        """Write the fault into the tree below `root`. ValueError when it is stale."""
        if found := self.stale(root):
            raise ValueError("\n".join(found))
        path = root / self.file
        content = path.read_text(encoding="utf-8")
        for edit in self.edits:
            content = content.replace(edit.text, edit.becomes)
        path.write_text(content, encoding="utf-8")


def mutations() -> list[Mutation]:
    """All of them, in the order of the file."""
    return [
        Mutation(
            name=entry["name"],
            why=" ".join(entry["why"].split()),
            file=entry["file"],
            edits=tuple(Edit(edit["text"], edit["becomes"]) for edit in entry["edits"]),
            tests=tuple(entry["tests"]),
        )
        for entry in tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))["mutation"]
    ]

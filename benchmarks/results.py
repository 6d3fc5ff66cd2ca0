"""JSON lines: one for the machine of each run of the harness, one for each row, system and setting. The last one counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Key = tuple[str, str, str]


class Results:
    """The lines of one file; written as soon as a row has ended, so that an interrupted run goes on from there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, dict[str, Any]] = {}
        self.machines: list[dict[str, Any]] = []
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                self._take(text)

    def has(self, row: str, system: str, setting: str) -> bool:
        """Whether there is a figure, not merely an error."""
        return self.lines.get((row, system, setting), {}).get("median") is not None

    def of(self, row: str, *systems: str) -> list[dict[str, Any]]:
        """The lines of a row, of these systems only where some are named."""
        return [
            line for (name, system, _), line in self.lines.items() if name == row and (not systems or system in systems)
        ]

    def put(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines and let them count."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                text = json.dumps(line)
                file.write(text + "\n")
                self._take(text)

    def _take(self, text: str) -> None:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            return  # the line a kill cut off; its row is measured again
        if line.get("kind") == "machine":
            self.machines.append(line)
        else:
            self.lines[line["row"], line["system"], line["setting"]] = line

    def compact(self) -> None:
        """Drop the lines that no longer count."""
        if self.path.exists():
            kept = [*self.machines[-1:], *self.lines.values()]
            draft = self.path.with_suffix(".new")
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            draft.replace(self.path)

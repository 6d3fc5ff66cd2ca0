"""Horizontal bars as SVG: the median, a whisker from least to greatest. No dependency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.figures import rounded

_WIDTH, _LEFT, _BAR, _GAP, _TOP = 760, 290, 18, 8, 44
_COLOURS = {"ours-async": "#1f6f5c", "ours-sync": "#3b9b82", "floor": "#8a8a8a"}
_PEER = "#c08a3e"


def bars(title: str, unit: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the lines that have a figure; the labels say system and setting."""
    known = [line for line in lines if line.get("median") is not None]
    longest = max((line["max"] for line in known), default=0) or 1
    scale = (_WIDTH - _LEFT - 90) / longest
    height = _TOP + len(known) * (_BAR + _GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="22" font-size="15" fill="#222222">{escape(title)}, {escape(unit)}</text>',
    ]
    for place, line in enumerate(known):
        parts += _bar(line, _TOP + place * (_BAR + _GAP), scale)
    return "\n".join([*parts, "</svg>", ""])


def _bar(line: Mapping[str, Any], top: int, scale: float) -> list[str]:
    middle, length = top + _BAR / 2, line["median"] * scale
    least, greatest = _LEFT + line["min"] * scale, _LEFT + line["max"] * scale
    colour = _COLOURS.get(line["system"], _PEER)
    label = escape(f"{line['system']}, {line['setting']}")
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4:.0f}" text-anchor="end" fill="#222222">{label}</text>',
        f'<rect x="{_LEFT}" y="{top}" width="{max(length, 1):.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<line x1="{least:.1f}" y1="{middle}" x2="{greatest:.1f}" y2="{middle}" stroke="#222222"/>',
        f'<text x="{greatest + 6:.1f}" y="{middle + 4:.0f}" fill="#222222">{rounded(line["median"])}</text>',
    ]

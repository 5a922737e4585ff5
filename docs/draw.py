"""Draws the diagrams of the pages: `python docs/draw.py` writes an SVG beside each text in docs/diagrams/.

A text is one diagram. Its first line names the parts, separated by `|`; each further line is a step:

    producer | Redis | worker
    producer -> Redis: publish
    worker -> worker: run

Blank lines and lines that begin with `#` are left out.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "diagrams"

_COLUMN: Final = 190
_ROW: Final = 40
_HEAD: Final = 34
_MARGIN: Final = 16
_BOX: Final = 150
_LOOP: Final = 26

_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#1f2937}"
    ".part{fill:#eef2ff;stroke:#4f46e5}.line{stroke:#9ca3af;stroke-dasharray:4 4}"
    ".step{stroke:#4f46e5;fill:none}.ground{fill:#ffffff}"
)


def drawn(text: str) -> str:
    """Return a diagram's SVG.

    Raises:
        ValueError: A line is no step, or names a part that the first line does not.
    """
    head, *steps = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = [name.strip() for name in head.split("|")]
    middles = {name: _MARGIN + _BOX / 2 + number * _COLUMN for number, name in enumerate(parts)}
    width = 2 * _MARGIN + _BOX + (len(parts) - 1) * _COLUMN
    height = 2 * _MARGIN + _HEAD + (len(steps) + 1) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#4f46e5"/></marker></defs>',
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    for name, middle in middles.items():
        lines += [
            f'<line class="line" x1="{middle}" x2="{middle}" y1="{_MARGIN + _HEAD}" y2="{height - _MARGIN}"/>',
            f'<rect class="part" x="{middle - _BOX / 2}" y="{_MARGIN}" width="{_BOX}" height="{_HEAD}" rx="6"/>',
            f'<text x="{middle}" y="{_MARGIN + 22}" text-anchor="middle">{escape(name)}</text>',
        ]
    for number, step in enumerate(steps, start=1):
        lines += _step(step, middles, _MARGIN + _HEAD + number * _ROW)
    return "\n".join([*lines, "</svg>", ""])


def _step(step: str, middles: dict[str, float], y: float) -> list[str]:
    way, colon, label = step.partition(": ")
    source, arrow, target = (word.strip() for word in way.partition("->"))
    if not colon or not arrow or source not in middles or target not in middles:
        raise ValueError(f"{step!r} is no step between {', '.join(middles)}")
    start, end = middles[source], middles[target]
    if source == target:
        path = f"M{start} {y - 10}h{_LOOP}v14h{-_LOOP + 4}"
        text = f'<text x="{start + _LOOP + 8}" y="{y + 1}">{escape(label)}</text>'
    else:
        path = f"M{start} {y}L{end} {y}"
        text = f'<text x="{(start + end) / 2}" y="{y - 6}" text-anchor="middle">{escape(label)}</text>'
    return [f'<path class="step" d="{path}" marker-end="url(#tip)"/>', text]


def main() -> None:
    """Draw each diagram."""
    for path in sorted(FOLDER.glob("*.txt")):
        path.with_suffix(".svg").write_text(drawn(path.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(f"{path.with_suffix('.svg').name}\n")


if __name__ == "__main__":
    main()

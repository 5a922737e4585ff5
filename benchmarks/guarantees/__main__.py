"""`python -m benchmarks.guarantees`: measures what engines do alone, and what they do under taskbridge.

    python -m benchmarks.guarantees --row killed-worker --column celery+redis:raw   # one cell
    python -m benchmarks.guarantees --write docs                                    # all, into the page

It starts private servers and stops them. All cells take about a quarter of an hour.

Exit code: 0 if each cell of taskbridge's kept its guarantee, 1 if one did not, 2 if the arguments are wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.guarantees import page, results
from benchmarks.guarantees import rows as _rows  # fills the table
from benchmarks.guarantees.columns import COLUMNS, column_of
from benchmarks.guarantees.measuring import measure
from benchmarks.guarantees.results import Cell
from benchmarks.guarantees.table import ROWS, row_of
from taskbridge import TaskBridgeError

assert _rows.__all__


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and perhaps write.

    Args:
        argv: The arguments; the process's own if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guarantees",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--row", action="append", metavar="NAME", help="only this row; may be given several times")
    parser.add_argument(
        "--column", action="append", metavar="NAME", help="only this column, such as celery+redis:raw; as above"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="keep the figures in guarantees.json there, write guarantees.md"
    )
    parser.add_argument(
        "--no-measuring", action="store_true", help="with --write: only write the page, from figures that are there"
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")
    arguments = parser.parse_args(argv)
    folder: Path | None = arguments.write
    if arguments.no_measuring and folder is None:
        parser.error("--no-measuring only writes the page: it needs --write")
    if folder is not None and not folder.is_dir():
        parser.error(f"there is no folder {str(folder)!r} to write to")
    try:
        cells = [] if arguments.no_measuring else _measured(arguments)
    except TaskBridgeError as exc:
        parser.error(str(exc))
    if folder is not None and not cells:
        _write(folder, cells)
    print(json.dumps(results.as_json(cells), indent=2) if arguments.json else "\n".join(map(_described, cells)))
    return int(any(not cell.outcome.kept and not cell.column.endswith(":raw") for cell in cells))


def _measured(arguments: argparse.Namespace) -> list[Cell]:
    rows = [row_of(name) for name in arguments.row or ROWS]
    columns = [column_of(name) for name in arguments.column] if arguments.column else list(COLUMNS)
    lock = threading.Lock()
    count = 0

    def done(cell: Cell) -> None:
        nonlocal count
        with lock:
            count += 1
            if arguments.write is not None:  # after each, for it may be ended before it is through
                _write(arguments.write, [cell])
            told = f"{count}/{len(rows) * len(columns)} {_described(cell)} ({cell.took_s:.0f} s)"
            print(told, file=sys.stderr, flush=True)

    return measure(rows, columns, done=done)


def _described(cell: Cell) -> str:
    verdict = "kept" if cell.outcome.kept else "BROKEN"
    return f"{verdict:<6} {cell.row} {cell.column}: {cell.outcome.figure}"


def _write(folder: Path, cells: Sequence[Cell]) -> None:
    kept = results.load(folder / results.FILE)
    kept |= {(cell.row, cell.column): cell for cell in cells}
    results.save(folder / results.FILE, kept.values())
    # Read again, so that the page is what the file says.
    text = page.page(results.load(folder / results.FILE))
    (folder / page.FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

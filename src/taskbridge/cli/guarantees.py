"""`taskbridge verify --matrix`: measures what engines do alone, and what they do under taskbridge."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from taskbridge.cli.arguments import UsageError
from taskbridge.cli.show import print_json
from taskbridge.exceptions import NotInstalledError

if TYPE_CHECKING:
    from taskbridge.contract.guarantees.results import Cell

_LIBRARIES: Final = ("celery", "dramatiq", "redis", "pika")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the matrix to the command's."""
    group = parser.add_argument_group("the guarantees, measured on servers of their own")
    group.add_argument(
        "--matrix", action="store_true", help="measure the engines alone and under taskbridge, and print the figures"
    )
    group.add_argument("--row", action="append", metavar="NAME", help="only this row; may be given several times")
    group.add_argument(
        "--column", action="append", metavar="NAME", help="only this column, such as celery+redis:raw; as above"
    )
    group.add_argument(
        "--write", type=Path, metavar="FOLDER", help="keep the figures in guarantees.json there, write guarantees.md"
    )
    group.add_argument(
        "--no-measuring", action="store_true", help="with --write: only write the page, from figures that are there"
    )


def run(arguments: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Measure, print and perhaps write.

    Args:
        arguments: The command's.
        tell: Told of each cell as it comes.
    """
    if arguments.urls or arguments.rule:
        raise UsageError("verify: --matrix takes no URL and no --rule: it starts servers of its own")
    if arguments.no_measuring and arguments.write is None:
        raise UsageError("verify: --no-measuring only writes the page: it needs --write")
    if arguments.write is not None and not arguments.write.is_dir():
        raise UsageError(f"verify: there is no folder {str(arguments.write)!r} to write to")
    cells: Sequence[Cell] = [] if arguments.no_measuring else _measured(arguments, tell)
    if arguments.write is not None and not cells:
        _write(arguments.write, cells)
    if arguments.json:
        from taskbridge.contract.guarantees.results import as_json

        print_json(as_json(cells))
    else:
        for cell in cells:
            print(_described(cell))
    return 1 if any(not cell.outcome.kept and not cell.column.endswith(":raw") for cell in cells) else 0


def _measured(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Sequence[Cell]:
    from taskbridge.contract.guarantees import rows as _rows  # fills the table
    from taskbridge.contract.guarantees.columns import COLUMNS, column_of
    from taskbridge.contract.guarantees.measuring import measure
    from taskbridge.contract.guarantees.table import ROWS, row_of

    assert _rows.__all__
    rows = [row_of(name) for name in arguments.row or ROWS]
    columns = [column_of(name) for name in arguments.column] if arguments.column else list(COLUMNS)
    for library in _LIBRARIES:
        if find_spec(library) is None:
            raise NotInstalledError(f"{library}, which measuring needs,", "all")
    lock = threading.Lock()
    count = 0

    def done(cell: Cell) -> None:
        nonlocal count
        with lock:
            count += 1
            if arguments.write is not None:  # after each, for it may be ended before it is through
                _write(arguments.write, [cell])
            tell(f"{count}/{len(rows) * len(columns)} {_described(cell)} ({cell.took_s:.0f} s)")

    return measure(rows, columns, done=done)


def _described(cell: Cell) -> str:
    verdict = "kept" if cell.outcome.kept else "BROKEN"
    return f"{verdict:<6} {cell.row} {cell.column}: {cell.outcome.figure}"


def _write(folder: Path, cells: Sequence[Cell]) -> None:
    from taskbridge.contract.guarantees import page, results

    kept = results.load(folder / results.FILE)
    kept |= {(cell.row, cell.column): cell for cell in cells}
    results.save(folder / results.FILE, kept.values())
    # Read again, so that the page is what the file says.
    text = page.page(results.load(folder / results.FILE))
    (folder / page.FILE).write_text(text, encoding="utf-8")

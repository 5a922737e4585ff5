"""`taskbridge demo`: the same small shop on both engines, live, and then side by side."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from taskbridge.cli.arguments import Commands, add_command
from taskbridge.cli.show import Paint
from taskbridge.exceptions import NotInstalledError

if TYPE_CHECKING:
    from taskbridge.cli.demo.report import Run

_DESCRIPTION = """\
Run the same small shop on Celery and then on Dramatiq, live, a line an event, and compare them: attempts, delays,
queues, priorities and how each message ended.

  taskbridge demo           both engines, embedded in a process: no server needed
  taskbridge demo redis     over a private redis-server, with real workers in processes of their own

Exit code: 0 if both did the same, 1 if not.

Then: read the shop (its place is printed at the end), and start with your own: `taskbridge check --help`.
"""

_ENGINES = ("celery", "dramatiq")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", run, help="see the same shop run on both engines", description=_DESCRIPTION)
    parser.add_argument(
        "broker",
        nargs="?",
        choices=("memory", "redis"),
        default="memory",
        metavar="memory|redis",
        help="default: memory",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the shop on both engines and compare."""
    import shutil  # here and below, for the other commands need none of it

    from taskbridge.cli import shop
    from taskbridge.cli.demo import report
    from taskbridge.cli.demo.stage import DemoFailed

    _check_installed(arguments.broker)
    paint = Paint(sys.stdout)
    with ExitStack() as stack:
        address = "memory://" if arguments.broker == "memory" else _redis(stack)
        try:
            one, other = (_act(engine, arguments.broker, address, paint) for engine in _ENGINES)
        except DemoFailed as exc:
            print(exc.log, file=sys.stderr)
            raise
    print(f"\n{paint('bold', 'Side by side')}\n")
    print(report.comparison(one, other, width=_width(shutil.get_terminal_size((120, 24)).columns), paint=paint))
    same = report.is_identical(one, other)
    print(f"\n{_conclusion(one, same, paint)}")
    print(f"The shop: {shop.__file__}")
    return 0 if same else 1


def _check_installed(broker: str) -> None:
    """Refuse to begin without what the demo needs; it would be told late, by a process of the shop."""
    from importlib.util import find_spec

    for library in (*_ENGINES, *(("redis",) if broker == "redis" else ())):
        if find_spec(library) is None:
            raise NotInstalledError(f"{library}, which the demo needs,", library)


def _width(columns: int) -> int:
    return columns if sys.stdout.isatty() else 120


def _redis(stack: ExitStack) -> str:
    from taskbridge.contract.servers import PrivateRedis

    return stack.enter_context(PrivateRedis()).url


def _act(engine: str, broker: str, address: str, paint: Paint) -> Run:
    """Run the shop on one engine and print what happens."""
    from taskbridge.cli.demo import report
    from taskbridge.cli.demo.events import Note
    from taskbridge.cli.demo.stage import play

    url, target = f"{engine}+{address}", f"{engine}+{broker}"
    print(f"\n{paint('bold', f'TASKBRIDGE_URL={url}')}\n", flush=True)
    opened: list[float] = []

    def watch(note: Note) -> None:
        if note.what == "opened":
            opened.append(note.at)
        elif opened and (line := report.line(note, opened[0], paint)) is not None:
            print(line, flush=True)

    return report.run_of(target, play(url, target=target, watch=watch))


def _conclusion(one: Run, same: bool, paint: Paint) -> str:
    runs = sum(len(story.starts) for story in one.stories)
    if not same:
        return paint("red", "Not identical: this is a bug in taskbridge, please report it with the output above.")
    word = paint("green", "Identical")
    return f"{word}: {len(one.stories)} messages, {runs} runs each; the same code, one setting changed."

"""`./scripts/demo`: the same small shop on Celery and then on Dramatiq, live, and then side by side."""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import ExitStack
from importlib.util import find_spec

from examples.demo import report, shop
from examples.demo.events import Note
from examples.demo.report import Paint, Run
from examples.demo.stage import DemoFailed, play
from taskbridge import NotInstalledError, TaskBridgeError
from tests.servers import PrivateRedis

DESCRIPTION = """\
Run the same small shop on Celery and then on Dramatiq, live, a line an event, and compare them: attempts, delays,
queues, priorities and how each message ended.

  ./scripts/demo           both engines, embedded in a process: no server needed
  ./scripts/demo redis     over a private redis-server, with real workers in processes of their own

Exit code: 0 if both did the same, 1 if not.

Then: read the shop (its place is printed at the end), and start with your own: `taskbridge check --help`.
"""

ENGINES = ("celery", "dramatiq")
CTRL_C = 130  # 128 + SIGINT, what shells expect


def main() -> int:
    """Run the shop on both engines, compare, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="./scripts/demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("broker", nargs="?", choices=("memory", "redis"), default="memory", help="default: memory")
    broker = parser.parse_args().broker
    try:
        return run(broker, Paint(sys.stdout))
    except KeyboardInterrupt:
        return CTRL_C
    except TaskBridgeError as exc:
        print(f"demo: {exc}", *([exc.log] if isinstance(exc, DemoFailed) else []), sep="\n", file=sys.stderr)
        return 2


def run(broker: str, paint: Paint) -> int:
    for library in (*ENGINES, *(("redis",) if broker == "redis" else ())):
        if find_spec(library) is None:  # a process of the shop would say it late
            raise NotInstalledError(f"{library}, which the demo needs,", library)
    with ExitStack() as stack:
        address = "memory://" if broker == "memory" else stack.enter_context(PrivateRedis()).url
        one, other = (act(engine, broker, address, paint) for engine in ENGINES)
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 120
    print(f"\n{paint('bold', 'Side by side')}\n")
    print(report.comparison(one, other, width=width, paint=paint))
    same = report.is_identical(one, other)
    print(f"\n{conclusion(one, same, paint)}")
    print(f"The shop: {shop.__file__}")
    return 0 if same else 1


def act(engine: str, broker: str, address: str, paint: Paint) -> Run:
    """Run the shop on one engine and print what happens."""
    url, target = f"{engine}+{address}", f"{engine}+{broker}"
    print(f"\n{paint('bold', f'TASKBRIDGE_URL={url}')}\n", flush=True)
    opened: list[float] = []

    def watch(note: Note) -> None:
        if note.what == "opened":
            opened.append(note.at)
        elif opened and (line := report.line(note, opened[0], paint)) is not None:
            print(line, flush=True)

    return report.run_of(target, play(url, target=target, watch=watch))


def conclusion(one: Run, same: bool, paint: Paint) -> str:
    runs = sum(len(story.starts) for story in one.stories)
    if not same:
        return paint("red", "Not identical: this is a bug in taskbridge, please report it with the output above.")
    word = paint("green", "Identical")
    return f"{word}: {len(one.stories)} messages, {runs} runs each; the same code, one setting changed."


if __name__ == "__main__":
    sys.exit(main())

"""What the commands' arguments have in common: one-line errors, help that keeps its line breaks, `MODULE`, `--url`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeAlias

from taskbridge import Bridge, default_bridge
from taskbridge.exceptions import TaskBridgeError, nearest
from taskbridge.loading import APP_VARIABLE, load_bridge

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # pyright: ignore[reportPrivateUsage]
"""What `add_subparsers` returns; argparse has no public name for it."""

Run = Callable[[argparse.Namespace], int]
"""A command: it takes its arguments and returns the exit code."""


class UsageError(TaskBridgeError):
    """The command line asks for what can't be done."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as `UsageError`, and whose help texts keep their line breaks."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        words = self.prog.split()[1:]
        where = f"{' '.join(words)}: " if words else ""
        raise UsageError(f"{where}{message.removeprefix('argument COMMAND: ')} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:  # argparse's own words list all the choices
            raise argparse.ArgumentError(action, f"there is no {value!r}{nearest(value, choices)}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


def add_command(commands: Commands, name: str, run: Run, *, help: str, description: str) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    parser = commands.add_parser(name, help=help, description=description)
    parser.set_defaults(run=run)
    return parser


def add_app(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the argument `MODULE[:BRIDGE]` and the option `--url`."""
    left_out = f"the variable {APP_VARIABLE}" + ("" if required else ", else none: the environment's settings alone")
    parser.add_argument(
        "app",
        nargs="?",
        metavar="MODULE[:BRIDGE]",
        default=os.environ.get(APP_VARIABLE),
        help=f"the module that declares the tasks; if left out: {left_out}",
    )
    add_url(parser)
    parser.set_defaults(app_required=required)


def add_url(parser: argparse.ArgumentParser) -> None:
    """Add the option `--url`."""
    parser.add_argument(
        "--url",
        metavar="URL",
        help="the engine and broker; wins over TASKBRIDGE_URL and over what the module itself chooses",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--app`, `--url` and `--json`, for a command that needs no tasks but settings."""
    parser.add_argument(
        "--app",
        metavar="MODULE[:BRIDGE]",
        default=os.environ.get(APP_VARIABLE),
        help=f"the application whose settings count; default: {APP_VARIABLE}, else the environment alone",
    )
    add_url(parser)
    add_json(parser)


@contextmanager
def open_bridge(arguments: argparse.Namespace, *, or_store: bool = False) -> Generator[Bridge]:
    """Yield the bridge that the arguments name, and close it.

    Args:
        arguments: The command's.
        or_store: Whether a store of its own will do where the broker is memory.

    Raises:
        TaskBridgeError: There is none, or no other process can see its messages.
    """
    bridge = bridge_of(arguments)
    if not or_store or bridge.settings.store is None:
        check_has_server(bridge, "this command")
    try:
        yield bridge
    finally:
        bridge.close()


def bridge_of(arguments: argparse.Namespace) -> Bridge:
    """Return the bridge that the arguments name.

    Raises:
        TaskBridgeError: There is none, it can't be loaded, or its settings are wrong.
    """
    if arguments.app is None:
        if getattr(arguments, "app_required", False):
            command = arguments.command
            raise UsageError(f"{command}: which MODULE declares the tasks? Such as: taskbridge {command} shop.tasks")
        return _default_bridge(arguments.url)
    bridge = load_bridge(arguments.app, url=arguments.url)
    _ = bridge.settings
    return bridge


def _default_bridge(url: str | None) -> Bridge:
    bridge = default_bridge()
    if url is not None:
        bridge.move_to(url)
    _ = bridge.settings
    return bridge


def check_has_tasks(bridge: Bridge, app: str) -> None:
    """Refuse an application without tasks: nothing else would tell that its module is the wrong one."""
    if not bridge.declarations():
        raise UsageError(f"{app!r} declares no task on this bridge; name the module that holds the decorated functions")


def check_has_server(bridge: Bridge, subject: str) -> None:
    """Refuse a target whose messages no other process can see.

    Args:
        bridge: Whose target it is.
        subject: What the command looks for there, such as `a worker`.
    """
    address = bridge.settings.url
    if address.broker != "memory":
        return
    default = " (the default)" if address.engine == "inline" else ""
    raise UsageError(
        f"{address.target}://{default} keeps its messages in the process that sends them, where {subject} can't see "
        "them: set TASKBRIDGE_URL or --url to a server, such as celery+redis://localhost:6379/0"
    )


def count(text: str) -> int:
    """Return a whole number of at least 1, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 1, not {text!r}")
    return int(text)


def words(text: str) -> list[str]:
    """Return what is separated by commas, for `type=`."""
    return [word.strip() for word in text.split(",") if word.strip()]

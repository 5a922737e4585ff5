"""How a command is declared: its arguments, its help, the bridge that it works on, and what it prints."""

from __future__ import annotations

import argparse
import math
import os
import pwd
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from inspect import cleandoc
from typing import Any, NoReturn, TypeAlias

from taskbridge import Bridge, default_bridge, log_output
from taskbridge.acts import Outcome
from taskbridge.cli.output import LAYOUT, print_json, said_by
from taskbridge.engines.base import APP_VARIABLE
from taskbridge.exceptions import BrokerUnavailable, TaskBridgeError
from taskbridge.loading import app_of_environment, load_bridge
from taskbridge.log_output import CONFIG_VARIABLE, FORMAT_VARIABLE, FORMATS
from taskbridge.logs import escaped, logger
from taskbridge.remedies import COMMANDS, instead

Subcommands: TypeAlias = "argparse._SubParsersAction[Parser]"  # pyright: ignore[reportPrivateUsage]
"""What `add_subparsers` returns; argparse has no public name for it."""

Argument: TypeAlias = tuple[str, dict[str, Any]]  # what `ArgumentParser.add_argument` is called with

_log = logger("taskbridge.cli")


# The bridge that a command works on


class UsageError(TaskBridgeError):
    """The command line asks for what can't be done."""


def any_bridge(arguments: Namespace) -> Bridge:
    """Return the bridge of the application that is named; of the environment's settings alone if none is.

    Raises `TaskBridgeError` if it can't be loaded, or its settings are wrong.
    """
    if arguments.app is None:
        arguments.app = app_of_environment()
    if arguments.app is not None:
        bridge = load_bridge(arguments.app, url=arguments.url)
    else:
        bridge = default_bridge()
        if arguments.url is not None:
            bridge.move_to(arguments.url)
    _ = bridge.settings
    return bridge


def app_bridge(arguments: Namespace) -> Bridge:
    """Return the bridge of the application that is named; raise `UsageError` if none is."""
    bridge = any_bridge(arguments)
    if arguments.app is None:
        name = arguments.command
        raise UsageError(f"{name}: which MODULE declares the tasks? Such as: taskbridge {name} shop.tasks")
    return bridge


def logging_bridge(arguments: Namespace) -> Bridge:
    """Return the application's bridge, as `app_bridge` does, and log as the `LOG_ARGUMENTS` say, also for children."""
    for variable, given in ((FORMAT_VARIABLE, arguments.log_format), (CONFIG_VARIABLE, arguments.log_config)):
        if given is not None:
            os.environ[variable] = given
    with log_output.set_up(arguments.log_level):
        said_by[:] = [log_output.own_lines()]
        bridge = app_bridge(arguments)
        log_output.process.engine = bridge.settings.url.engine
    said_by[:] = [log_output.own_lines()]
    return bridge


def server_bridge(arguments: Namespace) -> Bridge:
    """Return the bridge as `any_bridge` does, if other processes can see its messages; else raise `UsageError`."""
    return checked_server(any_bridge(arguments), "this command")


def stored_bridge(arguments: Namespace) -> Bridge:
    """Return the bridge as `any_bridge` does, if other processes can see its messages, or at least its store."""
    bridge = any_bridge(arguments)
    return bridge if bridge.settings.store is not None else checked_server(bridge, "this command")


def checked_server(bridge: Bridge, subject: str) -> Bridge:
    """Return the bridge, if others than the process that sends its messages can see them; else raise `UsageError`.

    `subject` is what looks for them there, such as `a worker`.
    """
    address = bridge.settings.url
    if address.broker != "memory":
        return bridge
    default = " (the default)" if address.engine == "inline" else ""
    raise UsageError(
        f"{address.target}://{default} keeps its messages in the process that sends them, where {subject} can't see "
        "them: set TASKBRIDGE_URL or --url to a server, such as celery+redis://localhost:6379/0"
    )


def check_has_tasks(bridge: Bridge, app: str) -> None:
    """Refuse an application without tasks: nothing else would tell that its module is the wrong one."""
    if not bridge.declarations():
        remedy = "name the module that holds the decorated functions, and see that each has its @task"
        raise UsageError(f"{app!r} declares no task on this bridge; {remedy}")


def no_bridge(_: Namespace) -> Bridge:
    """Return the default bridge, for a command that asks it for nothing."""
    return default_bridge()


# Commands


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What a command prints, and its exit code."""

    text: str | None = None  # for people; None if there is nothing, or the command has printed it as it went on
    data: Any = None  # for programs, with `--json`
    code: int = 0  # the exit code
    acts: Sequence[tuple[str, str]] = ()  # what was done, and to what, for the hook `operated`


def acted(outcome: Outcome, action: str, target: str, data: Any) -> Output:
    """Return what a command prints of an act, and its exit code, which is 1 if nothing was done."""
    acts = [(action, target)] if outcome.is_done else []
    return Output(text=outcome.text, data=data, code=0 if outcome.is_done else 1, acts=acts)


Opens: TypeAlias = Callable[[Namespace], Bridge]
Run: TypeAlias = Callable[[Bridge, Namespace], Output]


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command: `run` does what it is for, on the bridge that `opens` returns. Or a group of the commands `below`."""

    name: str
    help: str
    description: str
    arguments: tuple[Argument, ...] = ()
    opens: Opens = stored_bridge
    run: Run | None = None
    below: tuple[Command, ...] = ()

    def add_to(self, commands: Subcommands) -> None:
        """Add the command to a command line."""
        parser = commands.add_parser(self.name, help=self.help, description=self.description)
        for argument_name, how in self.arguments:
            parser.add_argument(argument_name, **how)
        if self.run is not None:
            parser.set_defaults(do=self._do)
            return
        below: Subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="below", required=True)
        for each in self.below:
            each.add_to(below)

    def _do(self, arguments: Namespace) -> int:
        assert self.run is not None
        with closing(self.opens(arguments)) as bridge:
            try:
                output = self.run(bridge, arguments)
            except BrokerUnavailable as exc:  # a part may be done
                _log.info("%s tried %s: %s", _operator(), self.name, exc)
                raise
            for action, target in output.acts:
                bridge.hooks.operated(_operator(), action, target)
        if getattr(arguments, "json", False):
            print_json(output.data)
        elif output.text is not None:
            print(escaped(output.text, keep=LAYOUT))
        return output.code


def _operator() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name  # what the environment says, anybody can set
    except KeyError:  # a container's user may have no name
        return str(os.getuid())


def command(help: str, *arguments: Argument, opens: Opens = stored_bridge) -> Callable[[Run], Command]:
    """Return a decorator that makes a command of a function: it has its name, and its docstring as the description."""

    def make(run: Run) -> Command:
        name, description = getattr(run, "__name__", "").lstrip("_"), cleandoc(run.__doc__ or "")
        return Command(name=name, help=help, description=description, arguments=arguments, opens=opens, run=run)

    return make


# Arguments that several commands have


def argument(name: str, metavar: str, help: str, **how: Any) -> Argument:
    """Return an argument or option that has a value; see `ArgumentParser.add_argument`."""
    return name, {"metavar": metavar, "help": help, **how}


def flag(name: str, help: str) -> Argument:
    """Return an option without a value."""
    return name, {"action": "store_true", "help": help}


def _number(read: Callable[[str], float], is_one: Callable[[float], bool], what: str) -> Callable[[str], Any]:
    """Return a `type=` that takes such numbers only."""

    def number(text: str) -> float:
        with suppress(ValueError):
            if is_one(found := read(text)):
                return found
        raise argparse.ArgumentTypeError(f"it must be {what}, not {text!r}")

    return number


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else -1


count: Callable[[str], int] = _number(_whole, lambda found: found >= 1, "a whole number of at least 1")
port: Callable[[str], int] = _number(
    _whole, lambda found: 0 <= found <= 65535, "a number from 0 to 65535"
)  # 0 is any that is free
above_zero: Callable[[str], float] = _number(float, lambda found: 0 < found < math.inf, "a number above 0")


def words(text: str) -> list[str]:
    """Return what is separated by commas, for `type=`."""
    return [word.strip() for word in text.split(",") if word.strip()]


_LEFT_OUT = f"the module that declares the tasks; if left out: the variable {APP_VARIABLE}, or a Django project"

MODULE = argument("app", "MODULE[:BRIDGE]", _LEFT_OUT, nargs="?")
MODULE_OR_NONE = argument(
    "app", "MODULE[:BRIDGE]", f"{_LEFT_OUT}, else none: the environment's settings alone", nargs="?"
)
APP = argument(
    "--app",
    "MODULE[:BRIDGE]",
    f"the application whose settings count; default: {APP_VARIABLE}, else the environment alone",
)
URL = argument(
    "--url", "URL", "the engine and broker; wins over TASKBRIDGE_URL and over what the module itself chooses"
)
JSON = flag("--json", "print JSON, for programs")
SETTINGS = (APP, URL, JSON)
LOG_LEVEL = argument(
    "--log-level",
    "LEVEL",
    "default: INFO",
    type=str.upper,
    choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    default="INFO",
)

LOG_FORMAT = argument(
    "--log-format", "FORMAT", f"text or json, one record a line; default: {FORMAT_VARIABLE}, else text", choices=FORMATS
)
LOG_CONFIG = argument(
    "--log-config",
    "FILE",
    f"a JSON or TOML file for logging.config.dictConfig, in the place of both; default: {CONFIG_VARIABLE}",
)
LOG_ARGUMENTS = (LOG_LEVEL, LOG_FORMAT, LOG_CONFIG)

# The parser


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as `UsageError`, and whose help texts keep their line breaks."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", partial(argparse.RawDescriptionHelpFormatter, max_help_position=28))
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        _, *names = self.prog.split()
        where = f"{' '.join(names)}: " if names else ""
        raise UsageError(f"{where}{message.removeprefix('argument COMMAND: ')} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:  # argparse's own words list all the choices
            foreign: Mapping[str, str] = COMMANDS if action.metavar == "COMMAND" and action.dest == "command" else {}
            raise argparse.ArgumentError(action, f"there is no {value!r}{instead(value, foreign, choices)}")

"""The command line: `taskbridge worker`, `check`, `queues`, `schedules`, `status`, `cancel`, `dead`, `store`, ..."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence

from taskbridge import log_output
from taskbridge._version import __version__
from taskbridge.bridge import Bridge
from taskbridge.cli import (
    check,
    command,
    dead,
    flows,
    messages,
    operations,
    pauses,
    queues,
    schedules,
    store,
    verify,
    web,
    worker,
)
from taskbridge.cli.output import said_by, say
from taskbridge.exceptions import BrokerUnavailable, StoreUnavailable, TaskBridgeError, needs

_DESCRIPTION = """\
One task decorator, one meaning, on Celery or on Dramatiq.

Start here:
  taskbridge check shop.tasks          is everything there that my application needs?
  taskbridge worker shop.tasks         run its tasks
"""

_EPILOG = """\
MODULE is the Python module that declares the tasks, such as shop.tasks; write MODULE:BRIDGE if it has several bridges.
It is looked for in the current directory too. Where it is left out, the variable TASKBRIDGE_APP names it;
where DJANGO_SETTINGS_MODULE is set, it is that Django project.

The engine and broker come from the setting `url` (TASKBRIDGE_URL), such as celery+redis://localhost:6379/0 or
dramatiq+amqp://guest:guest@localhost//. `taskbridge COMMAND --help` has an example of each command.

Exit codes: 0 all is well; 1 what was looked at is not as it should be; 2 it can't be done, and one line says why.
"""


@command.command(
    "let your shell complete commands and options",
    command.argument("shell", "SHELL", "bash, zsh or fish", choices=("bash", "zsh", "fish")),
    opens=command.no_bridge,
)
def completion(bridge: Bridge, arguments: Namespace) -> command.Output:
    """Print what lets a shell complete the commands and options of taskbridge, for the place where it looks for that.

    taskbridge completion bash > ~/.local/share/bash-completion/completions/taskbridge
    taskbridge completion zsh > "${fpath[1]}/_taskbridge"
    taskbridge completion fish > ~/.config/fish/completions/taskbridge.fish
    """
    with needs("argcomplete, which completes commands,", "completion"):
        from argcomplete.shell_integration import shellcode  # here, for it is an extra
    return command.Output(text=shellcode(["taskbridge"], shell=arguments.shell))


_COMMANDS = (
    *(worker.worker, schedules.scheduler, check.check, queues.routes, queues.queues, pauses.pause, pauses.resume),
    *(schedules.schedules, queues.health, queues.metrics, messages.status, messages.cancel, operations.running),
    *(operations.failures, operations.messages, operations.top, dead.dead, flows.flow, store.store, verify.verify),
    *(web.web, completion),
)

_CTRL_C = 130  # 128 + SIGINT, what shells expect


def main(argv: Sequence[str] | None = None, *, more: Sequence[command.Command] = ()) -> int:
    """Run the command line, that of the process if None is given, and return its exit code.

    It has the commands of taskbridge, and `more`.
    """
    # A command says itself what it means for it; where it doesn't matter, the warning would only be in the way.
    warnings.filterwarnings("ignore", message="no url is set", category=RuntimeWarning)
    try:
        parser = _parser((*_COMMANDS, *more))
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next
            import argcomplete  # here, for it is an extra

            argcomplete.autocomplete(parser)
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help()
            return 0
        code: int = arguments.do(arguments)
        sys.stdout.flush()
    except TaskBridgeError as exc:
        text = str(exc)
        if isinstance(exc, BrokerUnavailable) and not isinstance(exc, StoreUnavailable):
            text = exc.problem  # what became of a message is of no interest here
        _fail(text.strip().partition("\n")[0])
        return 2
    except ImportError as exc:  # a library that is too old, or half installed; an application's own is a LoadError
        _fail(f"{exc.name or 'a library'} can't be imported: {exc}")
        return 2
    except KeyboardInterrupt:
        return _CTRL_C
    except BrokenPipeError:  # `taskbridge routes shop | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own flush fails too
        return 1
    return code


def _fail(text: str) -> None:
    if log_output.is_plain():  # else its log is for programs
        said_by.clear()
    say(text, logging.ERROR)


def _parser(known: Sequence[command.Command] = _COMMANDS) -> command.Parser:
    parser = command.Parser(prog="taskbridge", usage="taskbridge COMMAND ...", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"taskbridge {__version__}")
    commands = parser.add_subparsers(prog="taskbridge", title="commands", metavar="COMMAND", dest="command")
    for each in known:
        each.add_to(commands)
    return parser

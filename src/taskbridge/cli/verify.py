"""`taskbridge verify`: tries every rule on the user's own servers."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from types import FrameType

from taskbridge.cli.arguments import Commands, UsageError, add_command, add_json, words
from taskbridge.cli.show import print_json, say

_DESCRIPTION = """\
Run the contract, the scenarios that prove each rule of taskbridge, on your own servers, and print a matrix: rule by
target, ok or FAIL. It starts workers on this machine, stops and kills them, and takes a few minutes a target.

  taskbridge verify celery+redis://localhost:6379/0 dramatiq+redis://localhost:6379/0
  taskbridge verify dramatiq+amqp://guest:guest@localhost// --rule R5 --rule D2
  taskbridge verify --list

What it makes on a server has names of its own, and is removed. Your queues are not touched, but the server gets load:
take one that nobody waits for.

Exit code: 0 if every cell is ok or not applicable, 1 if one fails.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "verify", run, help="try every rule on your own servers", description=_DESCRIPTION)
    parser.add_argument(
        "urls", nargs="*", metavar="URL", help="an engine and broker, such as inline:// or celery+redis://..."
    )
    parser.add_argument(
        "--rule",
        type=words,
        action="extend",
        metavar="R",
        default=None,
        help="only this rule; may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="print each rule with its scenarios, and end")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the contract and print the matrix, or print what is in it."""
    if arguments.list:
        return _list(as_json=arguments.json, rules=arguments.rule)
    if not arguments.urls:
        raise UsageError("verify: which URL? Such as: taskbridge verify celery+redis://localhost:6379/0")
    from taskbridge.contract.matrix import verify  # here, for no other command needs it

    logging.getLogger().addHandler(logging.NullHandler())  # an embedded engine tells of every failing task
    progress = _Progress()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        matrix = verify(arguments.urls, arguments.rule, progress=progress.tell)
    finally:
        progress.end()
    if arguments.json:
        print_json(matrix.as_json())
    else:
        print(matrix.render())
    return 0 if matrix.ok else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    say("stopping, once the scenarios that run now have ended their workers")
    raise KeyboardInterrupt


class _Progress:
    """Shows how far it is on stderr: on a terminal in one line, else a line a scenario."""

    def __init__(self) -> None:
        self._in_place = sys.stderr.isatty()

    def tell(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}" if self._in_place else f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._in_place:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _list(*, as_json: bool, rules: list[str] | None) -> int:
    from taskbridge.contract.matrix import scenarios_of
    from taskbridge.contract.rules import RULES

    proofs = {rule: scenarios_of(rule) for rule in rules or RULES}
    if as_json:
        print_json(
            [
                {
                    "rule": rule,
                    "text": RULES[rule],
                    "scenarios": [{"name": scenario.name, "title": scenario.title} for scenario in scenarios],
                }
                for rule, scenarios in proofs.items()
            ]
        )
        return 0
    for rule, scenarios in proofs.items():
        print(f"{rule:<3} {RULES[rule]}", *(f"      scenario  {scenario.name}" for scenario in scenarios), sep="\n")
    return 0

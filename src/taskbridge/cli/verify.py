"""`taskbridge verify`: tries every rule on the user's own servers."""

from __future__ import annotations

import logging
import signal
import sys
from argparse import Namespace

from taskbridge import Bridge
from taskbridge.cli.command import JSON, Output, UsageError, argument, command, flag, no_bridge, words
from taskbridge.cli.output import line, say


@command(
    "try every rule on your own servers",
    argument("urls", "URL", "an engine and broker, such as inline:// or celery+redis://...", nargs="*"),
    argument("--rule", "R", "only this rule; may be given several times", type=words, action="extend"),
    flag("--list", "print each rule with its scenarios, and end"),
    JSON,
    opens=no_bridge,
)
def verify(_: Bridge, arguments: Namespace) -> Output:
    """Run the contract, the scenarios that prove each rule of taskbridge, on your own servers, and print a matrix.

    It shows rule by target, ok or FAIL. It starts workers on this machine, stops and kills them, and takes a few
    minutes a target.

      taskbridge verify celery+redis://localhost:6379/0 dramatiq+redis://localhost:6379/0
      taskbridge verify dramatiq+amqp://guest:guest@localhost// --rule R5 --rule D2
      taskbridge verify --list

    What it makes on a server has names of its own, and is removed. Your queues are not touched, but the server gets
    load: take one that nobody waits for.

    Exit code: 0 if every cell is ok or not applicable, 1 if one fails.
    """
    if arguments.list:
        return _list(arguments.rule)
    if not arguments.urls:
        raise UsageError("verify: which URL? Such as: taskbridge verify celery+redis://localhost:6379/0")
    from taskbridge.contract import matrix  # here, for no other command needs it

    # An embedded engine tells of every failing task.
    logging.getLogger().addHandler(logging.NullHandler())  # noqa: TID251 - it is the root's
    signal.signal(signal.SIGINT, _interrupt)
    try:
        found = matrix.verify(arguments.urls, arguments.rule, progress=line)
    finally:
        if sys.stderr.isatty():
            line("")
    return Output(text=found.render(), data=found.as_json(), code=0 if found.ok else 1)


def _interrupt(*_: object) -> None:
    say("stopping, once the scenarios that run now have ended their workers")
    raise KeyboardInterrupt


def _list(rules: list[str] | None) -> Output:
    from taskbridge.contract.matrix import scenarios_of
    from taskbridge.contract.rules import RULES

    lines: list[str] = []
    data: list[object] = []
    for rule in rules or RULES:
        scenarios = scenarios_of(rule)
        lines += [f"{rule:<3} {RULES[rule]}", *(f"      scenario  {scenario.name}" for scenario in scenarios)]
        proofs = [{"name": scenario.name, "title": scenario.title} for scenario in scenarios]
        data.append({"rule": rule, "text": RULES[rule], "scenarios": proofs})
    return Output(text="\n".join(lines), data=data)

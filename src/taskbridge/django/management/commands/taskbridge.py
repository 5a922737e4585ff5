"""`manage.py taskbridge worker`, `check`, `queues` and so on: the command line of taskbridge, in a Django project."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from taskbridge import cli
from taskbridge.django.import_beat import import_beat


def _main(arguments: Sequence[str]) -> int:
    return cli.main(arguments, more=[import_beat])


class Command(BaseCommand):
    """Hands all arguments on, but for Django's `--settings` and `--pythonpath`."""

    help = "Run a command of taskbridge, such as worker, check or queues."

    def run_from_argv(self, argv: list[str]) -> None:
        """Run what stands after `manage.py taskbridge`, and exit with its code."""
        django = CommandParser(add_help=False, allow_abbrev=False)
        django.add_argument("--settings")  # Django has obeyed both
        django.add_argument("--pythonpath")
        os.environ["PYTHONPATH"] = os.pathsep.join(_own_path())
        sys.exit(_main(django.parse_known_args(argv[2:])[1]))

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """Print the help of taskbridge, for `manage.py help taskbridge`."""
        _main(["--help"])

    def add_arguments(self, parser: CommandParser) -> None:
        """Take what `call_command` is given."""
        parser.add_argument("arguments", nargs="*")

    def handle(self, *args: Any, arguments: Sequence[str], **options: Any) -> None:
        """Run a command for `call_command("taskbridge", "check")`; if its code is not 0, it is a `CommandError`."""
        if code := _main(arguments):
            raise CommandError(f"taskbridge {' '.join(arguments)} ended with exit code {code}", returncode=code)


def _own_path() -> list[str]:
    """Return what manage.py has of its own on Python's path.

    The processes of a worker need it, for they are not started by manage.py, and perhaps from another folder.
    """
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    return [each for each in sys.path if each and not each.startswith(installed) and not each.endswith(".zip")]

"""Dramatiq's own command line, for `python -m`: its main process logs as its workers do."""

from __future__ import annotations

import os
import sys

from dramatiq.cli import main

from taskbridge import log_output
from taskbridge.engines.base import LEVEL_VARIABLE

if __name__ == "__main__":  # not in a child that doesn't fork
    log_output.process.engine = "dramatiq"
    with log_output.set_up(os.environ.get(LEVEL_VARIABLE, "INFO")):
        pass  # Dramatiq sets nothing up if something is
    sys.exit(main())

"""`python -m taskbridge` is the same as `taskbridge`."""

import sys

from taskbridge.cli import main

if __name__ == "__main__":
    sys.exit(main())

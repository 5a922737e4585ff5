"""Has the workers of these tests forked, as those of the contract are."""

from __future__ import annotations

from tests import forking

forking.install()

"""What a user names on Dramatiq's command line."""

from __future__ import annotations

import os

from tests.unit.dramatiq_shop import Shop

broker = Shop(os.environ).as_worker()

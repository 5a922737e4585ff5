"""What a worker of the contract loads: a bridge, configured by the environment, with the contract's tasks."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

from taskbridge import Bridge
from taskbridge.contract.tasks import Tasks, Variant

_variant: Variant = Variant(**json.loads(os.environ.get("TASKBRIDGE_CONTRACT_VARIANT", "{}")))

if _variant.logs:
    logging.basicConfig(filename=Path(os.environ["TASKBRIDGE_CONTRACT_FOLDER"]) / "own.log", level=logging.ERROR)
if _variant.ahead_s:
    _time, _ahead_s = time.time, _variant.ahead_s
    time.__dict__["time"] = lambda: _time() + _ahead_s

if _variant.dies:
    from taskbridge.contract import deaths  # here, for it imports what it changes

    deaths.prepare(_variant.dies)

bridge: Bridge = Bridge()
_folder = Path(os.environ["TASKBRIDGE_CONTRACT_FOLDER"])
tasks: Tasks = Tasks(bridge, _folder, _variant)

if bridge.settings.commit is not None:
    from taskbridge.contract.application import Application  # here, for few environments have one

    Application(bridge, _folder)

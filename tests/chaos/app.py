"""What a worker of a chaos run loads: a bridge, configured by the environment, with the tasks."""

from __future__ import annotations

import os
from pathlib import Path

from taskbridge import Bridge
from tests.chaos.tasks import DEPLOYED_FILE, FOLDER_VARIABLE, Tasks

_folder = Path(os.environ[FOLDER_VARIABLE])

bridge: Bridge = Bridge()
tasks: Tasks = Tasks(bridge, _folder, knows_late=(_folder / DEPLOYED_FILE).exists())

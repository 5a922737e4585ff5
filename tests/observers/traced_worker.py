"""What a worker of the traced application loads."""

from __future__ import annotations

from tests.observers.traced import application

bridge = application()

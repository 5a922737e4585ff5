"""What the demo's processes load: the shop, whose every event is written down."""

from taskbridge.cli import shop
from taskbridge.cli.demo.events import record

__all__ = ["shop"]

record()

"""What the demo's processes load: the shop, whose every event is written down."""

from examples.demo import shop
from examples.demo.events import record

__all__ = ["shop"]

record()

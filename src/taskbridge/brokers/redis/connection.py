"""The names of `client`, for rooms that look for them here."""

from taskbridge.brokers.redis.client import TROUBLE, Connect, Link, Request, connector, left_s, pack
from taskbridge.brokers.redis.scripts import Word

__all__ = ["TROUBLE", "Connect", "Link", "Request", "Word", "connector", "left_s", "pack"]

"""Engines: who consumes."""

"""Stores: what is known of attempts, beside the messages."""

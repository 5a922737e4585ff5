"""The store in a Redis database, normally the broker's own."""

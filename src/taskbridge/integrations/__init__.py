"""What ties taskbridge to libraries that it does not need: each module is imported by whoever uses it."""

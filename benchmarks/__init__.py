"""Measures taskbridge beside the engines alone and beside what a user would pick instead: `./scripts/bench --help`."""

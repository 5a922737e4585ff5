"""Schedules: when periodic tasks are due (`plan`), those of a bridge (`listing`), and who sends by them (`sender`)."""

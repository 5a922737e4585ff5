"""Flows: what follows a task (rules W).

`building` makes them, `plan` is their form in the store, `running` runs them, and `states` is what is known of them.
"""

"""Flows: what follows a task (rules W). `building` makes them, `states` says what is known of them, `running` runs them.

`plan` is the form in which a flow is stored.
"""

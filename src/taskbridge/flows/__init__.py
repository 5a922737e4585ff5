"""Flows: what follows a task (rules W).

`building`, `handle` and `results` are what applications get. `running` sends flows and does what is due, on top of
`publishing` (plans and steps), `reopening` (another life) and `reading` (what is known of them, as `states` says it).
`plan` is their form in the store.
"""

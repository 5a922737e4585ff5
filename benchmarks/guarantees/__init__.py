"""The guarantees: what users fear may go wrong, measured on the engines alone and on taskbridge.

A row is one such thing, such as a worker that is killed in the middle of a task. A column is an engine on a broker,
alone (`celery+redis:raw`, set up as well as its own settings allow) or under taskbridge (`celery+redis:taskbridge`). A
cell is measured with real workers on a private server: how many messages were lost, how many ran again, and how long
it took.

`python -m benchmarks.guarantees` measures; `docs/guarantees.md` shows what came of it.
"""

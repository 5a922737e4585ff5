"""The rules as scenarios, the reference model and the harness that runs them: plain Python, no pytest needed.

It is started by `taskbridge.contract.matrix.verify(["celery+redis://localhost:6379/0"])`.
"""
